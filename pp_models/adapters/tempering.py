"""How heavily a KL weighs against a log-likelihood: κ and β(t), written once for every way to train adapters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

KL_COUNTS = ("rank", "weights")
#: β before the first step; a weight must be positive
LEAST_BETA = 1e-6


@dataclass(frozen=True)
class Tempering:
    """The weight of the KL against the *summed* log-likelihood of all data: κ β(t) for each rank (docs/papers/lrvd.md).

    κ = T times the count, or T times w N times the count where a number w takes the place of 1 / N in a mean loss.

    Args:
        num_data: N, number of training examples; None where every step sees all of them.
        kl_count: ``"rank"`` counts the KL once a rank, ``"weights"`` once for every weight of A and B (as the released
            code).
        kl_weight: ``"elbo"`` for 1 / N in a mean loss; a number takes its place (the released code has 1e-6).
        temperature: T; 1 with ``"elbo"`` is the evidence bound.
        warmup_steps: steps over which β grows linearly from 0 to 1; None leaves it to whoever trains.

    Raises:
        ValueError: an argument out of range.
    """

    num_data: int | None = None
    kl_count: str = "rank"
    kl_weight: str | float = "elbo"
    temperature: float = 1.0
    warmup_steps: float | None = 0

    def __post_init__(self) -> None:
        if self.kl_count not in KL_COUNTS:
            raise ValueError(f"kl_count: got {self.kl_count!r}; it must be 'rank' or 'weights'")
        if self.num_data is not None and self.num_data < 1:
            raise ValueError(f"num_data: got {self.num_data}; it must be at least 1")
        if self.kl_weight != "elbo" and (isinstance(self.kl_weight, str) or not 0 <= self.kl_weight < math.inf):
            raise ValueError(f"kl_weight: got {self.kl_weight!r}; it must be 'elbo' or a number that is not negative")
        if self.kl_weight != "elbo" and self.num_data is None:
            raise ValueError(f"kl_weight: got {self.kl_weight}, which weighs a mean over the data; give num_data too")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: got {self.temperature}; it must be finite and not negative")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"warmup_steps: got {self.warmup_steps}; it must be at least 0")

    def beta(self, step: int | Tensor) -> float | Tensor:
        """β at a step, counted from 0: (step + 1) / warmup_steps up to 1."""
        if not self.warmup_steps:
            return 1.0
        share = (step + 1) / self.warmup_steps
        return share.clamp(LEAST_BETA, 1.0) if isinstance(share, Tensor) else min(1.0, max(LEAST_BETA, share))

    def kappa(self, count: float = 1.0) -> float:
        """κ of a rank whose KL counts so often: the one number to compare runs by."""
        factor = 1.0 if self.kl_weight == "elbo" else float(self.kl_weight) * (self.num_data or 1)
        return self.temperature * factor * count
