"""The prior of variational dropout."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pp_models.arguments import POSITIVE, checked
from pp_models.log_uniform import LogUniform
from pp_models.networks.priors import WeightPrior


class LogUniformPrior(WeightPrior):
    """The scale-free prior of variational dropout: every order of magnitude of a weight is as likely as any other.

    Args:
        low: smallest magnitude kept when the prior is sampled.
        high: largest one.
    """

    low: Tensor
    high: Tensor

    @checked(low=POSITIVE, high=POSITIVE)
    def __init__(self, low: float = 1e-4, high: float = 1.0) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"low, high: got {low}, {high}; they must satisfy 0 < low < high")
        self.register_buffer("low", torch.tensor(float(low)))
        self.register_buffer("high", torch.tensor(float(high)))

    def layer(self, index: int, previous: list[Tensor]) -> TorchDistribution:
        return LogUniform(self.low, self.high).expand(self.shapes[index]).to_event(2)
