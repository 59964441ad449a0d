"""Distributions of mixture weights that stay exact near the edges of the simplex: Dirichlet and stick-breaking."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pp_models.likelihoods import PartlyObserved, of_observed

#: below this concentration's reach, exp(-700), even a float64 weight would be subnormal
SMALLEST = 1e-304


def _wide(value: Tensor) -> Tensor:
    """As float64, in which a weight of exp(-213) is still a number; float32 where a device has no float64 (MPS)."""
    return value if value.device.type == "mps" else value.double()


def log_gamma_draw(concentration: Tensor) -> Tensor:
    """Logarithms of Gamma(α, 1) draws, differentiable in α, exact for α far below 1.

    log Gamma(α) = log Gamma(α + 1) + log(U) / α, which never leaves log space (docs/papers/nmdp.md, eq. 17).
    """
    exponential = torch.empty_like(concentration).exponential_()
    return torch._standard_gamma(concentration + 1.0).log() - exponential / concentration


def above_zero(value: Tensor) -> Tensor:
    """Weights of which none is zero: the smallest that still has a logarithm stands for it."""
    return value.clamp_min(SMALLEST if value.dtype == torch.float64 else torch.finfo(value.dtype).tiny)


def log_weights(value: Tensor) -> Tensor:
    """log z ``[..., L]`` in the width that z has; zero counts as the smallest weight."""
    return above_zero(value).log()


def sample_log_dirichlet(concentration: Tensor, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
    """Draws log z ``[*sample_shape, *B, L]`` (float64) with z ~ Dir(α), differentiable in α.

    Args:
        concentration: α ``[*B, L]``, positive.
        sample_shape: leading dimensions.
    """
    alpha = _wide(concentration).expand(*sample_shape, *concentration.shape)
    return torch.log_softmax(log_gamma_draw(alpha), -1)


def log_dirichlet_density(log_z: Tensor, concentration: Tensor) -> Tensor:
    """log Dir(z; α) ``[*B]`` from log z ``[*B, L]``, finite for every finite log z."""
    terms = (concentration - 1) * log_z - torch.lgamma(concentration)
    return terms.sum(-1) + torch.lgamma(concentration.sum(-1))


class LogSpaceDirichlet(dist.Dirichlet):
    """Dir(α) whose draws are float64 and made in log space, with log-densities in α's own dtype.

    ``torch.distributions.Dirichlet`` clamps weights in float32, which silently shortens the tails of a sparse
    Dirichlet: at α = 0.05 and L = 16 draws of log z reach -213, and float32 ends at -87. Gradients are pathwise.
    """

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        log_z = torch.log_softmax(log_gamma_draw(_wide(self.concentration).expand(shape)), -1)
        return above_zero(log_z.exp())

    def log_prob(self, value: Tensor) -> Tensor:
        found = log_dirichlet_density(log_weights(_wide(value)), _wide(self.concentration))
        return found.to(self.concentration.dtype)


class StickBreaking(TorchDistribution):
    """Weights from a broken stick: z_l = v_l Π_{j<l} (1 - v_j), v_l ~ Beta(a_l, b_l) for l < L, the rest is z_L.

    The generalised Dirichlet of Connor and Mosimann (1969): a density on the simplex, with Dir(α) as the case a_l =
    α_l, b_l = Σ_{j>l} α_j. Draws are float64, made in log space, differentiable in a and b.

    Args:
        a: ``[*B, L - 1]``, positive.
        b: ``[*B, L - 1]``, positive.
    """

    arg_constraints = {  # noqa: RUF012
        "a": constraints.independent(constraints.positive, 1),
        "b": constraints.independent(constraints.positive, 1),
    }
    support = constraints.simplex
    has_rsample = True

    def __init__(self, a: Tensor, b: Tensor, validate_args: bool | None = None) -> None:
        self.a, self.b = torch.broadcast_tensors(a, b)
        super().__init__(self.a.shape[:-1], torch.Size([self.a.shape[-1] + 1]), validate_args=validate_args)

    @classmethod
    def from_dirichlet(cls, concentration: Tensor) -> StickBreaking:
        """Dir(α) ``[*B, L]`` as broken sticks."""
        tail = concentration.flip(-1).cumsum(-1).flip(-1)
        return cls(concentration[..., :-1], tail[..., 1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StickBreaking:
        shape = torch.Size(batch_shape) + self.a.shape[-1:]
        return type(self)(self.a.expand(shape), self.b.expand(shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """E z ``[*B, L]``, the product of the sticks' means."""
        share, left = self.a / (self.a + self.b), (self.b / (self.a + self.b)).cumprod(-1)
        one = torch.ones_like(left[..., :1])
        return torch.cat([share, one], -1) * torch.cat([one, left], -1)

    @property
    def variance(self) -> Tensor:
        """Var z ``[*B, L]``."""
        total = self.a + self.b
        norm = total * (total + 1)
        share, left = self.a * (self.a + 1) / norm, (self.b * (self.b + 1) / norm).cumprod(-1)
        one = torch.ones_like(left[..., :1])
        return torch.cat([share, one], -1) * torch.cat([one, left], -1) - self.mean.square()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.a.shape
        taken = log_gamma_draw(_wide(self.a).expand(shape))
        kept = log_gamma_draw(_wide(self.b).expand(shape))
        both = torch.logaddexp(taken, kept)
        zero = torch.zeros_like(both[..., :1])
        left = torch.cat([zero, (kept - both).cumsum(-1)], -1)  # log of the stick before each break
        log_z = torch.cat([taken - both, zero], -1) + left
        log_z = torch.log_softmax(log_z, -1)
        return above_zero(log_z.exp())

    def log_prob(self, value: Tensor) -> Tensor:
        a, b = _wide(self.a), _wide(self.b)
        log_z = log_weights(_wide(value))
        tail = torch.logcumsumexp(log_z.flip(-1), -1).flip(-1)  # log of the stick before each break
        broken, before, after = log_z[..., :-1], tail[..., :-1], tail[..., 1:]
        norm = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
        # the last term is the Jacobian from proportions to weights
        found = ((a - 1) * (broken - before) + (b - 1) * (after - before) + norm - before).sum(-1)
        return found.to(self.a.dtype)


def _beta_kl(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """KL(Beta(a, b) ‖ Beta(c, d)), elementwise."""
    norms = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    norms = norms - (torch.lgamma(c + d) - torch.lgamma(c) - torch.lgamma(d))
    both = torch.digamma(a + b)
    return norms + (a - c) * (torch.digamma(a) - both) + (b - d) * (torch.digamma(b) - both)


@register_kl(StickBreaking, StickBreaking)
def _kl_sticks(p: StickBreaking, q: StickBreaking) -> Tensor:
    return _beta_kl(p.a, p.b, q.a, q.b).sum(-1)


@register_kl(StickBreaking, torch.distributions.Dirichlet)
def _kl_sticks_dirichlet(p: StickBreaking, q: torch.distributions.Dirichlet) -> Tensor:
    return _kl_sticks(p, StickBreaking.from_dirichlet(q.concentration))


@register_kl(torch.distributions.Dirichlet, StickBreaking)
def _kl_dirichlet_sticks(p: torch.distributions.Dirichlet, q: StickBreaking) -> Tensor:
    return _kl_sticks(StickBreaking.from_dirichlet(p.concentration), q)


def log_density_of_events(fn: Any, value: Tensor) -> Tensor:
    """log p(value), where there is no point as well: of none torch cannot tell the size of an event."""
    if isinstance(fn, torch.distributions.Independent):
        each = log_density_of_events(fn.base_dist, value)
        return each.sum(tuple(range(-fn.reinterpreted_batch_ndims, 0)))
    return fn.log_prob(value)


class ExpertMixture(torch.distributions.Distribution, TorchDistributionMixin, PartlyObserved):
    """At each point Σ_l z_l p_l: one expert is picked for every point anew (docs/papers/nmdp.md, eq. 2).

    Unlike ``MixtureSameFamily`` the experts may lack the batch dimensions of the weights: K draws of the weights then
    cost one evaluation of the experts, not K.

    Args:
        log_weights: log z ``[*B, L]``, normalised.
        experts: batch ``[*B', L]``, where ``*B'`` broadcasts against ``*B``.
    """

    arg_constraints = {"log_weights": constraints.real_vector}  # noqa: RUF012

    def __init__(self, log_weights: Tensor, experts: TorchDistribution) -> None:
        self.log_weights, self.experts = log_weights, experts
        batch = torch.broadcast_shapes(log_weights.shape[:-1], experts.batch_shape[:-1])
        super().__init__(batch, experts.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.experts.support

    @property
    def num_experts(self) -> int:
        """L."""
        return int(self.log_weights.shape[-1])

    def expand(self, batch_shape: Any, _instance: Any = None) -> ExpertMixture:
        return ExpertMixture(self.log_weights.expand(*batch_shape, self.num_experts), self.experts)

    def observed(self, observed: Tensor) -> ExpertMixture:
        """The mixture of the experts' marginals over what is observed of each point ``[*B, N, Dy]``."""
        return ExpertMixture(self.log_weights, of_observed(self.experts, observed.unsqueeze(-2)))

    def _over_experts(self, values: Tensor) -> Tensor:
        """Σ_l z_l times values of the experts ``[*B, L, *event]``."""
        weights = self.log_weights.exp().reshape(*self.log_weights.shape, *(1,) * len(self.event_shape))
        return (weights * values).sum(-1 - len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        each = log_density_of_events(self.experts, value.unsqueeze(-1 - len(self.event_shape)))
        return torch.logsumexp(self.log_weights + each, -1)

    @property
    def mean(self) -> Tensor:
        return self._over_experts(self.experts.mean)

    @property
    def variance(self) -> Tensor:
        means = self.experts.mean
        spread = means - self.mean.unsqueeze(-1 - len(self.event_shape))
        return self._over_experts(self.experts.variance + spread.square())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            batch = shape[: len(shape) - len(self.event_shape)]
            weights = self.log_weights.expand(*batch, self.num_experts)
            picked = torch.distributions.Categorical(logits=weights, validate_args=False).sample()
            draws = self.experts.expand(torch.Size([*batch, self.num_experts])).sample()
            index = picked.reshape(*batch, 1, *(1,) * len(self.event_shape)).expand(*batch, 1, *self.event_shape)
            return draws.gather(len(batch), index).squeeze(len(batch))

    @property
    def _outputs(self) -> Any:
        """The experts' distribution of single outputs."""
        base: Any = self.experts
        while isinstance(base, torch.distributions.Independent):
            base = base.base_dist
        return base

    def gaussian_parts(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """log z ``[*B, L]``, means and standard deviations ``[*B, L, *event]``; None where experts are not Gaussian."""
        base, shape = self._outputs, (*self.batch_shape, self.num_experts)
        if not isinstance(base, torch.distributions.Normal):
            return None
        loc, scale = (part.expand(*shape, *self.event_shape) for part in (base.loc, base.scale))
        return self.log_weights.expand(shape), loc, scale

    def cdf(self, value: Tensor) -> Tensor:
        """P(Y_d <= y_d) of every output d ``[*B, *event]``.

        Raises:
            NotImplementedError: the experts have no closed-form distribution function.
        """
        return self._over_experts(self._outputs.cdf(value.unsqueeze(-1 - len(self.event_shape))))

    def quantile(self, q: float | Tensor, iterations: int = 60) -> Tensor:
        """Quantiles of every output ``[*q, *B, *event]`` by bisection of the distribution function.

        Args:
            q: a number or a tensor of any shape, strictly between 0 and 1.
            iterations: halvings; the bracket begins twelve standard deviations around the experts' range.

        Raises:
            NotImplementedError: the experts have no closed-form distribution function.
        """
        means, scales = self.experts.mean, self.experts.variance.sqrt()
        dim = -1 - len(self.event_shape)
        shape = torch.Size(self.batch_shape) + self.event_shape
        q = torch.as_tensor(q, dtype=means.dtype, device=means.device)
        low = (means - 12 * scales).amin(dim).expand(*q.shape, *shape)
        high = (means + 12 * scales).amax(dim).expand(*q.shape, *shape)
        level = q.reshape(*q.shape, *(1,) * len(shape))
        for _ in range(iterations):
            middle = (low + high) / 2
            below = self.cdf(middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2
