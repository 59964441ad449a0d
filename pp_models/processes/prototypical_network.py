"""The prototypical network: a class is the mean of its examples in a learned space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pp_models.arguments import FEATURES, WIDTH, checked, each, instance, integer
from pp_models.data import Dataset
from pp_models.film_network import Modulated
from pp_models.processes.conditional_process import ConditionalProcess


class ConvEmbedding(Modulated):
    """Pictures as vectors: blocks of a 3 x 3 convolution, a group norm, a ReLU and a halving (Conv-4 of few-shot work).

    A group norm in place of the usual batch norm: what a picture becomes does not depend on those beside it. Channels
    are modulated after the norm.

    Args:
        image_size: (height, width) of a picture.
        channels: of a picture.
        width: channels of a block.
        blocks: halvings; the sides must survive them.
        groups: of the norms; must divide the width.

    Raises:
        ValueError: a size out of range.
    """

    @checked(
        image_size=each(WIDTH, 2, 2, "be (height, width), each at least 1"),
        channels=integer(1, 4),
        width=WIDTH,
        blocks=integer(1, 8),
        groups=WIDTH,
    )
    def __init__(
        self, image_size: tuple[int, int], channels: int = 1, width: int = 32, blocks: int = 3, groups: int = 4
    ) -> None:
        super().__init__()
        if width % groups:
            raise ValueError(f"groups: got {groups}; they must divide the width, {width}")
        if min(image_size) < 2**blocks:
            raise ValueError(f"blocks: got {blocks}; pictures of {tuple(image_size)} can be halved fewer times")
        self.image_size, self.channels = (image_size[0], image_size[1]), channels
        layers: list[nn.Module] = []
        for i in range(blocks):
            layers += [
                nn.Conv2d(channels if i == 0 else width, width, 3, padding=1),
                nn.GroupNorm(groups, width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.layers = nn.Sequential(*layers)
        self.widths = [width] * blocks
        self.dim_out = width * (image_size[0] >> blocks) * (image_size[1] >> blocks)

    def forward(self, x: Tensor, modulations: Sequence[Tensor] | None = None) -> Tensor:
        """Pictures ``[..., D]``, their numbers row by row with the channel last, as vectors ``[..., dim_out]``.

        Args:
            x: the pictures.
            modulations: see :meth:`Modulated.forward`; then pictures are ``[..., N, D]``.
        """
        hidden = x.reshape(-1, *self.image_size, self.channels).movedim(-1, 1)
        waiting = list(modulations or ())
        for layer in self.layers:
            hidden = layer(hidden)
            if waiting and isinstance(layer, nn.GroupNorm):
                found = waiting.pop(0).unsqueeze(-2)
                found = found.expand(*x.shape[:-1], found.shape[-1]).flatten(0, -2)[..., None, None]
                scale, shift = found.chunk(2, 1)
                hidden = hidden + hidden * scale + shift
        return hidden.flatten(1).reshape(*x.shape[:-1], self.dim_out)


class PrototypicalNetwork(ConditionalProcess):
    """Classes as the means of their examples' embeddings (prototypical networks, Snell, Swersky and Zemel 2017).

    A query's logits are minus its squared distances to the prototypes. A class of which the context shows no example
    has a learned logit of its own.

    Args:
        dim_x: input width.
        num_classes: of a task.
        embedding: ``[..., dim_x]`` to ``[..., anything]``; a ConvEmbedding for pictures.

    Raises:
        ValueError: a size below 1, or an embedding that is no module.
    """

    @checked(dim_x=FEATURES, num_classes=FEATURES, embedding=instance(nn.Module))
    def __init__(self, dim_x: int, num_classes: int, embedding: nn.Module) -> None:
        super().__init__(dim_x, num_classes, "categorical")
        self.embedding = embedding
        self.absent = nn.Parameter(torch.zeros(()))

    def embed(self, x: Tensor, latents: Sequence[Tensor]) -> Tensor:
        """Embeddings ``[P, N, anything]`` of inputs ``[P, N, dim_x]``, given a task's latents where there are any."""
        return self.embedding(x)

    def decode(self, asked: Dataset, context: Dataset, *latents: Tensor) -> Tensor:
        """See :meth:`ConditionalProcess.decode`."""
        assert context.y is not None and context.mask is not None
        shown = context.y * context.mask.unsqueeze(-1)  # [P, M, C]
        if not context.num_points:
            return self.absent.expand(*asked.x.shape[:-1], self.dim_y)
        found, queries = self.embed(context.x, latents), self.embed(asked.x, latents)
        count = shown.sum(-2).unsqueeze(-1)  # [P, C, 1]
        prototypes = shown.mT @ found / count.clamp_min(1)
        distance = (queries.unsqueeze(-2) - prototypes.unsqueeze(-3)).square().sum(-1)
        return torch.where(count.mT > 0, -distance, self.absent)
