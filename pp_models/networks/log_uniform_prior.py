"""The prior of variational dropout."""

from __future__ import annotations

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pp_models.networks.priors import WeightPrior


class LogUniform(TorchDistribution):
    """Log-uniform over magnitudes with a symmetric sign: density ∝ 1/|w| on ``low <= |w| <= high``.

    Cutting the magnitudes makes the improper prior of variational dropout (Kingma et al. 2015) one that can be sampled;
    outside the cut the density is continued as ∝ 1/|w|, so that gradients are those of the improper prior.

    Args:
        low: smallest magnitude.
        high: largest magnitude.
    """

    arg_constraints: ClassVar[dict] = {"low": constraints.positive, "high": constraints.positive}
    support = constraints.real
    has_rsample = False

    def __init__(self, low: Tensor, high: Tensor, validate_args: bool | None = None) -> None:
        self.low, self.high = torch.broadcast_tensors(low, high)
        super().__init__(self.low.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(LogUniform, _instance)
        new.low, new.high = self.low.expand(batch_shape), self.high.expand(batch_shape)
        super(LogUniform, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.low.dtype, device=self.low.device)
        sign = torch.randint(0, 2, shape, device=self.low.device) * 2 - 1
        return sign * torch.exp(self.low.log() + uniform * (self.high / self.low).log())

    def log_prob(self, value):
        return -value.abs().clamp_min(1e-30).log() - torch.log(2 * (self.high / self.low).log())


class LogUniformPrior(WeightPrior):
    """The scale-free prior of variational dropout: every order of magnitude of a weight is as likely as any other.

    Args:
        low: smallest magnitude kept when the prior is sampled.
        high: largest one.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: float = 1e-4, high: float = 1.0) -> None:
        super().__init__()
        if not 0 < low < high:
            raise ValueError(f"low, high: got {low}, {high}; they must satisfy 0 < low < high")
        self.register_buffer("low", torch.tensor(float(low)))
        self.register_buffer("high", torch.tensor(float(high)))

    def layer(self, index: int, previous: list[Tensor]) -> TorchDistribution:
        return LogUniform(self.low, self.high).expand(self.shapes[index]).to_event(2)
