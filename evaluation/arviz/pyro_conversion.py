"""Any Pyro model, with a guide or MCMC, as an ArviZ container: the converter that ArviZ lacks for Pyro."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution, Unit
from pyro.distributions.util import scale_and_mask
from pyro.infer import MCMC
from pyro.poutine.messenger import Messenger
from torch import Tensor

from evaluation.arviz.arviz_container import COORDS, DIMS, SAMPLE_DIMS, Variable, choose_container, pack
from inference.objectives.independent_plates import independent_axes, per_particle, sample_sites
from inference.random_state import seeded
from inference.reference.nuts import NutsResult
from pp_models.arguments import CALLABLE, DRAWS, SEED, checked, instance, optional


@torch.no_grad()
@checked(
    model=CALLABLE,
    guide=CALLABLE,
    num_samples=DRAWS,
    seed=SEED,
    coords=COORDS,
    dims=DIMS,
)
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
    **kwargs: Any,
) -> Any:
    """Draws from a guide, weighs and scores them under its model, and packs what ArviZ looks for.

    For models that are not the library's: one call of guide and model a draw, so that nothing need be vectorised, and
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
        container: "inferencedata", "datatree" or "auto", as for :func:`evaluation.to_arviz`.
        seed: of the draws; None draws from the global generator.
        prior: also draw from the prior (left out where a prior is improper).
        coords: coordinate values by dimension name.
        dims: names of a site's event dimensions, by site; ``{site}_dim_k`` otherwise.
        **kwargs: what both are called with.

    Returns:
        an ``arviz.InferenceData`` or an ``xarray.DataTree``.

    Raises:
        ValueError: fewer than one draw, a subsampled plate, a site whose shape changes between draws, a model without
            observed site or factor, or a latent site that the guide lacks.
    """
    container = choose_container(container)
    kept = _Kept(dims or {})
    with seeded(seed):
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
    return kept.packed(container, coords or {}, {"model": _label(model), "guide": _label(guide)})


@torch.no_grad()
@checked(mcmc=instance(MCMC, NutsResult), model=optional(CALLABLE), seed=SEED, coords=COORDS, dims=DIMS)
def from_pyro_mcmc(
    mcmc: Any,
    model: Callable | None = None,
    *args: Any,
    container: str = "auto",
    seed: int | None = None,
    prior: bool = True,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    **kwargs: Any,
) -> Any:
    """Draws of Pyro's MCMC, or of :func:`inference.nuts` on any Pyro model, as an ArviZ container.

    Groups are those of :func:`from_pyro_svi`, by chain and draw: the model is run once at each draw. ``sample_stats``
    has ``lp``, the joint log-density, and ``diverging``.

    Args:
        mcmc: what sampled: a ``NutsResult``, or a ``pyro.infer.MCMC`` that has run.
        model: the model; a ``NutsResult`` knows its own.
        *args: what it was called with; a ``NutsResult`` knows that too.
        container: "inferencedata", "datatree" or "auto", as for :func:`evaluation.to_arviz`.
        seed: of the predictive draws and the prior's; None draws from the global generator.
        prior: also draw from the prior (left out where a prior is improper).
        coords: coordinate values by dimension name.
        dims: names of a site's event dimensions, by site; ``{site}_dim_k`` otherwise.
        **kwargs: what it was called with by name.

    Raises:
        ValueError: no model, draws of NumPyro's (``arviz.from_numpyro(result.mcmc)`` takes them), a subsampled plate,
            or a site of the model that was not sampled.

    Example:
        >>> idata = from_pyro_mcmc(nuts(schools, y, num_chains=4))
    """
    container = choose_container(container)
    if isinstance(mcmc, NutsResult):
        if mcmc.divergent is None:
            raise ValueError("mcmc: got draws of NumPyro's; it must be arviz.from_numpyro(result.mcmc) that takes them")
        values, divergent, model = mcmc.by_chain(), mcmc.divergent, mcmc.model
        args, kwargs = mcmc.args, dict(mcmc.kwargs)
    else:
        values = mcmc.get_samples(group_by_chain=True)
        divergent = torch.zeros(next(iter(values.values())).shape[:2], dtype=torch.bool)
        for chain, found in enumerate(mcmc.diagnostics().get("divergences", {}).values()):
            divergent[chain, list(found)] = True
    if model is None:
        raise ValueError("model: got None; Pyro's MCMC does not say which model it sampled, so that it must be given")
    kept = _Kept(dims or {}, divergent.shape[0])
    with seeded(seed):
        for chain, draw in itertools.product(*map(range, divergent.shape)):
            sampled = poutine.Trace()
            for name, value in values.items():
                node = {"type": "sample", "is_observed": False, "infer": {}, "value": value[chain, draw]}
                sampled.add_node(name, name=name, **node)
            trace = poutine.trace(poutine.replay(model, trace=sampled)).get_trace(*args, **kwargs)
            check_traces(trace, sampled, "mcmc")
            kept.keep_trace(trace)
            kept.keep("sample_stats", "lp", torch.as_tensor(trace.log_prob_sum()).double(), ())
            kept.keep("sample_stats", "diverging", divergent[chain, draw], ())
        if prior:
            _prior(model, args, kwargs, divergent.numel(), kept)
    return kept.packed(container, coords or {}, {"model": _label(model), "inference_library": "pyro"})


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

    def packed(self, container: str, coords: Mapping[str, Sequence], attributes: dict[str, str]) -> Any:
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
        return pack(groups, container, coords, attributes)


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
    axes = independent_axes(trace, guide_trace)
    sums = []
    for each in (trace, guide_trace):
        each.compute_log_prob()
        terms = [per_particle(torch.as_tensor(site["log_prob"]), axes, site)[0] for _, site in sample_sites(each)]
        sums.append(sum(terms, torch.zeros(axes.shape)).double().cpu())
    frames = {f.dim: f.name for _, site in sample_sites(trace) for f in site["cond_indep_stack"]}
    return sums[0], sums[1], tuple(frames[dim] for dim in axes.dims)


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
