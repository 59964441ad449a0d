"""What every guide over mixture weights shares: the encoder of the context, and the path to context experts."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from guides.set_encoder import POOLINGS, MemoryEncoder, SetEncoder
from pp_models.arguments import MOST_LAYERS, WIDTH, checked, integer, one_of
from pp_models.contract import Guide
from pp_models.data import Dataset
from pp_models.mixtures.mixture_density import MixtureDensityNetwork
from pp_models.parameter_module import mlp, part_of
from pp_models.task_plates import task_plates


class MixtureEncoder(nn.Module):
    """A set encoder with the number of points beside the pooled embedding (docs/papers/nmdp.md#model).

    Pooling by means forgets how many points there were, and a concentration should grow with evidence.

    Args:
        dim_x: input width.
        dim_y: output width.
        outputs: numbers that come out.
        width: hidden width.
        pooling: see ``SetEncoder``.
        missing_outputs: see ``SetEncoder``.
    """

    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        outputs: int,
        width: int = 128,
        *,
        pooling: str = "mean",
        missing_outputs: bool = False,
    ) -> None:
        super().__init__()
        self.points = SetEncoder(dim_x, dim_y, width, width, depth=4, pooling=pooling, missing_outputs=missing_outputs)
        self.head = mlp([width + 1, width, outputs])
        with torch.no_grad():
            self.head[-1].weight.mul_(0.1)  # type: ignore[operator, union-attr]

    def keep(self, outputs: list[int]) -> None:
        """Drops all outputs but these, in place."""
        self.head[-1] = part_of(self.head[-1], outputs)

    def forward(self, data: Dataset) -> Tensor:
        """Data ``[*B, N]`` to ``[*B, outputs]``; an empty set is a learned vector."""
        count = data.counts.to(data.x.dtype).log1p().unsqueeze(-1)
        return self.head(torch.cat([self.points(data), count], -1))


class MixtureGuide(Guide):
    """Base of the guides over ``mixture_weights``; context experts also get their ``memory`` from here.

    Args:
        model: the mixture.
        width: hidden width of the encoders.
        pooling: ``"mean"``, ``"attention"`` or ``"set-transformer"``.
        path_blocks: self-attention blocks over the context on the way to context experts.

    Raises:
        TypeError: another family of model.
    """

    #: no site depends on another
    independent_sites = True

    @checked(width=WIDTH, pooling=one_of(*POOLINGS), path_blocks=integer(0, MOST_LAYERS))
    def __init__(
        self, model: MixtureDensityNetwork, width: int = 128, *, pooling: str = "mean", path_blocks: int = 1
    ) -> None:
        super().__init__()
        if not isinstance(model, MixtureDensityNetwork):
            raise TypeError(
                f"model: got {type(model).__name__}; {type(self).__name__} is a guide for a MixtureDensityNetwork"
            )
        self.num_experts, self.dim_x, self.dim_y = model.num_experts, model.dim_x, model.dim_y
        self.width, self.pooling, self.missing_outputs = width, pooling, model.missing_outputs
        self.reads_memory = model.reads_memory
        if model.reads_memory:
            self.path = MemoryEncoder(
                model.attend, model.dim_x, model.dim_y, width, 3, path_blocks, missing_outputs=model.missing_outputs
            )

    def weights_distribution(self, data: Dataset) -> TorchDistribution:
        """q(z | D), batch ``[*B]``, event ``[L]``."""
        raise NotImplementedError

    def mean_weights(self, data: Dataset) -> Tensor:
        """E[z | D] ``[*B, L]``: the weights of the closed-form predictive (NMDP, the paper's eq. 10)."""
        return self.weights_distribution(data).mean

    def memory(self, data: Dataset) -> Tensor:
        """What context experts read: ``[*B, N, Dx + E + 1]``."""
        return self.path(data)

    def encoder(self, outputs: int) -> MixtureEncoder:
        """A new encoder of this guide's kind."""
        return MixtureEncoder(
            self.dim_x, self.dim_y, outputs, self.width, pooling=self.pooling, missing_outputs=self.missing_outputs
        )

    def keep(self, experts: list[int]) -> None:
        """Drops all experts but these, in place, keeping the relative weights of the others.

        Raises:
            ValueError: this kind of guide cannot drop experts.
        """
        raise ValueError(f"guide: {type(self).__name__} cannot drop experts one by one")

    def check_objective(self, objective: Any) -> None:
        """Refuses an objective that cannot train this guide.

        Args:
            objective: a ``TaskObjective``; its ``name`` and the facts that its class states.

        Raises:
            ValueError: it cannot; the message says why.
        """
        if self.point_mass and objective.weighs_particles:
            raise ValueError(
                f"objective: {objective.name!r} weighs draws of the mixture weights by their density, and the weights "
                f"of {type(self).__name__} are a point mass: all draws are one. Use 'npml' (maximum likelihood)"
            )

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples the sites; ``[*B, ...]`` each."""
        return self.sample_sites(data, self.weights_distribution(data))

    def sample_sites(self, data: Dataset, weights: TorchDistribution) -> dict[str, Any]:
        """Samples the weights from a distribution, and hands the context over."""
        values = {}
        with task_plates(data.batch_shape, data.x.device):
            values["mixture_weights"] = pyro.sample("mixture_weights", weights)
            if self.reads_memory:
                values["memory"] = pyro.sample("memory", dist.Delta(self.memory(data), event_dim=2))
        return values
