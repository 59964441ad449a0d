"""The ELBO less a penalty on a batch's draws."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.elbo import TaskELBO
from inference.objectives.independent_plates import TaskAxes
from inference.objectives.kl_objective import Branches, KLDraws
from inference.objectives.task_objective import BoundTerms
from pp_models.arguments import NOT_NEGATIVE, checked


@dataclass(kw_only=True)
class PenalisedDraws(KLDraws):
    """Terms of each particle, and the penalty."""

    penalty: Tensor


class PenalisedELBO(TaskELBO):
    """ELBO(D) - λ Δ for each task.

    Args:
        num_particles: draws per task.
        penalty_weight: λ; at 0 the objective is ``elbo``.
        **options: see :class:`TaskELBO`.
    """

    #: the others have no draws by which a penalty could move the guide
    estimators: tuple[str, ...] = ("pathwise", "stl")

    @checked(penalty_weight=NOT_NEGATIVE)
    def __init__(self, num_particles: int = 1, *, penalty_weight: float = 1.0, **options: Any) -> None:
        super().__init__(num_particles, **options)
        self.penalty_weight = penalty_weight

    def penalise(self, runs: Branches, scored: Trace, axes: TaskAxes) -> Tensor | None:
        """Δ of the draws, of each particle and task ``[K, *B]`` or of all together; None where there is none."""
        raise NotImplementedError

    def measure(self, runs: Branches, scored: Trace, axes: TaskAxes) -> KLDraws:
        draws = super().measure(runs, scored, axes)
        if not self.penalty_weight:
            return draws
        found = self.penalise(runs, scored, axes)
        if found is None:
            found = torch.zeros_like(draws.log_likelihood)
        given = {item.name: getattr(draws, item.name) for item in fields(draws)}
        return PenalisedDraws(**given, penalty=found.expand_as(draws.log_likelihood))

    def combine(self, draws: KLDraws) -> BoundTerms:
        terms = super().combine(draws)
        if isinstance(draws, PenalisedDraws):
            weight = self.penalty_weight / terms.points.clamp_min(1.0) if self.normalize else self.penalty_weight
            terms.bound = terms.bound - weight * draws.penalty.mean(0)
        return terms
