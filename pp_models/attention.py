"""Dot-product attention between the points of a task, and from inputs over a context."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pp_models.parameter_module import mlp
from pp_models.recorded_arguments import Recorded


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    """Multi-head dot-product attention of ``[*B, M, R]`` queries over ``[*B, N, R]`` points (R split over heads).

    A task whose points are all masked attends to nothing and gets zeros.
    """

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (num_heads, -1)).transpose(-2, -3)

    bias = None
    if mask is not None:
        exists = mask | ~mask.any(-1, keepdim=True)  # softmax over nothing is NaN
        bias = torch.zeros(exists.shape, dtype=queries.dtype, device=queries.device).masked_fill(~exists, -torch.inf)
        bias = bias.unsqueeze(-2).unsqueeze(-3)
    mixed = scaled_dot_product_attention(heads(queries), heads(keys), heads(values), attn_mask=bias)
    mixed = mixed.transpose(-2, -3).flatten(-2)
    return mixed if mask is None else mixed * mask.any(-1)[..., None, None].to(mixed.dtype)


class ContextAttention(Recorded, nn.Module):
    """Attention from inputs over a context handed over as a *memory*: deterministic paths of neural processes.

    A memory ``[*B, M, Dx + R + 1]`` holds each context point's input, its embedding, and 1 where the point exists. One
    learned point is always there as well, so that an empty context has a value.

    Args:
        dim_x: input width.
        width: hidden width of the embedding of inputs, which are queries and keys.
        representation_dim: R, width of an embedding and of what is found.
        num_heads: attention heads.

    Raises:
        ValueError: a representation that the heads cannot divide.
    """

    embeds = True

    def __init__(self, dim_x: int, width: int, representation_dim: int, num_heads: int = 8) -> None:
        super().__init__()
        if representation_dim % num_heads:
            raise ValueError(
                f"representation_dim: got {representation_dim}; attention needs a multiple of num_heads, {num_heads}"
            )
        self.dim_x, self.representation_dim, self.num_heads = dim_x, representation_dim, num_heads
        self.embedding_dim = representation_dim
        self.embed_input = mlp([dim_x, width, representation_dim])
        self.attended = nn.Linear(representation_dim, representation_dim)
        self.null_key = nn.Parameter(torch.randn(representation_dim) * 0.1)
        self.null_value = nn.Parameter(torch.randn(representation_dim) * 0.1)

    def flat_prior(self, num_points: int, like: Tensor) -> dist.TorchDistribution:
        """A flat density over memories of ``num_points`` points, for the model's side of the site."""
        zeros = like.new_zeros(num_points, self.dim_x + self.representation_dim + 1)
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(2).mask(False)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """What inputs ``[*B, N, Dx]`` find in a memory ``[*B, M, Dx + R + 1]``: ``[*B, N, R]``."""
        inputs, values, exists = memory.split([self.dim_x, self.representation_dim, 1], -1)
        shape = torch.broadcast_shapes(x.shape[:-2], memory.shape[:-2])
        keys = torch.cat([self.embed_input(inputs), self.null_key.expand(*inputs.shape[:-2], 1, -1)], -2)
        values = torch.cat([values, self.null_value.expand(*inputs.shape[:-2], 1, -1)], -2)
        ones = exists.new_ones(*exists.shape[:-2], 1, 1)
        mask = torch.cat([exists, ones], -2).squeeze(-1) > 0.5

        def heads(t: Tensor) -> Tensor:
            return t.expand(*shape, *t.shape[-2:]).unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)

        mask = mask[..., None, None, :].expand(*shape, 1, 1, mask.shape[-1])
        mixed = scaled_dot_product_attention(heads(self.embed_input(x)), heads(keys), heads(values), attn_mask=mask)
        return self.attended(mixed.transpose(-2, -3).flatten(-2))
