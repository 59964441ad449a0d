"""Gaussians by their noise-to-signal ratio, and the closed form of their KL to the log-uniform prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import register_kl

from pp_models.adapters.low_rank_priors import CentredCauchy, half_cauchy_kl
from pp_models.log_uniform import LogUniform, log_uniform_kl, normal_log_uniform_kl


def magnitude(value: Tensor) -> Tensor:
    """|value|, with a floor that its dtype holds."""
    return value.abs().clamp_min(max(1e-12, torch.finfo(value.dtype).tiny))


class RankNormal(dist.Normal):
    """N(μ, α μ²): Gaussian variational dropout of rate α on a value μ (Kingma et al. 2015).

    Args:
        loc: μ; 1 for the multiplier of a rank.
        log_alpha: log α, broadcastable to it.
    """

    def __init__(self, loc: Tensor, log_alpha: Tensor, validate_args: bool | None = None) -> None:
        loc, self.log_alpha = torch.broadcast_tensors(loc, log_alpha)
        # a weight at 0 has no noise; the floor keeps a density for it
        scale = torch.exp(0.5 * self.log_alpha) * magnitude(loc)
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(RankNormal, _instance)
        new.log_alpha = self.log_alpha.expand(batch_shape)
        return super().expand(batch_shape, _instance=new)


@register_kl(RankNormal, LogUniform)
def _kl_rank_normal_log_uniform(p: RankNormal, q: LogUniform) -> Tensor:
    """Up to the prior's constant, which is chosen so that the KL vanishes for α → ∞."""
    return log_uniform_kl(p.log_alpha)


@register_kl(RankNormal, dist.Cauchy)
def _kl_rank_normal_cauchy(p: RankNormal, q: dist.Cauchy) -> Tensor:
    """By quadrature, for a Cauchy distribution around 0."""
    if bool(q.loc.any()):
        raise NotImplementedError
    return _kl_rank_normal_centred_cauchy(p, q)


@register_kl(RankNormal, CentredCauchy)
def _kl_rank_normal_centred_cauchy(p: RankNormal, q: dist.Cauchy) -> Tensor:
    """The same without a look at the location, for a training step must not wait for the device."""
    return half_cauchy_kl(p.log_alpha, q.scale / magnitude(p.loc))


@register_kl(dist.Normal, LogUniform)
def _kl_normal_log_uniform(p: dist.Normal, q: LogUniform) -> Tensor:
    """The same with α = σ²/μ²; by the sigmoid fit, for these are whole matrices."""
    return normal_log_uniform_kl(p.loc, p.scale)
