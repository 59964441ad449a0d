"""Gaussian dropout on a weight matrix: the distribution behind every dropout guide, and its closed-form KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

from pp_models.single_precision import single

#: inside every square root of a variance, whose gradient is infinite at zero
VARIANCE_FLOOR = 1e-10


@dataclass(frozen=True)
class DropRates:
    """Drop probabilities of one layer: P[k, d] = column[k] row[d] layer for weights, ``bias`` for biases.

    Args:
        row: ``[*B, k_in]``, one factor per input unit.
        column: ``[*B, k_out]``, one factor per output unit.
        layer: ``[*B]``, one factor for the layer.
        bias: ``[*B, k_out]``, the rates of the biases (a single factor; docs/papers/nvdp.md, eq. 4).
        dense: ``[*B, k_out, k_in + 1]``; where given it is what counts and the factors are not used.
    """

    row: Tensor | None = None
    column: Tensor | None = None
    layer: Tensor | None = None
    bias: Tensor | None = None
    dense: Tensor | None = None

    def matrix(self) -> Tensor:
        """All rates ``[*B, k_out, k_in + 1]``, the biases' in the last column."""
        if self.dense is not None:
            return self.dense
        assert self.row is not None and self.column is not None and self.layer is not None and self.bias is not None
        columns = self.column * self.layer.unsqueeze(-1)
        # one outer product writes weights and biases: rates of (row, 0) and then the bias column
        weights = columns.unsqueeze(-1) * self.row.unsqueeze(-2)
        return torch.cat([weights, self.bias.unsqueeze(-1)], -1)

    @property
    def batch_shape(self) -> torch.Size:
        """The task dimensions."""
        if self.dense is not None:
            return self.dense.shape[:-2]
        assert self.layer is not None
        return self.layer.shape


class DropoutNormal(TorchDistribution):
    """N((1 - P) θ, P (1 - P) θ²) for every entry of a weight matrix: dropout noise matched in its first two moments.

    No rescaling by 1 / (1 - P): the rates move the mean, and that is how a task is adapted to
    (docs/papers/nvdp.md, eq. 2).

    Args:
        weight: θ ``[k_out, k_in + 1]``, bias in the last column.
        rates: drop probabilities, a :class:`DropRates` of task dimensions ``*B``.

    Shapes: batch ``*B``, event ``[k_out, k_in + 1]``.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, weight: Tensor, rates: DropRates, validate_args: bool | None = None) -> None:
        self.weight = weight
        self.rates = rates
        super().__init__(rates.batch_shape, weight.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        # the rates keep their own shape and broadcast: particles cost nothing until something is drawn
        new = self._get_checked_instance(DropoutNormal, _instance)
        new.weight, new.rates = self.weight, self.rates
        if "_matrix" in self.__dict__:
            new._matrix = self._matrix
        super(DropoutNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def rate(self) -> Tensor:
        """P ``[*B, k_out, k_in + 1]`` (not expanded over particles)."""
        if "_matrix" not in self.__dict__:
            self._matrix = self.rates.matrix()
        return self._matrix

    def _moments(self) -> tuple[Tensor, Tensor]:
        """In float32 at least: 16 bits do not hold the floor."""
        rate, weight = single(self.rate), single(self.weight)
        return (1 - rate) * weight, rate * (1 - rate) * weight.square() + VARIANCE_FLOOR

    @property
    def mean(self) -> Tensor:
        return self._moments()[0].to(self.weight.dtype).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self._moments()[1].to(self.weight.dtype).expand(self.batch_shape + self.event_shape)

    def to_normal(self) -> dist.Independent:
        """The same distribution as an independent Normal, on the rates' own task dimensions."""
        mean, variance = self._moments()
        return dist.Normal(mean, variance.sqrt(), validate_args=False).to_event(2)

    def rsample(self, sample_shape=()):
        mean, variance = self._moments()
        shape = self._extended_shape(torch.Size(sample_shape))
        drawn = mean + variance.sqrt() * torch.randn(shape, dtype=mean.dtype, device=mean.device)
        return drawn.to(self.weight.dtype)

    def log_prob(self, value):
        return self.to_normal().log_prob(value)

    def preactivation_moments(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[*B, N, k_out]`` of the pre-activations of inputs ``[*B, N, k_in]``.

        See docs/papers/nvdp.md, eq. 8 to 11.

        Two evaluations of the same numbers: with factored rates and few points, shared products without any per-task
        matrix; with many points, where the per-task matrices are the smaller objects, batched products.
        """
        few_points = 2 * inputs.shape[-2] <= self.weight.shape[1]
        if self.rates.dense is None and few_points:
            return self.factored_preactivation_moments(inputs)
        return self.dense_preactivation_moments(inputs)

    def dense_preactivation_moments(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """By per-task matrices of means and variances."""
        mean, variance = self._moments()
        inputs = single(inputs)
        return (
            torch.matmul(inputs, mean[..., :-1].mT) + mean[..., None, :, -1],
            torch.matmul(inputs.square(), variance[..., :-1].mT) + variance[..., None, :, -1],
        )

    def factored_preactivation_moments(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """By products with θ and θ², shared by all tasks, whose inputs and outputs the rate factors scale."""
        rates = self.rates
        assert rates.row is not None and rates.column is not None and rates.layer is not None
        assert rates.bias is not None
        weight, bias = self.weight[:, :-1], self.weight[:, -1]
        squared_weight, squared = weight.square(), inputs.square()
        row = rates.row.unsqueeze(-2)
        column = (rates.column * rates.layer.unsqueeze(-1)).unsqueeze(-2)
        bias_rate = rates.bias.unsqueeze(-2)
        kept = inputs @ weight.mT - column * ((inputs * row) @ weight.mT)
        mean = kept + (1 - bias_rate) * bias
        scaled = squared * row
        variance = column * (scaled @ squared_weight.mT) - column.square() * ((scaled * row) @ squared_weight.mT)
        # a difference of two nearly equal terms can round below zero
        return mean, variance.clamp_min(0.0) + bias_rate * (1 - bias_rate) * bias.square()


class _DropoutKL(torch.autograd.Function):
    """The closed form with its analytic gradient: a third of the passes over memory that autograd would make."""

    @staticmethod
    def forward(ctx, rate: Tensor, prior_rate: Tensor) -> Tensor:
        spread, prior_spread = rate * (1 - rate), prior_rate * (1 - prior_rate)
        ratio = spread / prior_spread
        moved = (prior_rate - rate).square_().div_(prior_spread)
        ctx.save_for_backward(rate, prior_rate, spread, prior_spread)
        return moved.add_(ratio).sub_(1).sub_(ratio.log()).mul_(0.5)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        rate, prior_rate, spread, prior_spread = ctx.saved_tensors
        (grad,) = grads
        slope, prior_slope = 1 - 2 * rate, 1 - 2 * prior_rate
        # the numerator P(1-P) + (P̂-P)² is P(1-2P̂) + P̂²
        numerator = torch.addcmul(prior_rate.square(), rate, prior_slope)
        by_rate = (prior_slope / prior_spread).sub_(slope / spread)
        by_prior = (2 * (prior_rate - rate)).add_(prior_slope).sub_(numerator * prior_slope / prior_spread)
        return 0.5 * grad * by_rate, 0.5 * grad * by_prior.div_(prior_spread)


def dropout_kl(rate: Tensor, prior_rate: Tensor) -> Tensor:
    """KL of N((1-P)θ, P(1-P)θ²) from N((1-P̂)θ, P̂(1-P̂)θ²), elementwise; θ cancels (docs/papers/nvdp.md, eq. 7).

        KL = ½ { [P(1-P) + (P̂-P)²] / [P̂(1-P̂)] + ln P̂(1-P̂) - ln P(1-P) - 1 }

    Args:
        rate: P, in (0, 1).
        prior_rate: P̂, in (0, 1), of the same shape.
    """
    return _DropoutKL.apply(*torch.broadcast_tensors(rate, prior_rate))


@register_kl(DropoutNormal, DropoutNormal)
def _kl_dropout_dropout(p: DropoutNormal, q: DropoutNormal) -> Tensor:
    if not _same_weight(p.weight, q.weight):
        return kl_divergence(p.to_normal(), q.to_normal()).expand(p.batch_shape)
    return dropout_kl(p.rate, q.rate).sum((-1, -2)).expand(p.batch_shape)


def _same_weight(p: Tensor, q: Tensor) -> bool:
    """Whether two tensors are one parameter, or the same view of one."""
    if p is q:
        return True
    if p._base is None or p._base is not q._base:
        return False
    return p.shape == q.shape and p.stride() == q.stride() and p.storage_offset() == q.storage_offset()


@register_kl(DropoutNormal, torch.distributions.Independent)
def _kl_dropout_independent(p: DropoutNormal, q: torch.distributions.Independent) -> Tensor:
    value = kl_divergence(p.to_normal(), q)
    return value.expand(torch.broadcast_shapes(p.batch_shape, value.shape))
