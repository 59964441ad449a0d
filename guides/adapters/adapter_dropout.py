"""Monte-Carlo dropout on an adapter."""

from __future__ import annotations

from typing import ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from guides.adapters.adapter_guide import AdapterGuide
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.arguments import OPEN_SHARE, checked, one_of

PLACES = ("input", "rank")


class RandomMask(TorchDistribution):
    """A mask of ``size`` entries whose law has one number, which is not trained.

    Args:
        rate: that number.
        like: a tensor ``[size]`` of the dtype and on the device wanted.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    has_rsample = True  # it has no parameter: a draw is a function of the noise alone

    def __init__(self, rate: float, like: Tensor, batch_shape: torch.Size = torch.Size()) -> None:  # noqa: B008
        self.rate, self.like = rate, like
        super().__init__(batch_shape, like.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.rate, self.like, torch.Size(batch_shape))

    def rsample(self, sample_shape=()):
        return self.sample(sample_shape)


class DropoutMask(RandomMask):
    """0 with a given rate, else 1 / (1 - rate), for each of ``size`` entries: mean 1.

    Args:
        rate: drop probability.
        like: a tensor ``[size]`` of the dtype and on the device wanted.
    """

    @property
    def mean(self) -> Tensor:
        return torch.ones_like(self.like).expand(self.batch_shape + self.event_shape)

    def sample(self, sample_shape=()):
        kept = torch.full_like(self.like, 1 - self.rate).expand(self._extended_shape(torch.Size(sample_shape)))
        return torch.bernoulli(kept) / (1 - self.rate)

    def log_prob(self, value):
        kept = value > 0
        return torch.where(kept, value.new_tensor(1 - self.rate), value.new_tensor(self.rate)).log().sum(-1)


class MCDropoutAdapterGuide(AdapterGuide):
    """Dropout that stays on for prediction (Gal & Ghahramani 2016), on an adapter; nothing about it is learned.

    A draw drops the same entries for all points, so it is one function. Its cost in the bound is left out.

    Args:
        model: the adapted model.
        rate: drop probability.
        where: ``"input"`` for the inputs of A (what LoRA dropout does), ``"rank"`` for whole ranks.

    Raises:
        TypeError: another family of model.
        ValueError: an argument out of range.
    """

    @checked(rate=OPEN_SHARE, where=one_of(*PLACES))
    def __init__(self, model: LowRankAdapted, rate: float = 0.1, where: str = "input") -> None:
        super().__init__(model)
        self.rate, self.where = rate, where

    def sample_module(self, index: int, path: str, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        values = {}
        if self.where == "input":
            values = self.point_rank_scale(path, lora_A)
        site, like = (f"{path}.rank_scale", lora_A[:, 0]) if self.where == "rank" else (f"{path}.input_mask", lora_A[0])
        with poutine.mask(mask=False):
            return values | {site: pyro.sample(site, DropoutMask(self.rate, like.detach()))}
