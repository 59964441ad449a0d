"""Any Pyro model, with a guide or draws of MCMC, in the groups that ArviZ reads.

The converter that ArviZ lacks for Pyro. It imports torch, pyro, numpy and xarray, and nothing of this library (ArviZ
itself only where the installed one reads InferenceData), so that the file serves by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray
from pyro import poutine
from pyro.distributions import MaskedDistribution, Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

SAMPLE_DIMS = ("chain", "draw")
#: what draws may lie along
SAMPLE_LAYOUTS = (SAMPLE_DIMS, ("sample",))
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


@torch.no_grad()
def from_pyro_svi(
    model: Callable,
    guide: Callable,
    *args: Any,
    num_samples: int = 1_000,
    container: str = "auto",
    seed: int | None = None,
    prior: bool = True,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    sample_dims: Sequence[str] = SAMPLE_DIMS,
    **kwargs: Any,
) -> Any:
    """Draws from a guide, weighs and scores them under its model, and packs what ArviZ looks for.

    One call of guide and model a draw, so that nothing need be vectorised, and
    dimensions are named by the model's own plates. ``chain`` has length 1, so that ``az.summary`` and ``az.loo`` work.

    Groups:
        posterior, prior: the model's unobserved sample sites (and deterministic ones).
        posterior_predictive, prior_predictive, observed_data: its observed sites; NaN (-1 for integers) stands for a
            value that a mask takes out.
        log_likelihood: of each element of an observed site's batch, summed over its event. Where a mask
            (``poutine.mask``, ``obs_mask``, ``distribution.mask``) takes elements out, the others are stacked along one
            dimension ``{site}_observation`` with coordinates ``{site}_{plate}``, since ``loo`` fails on any filling. A
            ``pyro.factor`` is no observation.
        sample_stats: log_p, log_q and log_weight = log_p - log_q, ``[chain, draw, *plates]`` over the plates that hold
            every site, whose elements have posteriors of their own (none: ``[chain, draw]``). Factors count in log_p,
            and what an AutoGuide draws in its own unconstrained space in log_q.

    Args:
        model: any Pyro model.
        guide: any Pyro guide of it, an AutoGuide too.
        *args: what both are called with.
        num_samples: draws.
        container: "inferencedata", "datatree", or "auto" for what the installed ArviZ reads.
        seed: of the draws; None draws from the global generator.
        prior: also draw from the prior (left out where a prior is improper).
        coords: coordinate values by dimension name.
        dims: names of a site's event dimensions, by site; ``{site}_dim_k`` otherwise.
        sample_dims: ``["chain", "draw"]``, or ``["sample"]``, which both become.
        **kwargs: what both are called with.

    Returns:
        an ``arviz.InferenceData`` or an ``xarray.DataTree``.

    Raises:
        ValueError: fewer than one draw, a subsampled plate, a site whose shape changes between draws, a model without
            observed site or factor, or a latent site that the guide lacks.
    """
    container, sample_dims = choose_container(container), choose_sample_dims(sample_dims)
    kept = _Kept(dims or {})
    with _seeded(seed):
        for _ in range(num_samples):
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
            check_traces(trace, guide_trace)
            kept.keep_trace(trace)
            log_p, log_q, plates = joint_densities(trace, guide_trace)
            for name, number in (("log_p", log_p), ("log_q", log_q), ("log_weight", log_p - log_q)):
                kept.keep("sample_stats", name, number, plates)
        if not kept.observed and not kept.factors:
            raise ValueError("model: it observes nothing with these arguments; a posterior needs data")
        if prior:
            _prior(model, args, kwargs, num_samples, kept)
    return kept.packed(container, coords or {}, {"model": _label(model), "guide": _label(guide)}, sample_dims)


@torch.no_grad()
def from_pyro_mcmc(
    mcmc: Any,
    model: Callable,
    *args: Any,
    diverging: Tensor | None = None,
    container: str = "auto",
    seed: int | None = None,
    prior: bool = True,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    sample_dims: Sequence[str] = SAMPLE_DIMS,
    **kwargs: Any,
) -> Any:
    """Draws of Pyro's MCMC as an ArviZ container.

    Groups are those of :func:`from_pyro_svi`, by chain and draw: the model is run once at each draw. ``sample_stats``
    has ``lp``, the joint log-density, and ``diverging``.

    Args:
        mcmc: a ``pyro.infer.MCMC`` that has run, or draws ``[chain, draw, *value]`` by site.
        model: the model.
        *args: what it was called with.
        diverging: of draws by site, which ended in a divergent transition ``[chain, draw]``.
        container: "inferencedata", "datatree", or "auto" for what the installed ArviZ reads.
        seed: of the predictive draws and the prior's; None draws from the global generator.
        prior: also draw from the prior (left out where a prior is improper).
        coords: coordinate values by dimension name.
        dims: names of a site's event dimensions, by site; ``{site}_dim_k`` otherwise.
        sample_dims: ``["chain", "draw"]`` or ``["sample"]``.
        **kwargs: what it was called with by name.

    Raises:
        ValueError: a subsampled plate, or a site of the model that was not sampled.
    """
    container, sample_dims = choose_container(container), choose_sample_dims(sample_dims)
    values = mcmc if isinstance(mcmc, Mapping) else mcmc.get_samples(group_by_chain=True)
    if diverging is None:
        diverging = torch.zeros(next(iter(values.values())).shape[:2], dtype=torch.bool)
        # not by mcmc.diagnostics(), which computes R-hat too and needs four draws for it
        for chain, found in enumerate([] if isinstance(mcmc, Mapping) else mcmc._diagnostics):
            diverging[chain, list(found.get("divergences", ()))] = True
    kept = _Kept(dims or {}, diverging.shape[0])
    with _seeded(seed):
        for chain, draw in itertools.product(*map(range, diverging.shape)):
            sampled = poutine.Trace()
            for name, value in values.items():
                node = {"type": "sample", "is_observed": False, "infer": {}, "value": value[chain, draw]}
                sampled.add_node(name, name=name, **node)
            trace = poutine.trace(poutine.replay(model, trace=sampled)).get_trace(*args, **kwargs)
            check_traces(trace, sampled, "mcmc")
            kept.keep_trace(trace)
            kept.keep("sample_stats", "lp", torch.as_tensor(trace.log_prob_sum()).double(), ())
            kept.keep("sample_stats", "diverging", diverging[chain, draw], ())
        if prior:
            _prior(model, args, kwargs, diverging.numel(), kept)
    return kept.packed(container, coords or {}, {"model": _label(model)}, sample_dims)


class _Kept:
    """Draws by group and site, and what is observed.

    Args:
        dims: names of event dimensions, by site.
        chains: chains that the draws are of, one after the other.
    """

    def __init__(self, dims: Mapping[str, Sequence[str]], chains: int = 1) -> None:
        self.dims, self.chains = dims, chains
        self.draws: dict[str, dict[str, list[Tensor]]] = {}
        self.axes: dict[str, tuple[str, ...]] = {}
        self.observed: dict[str, Variable] = {}
        self.exists: dict[str, Tensor] = {}
        self.factors = False

    def keep(self, group: str, name: str, value: Tensor, names: tuple[str, ...]) -> None:
        """One draw of one site."""
        self.axes[f"{group}/{name}"] = names
        self.draws.setdefault(group, {}).setdefault(name, []).append(value.detach().cpu())

    def keep_trace(self, trace: poutine.Trace) -> None:
        """Latents, replications and log-likelihoods of one run of the model."""
        for name, site in sample_sites(trace):
            if is_factor(site):
                self.factors = True
                continue
            value, names = _named(name, site, site["value"], self.dims)
            if not site["is_observed"] or site["infer"].get("_deterministic", False):
                self.keep("posterior", name, value, names)
                continue
            seen = _named(name, site, _where_seen(site), self.dims)[0]
            self.observed[name] = Variable(seen.detach().cpu().numpy(), names)
            self.keep("posterior_predictive", name, *_named(name, site, site["fn"].sample(), self.dims))
            batch = {**site, "fn": _Batch(site["fn"].batch_shape)}
            each = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
            self.keep("log_likelihood", name, *_named(name, batch, each, {}))
            self.exists[name] = _named(name, batch, _elements_seen(site).expand(each.shape), {})[0]

    def packed(
        self, container: str, coords: Mapping[str, Sequence], attributes: dict[str, str], sample_dims: Sequence[str]
    ) -> Any:
        """Everything as a container."""
        groups = {
            group: {
                name: Variable(_stacked(name, values, self.chains), (*SAMPLE_DIMS, *self.axes[f"{group}/{name}"]))
                for name, values in sites.items()
            }
            for group, sites in self.draws.items()
        }
        if self.observed:
            groups["observed_data"] = self.observed
            groups["log_likelihood"] = {
                name: _where_it_exists(name, each, self.exists[name], coords)
                for name, each in groups["log_likelihood"].items()
            }
        return pack(groups, container, coords, attributes, sample_dims)


class _Unobserved(Messenger):
    """Draws observed sites anew; deterministic ones stay what they are."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic", False) and not is_factor(msg):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


class _Batch:
    """Stands for a distribution whose value has batch dimensions alone."""

    event_shape: torch.Size = torch.Size()
    event_dim = 0

    def __init__(self, batch_shape: torch.Size) -> None:
        self.batch_shape = batch_shape


def is_factor(site: Any) -> bool:
    """Whether a site is a ``pyro.factor``: a term of the density, with no value to observe."""
    fn = site["fn"]
    while not isinstance(fn, Unit) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Unit)


def _parts_seen(site: Any) -> tuple[Any, Tensor]:
    """The distribution of an observed site's parts (within Independent), and which of them no mask takes out."""
    fn, mask = site["fn"], site["mask"]
    found = torch.ones(fn.batch_shape, dtype=torch.bool) if mask is None else torch.as_tensor(mask).cpu()
    while isinstance(fn, torch.distributions.Independent) and len(fn.event_shape) == fn.reinterpreted_batch_ndims:
        fn = fn.base_dist  # a mask within an event takes out a part of it
        found = found.reshape(found.shape + (1,) * (len(fn.batch_shape) - found.dim()))
    if isinstance(fn, MaskedDistribution):
        found = found & torch.as_tensor(fn._mask).cpu()
    return fn, found


def _where_seen(site: Any) -> Tensor:
    """The value of an observed site, NaN (-1 for integers) where a mask takes it out."""
    fn, found = _parts_seen(site)
    value = torch.as_tensor(site["value"]).cpu()
    found = found.reshape(found.shape + (1,) * max(value.dim() - max(len(fn.batch_shape), found.dim()), 0))
    hole = torch.nan if value.dtype.is_floating_point else -1
    return value if bool(found.all()) else torch.where(found, value, torch.full((), hole, dtype=value.dtype))


def _elements_seen(site: Any) -> Tensor:
    """Which elements of an observed site's batch have a part that no mask takes out; broadcasts with the batch."""
    fn, found = _parts_seen(site)
    within = len(fn.batch_shape) - len(site["fn"].batch_shape)
    if within <= 0:
        return found
    return found.expand(torch.broadcast_shapes(found.shape, fn.batch_shape)).flatten(-within).any(-1)


def _where_it_exists(name: str, points: Variable, exists: Tensor, coords: Mapping[str, Sequence]) -> Variable:
    """Log-likelihoods ``[chain, draw, *plates]``, stacked to the elements that no mask takes out."""
    if bool(exists.all()):
        return points
    dims = points.dims[2:]
    positions = {}
    for dim, index in zip(dims, exists.nonzero().unbind(-1), strict=True):
        positions[f"{name}_{dim}"] = np.asarray(coords[dim])[index.numpy()] if dim in coords else index.numpy()
    return Variable(points.values[:, :, exists.numpy()], (*SAMPLE_DIMS, f"{name}_observation"), positions)


def joint_densities(trace: poutine.Trace, guide_trace: poutine.Trace) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """log p and log q, of each element of the plates that hold every site, and the names of those plates."""
    trace, guide_trace = _random(trace), _random(guide_trace)
    sites = [site for each in (trace, guide_trace) for _, site in sample_sites(each)]
    plates = _common_plates(sites)
    shape = [size for _, size in plates.values()]
    sums = []
    for each in (trace, guide_trace):
        each.compute_log_prob()
        total = torch.zeros(shape, dtype=torch.float64)
        for _, site in sample_sites(each):
            value = torch.as_tensor(site["log_prob"]).double().cpu()
            other = [dim for dim in range(-value.dim(), 0) if dim not in plates]
            value = value.sum(other, keepdim=True) if other else value
            total = total + value.reshape([value.shape[dim] for dim in plates])
        sums.append(total)
    return sums[0], sums[1], tuple(name for name, _ in plates.values())


def _common_plates(sites: Sequence[Any]) -> dict[int, tuple[str, int]]:
    """The plates that hold every site, each with a value for every element: name and size by dim, leftmost first."""
    held: dict[int, dict[str, int]] = {}
    for site in sites:
        shape = torch.broadcast_shapes(site["fn"].batch_shape, _batch_shape(site))
        for frame in site["cond_indep_stack"]:
            if frame.vectorized:
                extent = shape[frame.dim] if len(shape) >= -frame.dim else 1
                size = frame.size if frame.size >= 0 else extent
                at_dim = held.setdefault(frame.dim, {})
                at_dim[frame.name] = max(at_dim.get(frame.name, 0), size)

    def of_all(dim: int, name: str, size: int) -> bool:
        for site in sites:
            frame = next((f for f in site["cond_indep_stack"] if f.name == name and f.dim == dim), None)
            shape = torch.broadcast_shapes(site["fn"].batch_shape, _batch_shape(site))
            if frame is None or (frame.size < 0 and (shape[dim] if len(shape) >= -dim else 1) != size):
                return False
        return True

    found = {}
    for dim in sorted(held):
        names = [(name, size) for name, size in held[dim].items() if of_all(dim, name, size)]
        if len(names) == 1:
            found[dim] = names[0]
    return found


def _batch_shape(site: Any) -> torch.Size:
    value = torch.as_tensor(site["value"])
    return value.shape[: value.dim() - len(site["fn"].event_shape)]


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """Name and content of the sample sites of a trace, plates left out."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
            yield name, site


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Runs a block under its own seed and puts the random state back; None leaves the state alone."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _random(trace: poutine.Trace) -> poutine.Trace:
    """A trace without deterministic sites, which tie nothing together wherever they stand."""
    copied = trace.copy()
    for name, site in sample_sites(trace):
        if site["infer"].get("_deterministic", False):
            copied.remove_node(name)
    return copied


def check_traces(trace: poutine.Trace, guide_trace: poutine.Trace, name_of: str = "guide") -> None:
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        for frame in site["cond_indep_stack"]:
            full = getattr(frame, "full_size", None)
            if full is not None and full != frame.size:
                raise ValueError(
                    f"model: plate {frame.name!r} is subsampled ({frame.size} of {full}); its draws would belong to "
                    "other data each time. Call with the whole data and no subsample_size"
                )
        if not site["is_observed"] and type(site["fn"]).__name__ != "_Subsample" and name not in guide_trace.nodes:
            raise ValueError(f"{name_of}: it lacks site {name!r}, which the model samples")


def _named(name: str, site: Any, value: Tensor, dims: Mapping[str, Sequence[str]]) -> tuple[Tensor, tuple[str, ...]]:
    """A value without its batch dimensions of length 1 that no plate owns, and the names of the others."""
    # a deterministic site declares all of its dimensions as one event, its plates' too
    event_dim = 0 if site["infer"].get("_deterministic", False) else len(site["fn"].event_shape)
    value = torch.as_tensor(value)
    batch = value.dim() - event_dim
    plates = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    names, kept = [], []
    free = 0
    for i in range(batch):
        plate = plates.get(i - batch)
        if plate is None and value.shape[i] == 1:
            continue
        kept.append(i)
        names.append(plate if plate is not None else f"{name}_batch_{free}")
        free += plate is None
    events = list(dims.get(name, [f"{name}_dim_{k}" for k in range(event_dim)]))
    if len(events) != event_dim:
        raise ValueError(f"dims: got {events} for site {name!r}; it has {event_dim} event dimensions")
    shape = [value.shape[i] for i in kept] + list(value.shape[batch:])
    return value.reshape(shape), (*names, *events)


def _prior(model: Callable, args: tuple, kwargs: Mapping[str, Any], count: int, kept: _Kept) -> None:
    try:
        for _ in range(count):
            with _Unobserved():
                trace = poutine.trace(model).get_trace(*args, **kwargs)
            for name, site in sample_sites(trace):
                if is_factor(site):
                    continue
                group = "prior_predictive" if name in kept.draws.get("log_likelihood", {}) else "prior"
                kept.keep(group, name, *_named(name, site, site["value"], kept.dims))
    except NotImplementedError:  # an improper prior cannot be drawn from
        kept.draws.pop("prior", None)
        kept.draws.pop("prior_predictive", None)


def _stacked(name: str, values: list[Tensor], chains: int) -> Any:
    shapes = {tuple(v.shape) for v in values}
    if len(shapes) > 1:
        raise ValueError(f"site {name!r}: its shape changes between draws, {sorted(shapes)[0]} and {sorted(shapes)[1]}")
    return torch.stack(values).unflatten(0, (chains, -1)).numpy()


def _label(callable_: Callable) -> str:
    return getattr(callable_, "__name__", type(callable_).__name__)


def choose_container(name: str) -> str:
    """ "inferencedata" or "datatree"; "auto" is what the installed ArviZ reads.

    Raises:
        ValueError: another name, or InferenceData where the installed ArviZ has none.
    """
    if name not in ("auto", *CONTAINERS):
        raise ValueError(f"container: got {name!r}; it must be 'auto', 'inferencedata' or 'datatree'")
    try:
        has_inferencedata = int(version("arviz").split(".")[0]) < 1
    except PackageNotFoundError:  # arviz-base alone
        has_inferencedata = False
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
        coords: coordinate values by dimension name; the others get integers.
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
    attrs = {**_versions(), **attrs, "created_at": now, "sample_dims": list(sample_dims)}
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


def _to_xarray(
    variables: Mapping[str, Variable], coords: Mapping[str, Sequence], attrs: Mapping[str, Any]
) -> xarray.Dataset:
    sizes: dict[str, int] = {}
    for variable in variables.values():
        sizes |= dict(zip(variable.dims, variable.values.shape, strict=True))
    labels: dict[str, Any] = {}
    for dim, size in sizes.items():
        labels[dim] = _as_labels(coords.get(dim, np.arange(size)))
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


def _versions() -> dict[str, str]:
    """The libraries that the numbers came from, as ArviZ's schema names them where it does."""
    return {
        "inference_library": "pyro",
        "inference_library_version": version("pyro-ppl"),
        "torch_version": version("torch"),
    }
