"""The guide that hands the context's points over as they are."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

from pp_models.arguments import checked
from pp_models.contract import Guide
from pp_models.data import Dataset
from pp_models.processes.conditional_process import ConditionalProcess, context_memory
from pp_models.task_plates import task_plates


class ContextPointsGuide(Guide):
    """A point mass on the context's points, for models whose network reads them (ConvCNP, TNP-D).

    It has no parameters: the model holds the whole network. Train with ``npml`` and one particle.

    Args:
        model: a ConditionalProcess.
        width: not used, for there is no network here; every guide is made of a model and a width.
    """

    name = "context-points"
    description = "hands the context to conditional models as it is"

    #: no site depends on another
    independent_sites = True

    @checked()
    def __init__(self, model: ConditionalProcess, width: int = 0) -> None:
        super().__init__()
        if not isinstance(model, ConditionalProcess):
            raise TypeError(
                f"model: got {type(model).__name__}; ContextPointsGuide is a guide for a ConditionalProcess, such as "
                "ConvNeuralProcess or TransformerNeuralProcess"
            )
        self.dim_y = model.dim_y

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Sets the site ``memory`` ``[*B, N, Dx + Dy + 1]``; returns it by name."""
        with task_plates(data.batch_shape, data.x.device):
            return {"memory": pyro.sample("memory", dist.Delta(context_memory(data, self.dim_y), event_dim=2))}
