"""How heavily a KL weighs against a log-likelihood: κ and β(t), written once for every way to train adapters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pp_models.arguments import NOT_NEGATIVE, integer, named, one_of, optional

KL_COUNTS = ("rank", "weights")
#: β before the first step; a weight must be positive
LEAST_BETA = 1e-6

RULES = {
    "num_data": optional(integer(1)),
    "kl_count": one_of(*KL_COUNTS),
    "kl_weight": named("elbo", other=NOT_NEGATIVE),
    "temperature": NOT_NEGATIVE,
    "warmup_steps": optional(NOT_NEGATIVE),
}


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
        for name, rule in RULES.items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))
        if self.kl_weight != "elbo" and self.num_data is None:
            raise ValueError(f"kl_weight: got {self.kl_weight}, which weighs a mean over the data; give num_data too")

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
