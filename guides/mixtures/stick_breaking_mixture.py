"""A truncated stick-breaking guide over mixture weights: how many experts a task needs is learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from guides.mixtures.dirichlet_mixture import LARGEST_CONCENTRATION
from guides.mixtures.logistic_normal_mixture import check_several
from guides.mixtures.mixture_guide import MixtureGuide
from pp_models.arguments import OPEN_SHARE, checked
from pp_models.data import Dataset
from pp_models.mixtures.mixture_density import MixtureDensityNetwork
from pp_models.mixtures.simplex_distributions import StickBreaking


class StickBreakingGuide(MixtureGuide):
    """z_l = v_l Π_{j<l} (1 - v_j), v_l ~ Beta(a_l(D), b_l(D)): earlier experts come first.

    See docs/papers/nmdp.md, eq. 15.

    With L well above what is needed the tail goes unused: :func:`pp_models.effective_experts` counts what is left, and
    :func:`guides.prune_experts` drops the rest from model and guide.

    Args:
        model: the mixture, of at least two experts.
        min_concentration: floor of a and b.
        **options: see :class:`guides.mixtures.mixture_guide.MixtureGuide`.

    Raises:
        ValueError: a mixture of one expert, or a floor out of range.
    """

    name = "stick-breaking"
    description = "stick-breaking betas over mixture weights"

    @checked(min_concentration=OPEN_SHARE)
    def __init__(
        self,
        model: MixtureDensityNetwork,
        width: int = 128,
        *,
        pooling: str = "mean",
        min_concentration: float = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(model, width, pooling=pooling, **options)
        check_several(self)
        self.min_concentration = min_concentration
        self.set_encoder = self.encoder(2 * (self.num_experts - 1))
        # at the start the weights are equal in the mean: a stick with l breaks to come keeps l times what it gives
        self.to_come: Tensor
        self.register_buffer("to_come", torch.arange(self.num_experts - 1, 0, -1).to(torch.get_default_dtype()))

    def keep(self, experts: list[int]) -> None:
        # the last one kept gets what is left of the stick
        sticks = experts[:-1]
        self.set_encoder.keep([*sticks, *(self.num_experts - 1 + i for i in sticks)])
        self.to_come = self.to_come[sticks]
        self.num_experts = len(experts)

    def weights_distribution(self, data: Dataset) -> StickBreaking:
        raw = self.min_concentration + softplus(self.set_encoder(data) + 1)
        a, b = raw.clamp_max(LARGEST_CONCENTRATION).chunk(2, -1)
        return StickBreaking(a, b * self.to_come)
