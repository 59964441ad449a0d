"""KL divergences of Gaussian dropout noise N(μ, α μ²) to the priors that LRVD can have, as functions of log α."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pp_models.log_uniform import log_uniform_kl

#: the log-uniform prior is improper; the other two are proper
RANK_PRIORS = ("log-uniform", "half-cauchy", "ard")
# trapezoid nodes of the half-Cauchy's expectation, and how many standard deviations they reach
_NODES, _REACH = 96, 9.0


class CentredCauchy(dist.Cauchy):
    """A Cauchy distribution around 0, which its type says, so that no KL has to read its location off the device."""


def check_rank_prior(prior: str, name: str = "prior") -> None:
    """Refuses an unknown prior.

    Raises:
        ValueError: it is.
    """
    if prior not in RANK_PRIORS:
        raise ValueError(f"{name}: got {prior!r}; it must be one of {', '.join(RANK_PRIORS)}")


def ard_kl(log_alpha: Tensor) -> Tensor:
    """KL(N(μ, α μ²) ‖ N(0, s²)) in nats at the best s² = (1 + α) μ², which is log(1 + 1/α) / 2; elementwise.

    Automatic relevance determination with the prior's scale in closed form (Kharitonov et al. 2018: variational dropout
    by empirical Bayes; docs/papers/lrvd.md, eq. 8). As the log-uniform prior's it depends on α alone and falls to 0 for
    α → ∞.

    Args:
        log_alpha: log α, any shape.
    """
    return 0.5 * torch.nn.functional.softplus(-log_alpha)


def half_cauchy_kl(log_alpha: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """KL(N(1, α) ‖ p) in nats, elementwise, where |z| is half-Cauchy of a scale under p and its sign is even.

    That is a Cauchy distribution on z. The expectation of log(1 + z²/τ²) is a trapezoid sum in t with z = τ sinh t,
    where the integrand is analytic in a strip, good to 1e-12 for log α in [-10, 8] and τ near 1. The KL is least at
    log α = 1.56 for τ = 1: that is where the noise of ranks without any signal ends.

    Args:
        log_alpha: log α, any shape.
        scale: τ, broadcastable to it.
    """
    scale = torch.as_tensor(scale, dtype=log_alpha.dtype, device=log_alpha.device).detach()
    with torch.no_grad():  # nodes follow α, but the sum does not depend on where they are
        reach = _REACH * torch.exp(0.5 * log_alpha)
        low, high = torch.asinh((1 - reach) / scale), torch.asinh((1 + reach) / scale)
        steps = torch.linspace(0, 1, _NODES, dtype=log_alpha.dtype, device=log_alpha.device)
        t = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * steps
        at = scale.unsqueeze(-1) * torch.sinh(t)
        # width of a step in z, times log(1 + z²/τ²)
        values = scale.unsqueeze(-1) * torch.cosh(t) * ((high - low) / (_NODES - 1)).unsqueeze(-1)
        values = values * 2 * (torch.cosh(t)).log() / math.sqrt(2 * math.pi)
    wide = log_alpha.unsqueeze(-1)
    expected = (torch.exp(-0.5 * (at - 1).square() * torch.exp(-wide) - 0.5 * wide) * values).sum(-1)
    return expected + torch.log(math.pi * scale) - 0.5 * math.log(2 * math.pi * math.e) - 0.5 * log_alpha


def rank_prior_kl(log_alpha: Tensor, prior: str = "log-uniform", approximate: bool = False) -> Tensor:
    """The KL of noise of ratio α to a prior, elementwise.

    Args:
        log_alpha: log α, any shape.
        prior: one of :data:`RANK_PRIORS`.
        approximate: the sigmoid fit; of the log-uniform prior alone.

    Raises:
        ValueError: an unknown prior.
    """
    check_rank_prior(prior)
    if prior == "ard":
        return ard_kl(log_alpha)
    return half_cauchy_kl(log_alpha) if prior == "half-cauchy" else log_uniform_kl(log_alpha, approximate)
