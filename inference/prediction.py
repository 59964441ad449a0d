"""What a prediction is: an equal mixture of the likelihoods of posterior draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pp_models.data import DataError
from pp_models.likelihoods import of_observed
from pp_models.mixtures.simplex_distributions import ExpertMixture

if TYPE_CHECKING:
    import pandas as pd
    import xarray


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

    def log_prob(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Marginal log-density of each point ``[*B, N]``: log-mean-exp over draws, nats, summed over outputs.

        Args:
            y: outputs ``[*B, N, Dy]``, or class indices ``[*B, N]``.
            mask: True for what counts, points ``[*B, N]`` or single outputs ``[*B, N, Dy]``; others score 0.

        Raises:
            DataError: y or mask do not fit the points predicted.
        """
        return torch.logsumexp(self._counted_scores(y, mask), 0) - math.log(self.num_samples)

    def joint_log_prob(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Joint log-density of all (unmasked) points of a task ``[*B]``: log-mean-exp over draws of the sum.

        Args:
            y: outputs ``[*B, N, Dy]``, or class indices ``[*B, N]``.
            mask: True for what counts, points ``[*B, N]`` or single outputs ``[*B, N, Dy]``.

        Raises:
            DataError: y or mask do not fit the points predicted.
        """
        return torch.logsumexp(self._counted_scores(y, mask).sum(-1), 0) - math.log(self.num_samples)

    def _counted_scores(self, y: Tensor, mask: Tensor | None) -> Tensor:
        """Scores of each draw at each point, 0 where a mask takes it out."""
        if mask is None:
            return self._scores(y)
        points = self.likelihood.batch_shape[1:]
        outputs = self.samples.shape[1:]
        if mask.dtype != torch.bool or mask.shape not in (points, outputs):
            raise DataError(
                f"mask: got {mask.dtype} of shape {list(mask.shape)}; it must be torch.bool of shape "
                f"{list(points)}, True where the point counts, or {list(outputs)} for single outputs"
            )
        if y.shape == outputs:  # what does not count may be NaN
            y = torch.where(mask.reshape(*mask.shape, *(1,) * (y.dim() - mask.dim())), y, torch.zeros_like(y))
        if mask.shape == points:
            scores = self._scores(y)
            return torch.where(mask, scores, torch.zeros_like(scores))
        return Prediction(of_observed(self.likelihood, mask), self.samples)._scores(y)

    def cdf(self, y: Tensor) -> Tensor:
        """P(Y <= y) of every output ``[*B, N, Dy]``: the mean over draws of the likelihood's distribution function.

        Exact given the draws, of which one may do: :func:`evaluation.scores.metrics.pit` needs hundreds.

        Raises:
            DataError: y does not fit the points predicted.
            ValueError: the likelihood has no distribution function in closed form.
        """
        if y.shape != self.samples.shape[1:]:
            raise DataError(f"y: got shape {list(y.shape)}; the prediction has shape {list(self.samples.shape[1:])}")
        base = pointwise(self.likelihood, 0)
        try:
            return base.cdf(y).mean(0)
        except NotImplementedError:
            name = type(self.likelihood).__name__
            raise ValueError(
                f"y: the likelihood is {name}, which has no distribution function in closed form"
            ) from None

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

    def in_units(self, mean: Any, scale: Any) -> Prediction:
        """The prediction of ``mean + scale y``, in float64: mean, sd, quantiles, draws, and densities by the Jacobian.

        Args:
            mean: numbers ``[Dy]``, such as ``tasks.columns.y_mean``.
            scale: positive numbers ``[Dy]``.

        Raises:
            ValueError: a likelihood whose outputs have no units, or class indices.
        """
        from inference.prediction_units import in_units

        if not self.samples.dtype.is_floating_point:
            raise ValueError("prediction: its outputs are class indices, which have no units")
        shift, factor = (torch.as_tensor(v, dtype=torch.float64, device=self.samples.device) for v in (mean, scale))
        if not bool((factor > 0).all() and torch.isfinite(factor).all() and torch.isfinite(shift).all()):
            raise ValueError(f"scale: got {factor.tolist()}; it must be positive and finite, and mean finite")
        return Prediction(in_units(self.likelihood, shift, factor), shift + factor * self.samples.double())

    def to_dataframe(self, quantiles: Sequence[float] = (0.05, 0.95), mask: Tensor | None = None) -> pd.DataFrame:
        """One row a point: task, point, and of each output ``y1`` … mean, std and quantiles (``y1_q0.05``).

        Of a classifier: the most probable class ``y1`` and the probability of each (``y1_p_0``).

        Args:
            quantiles: levels in [0, 1].
            mask: ``[*B, N]``, True for the points to show; None for all.

        Raises:
            DataError: a mask that does not fit.
            ValueError: a level out of range.
        """
        from inference import prediction_tables

        outputs, classes, points = self._names()
        if mask is not None and mask.shape != points:
            raise DataError(f"mask: got shape {list(mask.shape)}; the prediction has points {list(points)}")
        keep = None if mask is None else mask.reshape(-1).bool().cpu().numpy()
        rows = prediction_tables.points_of(points)
        return prediction_tables.to_dataframe(self, rows, outputs, classes, quantiles, keep)

    def to_xarray(self) -> xarray.Dataset:
        """``mean``, ``std`` ``[row, output]`` and ``samples`` ``[draw, row, output]``; rows have task and point."""
        from inference import prediction_tables

        outputs, classes, points = self._names()
        return prediction_tables.to_xarray(self, prediction_tables.points_of(points), outputs, classes)

    def _names(self) -> tuple[list[str], list[str], torch.Size]:
        """Names of outputs and of classes, and the shape ``[*B, N]`` of points."""
        shape = self.samples.shape[1:]
        if not self.samples.dtype.is_floating_point:
            return ["y1"], [str(i) for i in range(self.function_samples.shape[-1])], shape
        return [f"y{i + 1}" for i in range(shape[-1])], [], shape[:-1]


def widen_draws(value: Tensor, likelihood: TorchDistribution, shape: torch.Size) -> Tensor:
    event = likelihood.event_shape
    return value.expand(-1, *shape[1:], *event) if value.dim() == len(shape) + len(event) else value


def stack_distributions(parts: list[TorchDistribution], shape: torch.Size) -> TorchDistribution:
    """Joins distributions of the same kind along their first batch dimension."""
    first = parts[0]
    if isinstance(first, ExpertMixture):
        return stack_mixtures([p for p in parts if isinstance(p, ExpertMixture)], shape)
    if len(parts) == 1:
        return first.expand(shape)
    if isinstance(first, torch.distributions.Independent):
        base = stack_distributions(
            [p.base_dist for p in parts], shape + first.event_shape[: first.reinterpreted_batch_ndims]
        )
        return base.to_event(first.reinterpreted_batch_ndims)
    names = [name for name in first.arg_constraints if name in first.__dict__]
    if {"probs", "logits"} <= set(names):  # one was derived from the other when it was first asked for
        names.remove("probs")
    full = [p.expand(p.batch_shape[:1] + shape[1:]) for p in parts]
    parameters: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in full]) for name in names}
    return type(first)(**parameters, validate_args=False)


def stack_mixtures(parts: list[ExpertMixture], shape: torch.Size) -> ExpertMixture:
    """Joins mixtures along the draws; experts that all draws share stay one."""
    weights = torch.cat([p.expand(p.batch_shape[:1] + shape[1:]).log_weights for p in parts])
    experts = parts[0].experts
    if len(experts.batch_shape) > len(shape) and experts.batch_shape[0] > 1:  # each draw has its own
        experts = stack_distributions([p.experts for p in parts], shape + experts.batch_shape[-1:])
    return ExpertMixture(weights.expand(*shape, -1), experts)
