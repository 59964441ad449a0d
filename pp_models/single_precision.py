"""Linear algebra and exponentials of half-precision tensors, for which torch has none or 16 bits are too few."""

from __future__ import annotations

import torch
from torch import Tensor


def single(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it is of a half precision (torch factorises no such matrix); else itself."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
