"""KL divergence from a Gaussian to the log-uniform prior of variational dropout, exact and approximate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# -(log 2 + ψ(1/2)) / 2 = (γ + log 2) / 2: the KL at small α is this less log(α) / 2
_LIMIT = 0.5 * (0.5772156649015329 + math.log(2))
# where u = 1/√(2α) changes from Taylor's series to Rybicki's sum, and from that to the asymptotic series
_SMALL, _LARGE = 1.0, 6.5
_STEP = 0.2


def _taylor(terms: int) -> tuple[list[float], list[float]]:
    """Coefficients of u^(2k) in D(u)/u and in KL/u², for k = 0, 1 …"""
    dawson = [1.0]
    for k in range(1, terms):
        dawson.append(dawson[-1] * -2.0 / (2 * k + 1))
    return dawson, [c / (k + 1) for k, c in enumerate(dawson)]


def _asymptotic(terms: int) -> tuple[list[float], list[float]]:
    """Coefficients of α^k, k = 1, 2 …, in 2 u D(u) - 1 and in the KL."""
    odd = 1.0
    slope, value = [], []
    for k in range(1, terms + 1):
        odd *= 2 * k - 1
        slope.append(odd)
        value.append(-odd / (2 * k))
    return slope, value


_DAWSON_TAYLOR, _KL_TAYLOR = _taylor(20)
_SLOPE_SERIES, _KL_SERIES = _asymptotic(18)


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    """Σ c_k x^k by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def _value_and_slope(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """KL and dKL / dlog α = -u D(u), u = 1/√(2α), elementwise.

    The KL is 2 ∫₀ᵘ D. Rybicki's sum D(u) = π^(-1/2) Σ over odd n of exp(-(u - n h)²) / n, good to exp(-(π / 2h)²), can be
    integrated term by term; it takes over from Taylor's series at u = 1 and hands over to the asymptotic one.
    """
    u = torch.exp(-0.5 * (log_alpha + math.log(2)))
    small, middle, alpha = u.clamp(max=_SMALL), u.clamp(_SMALL, _LARGE), torch.exp(log_alpha.clamp(max=-4.0))
    square = small.square()
    low = square * _polynomial(square, _KL_TAYLOR), square * _polynomial(square, _DAWSON_TAYLOR)
    n = torch.arange(1, 2 * math.ceil((_LARGE + 6) / _STEP / 2), 2, dtype=u.dtype, device=u.device)
    left, right, at = (t for t in (middle.unsqueeze(-1) - n * _STEP, middle.unsqueeze(-1) + n * _STEP, n * _STEP))
    mid = (
        ((torch.erf(left) - torch.erf(right) + 2 * torch.erf(at)) / n).sum(-1),
        middle * ((torch.exp(-left.square()) - torch.exp(-right.square())) / n).sum(-1) / math.sqrt(math.pi),
    )
    high = (
        _LIMIT - 0.5 * log_alpha + alpha * _polynomial(alpha, _KL_SERIES),
        0.5 + 0.5 * alpha * _polynomial(alpha, _SLOPE_SERIES),
    )
    value, slope = (
        torch.where(u < _SMALL, a, torch.where(u < _LARGE, b, c)) for a, b, c in zip(low, mid, high, strict=True)
    )
    return value, -slope


class _ExactKL(torch.autograd.Function):
    """The exact value with the exact gradient, both from one evaluation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
        return _value_and_slope(log_alpha)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, grad_value, grad_slope):
        (slope,) = ctx.saved_tensors
        return grad_value * slope


def dawson(u: Tensor) -> Tensor:
    """Dawson's integral D(u) = exp(-u²) ∫₀ᵘ exp(t²) dt for u > 0, to about 1e-14 in float64; no gradient.

    Args:
        u: positive, any shape.
    """
    return -_value_and_slope(-2 * u.detach().log() - math.log(2))[1] / u.detach()


def log_uniform_kl(log_alpha: Tensor, approximate: bool = False) -> Tensor:
    """KL(N(μ, α μ²) ‖ log-uniform) in nats, elementwise; it depends on the noise-to-signal ratio α alone.

    The prior is improper; the constant is chosen so that the KL goes to 0 for α → ∞. Its derivative by log α is -u D(u)
    with u = 1/√(2α) and Dawson's integral D.

    Args:
        log_alpha: log α, any shape, computed with in its own dtype (float32 or float64).
        approximate: the sigmoid fit of Molchanov et al. (2017, eq. 14), within 0.0095 nats of the exact value.

    Returns:
        the KL, same shape, never negative.
    """
    if approximate:
        k1, k2, k3 = 0.63576, 1.87320, 1.48695
        return k1 - k1 * torch.sigmoid(k2 + k3 * log_alpha) + 0.5 * torch.nn.functional.softplus(-log_alpha)
    return _ExactKL.apply(log_alpha)[0]  # type: ignore[no-untyped-call]
