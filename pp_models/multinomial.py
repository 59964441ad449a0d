"""Counts of items, such as what a user chose, by one multinomial distribution a point."""

from __future__ import annotations

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pp_models.arguments import checked, integer
from pp_models.contract import Likelihood
from pp_models.data import DataError


class Counts(TorchDistribution):
    """Counts ``[D]`` of draws from D items; how many there were is the value's own sum.

    log P(y) = log (Σ y)! - Σ log y_d! + Σ y_d log p_d, for every total; ``total_count`` is that of draws and moments.

    Args:
        logits: of the items ``[*batch, D]``.
        total_count: ``[*batch]``.
    """

    arg_constraints: ClassVar[dict] = {
        "logits": constraints.real_vector, "total_count": constraints.nonnegative_integer
    }  # fmt: skip
    support = constraints.independent(constraints.nonnegative, 1)

    def __init__(self, logits: Tensor, total_count: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(logits.shape[:-1], total_count.shape)
        self.logits, self.total_count = logits.expand(*batch, -1), total_count.expand(batch)
        super().__init__(batch, logits.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Counts(self.logits.expand(*batch_shape, -1), self.total_count.expand(batch_shape))

    @property
    def probs(self) -> Tensor:
        """Of the items ``[*batch, D]``."""
        return torch.softmax(self.logits, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        ways = torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1)
        return ways + (value * torch.log_softmax(self.logits, -1)).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        probs = self.probs.expand(shape).double()
        left, found, rest = self.total_count.expand(shape[:-1]).double(), [], torch.ones_like(probs[..., 0])
        for i in range(shape[-1]):  # an item's count given those before it
            share = (probs[..., i] / rest.clamp_min(1e-12)).clamp(0, 1)
            drawn = left if i == shape[-1] - 1 else torch.binomial(left, share)
            found.append(drawn)
            left, rest = left - drawn, rest - probs[..., i]
        return torch.stack(found, -1).to(self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        return self.total_count.unsqueeze(-1) * self.probs

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.probs)


class MultinomialLikelihood(Likelihood):
    """Counts of items by their logits, as of collaborative filtering (Mult-VAE, Liang et al. 2018).

    y ``[*B, N, D]`` holds counts, as floating-point numbers; how many a point has is given, and not predicted.

    Args:
        total_count: of the points that are drawn or predicted.
    """

    @checked(total_count=integer(1, 2**24))
    def __init__(self, total_count: int = 1) -> None:
        super().__init__()
        self.total_count = total_count

    def check(self, y: Tensor, outputs: int) -> None:
        super().check(y, outputs)
        known = y.device.type == "cpu" and y.numel() and not torch.compiler.is_compiling()
        if known and bool(((y < 0) | (y != y.round())).any()):
            raise DataError(f"y: got values from {float(y.min()):g} to {float(y.max()):g}; counts must be 0, 1, 2 …")

    def forward(self, outputs: Tensor) -> TorchDistribution:
        return Counts(outputs, torch.full_like(outputs[..., 0], self.total_count))
