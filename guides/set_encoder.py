"""Permutation-invariant encoders from a data set to a representation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from guides.shared_points import active_points
from pp_models.arguments import LAYERS, MOST_LAYERS, WIDTH, checked, integer, one_of
from pp_models.attention import attend
from pp_models.context_regression import ContextRegression, relative_evidence
from pp_models.data import Dataset
from pp_models.observation_model import seen_outputs
from pp_models.parameter_module import mlp

POOLINGS = ("mean", "attention", "set-transformer", "regression", "learned-regression")
#: heads and features of each, of the regressions whose coefficients stand for a context
POOLED_REGRESSIONS = {"fourier": (4, 16), "learned": (2, 32)}


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
        missing_outputs: read a flag for each output beside y, 1 where it is missing.

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
        *,
        missing_outputs: bool = False,
    ) -> None:
        super().__init__()
        if num_blocks and dim_out % num_heads:
            raise ValueError(f"dim_out: got {dim_out}; attention needs a multiple of num_heads, {num_heads}")
        self.dim_y, self.missing_outputs = dim_y, missing_outputs
        self.points = mlp([dim_x + dim_y * (2 if missing_outputs else 1), *[width] * (depth - 1), dim_out])
        self.blocks = nn.ModuleList([AttentionBlock(dim_out, num_heads) for _ in range(num_blocks)])

    def embed(self, data: Dataset) -> Tensor:
        """Embeddings ``[*B, N, dim_out]`` of the points of data ``[*B, N]``."""
        shared = active_points()
        embedded = None if shared is None else shared.embedded(self, data, self._points_alone)
        if embedded is None:
            embedded = self._points_alone(data)
        if data.num_points:
            for block in self.blocks:
                embedded = block(embedded, data.mask)
        return embedded

    def _points_alone(self, data: Dataset) -> Tensor:
        return self.points(torch.cat([data.x, seen_outputs(data, self.dim_y, self.missing_outputs)], -1))

    def forward(self, data: Dataset) -> Tensor:
        """See :meth:`embed`."""
        return self.embed(data)


class MemoryEncoder(nn.Module):
    """A context as the memory that a model's path reads: inputs, learned embeddings or y, and which points exist.

    Args:
        path: the model's path.
        dim_x: input width.
        dim_y: output width.
        width: hidden width of the embeddings.
        depth: linear layers of the embeddings.
        num_blocks: self-attention blocks of the embeddings.
        missing_outputs: whether these are told which outputs are missing.
    """

    def __init__(
        self,
        path: Any,
        dim_x: int,
        dim_y: int,
        width: int,
        depth: int = 3,
        num_blocks: int = 1,
        *,
        missing_outputs: bool = False,
    ) -> None:
        super().__init__()
        self.dim_y, self.points = dim_y, None
        if path.embeds:
            self.points = PointEncoder(
                dim_x, dim_y, width, path.embedding_dim, depth, num_blocks, missing_outputs=missing_outputs
            )

    def forward(self, data: Dataset) -> Tensor:
        """``[*B, N, Dx + E + 1]``; a point that does not exist is zeros.

        Of y itself with single outputs missing, Dy more columns: 1 where an output is known.
        """
        embedded = seen_outputs(data, self.dim_y) if self.points is None else self.points(data)
        exists = data.full_mask().unsqueeze(-1)
        masks = [exists, *([] if data.observed is None or self.points is not None else [data.observed])]
        memory = torch.cat([data.x, embedded, *(mask.to(embedded.dtype) for mask in masks)], -1)
        return memory if data.mask is None else torch.where(exists, memory, torch.zeros_like(memory))


class SetEncoder(PointEncoder):
    """A data set as one vector: an MLP on each (x, y) pair, pooled; or closed-form regressions of the whole.

    Args:
        dim_x: input width.
        dim_y: output width, or the number of classes when y holds class indices.
        width: hidden width.
        dim_out: width of the representation.
        depth: linear layers per point.
        pooling: ``"mean"``; ``"attention"`` (a learned query attends over the points); ``"set-transformer"`` (two
            self-attention blocks over the points, then that); ``"regression"`` or ``"learned-regression"`` (no MLP on
            points: coefficients and evidences of closed-form regressions on Fourier or on learned features).
        num_heads: attention heads.
        missing_outputs: embed a flag for each output beside y, 1 where it is missing; regressions leave missing
            outputs out anyway.

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
        *,
        missing_outputs: bool = False,
    ) -> None:
        self.by_point = not pooling.endswith("regression")
        if not self.by_point:
            nn.Module.__init__(self)
            self.dim_y = dim_y
            kind = "learned" if pooling.startswith("learned") else "fourier"
            self.pool: nn.Module = RegressionEncoder(dim_x, dim_y, width, dim_out, kind)
            self.empty = nn.Parameter(torch.randn(dim_out) * 0.1)
            return
        if pooling != "mean" and dim_out % num_heads:
            raise ValueError(f"dim_out: got {dim_out}; {pooling!r} pooling needs a multiple of num_heads, {num_heads}")
        blocks = 2 if pooling == "set-transformer" else 0
        super().__init__(dim_x, dim_y, width, dim_out, depth, blocks, num_heads, missing_outputs=missing_outputs)
        self.empty = nn.Parameter(torch.randn(dim_out) * 0.1)
        self.pool = MeanPool() if pooling == "mean" else AttentionPool(dim_out, num_heads)

    def forward(self, data: Dataset) -> Tensor:
        """Encodes data ``[*B, N]`` to ``[*B, dim_out]``."""
        if data.num_points == 0:
            seen_outputs(data, self.dim_y)
            return self.empty.expand(*data.batch_shape, -1)
        pooled = self.pool(self.embed(data), data.mask) if self.by_point else self.pool(data)
        if data.mask is None:
            return pooled
        return torch.where(data.mask.any(-1, keepdim=True), pooled, self.empty)


class RegressionEncoder(nn.Module):
    """Coefficients of closed-form regressions of a data set, their evidences and the number of points, in a vector.

    Mean pooling leaves it to an MLP to learn how a regression is inverted; here it is. See
    :class:`pp_models.context_regression.ContextRegression`.

    Args:
        dim_x: input width.
        dim_y: output width.
        width: hidden width.
        dim_out: width of the vector.
        kind: of the features; learned ones come with a learned mean function.
    """

    def __init__(self, dim_x: int, dim_y: int, width: int, dim_out: int, kind: str) -> None:
        super().__init__()
        heads, features = POOLED_REGRESSIONS[kind]
        learned = kind == "learned"
        self.dim_y = dim_y
        self.regression = ContextRegression(dim_x, dim_y, heads, features, kind, width=width, mean=learned, noise=0.1)
        self.head = mlp([heads * features * dim_y + heads + 1, width, width, dim_out])

    def forward(self, data: Dataset) -> Tensor:
        """``[*B, N]`` points to ``[*B, dim_out]``."""
        state = self.regression.fit(data.x, seen_outputs(data, self.dim_y), data.mask, observed=data.observed)
        coefficients = state.coefficients.to(data.x.dtype)
        if self.regression.kind == "fourier":  # in units of what each feature brings to y
            coefficients = 3 * coefficients * self.regression.amplitude.unsqueeze(-1)
        evidence = relative_evidence(state.log_evidence, data.x.dtype)
        count = data.counts.to(data.x.dtype).log1p().unsqueeze(-1) / 4
        return self.head(torch.cat([coefficients.flatten(-3), evidence, count], -1))


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
