"""The affine map of a layer with latent weights, as an operation that effect handlers can replace."""

from __future__ import annotations

import torch
from pyro.poutine.runtime import effectful
from torch import Tensor


@effectful(type="linear")
def linear(inputs: Tensor, weight: Tensor, coherent: bool = False) -> Tensor:
    """Pre-activations of one layer.

    A handler with a ``_pyro_linear`` method may set the value instead
    (``guides.networks.local_reparameterization`` draws the pre-activations rather than the weights).

    Args:
        inputs: ``[*B, N, k_in]``.
        weight: ``[*B, k_out, k_in + 1]``, the bias in the last column; leading dimensions broadcast.
        coherent: whether all points must see one draw of the weight, as where the pre-activations of different points
            are combined; a handler that draws them point by point then refuses.

    Returns:
        ``[*B, N, k_out]``.
    """
    return torch.matmul(inputs, weight[..., :-1].mT) + weight[..., -1].unsqueeze(-2)
