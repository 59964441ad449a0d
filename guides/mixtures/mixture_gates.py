"""Guides whose mixture weights are no draw: a deterministic gate, and equal weights."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch

from guides.mixtures.mixture_guide import MixtureGuide
from pp_models.data import Dataset
from pp_models.mixtures.mixture_density import MixtureDensityNetwork


class DeterministicGateGuide(MixtureGuide):
    """z = softmax(u(D_c)): a mixture of experts gated by the context, trained by ``npml``.

    NMDP's rung A3 (docs/papers/nmdp.md#the-ladder). Its predictive is the same family as the mean weights of a
    Dirichlet guide, and maximum likelihood trains it on the marginal score itself; it has no joint uncertainty.

    Args:
        model: the mixture.
        **options: see :class:`guides.mixtures.mixture_guide.MixtureGuide`.
    """

    name = "deterministic-gate"
    description = "mixture weights as a function of the context"

    point_mass = True

    def __init__(
        self, model: MixtureDensityNetwork, width: int = 128, *, pooling: str = "mean", **options: Any
    ) -> None:
        super().__init__(model, width, pooling=pooling, **options)
        self.set_encoder = self.encoder(self.num_experts)

    def keep(self, experts: list[int]) -> None:
        self.set_encoder.keep(experts)
        self.num_experts = len(experts)

    def weights_distribution(self, data: Dataset) -> dist.Delta:
        return dist.Delta(torch.softmax(self.set_encoder(data), -1), event_dim=1)


class UniformMixtureGuide(MixtureGuide):
    """z_l = 1 / L for every task: a mixture density network that cannot adapt its weights.

    NMDP's rungs A1 and A2 (docs/papers/nmdp.md#the-ladder).

    Args:
        model: the mixture; with one expert it is a plain conditional density.
        **options: see :class:`guides.mixtures.mixture_guide.MixtureGuide`.
    """

    name = "uniform-mixture"
    description = "equal mixture weights"

    point_mass = True

    def keep(self, experts: list[int]) -> None:
        self.num_experts = len(experts)

    def weights_distribution(self, data: Dataset) -> dist.Delta:
        equal = data.x.new_full((*data.batch_shape, self.num_experts), 1 / self.num_experts)
        return dist.Delta(equal, event_dim=1)
