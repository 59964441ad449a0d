"""The log-uniform prior of variational dropout, and the KL from a Gaussian to it, exact and approximate."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pp_models.arguments import FLAG, TENSOR
from pp_models.single_precision import single

# -(log 2 + ψ(1/2)) / 2 = (γ + log 2) / 2: the KL at small α is this less log(α) / 2
_LIMIT = 0.5 * (0.5772156649015329 + math.log(2))
# where u = 1/√(2α) changes from Taylor's series to Rybicki's sum, and from that to the asymptotic series
_SMALL, _LARGE = 1.0, 6.0
_STEP, _ODD, _TERMS = 0.25, 51, 20


def _value_and_slope(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """KL and dKL / dlog α = -u D(u), u = 1/√(2α), elementwise.

    The KL is 2 ∫₀ᵘ D. Rybicki's sum D(u) = π^(-1/2) Σ over odd n of exp(-(u - n h)²) / n, good to exp(-(π / 2h)²), can
    be integrated term by term; it takes over from Taylor's series at u = 1 and hands over to the asymptotic one.
    """
    log_square = -(log_alpha + math.log(2))
    u = torch.exp(0.5 * log_square)
    k = torch.arange(_TERMS, dtype=u.dtype, device=u.device)
    # D(u) / u = Σ (-2u²)^k / (2k + 1)!!, and its integral
    powers = k * log_square.clamp(max=2 * math.log(_SMALL)).unsqueeze(-1)
    series = (1 - 2 * (k % 2)) * torch.exp(powers - torch.lgamma(k + 1.5) + math.log(math.sqrt(math.pi) / 2))
    square = torch.exp(log_square.clamp(max=2 * math.log(_SMALL)))
    low = square * (series / (k + 1)).sum(-1), square * series.sum(-1)
    middle, n = u.clamp(_SMALL, _LARGE).unsqueeze(-1), _STEP * torch.arange(1, _ODD, 2, dtype=u.dtype, device=u.device)
    left, right, inverse = middle - n, middle + n, _STEP / n
    mid = (
        (inverse * (torch.erf(left) - torch.erf(right) + 2 * torch.erf(n))).sum(-1),
        u * (inverse * (torch.exp(-left.square()) - torch.exp(-right.square()))).sum(-1) / math.sqrt(math.pi),
    )
    # 2 u D(u) = Σ (2k - 1)!! α^k
    k = k[: _TERMS - 2] + 1
    powers = k * -log_square.clamp(min=2 * math.log(_LARGE)).unsqueeze(-1)
    series = torch.exp(powers + torch.lgamma(k + 0.5) - 0.5 * math.log(math.pi))
    high = _LIMIT - 0.5 * log_alpha - (series / (2 * k)).sum(-1), 0.5 + 0.5 * series.sum(-1)
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

    See docs/papers/lrvd.md, eq. 6 and 7.

    The prior is improper; the constant is chosen so that the KL goes to 0 for α → ∞. Its derivative by log α is -u D(u)
    with u = 1/√(2α) and Dawson's integral D.

    Args:
        log_alpha: log α, any shape, computed with in its own dtype (float32 or float64).
        approximate: the sigmoid fit of Molchanov et al. (2017, eq. 14), within 0.0095 nats of the exact value.

    Returns:
        the KL, same shape, never negative.
    """
    TENSOR.check("log_alpha", log_alpha)  # not by a decorator: it stands in a compiled training step
    if not log_alpha.dtype.is_floating_point:
        raise ValueError(f"log_alpha: got dtype {log_alpha.dtype}; it must be of floating point")
    FLAG.check("approximate", approximate)
    if approximate:
        k1, k2, k3 = 0.63576, 1.87320, 1.48695
        return k1 - k1 * torch.sigmoid(k2 + k3 * log_alpha) + 0.5 * torch.nn.functional.softplus(-log_alpha)
    return _ExactKL.apply(log_alpha)[0]  # type: ignore[no-untyped-call]


def normal_log_uniform_kl(loc: Tensor, scale: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ log-uniform) elementwise, α = σ²/μ²; by the sigmoid fit, for these are whole matrices."""
    return log_uniform_kl(log_alpha_of(loc, scale), approximate=True)


def log_alpha_of(loc: Tensor, scale: Tensor) -> Tensor:
    """log α = log σ² - log μ², the noise-to-signal ratio of a weight."""
    return 2 * single(scale).log() - torch.log(single(loc).square() + 1e-8)


def largest_gap(values: Tensor) -> float:
    """The middle of the largest gap between sorted values of log α; infinite for fewer than two."""
    ordered = values.sort().values
    if len(ordered) < 2:
        return float("inf")
    widest = int(ordered.diff().argmax())
    return float(ordered[widest] + ordered[widest + 1]) / 2


class LogUniform(TorchDistribution):
    """Log-uniform over magnitudes with a symmetric sign: density ∝ 1/|w| on ``low <= |w| <= high``.

    Cutting the magnitudes makes the improper prior of variational dropout (Kingma et al. 2015) one that can be sampled;
    outside the cut the density is continued as ∝ 1/|w|, so that gradients are those of the improper prior.

    Args:
        low: smallest magnitude.
        high: largest magnitude.
    """

    arg_constraints: ClassVar[dict] = {"low": constraints.positive, "high": constraints.positive}
    support = constraints.real
    has_rsample = False

    def __init__(self, low: Tensor, high: Tensor, validate_args: bool | None = None) -> None:
        self.low, self.high = torch.broadcast_tensors(low, high)
        super().__init__(self.low.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(LogUniform, _instance)
        new.low, new.high = self.low.expand(batch_shape), self.high.expand(batch_shape)
        super(LogUniform, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.low.dtype, device=self.low.device)
        sign = torch.randint(0, 2, shape, device=self.low.device) * 2 - 1
        return sign * torch.exp(self.low.log() + uniform * (self.high.log() - self.low.log()))

    def log_prob(self, value):
        return -single(value).abs().clamp_min(1e-30).log() - torch.log(2 * (self.high.log() - self.low.log()))
