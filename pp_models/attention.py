"""Dot-product attention between the points of a task, for models and encoders alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


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
