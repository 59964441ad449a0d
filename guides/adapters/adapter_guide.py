"""What every guide over a LowRankAdapted shares, and the point mass."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.adapters.low_rank_layer import RankParameter
from pp_models.contract import Guide, ObjectiveOffers, refuse_data_ties
from pp_models.data import Dataset


class AdapterGuide(Guide):
    """A guide over the ranks, or the factors, of a :class:`LowRankAdapted`: one posterior, whatever the data.

    Args:
        model: the adapted model; its factors A and B are the means of what is random.

    Raises:
        TypeError: another family of model.
    """

    #: no site depends on another
    independent_sites = True

    def __init__(self, model: LowRankAdapted) -> None:
        super().__init__()
        if not isinstance(model, LowRankAdapted):
            raise TypeError(f"model: got {type(model).__name__}; {type(self).__name__} is a guide for a LowRankAdapted")
        # in a tuple, so that the model's parameters do not become the guide's as well
        self._adapted = (model,)
        self.paths = list(model.rank_modules())

    @property
    def model(self) -> LowRankAdapted:
        """The adapted model."""
        return self._adapted[0]

    def check_objective(self, objective: ObjectiveOffers) -> None:
        """Refuses an objective whose only divergence is between the guide on the context and on the whole task.

        Raises:
            ValueError: it is one; this guide is the same on both.
        """
        refuse_data_ties(self, objective)

    def sample_module(self, index: int, path: str, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        """Samples the sites of one module, the ``index``-th of ``paths``; values by site."""
        raise NotImplementedError

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples every latent site; of the data nothing is looked at."""
        self.model.advance()
        modules = self.model.rank_modules()
        values: dict[str, Tensor] = {}
        for index, path in enumerate(self.paths):
            factors = modules[path].factors()
            if factors is not None:
                values |= self.sample_module(index, path, *factors)
        return values

    def weights_per_rank(self, path: str) -> int:
        """Weights of a module's random factors that belong to one rank."""
        return self.model.num_weights(path)

    def kl_counts(self, kl_count: str) -> dict[str, float]:
        counts = {}
        for path in self.paths:
            each = kl_count == "weights"
            counts[f"{path}.rank_scale"] = float(self.model.num_weights(path)) if each else 1.0
            for factor in ("lora_A", "lora_B"):
                counts[f"{path}.{factor}"] = 1.0 if each else 1.0 / self.weights_per_rank(path)
        return counts

    def point_rank_scale(self, path: str, like: Tensor) -> dict[str, Tensor]:
        """The multipliers as a point mass at 1, at no cost in the bound."""
        site = f"{path}.rank_scale"
        with poutine.mask(mask=False):
            return {site: pyro.sample(site, dist.Delta(torch.ones_like(like[:, 0]), event_dim=1))}

    def factor(self, path: str, name: str, distribution: dist.TorchDistribution) -> dict[str, Tensor]:
        """Samples a random factor of a module."""
        site = f"{path}.{name}"
        self.update_ard(site, distribution)
        with poutine.scale(scale=self.model.weight_kl_scale(path, self.weights_per_rank(path))):
            return {site: pyro.sample(site, distribution.to_event(2 - len(distribution.event_shape)))}

    def update_ard(self, site: str, distribution: dist.TorchDistribution) -> None:
        """In training, the model's ARD prior of a site follows the posterior."""
        if self.training and self.model.ard_scale(site) is not None:
            self.model.update_ard(site, distribution.mean, distribution.variance)

    def rank_log_alpha(self) -> dict[str, Tensor]:
        """log noise-to-signal ratio of each rank by module path, as pruning needs it.

        Raises:
            ValueError: this guide has none.
        """
        raise ValueError(f"guide: {type(self).__name__} has no noise-to-signal ratio for each rank to prune by")

    def rank_parameters(self, path: str) -> list[RankParameter]:
        """This guide's parameters that have an entry for each rank of a module."""
        return []


class PointAdapterGuide(AdapterGuide):
    """Plain LoRA: every multiplier is 1.

    With ``LowRankAdapted(lora_dropout=...)`` it is LoRA with dropout in training.
    """

    def sample_module(self, index: int, path: str, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        return self.point_rank_scale(path, lora_A)
