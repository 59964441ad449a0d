"""The one rule for the dtype of data: that of the model's parameters, whatever the data came in."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pp_models.adapters.half_frozen import HalfFrozenLinear
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.single_precision import single

Data = TypeVar("Data", bound=Tensor | Dataset | TaskBatch)


def parameter_dtype(*programs: Any) -> torch.dtype | None:
    """The dtype that inputs must have: of the first module's floating-point parameters, frozen ones before others.

    A frozen network in half precision may carry an adapter in float32, and it is the network that reads the inputs.
    Not so where it has embeddings, for its inputs are then indices, which half precision would round (4090 to 4096):
    they stay in float32; nor do layers count whose weights alone are in half precision. Where there are no parameters
    buffers count; None without any.
    """
    modules = [p for p in programs if isinstance(p, nn.Module)]
    for members in (nn.Module.parameters, nn.Module.buffers):
        for module in modules:
            kept = {id(p) for m in module.modules() if isinstance(m, HalfFrozenLinear) for p in m.parameters()}
            tensors = [t for t in members(module) if t.dtype.is_floating_point and id(t) not in kept]
            if tensors:
                first = min(tensors, key=lambda t: t.requires_grad)
                indices = any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in module.modules())
                return single(first.new_empty(0)).dtype if indices else first.dtype
    return None


def as_computed(data: Data, *programs: Any) -> Data:
    """Data in the dtype that model and guide compute in, as a fit casts them.

    Args:
        data: a Dataset, a TaskBatch or a tensor of inputs; class indices and masks stay what they are.
        *programs: the model, then the guide; callables without parameters leave the data alone.

    Raises:
        DataError: the data has a task dimension of size 0.
    """
    if not isinstance(data, Tensor) and 0 in data.batch_shape:
        raise DataError(f"data: got task dimensions {list(data.batch_shape)}; it must hold at least one task")
    dtype = parameter_dtype(*programs)
    if dtype is None or (isinstance(data, Tensor) and not data.dtype.is_floating_point):
        return data
    return data.to(dtype=dtype)  # type: ignore[return-value]
