"""Amortised Gaussians over the unconstrained latents of any Pyro model: diagonal, low rank, full covariance."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import softplus

from guides.any_model.amortised_guide import AnyModelGuide
from guides.raw_scale import raw_scale
from pp_models.arguments import LAYERS, checked, optional
from pp_models.single_precision import single

#: least scale, in that of the prior
LEAST_SCALE = 1e-6


class AmortisedNormalGuide(AnyModelGuide):
    """q(z | D) = N(μ(D), diag σ²(D)) over the unconstrained latents of any Pyro model.

    Args:
        model: any Pyro model.
        width: width of the encoder and of its features.
        **options: see :class:`AnyModelGuide`.
    """

    name = "any-normal"
    description = "any model: an independent Gaussian for every unconstrained number, from the data"

    def num_parameters(self, size: int) -> int:
        return 2 * size

    def initial_parameters(self, size: int) -> Tensor:
        return torch.cat([torch.zeros(size), torch.full((size,), raw_scale(self.initial_scale))])

    def distribution(self, numbers: Tensor, features: Tensor | None, centre: Tensor, spread: Tensor) -> Any:
        loc, raw = numbers.chunk(2, -1)
        return dist.Normal(centre + spread * loc, spread * (softplus(raw) + LEAST_SCALE)).to_event(1)


class AmortisedMultivariateNormalGuide(AnyModelGuide):
    """q(z | D) = N(μ(D), L(D) Lᵀ(D)) over the unconstrained latents of any Pyro model: every pair is correlated.

    The head has D (D + 3) / 2 numbers for D latents; beyond a few hundred take a low rank.

    Args:
        model: any Pyro model.
        width: width of the encoder and of its features.
        **options: see :class:`AnyModelGuide`.

    Example:
        >>> guide = AmortisedMultivariateNormalGuide(model, example=(x, y))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    """

    name = "any-multivariate-normal"
    description = "any model: a Gaussian with a full covariance, from the data"

    def num_parameters(self, size: int) -> int:
        return size + size * (size + 1) // 2

    def initial_parameters(self, size: int) -> Tensor:
        found = torch.zeros(self.num_parameters(size))
        found[size : 2 * size] = raw_scale(self.initial_scale)
        return found

    def build(self, size: int, features: int) -> None:
        self.register_buffer("below", torch.tril_indices(size, size, -1), persistent=False)

    def distribution(self, numbers: Tensor, features: Tensor | None, centre: Tensor, spread: Tensor) -> Any:
        size = centre.shape[-1]
        loc, raw, rest = numbers.split([size, size, numbers.shape[-1] - 2 * size], -1)
        lower = torch.diag_embed(softplus(raw) + LEAST_SCALE)
        lower = _filled(lower, rest, *self.below) if size > 1 else lower
        # half precisions have no triangular solve
        return dist.MultivariateNormal(single(centre + spread * loc), scale_tril=single(spread.unsqueeze(-1) * lower))


def _filled(lower: Tensor, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A matrix with these entries below its diagonal."""
    size = lower.shape[-1]
    flat = torch.zeros_like(lower).flatten(-2)
    index = (rows * size + columns).expand(values.shape)
    return lower + flat.scatter(-1, index, values).unflatten(-1, (size, size))


class AmortisedLowRankNormalGuide(AnyModelGuide):
    """q(z | D) = N(μ(D), W(D) Wᵀ(D) + diag d(D)) over the unconstrained latents of any Pyro model.

    Args:
        model: any Pyro model.
        width: width of the encoder and of its features.
        rank: columns of W; by default the root of the number of latents.
        **options: see :class:`AnyModelGuide`.
    """

    name = "any-low-rank-normal"
    description = "any model: a Gaussian with a covariance of low rank and a diagonal, from the data"

    @checked(rank=optional(LAYERS))
    def __init__(self, model: Any, width: int = 64, *, rank: int | None = None, **options: Any) -> None:
        self.given_rank = rank
        super().__init__(model, width, **options)

    def rank(self, size: int) -> int:
        """Columns of W."""
        return min(size, self.given_rank or math.ceil(math.sqrt(size)))

    def num_parameters(self, size: int) -> int:
        return size * (2 + self.rank(size))

    def initial_parameters(self, size: int) -> Tensor:
        raw = raw_scale(self.initial_scale)
        factor = 0.1 * self.initial_scale / math.sqrt(self.rank(size)) * torch.randn(size * self.rank(size))
        return torch.cat([torch.zeros(size), torch.full((size,), raw), factor])

    def parts(self, numbers: Tensor, centre: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """μ ``[*B, D]``, W ``[*B, D, rank]`` and d ``[*B, D]``."""
        size = centre.shape[-1]
        loc, raw, factor = numbers.split([size, size, numbers.shape[-1] - 2 * size], -1)
        factor = spread.unsqueeze(-1) * factor.unflatten(-1, (size, self.rank(size)))
        diagonal = single(spread * (softplus(raw) + LEAST_SCALE)).square()
        return single(centre + spread * loc), single(factor), single(diagonal)

    def distribution(self, numbers: Tensor, features: Tensor | None, centre: Tensor, spread: Tensor) -> Any:
        return dist.LowRankMultivariateNormal(*self.parts(numbers, centre, spread))


class EqualMixture(TorchDistribution):
    """K independent Gaussians of equal weight: which is drawn depends on no parameter, so that draws have gradients.

    Args:
        loc: ``[*B, K, D]``.
        scale: the same.
    """

    arg_constraints = {}  # noqa: RUF012 - torch's own name and type
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape[:-2], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> EqualMixture:
        shape = torch.Size(batch_shape) + self.loc.shape[-2:]
        return EqualMixture(self.loc.expand(shape), self.scale.expand(shape))

    @property
    def mean(self) -> Tensor:
        return self.loc.mean(-2)

    @property
    def variance(self) -> Tensor:
        return self.scale.square().mean(-2) + self.loc.var(-2, correction=0)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        index = torch.randint(self.loc.shape[-2], (*shape, 1, 1), device=self.loc.device)
        index = index.expand(*shape, 1, self.loc.shape[-1])
        loc, scale = (
            t.expand(torch.Size(sample_shape) + t.shape).gather(-2, index).squeeze(-2) for t in (self.loc, self.scale)
        )
        return loc + scale * torch.randn_like(loc)

    def log_prob(self, value: Tensor) -> Tensor:
        each = dist.Normal(self.loc, self.scale).log_prob(value.unsqueeze(-2)).sum(-1)
        return torch.logsumexp(each, -1) - math.log(self.loc.shape[-2])


class AmortisedMixtureNormalGuide(AnyModelGuide):
    """q(z | D) = 1/K Σ_k N(μ_k(D), diag σ_k²(D)) over the unconstrained latents of any Pyro model: several modes.

    Components weigh alike (take more where a mode weighs more), for the choice of one then has no parameter, and
    gradients are pathwise. Their means start apart, by a draw from the prior's spread; equal ones would never part.

    Args:
        model: any Pyro model.
        width: width of the encoder and of its features.
        components: K.
        **options: see :class:`AnyModelGuide`.

    Example:
        >>> guide = AmortisedMixtureNormalGuide(model, components=3, example=(x, y))
    """

    name = "any-mixture-normal"
    description = "any model: a mixture of independent Gaussians of equal weight, from the data"

    @checked(components=LAYERS)
    def __init__(self, model: Any, width: int = 64, *, components: int = 2, **options: Any) -> None:
        self.components = components
        super().__init__(model, width, **options)

    def num_parameters(self, size: int) -> int:
        return 2 * self.components * size

    def initial_parameters(self, size: int) -> Tensor:
        apart = torch.randn(self.components, size) if self.components > 1 else torch.zeros(1, size)
        return torch.cat([apart.flatten(), torch.full((self.components * size,), raw_scale(self.initial_scale))])

    def distribution(self, numbers: Tensor, features: Tensor | None, centre: Tensor, spread: Tensor) -> Any:
        loc, raw = (part.unflatten(-1, (self.components, -1)) for part in numbers.chunk(2, -1))
        return EqualMixture(centre + spread * loc, spread * (softplus(raw) + LEAST_SCALE))
