"""Nested dropout of an adapter's ranks: those after a random one are left out, so that ranks come in order."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor

from guides.adapters.adapter_dropout import RandomMask
from guides.adapters.adapter_guide import AdapterGuide
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.arguments import OPEN_SHARE, checked, integer


class NestedMask(RandomMask):
    """1 for the first k of ``size`` entries and 0 for the rest, P(k) = p (1 - p)^(k - 1), the rest at ``size``.

    Args:
        rate: p.
        like: a tensor ``[size]`` of the dtype and on the device wanted.
    """

    @property
    def reached(self) -> Tensor:
        """P(k > j) for each entry j, its mean."""
        place = torch.arange(len(self.like), dtype=self.like.dtype, device=self.like.device)
        return (1 - self.rate) ** place

    @property
    def mean(self) -> Tensor:
        return self.reached.expand(self.batch_shape + self.event_shape)

    def sample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(*shape[:-1], 1, dtype=self.like.dtype, device=self.like.device)
        return (uniform < self.reached).to(self.like.dtype).expand(shape)

    def log_prob(self, value):
        kept = (value > 0.5).to(value.dtype)
        ends = torch.cat([self.reached[1:], self.reached.new_zeros(1)])
        nested = torch.cumprod(kept, -1).sum(-1) == kept.sum(-1)
        count = kept.sum(-1).long().clamp_min(1) - 1
        found = (self.reached - ends)[count].log()
        return torch.where(nested & (kept[..., 0] > 0), found, torch.full_like(found, -torch.inf))


class NestedDropoutAdapterGuide(AdapterGuide):
    """Ranks in order of importance: of each module the first k in training, k drawn anew for each draw.

    Nested dropout (Rippel, Gelbart and Adams 2014), on ranks as in Maestro (Horvath et al. 2024): of a linear map the
    ranks become its singular vectors in order, so that a trained adapter is cut at any rank. Draws cost nothing in the
    bound. In ``eval`` mode the first ``keep`` ranks are used.

    Args:
        model: the adapted model.
        rate: p of the geometric distribution of k; the smaller, the more ranks are trained at a time.
        keep: ranks in use outside training; None for all. It may be set later.

    Raises:
        TypeError: another family of model.
        ValueError: an argument out of range.
    """

    @checked(rate=OPEN_SHARE, keep=integer(0))
    def __init__(self, model: LowRankAdapted, rate: float = 0.2, keep: int | None = None) -> None:
        super().__init__(model)
        self.rate, self.keep = rate, keep

    def sample_module(self, index: int, path: str, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        site, like = f"{path}.rank_scale", lora_A[:, 0].detach()
        mask: TorchDistribution = NestedMask(self.rate, like)
        if not self.training:
            keep = len(like) if self.keep is None else self.keep
            mask = dist.Delta((torch.arange(len(like), device=like.device) < keep).to(like.dtype), event_dim=1)
        with poutine.mask(mask=False):
            return {site: pyro.sample(site, mask)}
