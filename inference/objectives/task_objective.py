"""What every objective shares: running guide and model on one batch of tasks and reading bounds per task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from guides.local_reparameterization import is_gaussian_weight, local_reparameterization
from pp_models.data import Dataset, TaskBatch
from pp_models.task_plates import TASK_PLATE

PARTICLE_PLATE = "particles"
KL_REDUCTIONS = ("sum", "mean")


@dataclass
class Branches:
    """The runs that an objective compares.

    Args:
        posterior: the guide's trace that the model is replayed against.
        reference: the trace whose distributions the KL is taken to; None for the model's prior.
        model_args: what the model is called with.
    """

    posterior: Trace
    reference: Trace | None
    model_args: tuple


@dataclass
class BoundTerms:
    """An objective on a batch of tasks, term by term; every tensor is per task ``[*B]`` and keeps its gradient.

    Args:
        bound: what is maximised.
        log_likelihood: expected log-likelihood of the scored points, in nats.
        kl: the divergence, reduced over weights as the objective reduces it (before β).
        points: number of scored values (points times output dimensions).
        kl_by_site: KL in nats (summed) by latent site.
    """

    bound: Tensor
    log_likelihood: Tensor
    kl: Tensor
    points: Tensor
    kl_by_site: dict[str, Tensor] = field(default_factory=dict)


class TaskObjective(ELBO):
    """Base of the objectives that are bounds per task.

    Args:
        num_particles: posterior draws per task.
        beta: weight of the KL.
        kl_reduction: ``"sum"`` over the entries of every latent site, as an evidence bound needs; ``"mean"`` over the
            entries of each site and then over sites, as NVDP's released code does (about 60,000 times weaker on a
            128-unit network; with the sum NVDP's rates stop depending on the task).
        normalize: report and maximise per scored value (the mean over points and output dimensions) instead of nats
            per task; by default with ``kl_reduction="mean"`` only, which is the released code's loss.
        local_reparameterization: draw pre-activations instead of Gaussian weights; needs analytic KLs.
        vectorize_particles: evaluate the particles in one pass.
        max_plate_nesting: plates of the model, where they cannot be read off the data.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        beta: float = 1.0,
        kl_reduction: str = "sum",
        normalize: bool | None = None,
        local_reparameterization: bool = False,
        vectorize_particles: bool = True,
        max_plate_nesting: float = float("inf"),
    ) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles: got {num_particles}; it must be at least 1")
        if not 0 <= beta < float("inf"):
            raise ValueError(f"beta: got {beta}; it must be finite and not negative")
        if kl_reduction not in KL_REDUCTIONS:
            raise ValueError(f"kl_reduction: got {kl_reduction!r}; it must be one of {', '.join(KL_REDUCTIONS)}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.max_plate_nesting = max_plate_nesting
        self.beta = beta
        self.kl_reduction = kl_reduction
        self.normalize = kl_reduction == "mean" if normalize is None else normalize
        self.local_reparameterization = local_reparameterization

    # -- what a subclass says -----------------------------------------------------------------------------------

    def run_branches(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Branches:
        """Runs the guide on the data that the objective shows it."""
        raise NotImplementedError

    # -- Pyro's contract ----------------------------------------------------------------------------------------

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound: summed over tasks, or averaged over tasks where normalized; a scalar tensor."""
        return self.reduce(self.terms(model, guide, *args, **kwargs))

    def reduce(self, terms: BoundTerms) -> Tensor:
        """The loss from the terms."""
        return -terms.bound.mean() if self.normalize else -terms.bound.sum()

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, without gradients."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Computes gradients; returns the loss, still on its device."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.detach()

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        runs = self.run_branches(model, guide, args, kwargs)
        return self.run_model(model, runs.posterior, runs.model_args, kwargs), runs.posterior

    # -- machinery ----------------------------------------------------------------------------------------------

    def run_guide(self, guide: Callable, args: tuple, kwargs: dict) -> Trace:
        """One trace of a guide."""
        return poutine.trace(guide).get_trace(*args, **kwargs)

    def run_model(self, model: Callable, guide_trace: Trace, args: tuple, kwargs: dict) -> Trace:
        """One trace of the model with the guide's values."""
        return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)

    def _nesting(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> int:
        if args and isinstance(args[0], Dataset | TaskBatch):
            return len(args[0].batch_shape)
        if self.max_plate_nesting == float("inf"):
            particles, self.num_particles = self.num_particles, 1
            self._guess_max_plate_nesting(model, guide, args, kwargs)
            self.num_particles = particles
        return int(self.max_plate_nesting)

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> BoundTerms:
        """Runs guide and model once (all particles) and returns the bound, term by term and per task."""
        if hasattr(model, "check") and args:  # here, for Pyro's traces add the shapes of all sites to the message
            parts = (args[0].context, args[0].target) if isinstance(args[0], TaskBatch) else (args[0],)
            for part in parts:
                if isinstance(part, Dataset):
                    model.check(part)
        if self.num_particles > 1 and not self.vectorize_particles:
            runs = [self._terms(model, guide, args, kwargs) for _ in range(self.num_particles)]
            average = {
                name: torch.stack([getattr(run, name) for run in runs]).mean(0)
                for name in ("bound", "log_likelihood", "kl", "points")
            }
            sites = {s: torch.stack([run.kl_by_site[s] for run in runs]).mean(0) for s in runs[0].kl_by_site}
            return BoundTerms(**average, kl_by_site=sites)
        if self.num_particles == 1:
            return self._terms(model, guide, args, kwargs)
        nesting = self._nesting(model, guide, args, kwargs)
        return self._terms(model, guide, args, kwargs, pyro.plate(PARTICLE_PLATE, self.num_particles, dim=-1 - nesting))

    def _terms(self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: Any = None) -> BoundTerms:
        # the particle plate is inside, so that the handler sees sites that it has expanded: each particle its own noise
        handler = local_reparameterization(lazy=True) if self.local_reparameterization else nullcontext()
        with handler, particles or nullcontext():
            runs = self.run_branches(model, guide, args, kwargs)
            model_trace = self.run_model(model, runs.posterior, runs.model_args, kwargs)
        reference = runs.reference
        dims = task_dims(model_trace, runs.posterior)
        log_likelihood, points = self._log_likelihood(model_trace, dims)
        kls: dict[str, Tensor] = {}
        means: list[Tensor] = []
        for name, site in sample_sites(runs.posterior):
            if site["is_observed"] or site["infer"].get("is_auxiliary", False):
                continue
            if reference is not None and is_point_mass(site["fn"]):
                continue  # a deterministic path: both branches hold a point mass, which no divergence can tie
            other: Any = (model_trace if reference is None else reference).nodes.get(name)
            if other is None:
                raise ValueError(f"site {name!r}: the guide samples it, but {self._reference_name(reference)} does not")
            value = self._kl(name, site, other)
            if value is None:
                continue
            kls[name] = share(per_task(value, site, dims), log_likelihood.shape)
            means.append(kls[name] / max(site["fn"].event_shape.numel(), 1))
        zero = torch.zeros_like(log_likelihood)
        if not kls:
            kl = zero
        elif self.kl_reduction == "sum":
            kl = sum(kls.values(), zero)
        else:
            kl = sum(means, zero) / len(means)
        bound = log_likelihood - self.beta * kl
        if self.normalize:
            per_value = points.clamp_min(1.0)
            # the released code: mean log-density over points and output dimensions, KL over the number of points
            width = self._output_width(model_trace)
            bound = log_likelihood / per_value - self.beta * kl / (per_value / width)
        return BoundTerms(bound, log_likelihood, kl, points, kls)

    @staticmethod
    def _reference_name(reference: Trace | None) -> str:
        return "the model" if reference is None else "the guide run on the other data"

    def _kl(self, name: str, site: dict, other: dict) -> Tensor | None:
        """KL of a guide site, ``None`` where it is zero by construction (a point mass under a flat prior)."""
        p, q = site["fn"], other["fn"]
        if isinstance(q, torch.distributions.Distribution) and getattr(q, "_mask", None) is False:
            return None
        try:
            value = kl_divergence(p, q)
        except NotImplementedError:
            if self.local_reparameterization and is_gaussian_weight(p):
                raise ValueError(
                    f"local_reparameterization: got True, but the KL of site {name!r} "
                    f"({type(p).__name__} to {type(q).__name__}) has no closed form; set it to False"
                ) from None
            if not p.has_rsample:
                raise ValueError(
                    f"site {name!r}: {type(p).__name__} cannot be reparameterised and its KL has no closed form; "
                    "use pyro.infer.Trace_ELBO, whose score-function gradient needs neither"
                ) from None
            value = p.log_prob(site["value"]) - q.log_prob(site["value"])
        return scale_and_mask(value, site["scale"], site["mask"])

    @staticmethod
    def _output_width(trace: Trace) -> float:
        widths = [
            site["fn"].event_shape[-1]
            for _, site in sample_sites(trace)
            if site["is_observed"] and len(site["fn"].event_shape) > 1
        ]
        return float(widths[0]) if widths else 1.0

    def _log_likelihood(self, trace: Trace, dims: dict[int, int]) -> tuple[Tensor, Tensor]:
        shape = torch.Size(dims.values())
        total: Tensor | None = None
        count: Tensor | None = None
        for _, site in sample_sites(trace):
            if not site["is_observed"]:
                continue
            value = scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])
            found = share(per_task(value, site, dims), shape)
            values = share(per_task(num_values(site["fn"]).expand(value.shape), site, dims), shape)
            total = found if total is None else total + found
            count = values if count is None else count + values
        if total is None or count is None:
            raise ValueError("data: the model observed nothing (y is None?); an objective needs an observed site")
        return total, count


def is_point_mass(fn: Any) -> bool:
    """Whether a distribution is a Delta, whatever dimensions it declares as its event."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return isinstance(fn, pyro.distributions.Delta)


def num_values(fn: Any) -> Tensor:
    """Scored values in one draw of an observation: its event's size, less what a mask takes away."""
    if isinstance(fn, pyro.distributions.MaskedDistribution):
        base = num_values(fn.base_dist)
        mask = fn._mask
        return base if mask is True else base * torch.as_tensor(mask, dtype=base.dtype, device=base.device)
    if isinstance(fn, torch.distributions.Independent):
        inner = num_values(fn.base_dist)
        ndims = fn.reinterpreted_batch_ndims
        inner = inner.expand(torch.broadcast_shapes(inner.shape, fn.base_dist.batch_shape[-ndims:] if ndims else ()))
        return inner.sum(dim=tuple(range(-ndims, 0))) if ndims else inner
    parameter = next((p for p in vars(fn).values() if isinstance(p, Tensor)), torch.zeros(()))
    dtype = parameter.dtype if parameter.dtype.is_floating_point else torch.get_default_dtype()
    return torch.tensor(float(fn.event_shape.numel()), dtype=dtype, device=parameter.device)


def sample_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    """Name and content of the sample sites of a trace, plates left out."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
            yield name, site


def _task_frames(site: Any) -> dict[int, int]:
    """Size of each task plate of a site, by its dim."""
    return {
        frame.dim: frame.size
        for frame in site["cond_indep_stack"]
        if frame.vectorized and (frame.name == TASK_PLATE or frame.name.startswith(TASK_PLATE + "_"))
    }


def task_dims(*traces: Trace) -> dict[int, int]:
    """Sizes of the task plates of some traces by dim, leftmost first."""
    found: dict[int, int] = {}
    for trace in traces:
        for _, site in sample_sites(trace):
            found |= _task_frames(site)
    return dict(sorted(found.items()))


def per_task(value: Tensor, site: Any, dims: dict[int, int]) -> Tensor:
    """Reduces a site's log-density to the task dimensions ``dims``: mean over particles, sum over every other plate.

    A task dimension that the site is not in has size 1.
    """
    frames = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    keep = _task_frames(site)
    for dim in range(-value.dim(), 0):
        if frames.get(dim) == PARTICLE_PLATE:
            value = value.mean(dim, keepdim=True)
        elif dim not in keep:
            value = value.sum(dim, keepdim=True)
    return value.reshape([value.shape[dim] if dim >= -value.dim() else 1 for dim in dims])


def share(value: Tensor, shape: torch.Size) -> Tensor:
    """Expands a term to all tasks; one that several tasks share is divided among them, so that it counts once."""
    if value.shape == shape:
        return value
    return value.expand(shape) * (value.numel() / max(shape.numel(), 1))


def context_and_full(data: Any) -> tuple[Dataset, Dataset]:
    """Context and whole task of a TaskBatch; a Dataset is both.

    Raises:
        TypeError: anything else.
    """
    if isinstance(data, TaskBatch):
        return data.context, data.full
    if isinstance(data, Dataset):
        return data, data
    raise TypeError(f"data: got {type(data).__name__}; this objective needs a TaskBatch or a Dataset")
