"""Any model and guide as an ArviZ container: draws, predictions, pointwise log-likelihoods, importance weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Independent, biject_to, constraints

from evaluation.arviz.arviz_container import COORDS, pack
from evaluation.arviz.observation_layout import LAYOUTS, as_observations
from evaluation.arviz.pyro_converter import SAMPLE_DIMS, Variable, choose_container, choose_sample_dims
from inference.data_dtype import as_computed
from inference.objectives.independent_plates import sample_sites
from inference.pareto_smoothing import psis
from inference.random_state import seeded
from pp_models.arguments import CALLABLE, DRAWS, SEED, checked, data_set, mapping, one_of
from pp_models.contract import as_objective
from pp_models.data import Dataset, TaskBatch, require_tasks

OBSERVED = "y"


@checked(
    model=CALLABLE,
    guide=CALLABLE,
    data=data_set("Dataset", "TaskBatch", instead="from_pyro_svi(model, guide, *args)"),
    num_samples=DRAWS,
    seed=SEED,
    chunk_size=DRAWS,
    coords=COORDS,
    attrs=mapping(),
    layout=one_of(*LAYOUTS),
)
def to_arviz(
    model: Callable,
    guide: Callable,
    data: Dataset | TaskBatch,
    num_samples: int = 1000,
    *,
    container: str = "auto",
    layout: str = "task",
    sample_dims: Sequence[str] = SAMPLE_DIMS,
    seed: int | None = None,
    chunk_size: int = 100,
    coords: Mapping[str, Sequence] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Draws from the guide and packs everything ArviZ looks for; dimensions are chain (1), draw, task, then the site's.

    Given a Dataset, guide and likelihood both see it, so that ``loo`` means what it says. Given a TaskBatch, the guide
    sees the context; ``posterior_predictive``, ``log_likelihood`` and ``observed_data`` are of the (held-out) target.

    Groups:
        posterior, prior: the latent sites. ``layer_{i}.weight`` has dims ``layer_{i}_unit`` and ``layer_{i}_input``
            (the last input is "bias"); a site outside every task plate has no task dim.
        posterior_predictive, prior_predictive, observed_data: ``y [.., task, point, output]``, no output dim for
            classes. The prior groups are absent where a prior is improper.
        predictions, predictions_constant_data: in place of posterior_predictive, and of constant_data's x and mask, for
            a TaskBatch whose target's y is not known: there is nothing to check these draws against.
        log_likelihood: of each point given each draw, ``[chain, draw, task, point]``, summed over outputs.
        constant_data: x and mask (and context_x, context_y, context_mask of a TaskBatch).
        log_prior: of each latent site given its draw, ``[chain, draw, task]``, where its prior has a density; with it
            ArviZ's ``psense_summary`` runs.
        unconstrained_posterior: the draws on the real line, where a site is constrained.
        sample_stats: ``bound``, the log of the mean weight, and ``khat``, the Pareto k-hat of the weights, both
            ``[chain, task]``; and by draw log_p (the model's joint density of latents and the data *the guide saw*),
            log_q, and log_weight = log_p - log_q, ``[chain, draw, task]``, float64 (``lp`` is log_p by its name in
            ArviZ's schema). A site without density counts 0.
            Where a latent is shared between tasks the weights do not split by task: then they are summed,
            ``[chain, draw]``.

    Padded points are left out where there is no task dim. Of ragged tasks they stay in the predictions, with observed
    NaN (-1 for classes) and constant_data.mask to tell them apart, while log_likelihood holds the existing points
    alone, ``[chain, draw, observation]`` with coordinates task and point, since ``loo`` fails on any filling.

    To Zarr 3 an InferenceData goes by ``idata.to_datatree().to_zarr(path)``; a DataTree has ``to_zarr`` itself.

    Args:
        model: ``model(data)``, a Pyro callable with observation site ``y``; it must broadcast over a leading plate.
        guide: ``guide(data)``, a Pyro callable over the model's latent sites.
        data: a Dataset with y, or a TaskBatch, cast to the model's dtype; task dims ``*B`` become ``task``, ``task_1``,
            ...
        num_samples: draws from guide and prior.
        container: "inferencedata" (ArviZ below 1), "datatree" (xarray, ArviZ 1 and later) or "auto" (as installed).
        layout: ``"observation"`` stacks task and point of everything that is of points to one dimension, of those that
            exist, and drops the dimension of a lone output: what ``loo_pit``, ``metrics``, ``plot_ppc_pit`` and their
            kin take.
        sample_dims: ``["sample"]`` in place of chain and draw; ``loo`` wants both.
        seed: of the draws, the global generator then stays as it was; None draws from the global generator.
        chunk_size: draws computed at once; less needs less memory.
        coords: coordinate values by dimension name, e.g. ``{"task": names}``; integers elsewhere.
        attrs: more attributes of the container and its groups, such as the objective, the steps and the seed of the fit
            (:func:`fit_attributes`).

    Returns:
        an ``arviz.InferenceData`` or an ``xarray.DataTree``.

    Raises:
        ValueError: y is unknown, an option is out of range, the likelihood does not split into points, or coords
            name a dimension that is not there or has another length.
    """
    require_tasks(data, "data")
    container, draws = choose_container(container), choose_sample_dims(sample_dims)
    seen, scored = (data.context, data.target) if isinstance(data, TaskBatch) else (data, data)
    if seen.y is None:
        raise ValueError("data: y is None; a posterior needs observed outputs (to predict y use inference.predict)")
    seen, scored = (_existing_points(as_computed(part, model, guide)) for part in (seen, scored))
    sizes = [min(chunk_size, num_samples - start) for start in range(0, num_samples, chunk_size)]
    with torch.no_grad(), seeded(seed, seen.x.device):
        split = isinstance(data, TaskBatch)
        groups = _joined(_posterior_chunk(model, guide, seen, scored if split else None, n) for n in sizes)
        with suppress(NotImplementedError):  # an improper prior cannot be drawn from
            groups |= _joined(_prior_chunk(model, scored.without_y(), n) for n in sizes)
    _add_weight_summaries(groups["sample_stats"])
    groups |= _data_groups(seen if split else None, scored)
    if scored.y is None:
        groups["predictions"] = groups.pop("posterior_predictive")
        own = groups["constant_data"]
        groups["predictions_constant_data"] = {name: own.pop(name) for name in ("x", "mask")}
    if layout == "observation":
        groups = as_observations(groups, scored.full_mask(), _task_dims(scored.batch_shape))
    names = {"model": _name(model), "guide": _name(guide)}
    return pack(groups, container, coords or {}, {**names, **{k: str(v) for k, v in (attrs or {}).items()}}, draws)


def fit_attributes(objective: Any, steps: int, seed: int | None = None) -> dict[str, str]:
    """What is to be told of the fit behind a posterior, for ``attrs`` of :func:`to_arviz`.

    Args:
        objective: the objective itself, such as ``FitResult.objective``.
        steps: how many it was fitted for, such as ``FitResult.steps``.
        seed: of the fit.
    """
    name = as_objective(objective).name
    found = {"objective": name, "steps": str(steps)}
    return found if seed is None else {**found, "seed": str(seed)}


def _add_weight_summaries(stats: dict[str, Variable]) -> None:
    """Adds the bound and the Pareto k-hat of the importance weights to sample_stats."""
    weights = torch.as_tensor(stats["log_weight"].values)  # [1, S, *task]
    dims = stats["log_weight"].dims
    bound = torch.logsumexp(weights, 1) - math.log(weights.shape[1])
    stats["bound"] = Variable(bound.numpy(), (dims[0], *dims[2:]))
    # where no draw has a density under the model no tail can be fitted: the diagnosis is the worst there is
    usable = torch.isfinite(weights.amax(1, keepdim=True))
    khat = psis(torch.where(usable, weights, torch.zeros_like(weights)))
    khat = torch.where(usable[:, 0][0], khat, torch.inf)
    khat = torch.where(torch.isnan(weights).any(1)[0], torch.nan, khat)
    stats["khat"] = Variable(khat.unsqueeze(0).numpy(), (dims[0], *dims[2:]))


def pointwise_log_prob(distribution: Any, value: Tensor, point_dim: int, mask: Tensor | bool | None = None) -> Tensor:
    """The log density of each point: ``[*batch, N]`` where ``log_prob`` would sum over N.

    Looks through Independent, masks and expansions to the independent parts, and sums over the outputs of a point.

    Args:
        distribution: of event shape ``[N, Dy]`` or ``[N]``.
        value: ``[*batch, N, Dy]`` or ``[*batch, N]``.
        point_dim: the position of N in value, counted from the left; the number of batch dimensions.
        mask: of ``poutine.mask``, over the distribution's batch; what it takes out has log-density 0.

    Raises:
        ValueError: the points are not independent, as under a multivariate normal over N.
    """
    parts = _independent_parts(distribution, value)
    if mask is not None:
        mask = torch.as_tensor(mask, device=parts.device).expand(distribution.batch_shape)
        parts = torch.where(
            mask.reshape(mask.shape + (1,) * (parts.dim() - mask.dim())), parts, torch.zeros_like(parts)
        )
    if parts.dim() <= point_dim or parts.shape[point_dim] != value.shape[point_dim]:
        raise ValueError(
            f"site 'y': {type(distribution).__name__} with log density of shape {list(parts.shape)} does not split "
            f"into {value.shape[point_dim]} points; points must be independent given the latents"
        )
    return parts.flatten(point_dim + 1).sum(-1) if parts.dim() > point_dim + 1 else parts


def _independent_parts(distribution: Any, value: Tensor) -> Tensor:
    """The log density before Independent sums it; value carries every batch dimension, so parts do too."""
    if isinstance(distribution, (Independent, ExpandedDistribution)):
        return _independent_parts(distribution.base_dist, value)
    if isinstance(distribution, MaskedDistribution):
        parts = _independent_parts(distribution.base_dist, value)
        mask = distribution._mask
        if isinstance(mask, bool):
            return parts if mask else torch.zeros_like(parts)
        event_dims_kept = parts.dim() - (value.dim() - distribution.event_dim)
        return torch.where(mask.reshape(mask.shape + (1,) * event_dims_kept), parts, torch.zeros_like(parts))
    return distribution.log_prob(value)


def _posterior_chunk(
    model: Callable, guide: Callable, seen: Dataset, scored: Dataset | None, n: int
) -> dict[str, dict[str, Variable]]:
    """n draws of the guide on ``seen``, weighed by the model on ``seen``, scored on ``scored`` (None: the same)."""
    shape = seen.batch_shape
    with pyro.plate("particles", n, dim=-len(shape) - 1):
        guide_trace = poutine.trace(guide).get_trace(seen)
        trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(seen)
        _check_observation(trace)
        latents = _latent_sites(trace)
        stats = _weights(trace, guide_trace, latents, shape, n)
        if scored is None:
            scored = seen
        else:
            given = {name: site["value"] for name, site in latents.items()}
            trace = poutine.trace(poutine.condition(model, data=given)).get_trace(scored)
    groups = {
        "posterior": {name: _site_variable(name, site, shape) for name, site in latents.items()},
        "posterior_predictive": {OBSERVED: _observation_draws(trace, scored, n)},
        "sample_stats": stats,
        "log_prior": {name: v for name, site in latents.items() if (v := _prior_variable(site, shape)) is not None},
    }
    if any(_unconstrained(site) is not None for site in latents.values()):
        groups["unconstrained_posterior"] = {name: _free_variable(name, s, shape) for name, s in latents.items()}
    if not groups["log_prior"]:
        groups.pop("log_prior")
    if scored.y is not None:
        y = _unpadded(scored.y, scored.known_mask(), 0).expand(n, *scored.y.shape)
        site = trace.nodes[OBSERVED]
        points = pointwise_log_prob(site["fn"], y, len(shape) + 1, site["mask"])
        groups["log_likelihood"] = {OBSERVED: _point_variable(points, scored)}
    return groups


def _prior_chunk(model: Callable, inputs: Dataset, n: int) -> dict[str, dict[str, Variable]]:
    """n draws of the model itself at the given inputs."""
    shape = inputs.batch_shape
    with pyro.plate("particles", n, dim=-len(shape) - 1):
        trace = poutine.trace(model).get_trace(inputs)
    return {
        "prior": {name: _site_variable(name, site, shape) for name, site in _latent_sites(trace).items()},
        "prior_predictive": {OBSERVED: _observation_draws(trace, inputs, n)},
    }


def _check_observation(trace: poutine.Trace) -> None:
    site: Any = trace.nodes[OBSERVED]
    if site["infer"].get("_deterministic", False):
        raise ValueError(
            "model: its site 'y' is made of an observed and an unobserved part (obs_mask); say which points exist by "
            "the Dataset's mask, or use evaluation.from_pyro_svi"
        )


def _latent_sites(trace: poutine.Trace) -> dict[str, Any]:
    return {name: site for name, site in sample_sites(trace) if name != OBSERVED and not site["is_observed"]}


def _own_task_dims(site: Any, shape: torch.Size) -> list[bool]:
    """Which task dimensions a site has: those whose plate it is in, or along which it differs."""
    batch = (1,) * len(shape) + tuple(site["fn"].batch_shape)
    plates = {frame.dim for frame in site["cond_indep_stack"]}
    return [k - len(shape) in plates or batch[k - len(shape)] > 1 for k in range(len(shape))]


def _weights(
    trace: poutine.Trace, guide_trace: poutine.Trace, latents: dict[str, Any], shape: torch.Size, n: int
) -> dict[str, Variable]:
    """log_p, log_q and log_weight per draw and task, or per draw where a latent is shared between tasks."""
    by_task = all(all(_own_task_dims(site, shape)) for site in latents.values())

    def total(sites: Iterable[Any]) -> Tensor:
        result = torch.zeros((n, *shape) if by_task else (n,), dtype=torch.float64)
        for site in sites:
            log_prob = _log_density(site).double().cpu()
            log_prob = log_prob.reshape((1,) * (1 + len(shape) - log_prob.dim()) + log_prob.shape)
            result = result + (log_prob if by_task else log_prob.flatten(1).sum(-1))
        return result

    from_prior = [site for name, site in latents.items() if name not in guide_trace.nodes]  # they cancel in the weight
    log_p = total(site for _, site in sample_sites(trace))
    log_q = total(site for _, site in sample_sites(guide_trace))
    log_q = log_q + total(from_prior)
    dims = _task_dims(shape) if by_task else ()
    values = {"log_p": log_p, "lp": log_p, "log_q": log_q, "log_weight": log_p - log_q}
    return {name: Variable(value.numpy(), dims) for name, value in values.items()}


def _log_density(site: Any) -> Tensor:
    """A site's log density with its plate's scale and mask; 0 where the distribution has none (an improper prior)."""
    try:
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except NotImplementedError:
        return torch.zeros(())
    mask = site["mask"]
    if mask is not None:
        mask = torch.as_tensor(mask, device=log_prob.device)
        log_prob = torch.where(mask, log_prob, torch.zeros_like(log_prob))
    return log_prob * site["scale"]


def _site_variable(name: str, site: Any, shape: torch.Size) -> Variable:
    """A latent site's draws, without the task dimensions that it does not have."""
    value, fn = site["value"], site["fn"]
    event = value.shape[value.dim() - fn.event_dim :]
    sizes, dims = _own_tasks(site, shape)
    return Variable(_numpy(value.reshape(len(value), *sizes, *event)), (*dims, *_event_dims(name, len(event))))


def _own_tasks(site: Any, shape: torch.Size) -> tuple[list[int], list[str]]:
    """Sizes and names of the task dimensions that a site has."""
    own = _own_task_dims(site, shape)
    kept = [(size, dim) for size, dim, has in zip(shape, _task_dims(shape), own, strict=True) if has]
    return [size for size, _ in kept], [dim for _, dim in kept]


def _prior_variable(site: Any, shape: torch.Size) -> Variable | None:
    """The log density of a latent site's draws under its prior; None where that has none."""
    try:
        log_prob = site["fn"].log_prob(site["value"])
    except NotImplementedError:
        return None
    sizes, dims = _own_tasks(site, shape)
    log_prob = log_prob.double().cpu().expand(len(site["value"]), *log_prob.shape[1:])
    return Variable(log_prob.reshape(len(log_prob), *sizes).numpy(), tuple(dims))


def _unconstrained(site: Any) -> Any:
    """The map from the real line to a constrained site's values; None where there is nothing to map."""
    support = site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real or support.is_discrete:
        return None
    try:
        return biject_to(site["fn"].support)
    except NotImplementedError:
        return None


def _free_variable(name: str, site: Any, shape: torch.Size) -> Variable:
    """A latent site's draws on the real line."""
    transform = _unconstrained(site)
    found = _site_variable(name, site, shape)
    if transform is None:
        return found
    values = transform.inv(torch.as_tensor(found.values))
    same = values.shape == found.values.shape
    dims = found.dims if same else (*found.dims[:-1], f"{name}_unconstrained")
    return Variable(values.numpy(), dims)


def _observation_draws(trace: poutine.Trace, data: Dataset, n: int) -> Variable:
    fn: Any = trace.nodes[OBSERVED]["fn"]
    event = ("point", "output")[: fn.event_dim]
    y = fn.sample().expand(n, *data.batch_shape, *fn.event_shape)
    return Variable(_numpy(y), (*_task_dims(data.batch_shape), *event))


def _point_variable(points: Tensor, data: Dataset) -> Variable:
    """``points [n, *B, N]``, stacked to the existing ones where some are padding."""
    dims = (*_task_dims(data.batch_shape), "point")
    if data.mask is None or bool(data.mask.all()):
        return Variable(_numpy(points), dims)
    where = data.mask.nonzero(as_tuple=True)
    positions = {dim: _numpy(index) for dim, index in zip(dims, where, strict=True)}
    return Variable(_numpy(points[:, data.mask]), ("observation",), positions)


def _data_groups(context: Dataset | None, scored: Dataset) -> dict[str, dict[str, Variable]]:
    """observed_data and constant_data; these have no chain and draw."""
    tasks = _task_dims(scored.batch_shape)

    def observed(data: Dataset, point: str) -> Variable:
        assert data.y is not None
        padding = -1 if data.y.dtype == torch.long else torch.nan
        y = _numpy(_unpadded(data.y, data.known_mask(), padding))
        return Variable(y, (*tasks, point, "output")[: y.ndim])

    constant = {
        "x": Variable(_numpy(scored.x), (*tasks, "point", "input")),
        "mask": Variable(_numpy(scored.full_mask()), (*tasks, "point")),
    }
    if context is not None:
        constant["context_x"] = Variable(_numpy(context.x), (*tasks, "context_point", "input"))
        constant["context_y"] = observed(context, "context_point")
        constant["context_mask"] = Variable(_numpy(context.full_mask()), (*tasks, "context_point"))
    groups = {"constant_data": constant}
    if scored.y is not None:
        groups["observed_data"] = {OBSERVED: observed(scored, "point")}
    return groups


def _existing_points(data: Dataset) -> Dataset:
    """Drops padding where there is no task dimension; ragged tasks must keep theirs."""
    if data.mask is None or data.batch_shape:
        return data
    kept = data.points(data.mask.nonzero().squeeze(-1))
    return Dataset(kept.x, kept.y, observed=kept.observed)


def _unpadded(value: Tensor, mask: Tensor | None, fill: float) -> Tensor:
    """``value [*B, N]`` or ``[*B, N, Dy]`` with ``fill`` where a mask of points or outputs is False."""
    if mask is None:
        return value
    mask = mask.reshape(mask.shape + (1,) * (value.dim() - mask.dim()))
    return torch.where(mask, value, torch.full((), fill, dtype=value.dtype, device=value.device))


def _task_dims(shape: torch.Size) -> tuple[str, ...]:
    return tuple("task" if k == 0 else f"task_{k}" for k in range(len(shape)))


def _event_dims(site: str, rank: int) -> tuple[str, ...]:
    layer = re.search(r"(?:^|\.)(layer_\d+)\.weight$", site)
    if layer and rank == 2:
        return f"{layer[1]}_unit", f"{layer[1]}_input"
    if site == "mixture_weights" and rank == 1:
        return ("expert",)
    if site.endswith(".rank_scale") and rank == 1:
        return (f"{site.removesuffix('_scale')}",)  # layers may have kept different numbers of ranks
    return tuple(f"{site}_dim_{k}" for k in range(rank))


def _joined(draws: Iterable[dict[str, dict[str, Variable]]]) -> dict[str, dict[str, Variable]]:
    """Chunks of draws as whole groups with a chain dimension."""
    chunks = list(draws)
    return {
        group: {
            name: variable._replace(
                values=np.concatenate([chunk[group][name].values for chunk in chunks])[None],
                dims=(*SAMPLE_DIMS, *variable.dims),
            )
            for name, variable in variables.items()
        }
        for group, variables in chunks[0].items()
    }


def _numpy(tensor: Tensor) -> np.ndarray:
    """On the host, in the tensor's own precision (half precisions as float32, which numpy and the files know)."""
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return tensor.detach().cpu().numpy()


def _name(callable_: Callable) -> str:
    return getattr(callable_, "__name__", type(callable_).__name__)
