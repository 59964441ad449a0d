"""Permutation-invariant encoders from a data set to a representation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pp_models.arguments import LAYERS, MOST_LAYERS, WIDTH, checked, integer, one_of
from pp_models.attention import attend
from pp_models.data import Dataset
from pp_models.parameter_module import mlp

POOLINGS = ("mean", "attention", "set-transformer")


class PointEncoder(nn.Module):
    """An MLP on each (x, y) pair, optionally with self-attention between the points.

    Args:
        dim_x: input width.
        dim_y: output width, or the number of classes when y holds class indices.
        width: hidden width.
        dim_out: width of an embedding.
        depth: linear layers per point.
        num_blocks: self-attention blocks.
        num_heads: attention heads.

    Raises:
        ValueError: a width that the heads cannot divide.
    """

    @checked(width=WIDTH, dim_out=WIDTH, depth=LAYERS, num_blocks=integer(0, MOST_LAYERS), num_heads=LAYERS)
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        width: int = 128,
        dim_out: int = 128,
        depth: int = 6,
        num_blocks: int = 0,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        if num_blocks and dim_out % num_heads:
            raise ValueError(f"dim_out: got {dim_out}; attention needs a multiple of num_heads, {num_heads}")
        self.dim_y = dim_y
        self.points = mlp([dim_x + dim_y, *[width] * (depth - 1), dim_out])
        self.blocks = nn.ModuleList([AttentionBlock(dim_out, num_heads) for _ in range(num_blocks)])

    def embed(self, data: Dataset) -> Tensor:
        """Embeddings ``[*B, N, dim_out]`` of the points of data ``[*B, N]``."""
        if data.y is None:
            raise ValueError("data: y is None; a guide reads observed points")
        y = data.y if data.y.dtype.is_floating_point else one_hot(data.y, self.dim_y).to(data.x.dtype)
        embedded = self.points(torch.cat([data.x, y], -1))
        if data.num_points:
            for block in self.blocks:
                embedded = block(embedded, data.mask)
        return embedded

    def forward(self, data: Dataset) -> Tensor:
        """See :meth:`embed`."""
        return self.embed(data)


class SetEncoder(PointEncoder):
    """An MLP on each (x, y) pair, pooled over the points of a task.

    Args:
        dim_x: input width.
        dim_y: output width, or the number of classes when y holds class indices.
        width: hidden width.
        dim_out: width of the representation.
        depth: linear layers per point.
        pooling: ``"mean"``; ``"attention"`` (a learned query attends over the points); ``"set-transformer"`` (two
            self-attention blocks over the points, then that).
        num_heads: attention heads.

    An empty data set is encoded as a learned vector.

    Raises:
        ValueError: unknown pooling, or a width that the attention heads cannot divide.
    """

    @checked(width=WIDTH, dim_out=WIDTH, pooling=one_of(*POOLINGS), num_heads=LAYERS)
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        width: int = 128,
        dim_out: int = 128,
        depth: int = 6,
        pooling: str = "mean",
        num_heads: int = 4,
    ) -> None:
        if pooling != "mean" and dim_out % num_heads:
            raise ValueError(f"dim_out: got {dim_out}; {pooling!r} pooling needs a multiple of num_heads, {num_heads}")
        super().__init__(dim_x, dim_y, width, dim_out, depth, 2 if pooling == "set-transformer" else 0, num_heads)
        self.empty = nn.Parameter(torch.randn(dim_out) * 0.1)
        self.pool: nn.Module = MeanPool() if pooling == "mean" else AttentionPool(dim_out, num_heads)

    def forward(self, data: Dataset) -> Tensor:
        """Encodes data ``[*B, N]`` to ``[*B, dim_out]``."""
        embedded = self.embed(data)
        if data.num_points == 0:
            return self.empty.expand(*data.batch_shape, -1)
        pooled = self.pool(embedded, data.mask)
        if data.mask is None:
            return pooled
        return torch.where(data.mask.any(-1, keepdim=True), pooled, self.empty)


class MeanPool(nn.Module):
    """Mean over the existing points."""

    def forward(self, points: Tensor, mask: Tensor | None) -> Tensor:
        """``[*B, N, R]`` to ``[*B, R]``."""
        if mask is None:
            return points.mean(-2)
        weight = mask.unsqueeze(-1).to(points.dtype)
        return (points * weight).sum(-2) / weight.sum(-2).clamp_min(1.0)


class AttentionBlock(nn.Module):
    """Self-attention over the points of a task with a residual MLP (Set Transformer, Lee et al. 2019: SAB)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = mlp([width, width, width])
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, points: Tensor, mask: Tensor | None) -> Tensor:
        """``[*B, N, R]`` to the same shape."""
        q, k, v = self.qkv(self.norms[0](points)).chunk(3, -1)
        points = points + self.out(attend(q, k, v, mask, self.num_heads))
        return points + self.mlp(self.norms[1](points))


class AttentionPool(nn.Module):
    """A learned query that attends over the points (Set Transformer: PMA with one seed)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.randn(1, width) * 0.1)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, points: Tensor, mask: Tensor | None) -> Tensor:
        """``[*B, N, R]`` to ``[*B, R]``."""
        k, v = self.kv(points).chunk(2, -1)
        q = self.query.expand(*points.shape[:-2], 1, -1)
        return self.out(attend(q, k, v, mask, self.num_heads)).squeeze(-2)
