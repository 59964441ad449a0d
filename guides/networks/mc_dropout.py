"""Dropout with one fixed rate: the guide that cannot adapt to a task, for comparison."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from guides.networks.dropout_normal import DropoutNormal, DropRates
from guides.networks.weight_guide import WeightGuide, initial_weight
from pp_models.arguments import OPEN_SHARE, checked
from pp_models.data import Dataset
from pp_models.networks.bayesian_network import BayesianNetwork


class MCDropoutGuide(WeightGuide):
    """Gaussian dropout on every weight with a rate that is given, the same for all tasks (Gal and Ghahramani 2016).

    The mask of each weight is Gaussian with the moments of a Bernoulli mask, so that the guide has a density and any
    objective can be used; the shared weights are its parameters. Unlike the usual layer there is no 1 / (1 - P) factor.

    Args:
        model: the network.
        width: width of the encoder of the deterministic path, where the model has one.
        rate: drop probability of every weight and bias.

    Raises:
        ValueError: the rate is not in (0, 1).
    """

    name = "mc-dropout"
    description = "dropout at one fixed rate"

    @checked(rate=OPEN_SHARE)
    def __init__(self, model: BayesianNetwork, width: int = 128, *, rate: float = 0.1) -> None:
        super().__init__(model, width)
        self.rate = rate
        self.weights = nn.ParameterList([nn.Parameter(initial_weight(shape)) for shape in self.shapes])

    def rates(self, data: Dataset) -> dict[str, Tensor]:
        """The rate ``[*B, k_out, k_in + 1]`` by site."""
        full = {
            s: torch.full(w.shape, self.rate, dtype=w.dtype, device=w.device)
            for s, w in zip(self.sites, self.weights, strict=True)
        }
        return {site: rate.expand(*data.batch_shape, *rate.shape) for site, rate in full.items()}

    def layer_distributions(self, data: Dataset) -> list[TorchDistribution]:
        rates = self.rates(data)
        return [DropoutNormal(w, DropRates(dense=rates[s])) for s, w in zip(self.sites, self.weights, strict=True)]
