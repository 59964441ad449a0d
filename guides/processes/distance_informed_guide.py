"""The encoders of a distance-informed process: Gaussians over its global and its local latents."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from guides.set_encoder import PointEncoder, SetEncoder
from pp_models.arguments import WIDTH, checked
from pp_models.contract import Guide, ObjectiveOffers
from pp_models.data import Dataset
from pp_models.parameter_module import mlp
from pp_models.processes.distance_informed_process import DistanceInformedProcess, of_points
from pp_models.task_plates import task_plates


class DistanceInformedGuide(Guide):
    """q(z | D) and q(local | D), Gaussians with σ = 0.1 + 0.9 sigmoid, one local latent at each point.

    A set encoder gives the global one; the points attend to one another for the local ones. ``memory`` is a point mass
    on the inputs.

    Args:
        model: the process.
        width: width of the encoders.

    Raises:
        TypeError: another kind of model.
    """

    name = "distance-informed"
    description = "a global latent, and local ones read by distance"

    #: no site depends on another
    independent_sites = True

    @checked(width=WIDTH)
    def __init__(self, model: DistanceInformedProcess, width: int = 64) -> None:
        super().__init__()
        if not isinstance(model, DistanceInformedProcess):
            raise TypeError(
                f"model: got {type(model).__name__}; DistanceInformedGuide is a guide for a DistanceInformedProcess"
            )
        self.set_encoder = SetEncoder(
            model.dim_x, model.dim_y, width, width, depth=3, missing_outputs=model.missing_outputs
        )
        self.set_head = mlp([width, width, 2 * model.latent_dim])
        self.point_encoder = PointEncoder(
            model.dim_x, model.dim_y, width, width, depth=3, num_blocks=2, missing_outputs=model.missing_outputs
        )
        self.point_head = mlp([width, 2 * model.local_dim])

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples the sites ``z``, ``memory`` and ``local``; returns the values by site."""
        exists = data.full_mask().unsqueeze(-1).to(data.x.dtype)
        memory = torch.cat([data.x, exists], -1)
        with task_plates(data.batch_shape, data.x.device):
            found = pyro.sample("z", gaussian(self.set_head(self.set_encoder(data))).to_event(1))
            return {
                "z": found,
                "memory": pyro.sample("memory", dist.Delta(memory, event_dim=2)),
                "local": pyro.sample("local", of_points(gaussian(self.point_head(self.point_encoder(data))), data)),
            }

    def check_objective(self, objective: ObjectiveOffers) -> None:
        """Refuses an objective that compares the guide on the context and on the whole task.

        Raises:
            ValueError: it is one; the whole task has local latents at other points than the context.
        """
        if objective.name in ("npvi", "conditional-prior"):
            raise ValueError(
                f"objective: {objective.name!r} compares the guide on the context with the guide on the whole task, "
                "whose local latents in DistanceInformedGuide are those of other points; train it with npml"
            )


def gaussian(parameters: Tensor) -> dist.Normal:
    """N(μ, σ²) from ``[..., 2 R]``, σ = 0.1 + 0.9 sigmoid."""
    mean, raw = parameters.chunk(2, -1)
    return dist.Normal(mean, 0.1 + 0.9 * torch.sigmoid(raw))
