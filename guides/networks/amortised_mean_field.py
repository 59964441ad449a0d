"""A diagonal Gaussian over weights from a set encoder: the plainest amortised guide."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn
from torch.nn.functional import softplus

from guides.networks.weight_guide import WeightGuide, initial_weight
from guides.raw_scale import raw_scale
from guides.set_encoder import SetEncoder
from pp_models.arguments import SCALE, checked
from pp_models.data import Dataset
from pp_models.networks.bayesian_network import BayesianNetwork


class AmortisedMeanFieldGuide(WeightGuide):
    """q(W | D) = N(μ(D), diag σ²(D)) with one linear head a layer on a set encoder.

    Args:
        model: the network.
        width: width of the encoder and of the representation.
        pooling: pooling of the set encoder.
        initial_scale: standard deviation at the start, times 1/√k_in.
    """

    name = "mean-field"
    description = "an independent Gaussian for every weight, from the context"

    @checked(initial_scale=SCALE)
    def __init__(
        self, model: BayesianNetwork, width: int = 128, *, pooling: str = "mean", initial_scale: float = 0.1
    ) -> None:
        super().__init__(model, width, pooling=pooling)
        self.encoder = SetEncoder(
            model.dim_x, model.dim_y, width, width, pooling=pooling, missing_outputs=model.missing_outputs
        )
        self.heads = nn.ModuleList()
        for shape in self.shapes:
            head = nn.Linear(width, 2 * shape[0] * shape[1])
            nn.init.normal_(head.weight, std=0.1 / math.sqrt(width * shape[1]))
            scale = initial_scale / math.sqrt(shape[1])
            raw = raw_scale(scale)
            with torch.no_grad():
                head.bias.copy_(torch.stack([initial_weight(shape), torch.full(shape, raw)]).flatten())
            self.heads.append(head)

    def layer_distributions(self, data: Dataset) -> list[TorchDistribution]:
        encoded = self.encoder(data)
        found: list[TorchDistribution] = []
        for head, shape in zip(self.heads, self.shapes, strict=True):
            loc, raw = head(encoded).unflatten(-1, (2, *shape)).unbind(-3)
            found.append(dist.Normal(loc, softplus(raw) + 1e-6).to_event(2))
        return found
