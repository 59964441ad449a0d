"""Dirichlet guides over mixture weights: NMDP's conditional prior, and the variant with a second encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from guides.mixtures.mixture_guide import MixtureGuide
from pp_models.arguments import checked, number, one_of
from pp_models.data import Dataset
from pp_models.mixtures.mixture_density import MixtureDensityNetwork
from pp_models.mixtures.simplex_distributions import LogSpaceDirichlet

#: no concentration exceeds this
LARGEST_CONCENTRATION = 1e3
MAPS = ("softplus", "mean-and-concentration", "evidence")


class DirichletMixtureGuide(MixtureGuide):
    """q(z | D) = Dir(α(D)), a conditional prior over the weights of a task (docs/papers/nmdp.md, eq. 1 and 4).

    Maps from the encoder's output u to α: ``"softplus"``, α = α_min + softplus(u + 1);
    ``"mean-and-concentration"``, α = α_min + softplus(v) softmax(u), whose mean and strength are separate numbers; or
    ``"evidence"``, the same with softmax(u + e log p_l(D_c)) of conjugate experts, whose evidences weigh them as an
    average over models does (e is learned, 1 at the start).

    Args:
        model: the mixture.
        width: hidden width of the encoders.
        pooling: ``"mean"``, ``"attention"`` or ``"set-transformer"``.
        min_concentration: α_min. It must be below 1, for a task that follows one expert lies at a corner.
        concentration_map: one of the three above.
        **options: see :class:`guides.mixtures.mixture_guide.MixtureGuide`.

    Raises:
        ValueError: an argument out of range, or evidences of experts that have none.
    """

    name = "dirichlet-mixture"
    description = "NMDP: a Dirichlet over mixture weights from the context"

    @checked(
        min_concentration=number(0, 1, "()", why=": sparse weights need α below 1"), concentration_map=one_of(*MAPS)
    )
    def __init__(
        self,
        model: MixtureDensityNetwork,
        width: int = 128,
        *,
        pooling: str = "mean",
        min_concentration: float = 0.05,
        concentration_map: str = "softplus",
        **options: Any,
    ) -> None:
        super().__init__(model, width, pooling=pooling, **options)
        self.min_concentration, self.concentration_map = min_concentration, concentration_map
        self.outputs = self.num_experts + (concentration_map != "softplus")
        self.start = float(self.num_experts)  # strength before training: α near 1
        self.set_encoder = self.encoder(self.outputs)
        if concentration_map == "evidence":
            if model.experts != "conjugate":
                raise ValueError(
                    f"concentration_map: got 'evidence', but {model.experts} experts have none; take a model with "
                    "experts='conjugate', or another map"
                )
            self.start = 4.0 * self.num_experts
            self.trust = nn.Parameter(torch.ones(()))
            self._shared = (model,)  # in a tuple: its parameters are the model's, not the guide's

    def _concentration(self, encoded: Tensor, data: Dataset) -> Tensor:
        if self.concentration_map == "softplus":
            alpha = self.min_concentration + softplus(encoded + 1)
        else:
            strength = softplus(encoded[..., :1] + self.start)
            logits = encoded[..., 1:]
            if self.concentration_map == "evidence":
                logits = logits + (self.trust * self._shared[0].attend.log_evidence(self.memory(data))).to(logits)
            alpha = self.min_concentration + strength * torch.softmax(logits, -1)
        return alpha.clamp_max(LARGEST_CONCENTRATION)

    def concentration(self, data: Dataset) -> Tensor:
        """α(D) ``[*B, L]``."""
        return self._concentration(self.set_encoder(data), data)

    def keep(self, experts: list[int]) -> None:
        # what is left of a Dirichlet, normalised, is the Dirichlet of what is left
        extra = self.outputs - self.num_experts
        kept = [*range(extra), *(extra + i for i in experts)]
        self.set_encoder.keep(kept)
        self.num_experts, self.outputs = len(experts), len(kept)

    def weights_distribution(self, data: Dataset) -> LogSpaceDirichlet:
        return LogSpaceDirichlet(self.concentration(data))


class DirichletPosteriorGuide(DirichletMixtureGuide):
    """A Dirichlet guide with a second encoder for the posterior of the whole task.

    NMDP's rung A4 (docs/papers/nmdp.md#the-ladder). Called with data it is the conditional prior Dir(α(D_c)), which
    predicts; ``npvi`` draws from the second encoder's Dir(β(D)) instead, with pathwise gradients, and pays
    KL(Dir(β(D)) ‖ Dir(α(D_c))), in closed form.

    Args:
        model: the mixture.
        **options: see :class:`DirichletMixtureGuide`.
    """

    name = "dirichlet-posterior"
    description = "the same with a second encoder for the whole task"

    def __init__(
        self, model: MixtureDensityNetwork, width: int = 128, *, pooling: str = "mean", **options: Any
    ) -> None:
        super().__init__(model, width, pooling=pooling, **options)
        self.posterior_encoder = self.encoder(self.outputs)

    def posterior_concentration(self, data: Dataset) -> Tensor:
        """β(D) ``[*B, L]``."""
        return self._concentration(self.posterior_encoder(data), data)

    def keep(self, experts: list[int]) -> None:
        extra = self.outputs - self.num_experts
        self.posterior_encoder.keep([*range(extra), *(extra + i for i in experts)])
        super().keep(experts)

    @property
    def posterior_guide(self) -> Callable[[Dataset], dict[str, Tensor]]:
        """The guide on the whole task that ``npvi`` draws from."""
        return lambda data: self.sample_sites(data, LogSpaceDirichlet(self.posterior_concentration(data)))

    def check_objective(self, objective: Any) -> None:
        if objective.name != "npvi":
            raise ValueError(
                f"objective: {objective.name!r} never calls the second encoder of DirichletPosteriorGuide, which would "
                "stay as it is; use 'npvi', or DirichletMixtureGuide"
            )
