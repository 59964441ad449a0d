"""Posterior predictive of a model under a guide, in one or many draws, and draws of its latents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.objectives.importance_weights import weigh
from inference.objectives.independent_plates import sample_sites
from inference.pareto_smoothing import psis_weights
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.mixtures.simplex_distributions import ExpertMixture
from pp_models.task_plates import PARTICLE_PLATE


class mean_sites(Messenger):
    """Sets every latent site to the mean of its distribution instead of a draw (NVDP predicts with mean weights)."""

    def _pyro_sample(self, msg) -> None:
        if msg["done"] or msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample" or msg["name"] == "y":
            return
        fn = msg["fn"]
        try:
            msg["value"] = fn.mean
        except NotImplementedError:
            raise ValueError(f"weights='mean': site {msg['name']!r} ({type(fn).__name__}) has no mean") from None
        msg["done"] = True


@contextmanager
def seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """Runs a block under its own seed and puts the random state back; ``None`` leaves the state alone."""
    if seed is None:
        yield
        return
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def pointwise(fn: Any, event_dim: int) -> TorchDistribution:
    """The distribution of one point behind an observation site: masks dropped, points moved from event to batch.

    Args:
        fn: the site's distribution, event shape ``[N, *event]``.
        event_dim: dimensions of one point's event, 1 for ``[Dy]`` and 0 for a class index.
    """
    if isinstance(fn, dist.MaskedDistribution):
        return pointwise(fn.base_dist, event_dim)
    if isinstance(fn, torch.distributions.Independent):
        inner = len(fn.event_shape) - fn.reinterpreted_batch_ndims
        if inner >= event_dim:
            return pointwise(fn.base_dist, event_dim)
        base = fn.base_dist.base_dist if isinstance(fn.base_dist, dist.MaskedDistribution) else fn.base_dist
        return base.to_event(event_dim - inner)
    return fn


def likelihood_of_points(site: Any) -> TorchDistribution:
    """The distribution of one point behind the observation site ``y``, for class indices or for vectors."""
    return pointwise(site["fn"], 1 if site["value"].dtype.is_floating_point else 0)


class Prediction:
    """A posterior predictive: an equal mixture of the likelihoods of S posterior draws.

    ``[*B]`` are task dimensions, N points, Dy output dimensions (absent for class indices).

    Args:
        likelihood: distribution of each draw at each point, batch ``[S, *B, N]``.
        samples: draws of y, ``[S, *B, N, Dy]`` (class indices ``[S, *B, N]``).
    """

    def __init__(self, likelihood: TorchDistribution, samples: Tensor) -> None:
        self.likelihood = likelihood
        self.samples = samples

    @property
    def num_samples(self) -> int:
        """S."""
        return self.samples.shape[0]

    @property
    def function_samples(self) -> Tensor:
        """The mean of the likelihood of each draw ``[S, *B, N, Dy]``: coherent functions, without noise.

        For a classifier these are the class probabilities ``[S, *B, N, C]``.
        """
        if isinstance(self.likelihood, torch.distributions.Categorical):
            return self.likelihood.probs
        return self.likelihood.mean

    @property
    def mean(self) -> Tensor:
        """Predictive mean ``[*B, N, Dy]`` (class probabilities for a classifier)."""
        return self.function_samples.mean(0)

    @property
    def std(self) -> Tensor:
        """Predictive standard deviation ``[*B, N, Dy]``, noise and posterior together."""
        if isinstance(self.likelihood, torch.distributions.Categorical):
            return self.function_samples.std(0, correction=0)
        spread = self.likelihood.mean.var(0, correction=0)
        return (self.likelihood.variance.mean(0) + spread).sqrt()

    def _scores(self, y: Tensor) -> Tensor:
        if y.shape != self.samples.shape[1:]:
            raise DataError(f"y: got shape {list(y.shape)}; the prediction has shape {list(self.samples.shape[1:])}")
        return self.likelihood.log_prob(y)

    def log_prob(self, y: Tensor) -> Tensor:
        """Marginal log-density of each point ``[*B, N]``: log-mean-exp over draws, nats, summed over outputs.

        Raises:
            DataError: y does not fit the points predicted.
        """
        return torch.logsumexp(self._scores(y), 0) - math.log(self.num_samples)

    def joint_log_prob(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Joint log-density of all (unmasked) points of a task ``[*B]``: log-mean-exp over draws of the sum."""
        scores = self._scores(y)
        if mask is not None:
            scores = scores * mask
        return torch.logsumexp(scores.sum(-1), 0) - math.log(self.num_samples)

    def quantile(self, q: float | Tensor) -> Tensor:
        """Quantiles of the predictive ``[*B, N, Dy]`` (leading dim for a vector of q).

        Exact for one draw of a Gaussian or of a mixture of Gaussians (by bisection), else from the samples.

        Raises:
            ValueError: q outside [0, 1], or y is a class index.
        """
        q = torch.as_tensor(q, dtype=self.samples.dtype if self.samples.dtype.is_floating_point else torch.float32)
        if (q < 0).any() or (q > 1).any():
            raise ValueError(f"q: got {q.tolist()}; quantiles lie in [0, 1]")
        if not self.samples.dtype.is_floating_point:
            raise ValueError("q: the outputs are class indices, which have no quantiles; use .mean for probabilities")
        base = pointwise(self.likelihood, 0)
        if self.num_samples == 1 and isinstance(base, ExpertMixture):
            try:
                return base.quantile(q.clamp(1e-6, 1 - 1e-6)).squeeze(q.dim())
            except NotImplementedError:  # experts without a distribution function
                pass
        if self.num_samples == 1 and isinstance(base, torch.distributions.Normal):
            shape = q.shape + (1,) * (base.loc.dim() - 1)
            return base.loc[0] + base.scale[0] * torch.special.ndtri(q.reshape(shape).to(base.loc.device))
        return torch.quantile(self.samples, q.to(self.samples.device), dim=0)


def run_chunks(num_samples: int, size_of_one: int, limit: int = 2**24) -> list[int]:
    """Splits ``num_samples`` draws of ``size_of_one`` numbers each into chunks that stay under ``limit`` numbers."""
    most = max(1, min(num_samples, limit // max(size_of_one, 1)))
    return [most] * (num_samples // most) + ([num_samples % most] if num_samples % most else [])


def _as_context(context: Dataset | TaskBatch) -> Dataset:
    return context.context if isinstance(context, TaskBatch) else context


@torch.no_grad()
def predict(
    model: Any,
    guide: Any,
    context: Dataset,
    x: Tensor | Dataset,
    num_samples: int = 100,
    *,
    weights: str = "samples",
    seed: int | None = None,
) -> Prediction:
    """Posterior predictive at ``x`` given a context.

    Args:
        model: called with a Dataset without y; its observation site is ``y``.
        guide: called with the context.
        context: observed points ``[*B, N_c]``; may be empty.
        x: inputs ``[*B, N, Dx]`` (``[N, Dx]`` is used for every task), or a Dataset whose inputs and mask are used.
        num_samples: posterior draws S; each draw is one function per task, coherent over ``x``.
        weights: ``"samples"``, or ``"mean"`` for one pass with the posterior mean of every latent (what NVDP's
            released code evaluates).
        seed: seed of these draws; the global random state when None.

    Raises:
        ValueError: an argument out of range.
        DataError: shapes that do not fit.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: got {num_samples}; it must be at least 1")
    if weights not in ("samples", "mean"):
        raise ValueError(f"weights: got {weights!r}; it must be 'samples' or 'mean'")
    context = _as_context(context)
    if isinstance(x, Dataset):
        data = x.without_y()
    else:
        if x.dim() == 2 and context.batch_shape:
            x = x.expand(*context.batch_shape, *x.shape)
        data = Dataset(x)
    if data.batch_shape != context.batch_shape:
        raise DataError(
            f"x: task dimensions {list(data.batch_shape)} differ from the context's {list(context.batch_shape)}"
        )
    if hasattr(model, "check"):  # here, for Pyro's traces add the shapes of all sites to the message
        model.check(context)
        model.check(data)
    likelihoods, samples = [], []
    draws = 1 if weights == "mean" else num_samples
    width = max(getattr(model, "layer_sizes", [128]))
    with seeded(seed, data.x.device):
        for size in run_chunks(draws, data.x[..., 0].numel() * width):
            with pyro.plate(PARTICLE_PLATE, size, dim=-1 - len(data.batch_shape)):
                if weights == "mean":
                    with mean_sites():
                        guide_trace = poutine.trace(guide).get_trace(context)
                else:
                    guide_trace = poutine.trace(guide).get_trace(context)
                site = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(data).nodes["y"]
            likelihoods.append(likelihood_of_points(site))
            samples.append(site["value"])
    shape = torch.Size([draws]) + data.x.shape[:-1]
    return Prediction(_stack(likelihoods, shape), torch.cat([_widen(s, likelihoods[0], shape) for s in samples]))


def _widen(value: Tensor, likelihood: TorchDistribution, shape: torch.Size) -> Tensor:
    event = likelihood.event_shape
    return value.expand(-1, *shape[1:], *event) if value.dim() == len(shape) + len(event) else value


def _stack(parts: list[TorchDistribution], shape: torch.Size) -> TorchDistribution:
    """Joins distributions of the same kind along their first batch dimension."""
    first = parts[0]
    if isinstance(first, ExpertMixture):
        return _stack_mixtures([p for p in parts if isinstance(p, ExpertMixture)], shape)
    if len(parts) == 1:
        return first.expand(shape)
    if isinstance(first, torch.distributions.Independent):
        base = _stack([p.base_dist for p in parts], shape + first.event_shape[: first.reinterpreted_batch_ndims])
        return base.to_event(first.reinterpreted_batch_ndims)
    names = [name for name in first.arg_constraints if name in first.__dict__]
    if {"probs", "logits"} <= set(names):  # one was derived from the other when it was first asked for
        names.remove("probs")
    full = [p.expand(p.batch_shape[:1] + shape[1:]) for p in parts]
    parameters: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in full]) for name in names}
    return type(first)(**parameters, validate_args=False)


def _stack_mixtures(parts: list[ExpertMixture], shape: torch.Size) -> ExpertMixture:
    """Joins mixtures along the draws; experts that all draws share stay one."""
    weights = torch.cat([p.expand(p.batch_shape[:1] + shape[1:]).log_weights for p in parts])
    experts = parts[0].experts
    if len(experts.batch_shape) > len(shape) and experts.batch_shape[0] > 1:  # each draw has its own
        experts = _stack([p.experts for p in parts], shape + experts.batch_shape[-1:])
    return ExpertMixture(weights.expand(*shape, -1), experts)


CORRECTIONS = ("psis", "sir")


@torch.no_grad()
def sample_posterior(
    model: Any,
    guide: Any,
    data: Dataset | TaskBatch,
    num_samples: int = 1000,
    *,
    seed: int | None = None,
    correct: str | None = None,
) -> dict[str, Tensor]:
    """Draws of every latent site from the guide, or from the posterior that the guide's importance weights point at.

    With ``correct`` each task's draws are drawn again, with replacement, in proportion to p(y, z) / q(z | D): with the
    Pareto-smoothed weights (``"psis"``) or the raw ones (``"sir"``). That mends a guide that is nearly right; where the
    weights' k-hat is above 0.7 (:func:`evaluation.verdict` says so) it does not.

    Args:
        model: run only to weigh; named so that all calls of the library begin alike.
        guide: called with the data (with the context of a TaskBatch).
        data: a Dataset or TaskBatch of task dimensions ``*B``.
        num_samples: draws S.
        seed: seed of these draws; the global random state when None.
        correct: None, ``"psis"`` or ``"sir"``.

    Returns:
        ``[S, *B, *event]`` by site; ``[S, *event]`` for a site outside every task plate, which tasks share. Corrected
        draws repeat.

    Raises:
        ValueError: ``num_samples`` below 1, or an unknown correction.
        DataError: a correction for data without y.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: got {num_samples}; it must be at least 1")
    if correct is not None and correct not in CORRECTIONS:
        raise ValueError(f"correct: got {correct!r}; it must be None or one of {', '.join(CORRECTIONS)}")
    data = _as_context(data)
    with seeded(seed, data.x.device):
        with pyro.plate(PARTICLE_PLATE, num_samples, dim=-1 - len(data.batch_shape)):
            trace = poutine.trace(guide).get_trace(data)
            found = {
                name: _site_draws(site, num_samples, data.batch_shape)
                for name, site in sample_sites(trace)
                if not site["infer"].get("is_auxiliary", False)
            }
        if correct is None:
            return found
        log_weights = posterior_log_weights(model, guide, data, trace, num_samples)
        if correct == "psis":
            log_weights = psis_weights(log_weights.double().unsqueeze(0))[0][0]
        weights = torch.softmax(log_weights, 0).reshape(num_samples, -1).T
        picked = torch.multinomial(weights, num_samples, replacement=True).T.reshape(log_weights.shape)
    for name, value in found.items():
        if picked.dim() == 1:  # one set of weights for everything
            found[name] = value[picked]
            continue
        index = picked.reshape(*picked.shape, *(1,) * (value.dim() - picked.dim())).expand_as(value)
        found[name] = value.gather(0, index)
    return found


def _site_draws(site: Any, num_samples: int, batch_shape: torch.Size) -> Tensor:
    """Draws ``[S, *B, *event]`` of a guide's site; ``[S, *event]`` where it is in no task plate."""
    shared = all(frame.name == PARTICLE_PLATE for frame in site["cond_indep_stack"])
    batch = torch.Size([1] * len(batch_shape)) if shared else batch_shape
    value = site["value"].expand(torch.Size([num_samples]) + batch + site["fn"].event_shape)
    return value.reshape(num_samples, *site["fn"].event_shape) if shared else value


@torch.no_grad()
def posterior_log_weights(
    model: Any, guide: Any, data: Dataset, guide_trace: Any = None, num_samples: int = 1000
) -> Tensor:
    """log p(y, z) - log q(z | D) of draws of the guide ``[S, *B]``, one set of weights for each task.

    Where tasks share a latent there is one set for all of them, ``[S]``.

    Args:
        model: its joint density.
        guide: what the draws come from.
        data: observed points ``[*B, N]``.
        guide_trace: a trace of the guide with S vectorised particles; drawn here where it is None.
        num_samples: S, for new draws.

    Raises:
        DataError: y is unknown.
    """
    if data.y is None:
        raise DataError("data: y is None; importance weights need observed points")
    with pyro.plate(PARTICLE_PLATE, num_samples, dim=-1 - len(data.batch_shape)):
        if guide_trace is None:
            guide_trace = poutine.trace(guide).get_trace(data)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(data)
    draws = weigh(model_trace, guide_trace)
    return (draws.scale * draws.log_weights).expand(num_samples, *draws.axes.shape)
