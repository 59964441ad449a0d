"""Named arrays as the container that ArviZ reads: InferenceData below ArviZ 1, xarray's DataTree from 1 on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xarray

from evaluation.arviz.pyro_converter import SAMPLE_DIMS, Variable
from evaluation.arviz.pyro_converter import pack as _pack
from pp_models.arguments import TEXT, VALUES, each, mapping
from pp_models.files import replaced_atomically, reserve

#: coordinate values by dimension
COORDS = mapping(VALUES, "be a mapping from dimensions to sequences of values")
DIMS = mapping(each(TEXT), "be a mapping from sites to the names of their dimensions")


def pack(
    groups: Mapping[str, Mapping[str, Variable]],
    container: str,
    coords: Mapping[str, Sequence],
    attrs: Mapping[str, Any],
    sample_dims: Sequence[str] = SAMPLE_DIMS,
) -> Any:
    """:func:`evaluation.arviz.pyro_converter.pack` with names for a layer's inputs, and this library's as its maker."""
    arrays = [variable for variables in groups.values() for variable in variables.values()]
    sizes = {dim: size for a in arrays for dim, size in zip(a.dims, a.values.shape, strict=True)}
    inputs = {dim: labels for dim, size in sizes.items() if (labels := _layer_labels(dim, size)) is not None}
    return _pack(groups, container, inputs | dict(coords), created_by_us() | dict(attrs), sample_dims)


def created_by_us() -> dict[str, str]:
    """What made a container, as ArviZ's schema names it."""
    try:
        found = version("guidebook")
    except PackageNotFoundError:  # run from a source folder that is not installed
        found = "unknown"
    return {"creation_library": "guidebook", "creation_library_version": found}


def _layer_labels(dim: str, size: int) -> list[str] | None:
    """Names for a layer's inputs, whose last one is the bias; None for another dimension."""
    layer = re.fullmatch(r"layer_(\d+)_input", dim)
    if layer is None:
        return None
    source = "x{}" if layer[1] == "0" else "unit {}"
    return [source.format(k) for k in range(size - 1)] + ["bias"]


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
