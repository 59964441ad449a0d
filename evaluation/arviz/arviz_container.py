"""Named arrays as the container that ArviZ reads: InferenceData below ArviZ 1, xarray's DataTree from 1 on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray

from pp_models.arguments import TEXT, VALUES, each, mapping
from pp_models.files import replaced_atomically, reserve

SAMPLE_DIMS = ("chain", "draw")
#: what draws may lie along
SAMPLE_LAYOUTS = (SAMPLE_DIMS, ("sample",))
#: coordinate values by dimension
COORDS = mapping(VALUES, "be a mapping from dimensions to sequences of values")
DIMS = mapping(each(TEXT), "be a mapping from sites to the names of their dimensions")
CONTAINERS = ("inferencedata", "datatree")


class Variable(NamedTuple):
    """One array with the names of its dimensions.

    ``positions`` describes a dimension that stacks others, the last where ``stacked`` says no other: for each of these,
    where along it every entry lies.
    """

    values: np.ndarray
    dims: tuple[str, ...]
    positions: Mapping[str, np.ndarray] | None = None
    stacked: int = -1


def choose_container(name: str) -> str:
    """ "inferencedata" or "datatree"; "auto" is what the installed ArviZ reads.

    Raises:
        ValueError: another name, or InferenceData where the installed ArviZ has none.
    """
    if name not in ("auto", *CONTAINERS):
        raise ValueError(f"container: got {name!r}; it must be 'auto', 'inferencedata' or 'datatree'")
    has_inferencedata = int(version("arviz").split(".")[0]) < 1
    if name == "auto":
        return "inferencedata" if has_inferencedata else "datatree"
    if name == "inferencedata" and not has_inferencedata:
        raise ValueError(
            f"container: got 'inferencedata', which ArviZ {version('arviz')} no longer has; it must be 'datatree'"
        )
    return name


def choose_sample_dims(names: Sequence[str]) -> tuple[str, ...]:
    """``("chain", "draw")`` or ``("sample",)``.

    Raises:
        ValueError: other dimensions.
    """
    found = (names,) if isinstance(names, str) else tuple(names)
    if found not in SAMPLE_LAYOUTS:
        raise ValueError(f"sample_dims: got {names!r}; it must be ['chain', 'draw'] or ['sample']")
    return found


def pack(
    groups: Mapping[str, Mapping[str, Variable]],
    container: str,
    coords: Mapping[str, Sequence],
    attrs: Mapping[str, Any],
    sample_dims: Sequence[str] = SAMPLE_DIMS,
) -> Any:
    """Groups of named arrays as one container, every dimension with coordinates.

    Args:
        groups: by group and variable name.
        container: "inferencedata" or "datatree".
        coords: coordinate values by dimension name; the others get integers, a layer's inputs get names.
        attrs: attributes of the container and of each group; the time, the dimensions of draws and the versions of the
            libraries are added.
        sample_dims: ``("chain", "draw")``, or ``("sample",)``, which both become.

    A slash in a name is stored as a dot: NetCDF, Zarr and trees read it as a folder's.

    Raises:
        ValueError: coords name a dimension that no group has, or of another length; or two names that would be stored
            as one.
    """
    groups = {group: _without_slashes(variables) for group, variables in groups.items()}
    if tuple(sample_dims) != SAMPLE_DIMS:
        groups = {
            group: {n: _one_sample_dim(v, *sample_dims) for n, v in each.items()} for group, each in groups.items()
        }
    coords = {_stored(dim): values for dim, values in coords.items()}
    known = {dim for variables in groups.values() for variable in variables.values() for dim in variable.dims}
    for dim in coords:
        if dim not in known:
            raise ValueError(f"coords: got dimension {dim!r}; the dimensions are {', '.join(sorted(known))}")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    attrs = {**attrs, "created_at": now, "sample_dims": list(sample_dims), **_versions()}
    datasets: dict[str, Any] = {name: _to_xarray(variables, coords, attrs) for name, variables in groups.items()}
    if container == "datatree":
        return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attrs), **datasets})
    import arviz  # here, because it takes seconds to import

    return arviz.InferenceData(attrs=attrs, **datasets)


def _one_sample_dim(variable: Variable, name: str) -> Variable:
    """Chain and draw as one dimension; what belongs to all draws of a chain loses the one chain there is."""
    values, dims = variable.values, variable.dims
    if dims[:2] == SAMPLE_DIMS:
        return variable._replace(
            values=values.reshape(-1, *values.shape[2:]), dims=(name, *dims[2:]), stacked=_earlier(variable.stacked)
        )
    return variable._replace(values=values[0], dims=dims[1:]) if dims[:1] == SAMPLE_DIMS[:1] else variable


def _earlier(place: int) -> int:
    return place - 1 if place > 0 else place


def _stored(name: str) -> str:
    """A name as it may stand in a file or a tree, where a slash would begin a folder: with a dot in its place."""
    return name.replace("/", ".")


def _without_slashes(variables: Mapping[str, Variable]) -> dict[str, Variable]:
    """Variables and their dimensions by stored names.

    Raises:
        ValueError: two names would be stored as one.
    """
    found: dict[str, Variable] = {}
    for name, variable in variables.items():
        if _stored(name) in found:
            raise ValueError(
                f"model: got sites {_stored(name)!r} and {name!r}, which would be stored as one; rename one"
            )
        positions = {_stored(dim): where for dim, where in (variable.positions or {}).items()}
        dims = tuple(map(_stored, variable.dims))
        found[_stored(name)] = Variable(variable.values, dims, positions or None, variable.stacked)
    return found


def write_netcdf(container: Any, path: Path, replaced: Callable[[Path], Any] = replaced_atomically) -> None:
    """Writes a container to a file that is, at any moment, either what it was or complete.

    Args:
        container: what ``to_arviz`` gave.
        path: the file.
        replaced: a path to write at, that takes the place of ``path`` afterwards (:mod:`pp_models.own_files`).

    Raises:
        FileError: the file cannot be written; what was there is intact.
    """
    import h5py  # here, because it takes a while to import

    groups = _groups(container)
    with replaced(path) as partial:
        # where a disk fills while HDF5 writes, the process dies of it
        reserve(partial, sum(_most_bytes(dataset) for dataset in groups.values()))
        try:
            container.to_netcdf(str(partial), engine="h5netcdf")
            with h5py.File(partial) as file:
                written = {name: set(group) for name, group in file.items() if isinstance(group, h5py.Group)}
        except RuntimeError as error:  # HDF5's
            raise OSError(f"{error}") from None
        if written != {name: set(map(str, dataset.variables)) for name, dataset in groups.items()}:
            raise OSError("what was written is not complete")


def _groups(container: Any) -> dict[str, xarray.Dataset]:
    if isinstance(container, xarray.DataTree):
        return {name: node.to_dataset() for name, node in container.children.items()}
    return {name: container[name] for name in container.groups()}


def _most_bytes(dataset: xarray.Dataset) -> int:
    """More than a group takes in a file, where it is compressed."""
    texts = sum(len(str(v)) for a in dataset.variables.values() if a.dtype == object for v in a.values.ravel())
    return dataset.nbytes + 8 * texts + 16_384 * (len(dataset.variables) + 1)


def _to_xarray(
    variables: Mapping[str, Variable], coords: Mapping[str, Sequence], attrs: Mapping[str, Any]
) -> xarray.Dataset:
    sizes: dict[str, int] = {}
    for variable in variables.values():
        sizes |= dict(zip(variable.dims, variable.values.shape, strict=True))
    labels: dict[str, Any] = {}
    for dim, size in sizes.items():
        labels[dim] = _as_labels(coords.get(dim, _labels(dim, size)))
        if len(labels[dim]) != size:
            raise ValueError(f"coords: got {len(labels[dim])} values for dimension {dim!r}; it has length {size}")
    for variable in variables.values():
        for dim, positions in (variable.positions or {}).items():
            values = _as_labels(coords[dim])[positions] if dim in coords else positions
            labels[dim] = (variable.dims[variable.stacked], _as_labels(values))
    data = {name: (variable.dims, variable.values) for name, variable in variables.items()}
    return xarray.Dataset(data, coords=labels, attrs=dict(attrs))


def _as_labels(values: Sequence | np.ndarray) -> np.ndarray:
    """Text as objects: Zarr has no specification for numpy's fixed-width text and warns of it."""
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind == "U" else array


def _labels(dim: str, size: int) -> list | np.ndarray:
    """Default coordinate values: integers, and names for a layer's inputs, whose last one is the bias."""
    layer = re.fullmatch(r"layer_(\d+)_input", dim)
    if layer is None:
        return np.arange(size)
    source = "x{}" if layer[1] == "0" else "unit {}"
    return [source.format(k) for k in range(size - 1)] + ["bias"]


def _versions() -> dict[str, str]:
    """The libraries that the numbers came from, as ArviZ's schema names them where it does."""
    versions = {"inference_library": "pyro", "creation_library": "guidebook"}
    for key, distribution in (
        ("inference_library_version", "pyro-ppl"),
        ("creation_library_version", "guidebook"),
        ("torch_version", "torch"),
    ):
        try:
            versions[key] = version(distribution)
        except PackageNotFoundError:  # run from a source folder that is not installed
            versions[key] = "unknown"
    return versions
