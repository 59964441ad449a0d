"""A training step as one module: model, guide and objective."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from inference.objectives import TaskObjective
from pp_models.contract import as_objective
from pp_models.data import TaskBatch

#: what a step reports beside its loss
STATISTICS = ("log_likelihood", "kl", "ess", "ess_below_2")


class Sealed:
    """Hides a batch from Fabric, which would copy and cast a dataclass field by field."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch


class TrainingStep(nn.Module):
    """Model, guide and objective as one module whose forward pass is the loss."""

    def __init__(self, model: nn.Module, guide: nn.Module, objective: pyro.infer.ELBO) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self.objective = objective
        self.carried = as_objective(objective).module  # trained and saved with the rest

    def forward(self, sealed: Sealed) -> tuple[Tensor, Tensor]:
        """The loss, and ``STATISTICS`` ``[4]``, NaN where unknown."""
        batch = sealed.batch
        if isinstance(self.objective, TaskObjective):
            terms = self.objective.terms(self.model, self.guide, batch)
            per_value = (terms.log_likelihood.sum() / terms.points.sum().clamp_min(1)).detach()
            unknown = per_value.new_full((), torch.nan)
            ess, below = terms.ess, terms.share_below_2
            statistics = [
                per_value,
                terms.kl.mean().detach(),
                unknown if ess is None else ess.mean(),
                unknown if below is None else below,
            ]
            return self._touch_all(self.objective.reduce(terms)), torch.stack(statistics)
        data = batch.full if isinstance(batch, TaskBatch) else batch
        loss = self.objective.differentiable_loss(  # type: ignore[attr-defined]
            self.model, self.guide, data
        )
        return self._touch_all(loss), loss.detach().new_full((len(STATISTICS),), torch.nan)

    def _touch_all(self, loss: Tensor) -> Tensor:
        """With several processes every parameter must take part in every loss (an empty context's vector does not)."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return loss
        return loss + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
