"""Prototypes in a space that a task's latents modulate, layer by layer: variational meta-modulation."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from pp_models.arguments import FEATURES, SCALE, checked, instance
from pp_models.data import Dataset
from pp_models.film_network import Modulated
from pp_models.processes.prototypical_network import PrototypicalNetwork


class ModulatedPrototypicalNetwork(PrototypicalNetwork):
    """A prototypical network whose embedding a task's latents scale and shift at every layer (MetaModulation).

    m_l ~ N(0, s²) for each layer l and task, a scale γ and a shift β for each of its features: h becomes (1 + γ) h + β,
    in place of the parameters of a batch norm (Sun et al. 2023). m = 0 is the plain network. With ``npvi`` the prior is
    the guide on the context, as in the paper, whose prior is conditional. Its tasks are few: mix them
    (:func:`pp_models.tasks.interpolated`).

    Sites: ``modulation_{i}`` ``[*B, 2 width_i]``; ``memory`` ``[*B, N_context, Dx + classes + 1]``; ``y``.

    Args:
        dim_x: input width.
        num_classes: of a task.
        embedding: a FiLMNetwork, a ConvEmbedding for pictures, or a :class:`pp_models.film_network.Modulated` of yours.
        prior_scale: s.

    Raises:
        ValueError: a size below 1, or an embedding that reads no modulations.
    """

    @checked(
        dim_x=FEATURES,
        num_classes=FEATURES,
        embedding=instance(Modulated, instead=", such as a FiLMNetwork or a ConvEmbedding"),
        prior_scale=SCALE,
    )
    def __init__(self, dim_x: int, num_classes: int, embedding: Modulated, prior_scale: float = 0.5) -> None:
        super().__init__(dim_x, num_classes, embedding)
        self.widths, self.prior_scale = list(embedding.widths), float(prior_scale)

    @staticmethod
    def site(index: int) -> str:
        """Name of a layer's modulation."""
        return f"modulation_{index}"

    def sample_latents(self, data: Dataset) -> list[Tensor]:
        found = []
        for i, width in enumerate(self.widths):
            zeros = data.x.new_zeros(2 * width)
            found.append(pyro.sample(self.site(i), dist.Normal(zeros, zeros + self.prior_scale).to_event(1)))
        return found

    def embed(self, x: Tensor, latents: Sequence[Tensor]) -> Tensor:
        return self.embedding(x, latents)
