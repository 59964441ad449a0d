"""An implicit posterior of any Pyro model: draws of a small network, their entropy by linearising it at the draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from guides.any_model.flow_guide import normal_points
from guides.any_model.normal_guides import AmortisedLowRankNormalGuide
from guides.raw_scale import raw_scale
from pp_models.arguments import WIDTH, check_weights, checked, each, one_of
from pp_models.contract import ObjectiveOffers
from pp_models.single_precision import single

REFUSAL = (
    "guide: AmortisedImplicitGuide has a bound through its draws in place of a density, which the {} needs; take an "
    "objective with pathwise gradients ('elbo', 'iwae', 'renyi'), or entropy='local'"
)
#: of the spread at the start, what is not the generator's; where that is most of it, training ignores the generator
OWN_NOISE = 0.3


class Generator(nn.Module):
    """A network of noise and features, small at the start, that gives its Jacobian to the noise with its value.

    Args:
        noise: dimensions of the noise.
        features: of the features, 0 for none.
        hidden: widths of its tanh layers; none for a network that is zero.
        size: dimensions of its value.
    """

    def __init__(self, noise: int, features: int, hidden: Sequence[int], size: int) -> None:
        super().__init__()
        widths = [noise, *hidden, size] if hidden else []
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.of_features = nn.Linear(features, hidden[0], bias=False) if hidden and features else None
        if hidden:
            last = self.layers[-1]
            assert isinstance(last, nn.Linear)
            nn.init.normal_(last.weight, std=0.1 / math.sqrt(widths[-2]))
            nn.init.zeros_(last.bias)

    def forward(self, noise: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Value ``[*B, D]`` and Jacobian ``[*B, D, M]`` at noise ``[*B, M]`` and features ``[*B, R]``."""
        layers: list[Any] = list(self.layers)
        held = layers[0].weight.dtype if layers else noise.dtype  # half precision, where the network is in it
        value, jacobian = noise.to(held), torch.eye(noise.shape[-1], dtype=held, device=noise.device)
        for i, layer in enumerate(layers):
            value = layer(value)
            if i == 0 and self.of_features is not None and features is not None:
                value = value + self.of_features(features.to(held))
            jacobian = layer.weight @ jacobian
            if i < len(self.layers) - 1:
                value = torch.tanh(value)
                jacobian = (1 - value.square()).unsqueeze(-1) * jacobian
        return value.to(noise.dtype), jacobian.to(noise.dtype)


class ImplicitNormal(TorchDistribution):
    """θ = g(ε) + √d η, ε and η standard normal; a value is θ with its ε, ``[*B, D + M]``.

    What stands for the log-density of θ is, with an inverse network, log N(ε) + log N(θ; g(ε), d) - log r(ε | θ), r the
    posterior of ε where g is linearised at the network's guess: its mean over draws is no less than that of log q(θ),
    for r is a density (hierarchical variational models, Ranganath et al. 2016). Without one it is
    log N(θ; g(ε) - J ε, J Jᵀ + diag d), g linearised at ε itself (Uppal et al. 2023). Both are log q(θ) where g is
    linear, whatever ε.

    Args:
        loc: ``[*B, D]``.
        factor: linear part of g ``[*B, D, M]``.
        diagonal: d ``[*B, D]``.
        centre: of the prior ``[D]``.
        spread: of the prior, the scale of the network's outputs ``[D]``.
        generator: the network; g = loc + factor ε + spread generator(ε).
        inverse: from θ, less the centre and over the spread, to a guess of ε; or None.
        features: ``[*B, R]``, or None.
        batch_shape: ``*B``; by default loc's.
    """

    arg_constraints = {}  # noqa: RUF012 - torch's own name and type
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        factor: Tensor,
        diagonal: Tensor,
        centre: Tensor,
        spread: Tensor,
        generator: Generator,
        inverse: Generator | None,
        features: Tensor | None,
        batch_shape: torch.Size | None = None,
    ) -> None:
        self.loc, self.factor, self.diagonal, self.centre, self.spread = loc, factor, diagonal, centre, spread
        self.generator, self.inverse, self.features = generator, inverse, features
        self.size, self.noise = factor.shape[-2:]
        shape = loc.shape[:-1] if batch_shape is None else batch_shape
        super().__init__(shape, torch.Size([self.size + self.noise]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ImplicitNormal:
        parts = self.loc, self.factor, self.diagonal, self.centre, self.spread
        return ImplicitNormal(*parts, self.generator, self.inverse, self.features, torch.Size(batch_shape))

    def generated(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """g ``[…, D]`` and its Jacobian ``[…, D, M]`` at noise ``[…, M]``."""
        linear = self.loc + (self.factor @ noise.unsqueeze(-1)).squeeze(-1)
        if not len(self.generator.layers):
            return linear, self.factor.expand(*linear.shape, self.noise)
        bent, jacobian = self.generator(noise, self.features)
        return linear + self.spread * bent, self.factor + self.spread.unsqueeze(-1) * jacobian

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        noise = torch.randn(*shape, self.noise, dtype=self.loc.dtype, device=self.loc.device)
        own = torch.randn(*shape, self.size, dtype=self.loc.dtype, device=self.loc.device)
        return torch.cat([self.generated(noise)[0] + self.diagonal.sqrt() * own, noise], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        latents, noise = value.split([self.size, self.noise], -1)
        mean, jacobian = self.generated(noise)
        if self.inverse is None:
            centre = single(mean - (jacobian @ noise.unsqueeze(-1)).squeeze(-1))
            found = dist.LowRankMultivariateNormal(centre, single(jacobian), single(self.diagonal))
            return found.log_prob(single(latents))
        drawn = dist.Normal(mean, self.diagonal.sqrt()).log_prob(latents).sum(-1)
        drawn = drawn + dist.Normal(0.0, 1.0).log_prob(noise).sum(-1)
        found = drawn - self.noise_density(latents, noise)
        return found if value.requires_grad else _WithoutGradient.apply(found)

    def noise_density(self, latents: Tensor, noise: Tensor) -> Tensor:
        """log r(ε | θ), r the posterior of the noise where g is linearised at the inverse network's guess."""
        assert self.inverse is not None
        guess, _ = self.inverse((latents - self.centre) / self.spread, self.features)
        mean, jacobian = self.generated(guess)
        weighted = jacobian.mT / self.diagonal.unsqueeze(-2)
        precision = weighted @ jacobian + torch.eye(self.noise, dtype=weighted.dtype, device=weighted.device)
        root = torch.linalg.cholesky(single(precision))
        off = single(weighted @ ((latents - mean).unsqueeze(-1) + jacobian @ guess.unsqueeze(-1)))
        away = root.mT @ (single(noise).unsqueeze(-1) - torch.cholesky_solve(off, root))
        log_root = root.diagonal(dim1=-2, dim2=-1).log()
        standard = dist.Normal(0.0, 1.0).log_prob(away.squeeze(-1))
        return (standard + log_root).sum(-1)

    def _points(self) -> Tensor:
        points = normal_points(self.noise).to(self.loc)
        points = points.reshape(-1, *(1,) * len(self.batch_shape), self.noise)
        return self.generated(points.expand(-1, *self.batch_shape, -1))[0]

    @property
    def mean(self) -> Tensor:
        """Of the latents ``[*B, D]``, by points that are spread like draws."""
        return self._points().mean(0)

    @property
    def variance(self) -> Tensor:
        """Of the latents ``[*B, D]``, by points that are spread like draws."""
        return self._points().var(0, correction=0) + self.diagonal


class _WithoutGradient(torch.autograd.Function):
    """A value whose gradient is refused: that of a bound at fixed draws is not the score of a density."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise ValueError(REFUSAL.format("gradient at fixed draws"))


class AmortisedImplicitGuide(AmortisedLowRankNormalGuide):
    """q(z | D): what a small network makes of noise, over the unconstrained latents of any Pyro model.

    z = g(ε; D) + σ(D) η with ε of few dimensions: g a low-rank linear map from the data, as that of
    :class:`AmortisedLowRankNormalGuide`, plus a tanh network of ε and the encoder's features, which starts small. Its
    marginal density has no closed form. With a linear generator (``hidden=()``) it is the low-rank Gaussian exactly;
    elsewhere its entropy comes by linearising g, at the price of a determinant of the size of ε, and of no adversary:

    * ``entropy="bound"``: at a guess of ε from z alone, by a second network; the ELBO stays one, and importance weights
      stay proper (with the guess's density on the model's side). For objectives with pathwise gradients;
    * ``entropy="local"``: at the ε that was drawn, as published (LIVI). A generator that folds has its branches counted
      apart: the reported ELBO may then be above the evidence, and training seeks that.

    It has no density at latents that it did not draw, so that ``npe`` and sleep phases refuse it.

    Args:
        model: any Pyro model.
        width: width of the encoder and of its features.
        hidden: widths of the tanh layers of both networks; empty for a linear generator.
        rank: dimensions of ε; by default the root of the number of latents.
        entropy: ``"bound"`` or ``"local"``.
        **options: see :class:`AnyModelGuide`.

    Example:
        >>> guide = AmortisedImplicitGuide(model, hidden=(32,), example=(x, y))
    """

    name = "any-implicit"
    description = "any model: a small network of noise, its entropy by local linearisation"

    @checked(hidden=each(WIDTH), entropy=one_of("bound", "local"))
    def __init__(
        self,
        model: Any,
        width: int = 64,
        *,
        hidden: Sequence[int] = (64,),
        rank: int | None = None,
        entropy: str = "bound",
        **options: Any,
    ) -> None:
        self.hidden, self.entropy = tuple(hidden), entropy
        super().__init__(model, width, rank=rank, **options)

    def initial_parameters(self, size: int) -> Tensor:
        found = super().initial_parameters(size)
        found[size : 2 * size] = raw_scale(OWN_NOISE * self.initial_scale)
        found[2 * size :] *= 10.0  # of the parent's tenth
        return found

    def build(self, size: int, features: int) -> None:
        rank = self.rank(size)
        check_weights("hidden", [max(rank, size) + features, *self.hidden, size])
        self.generator = Generator(rank, features, self.hidden, size)
        bound = self.entropy == "bound" and self.hidden
        self.inverse = Generator(size, features, self.hidden, rank) if bound else None

    def distribution(self, numbers: Tensor, features: Tensor | None, centre: Tensor, spread: Tensor) -> Any:
        parts = self.parts(numbers, centre, spread)
        return ImplicitNormal(*parts, centre, spread, self.generator, self.inverse, features)

    def latent_part(self, vector: Tensor) -> Tensor:
        return vector[..., : self.centre.shape[-1]]

    def check_objective(self, objective: ObjectiveOffers) -> None:
        super().check_objective(objective)
        if self.inverse is not None and objective.scores_guide:
            raise ValueError(REFUSAL.format(f"objective {objective.name!r}"))

    def auxiliary_values(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise ValueError(
            "guide: AmortisedImplicitGuide has no density at latents that it did not draw, which 'npe' and sleep "
            "phases need; take AmortisedLowRankNormalGuide or FlowGuide"
        )
