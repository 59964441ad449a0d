"""A logistic-normal guide over mixture weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from guides.mixtures.mixture_guide import MixtureGuide
from pp_models.data import Dataset
from pp_models.mixtures.mixture_density import MixtureDensityNetwork
from pp_models.mixtures.simplex_distributions import above_zero, log_weights


class AdditiveLogisticNormal(TorchDistribution):
    """z = softmax(u_1 … u_{L-1}, 0), u ~ N(μ, diag σ²) (Aitchison and Shen 1980): a density on the simplex.

    Draws are float64 where the device has it; the mean is that of 256 fixed normal draws.

    Args:
        loc: μ ``[*B, L - 1]``.
        scale: σ ``[*B, L - 1]``.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.independent(constraints.real, 1),
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.simplex
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(loc.shape[:-1], torch.Size([loc.shape[-1] + 1]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AdditiveLogisticNormal:
        shape = torch.Size(batch_shape) + self.loc.shape[-1:]
        return type(self)(self.loc.expand(shape), self.scale.expand(shape), validate_args=False)

    def _weights(self, noise: Tensor) -> Tensor:
        logits = self.loc + self.scale * noise
        logits = torch.cat([logits, torch.zeros_like(logits[..., :1])], -1)
        wide = logits if logits.device.type == "mps" else logits.double()
        return above_zero(torch.softmax(wide, -1))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._weights(torch.randn_like(self.loc.expand(torch.Size(sample_shape) + self.loc.shape)))

    @property
    def mean(self) -> Tensor:
        width = self.loc.shape[-1]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(128, width, generator=generator).to(self.loc)
        noise = torch.cat([noise, -noise]).reshape(256, *(1,) * (self.loc.dim() - 1), width)
        return self._weights(noise).mean(0).to(self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        log_z = log_weights(value)
        logits = log_z[..., :-1] - log_z[..., -1:]
        scaled = (logits - self.loc) / self.scale
        normal = -0.5 * scaled.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)
        # the second sum is the Jacobian from logits to weights
        return (normal.sum(-1) - log_z.sum(-1)).to(self.loc.dtype)


class LogisticNormalGuide(MixtureGuide):
    """q(z | D): a Gaussian in logit space, the usual reparameterised rival of a Dirichlet.

    It has no sparse corners as a Dirichlet with α < 1 has, and no conjugate update.

    Args:
        model: the mixture, of at least two experts.
        **options: see :class:`guides.mixtures.mixture_guide.MixtureGuide`.

    Raises:
        ValueError: a mixture of one expert, whose weight is 1.
    """

    name = "logistic-normal"
    description = "a logistic normal over mixture weights"

    def __init__(
        self, model: MixtureDensityNetwork, width: int = 128, *, pooling: str = "mean", **options: Any
    ) -> None:
        super().__init__(model, width, pooling=pooling, **options)
        check_several(self)
        self.set_encoder = self.encoder(2 * (self.num_experts - 1))

    def weights_distribution(self, data: Dataset) -> AdditiveLogisticNormal:
        loc, raw = self.set_encoder(data).chunk(2, -1)
        return AdditiveLogisticNormal(loc, 1e-3 + softplus(raw))


def check_several(guide: MixtureGuide) -> None:
    """Refuses a mixture of one expert.

    Raises:
        ValueError: it has one.
    """
    if guide.num_experts < 2:
        raise ValueError(
            f"model: its num_experts is 1, whose weight is always 1; {type(guide).__name__} needs at least 2, "
            "UniformMixtureGuide takes one"
        )
