"""Neural-process maximum likelihood: the targets' likelihood under the guide on the context."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from inference.objectives.kl_objective import Branches, KLObjective, mean_signal
from inference.objectives.task_objective import check_choice, context_and_full, scored_points

AVERAGES = ("logmeanexp", "mean")


class NPML(KLObjective):
    """log (1/K) Σ_k p(y_t | x_t, W_k), W_k ~ q(W | D_c), for each task (Foong et al. 2020, section 3.2).

    The joint likelihood of the targets (docs/papers/bnnp.md, eq. 16); no KL, so that nothing ties the guide to the
    prior: the particles predict, and the latents need not be anyone's posterior.

    Args:
        num_particles: draws per task, K. The log-mean-exp is low by O(1/K), and favours little spread for small K.
        average: ``"logmeanexp"``, or ``"mean"`` for the expected log-likelihood (BNNP's early code), which with a
            flexible guide drives it to a point.
        score: which points are scored: ``"target"`` or ``"full"`` (contexts too).
        **options: ``normalize``, ``estimator``, ``vectorize_particles``, ``max_plate_nesting``.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, num_particles: int = 8, *, average: str = "logmeanexp", score: str = "target", **options: Any
    ) -> None:
        for name in ("beta", "kl_reduction"):
            if name in options:
                raise ValueError(f"{name}: got {options[name]!r}; npml has no KL to weigh")
        super().__init__(num_particles, **options)
        if average not in AVERAGES:
            raise ValueError(f"average: got {average!r}; it must be one of {', '.join(AVERAGES)}")
        check_choice("score", score, ("target", "full"))
        if self.local_reparameterization and average == "logmeanexp":
            raise ValueError(
                "local_reparameterization: got True; the joint likelihood of the targets needs one coherent draw of "
                "the weights for all points"
            )
        self.average = average
        self.score = score

    def average_predictive(self, values: Tensor) -> Tensor:
        return super().average_predictive(values) if self.average == "logmeanexp" else values.mean(0)

    def predictive_signal(self, values: Tensor) -> Tensor:
        return super().predictive_signal(values) if self.average == "logmeanexp" else mean_signal(values)

    def run_branches(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Branches:
        context, _ = context_and_full(args[0])
        given = (context, *args[1:])
        return Branches(
            self.run_guide(guide, given, kwargs), None, None, given, (scored_points(args[0], self.score), *args[1:])
        )
