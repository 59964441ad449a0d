"""Frozen linear layers whose weights are kept, and whose products are taken, in half precision."""

from __future__ import annotations

import logging
import time
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pp_models.arguments import checked, instance, one_of

logger = logging.getLogger("guidebook")

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@cache
def half_cost(dtype: str = "bfloat16", device: str = "cpu") -> float:
    """Time of a layer's product in half precision over that in single, measured once on a CPU; 0.5 elsewhere.

    Many CPUs have no instructions for it and take several times as long.
    """
    if torch.device(device).type != "cpu":
        return 0.5
    took = {}
    for each in (torch.float32, HALVES[dtype]):
        x, weight = torch.ones(256, 384, dtype=each), torch.ones(384, 384, dtype=each)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            linear(x, weight)
            times.append(time.perf_counter() - started)
        took[each] = min(times)
    return took[HALVES[dtype]] / took[torch.float32]


class HalfFrozenLinear(nn.Linear):
    """A linear layer with half-precision weights between activations of any precision, which it hands on."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input.to(self.weight.dtype), self.weight, self.bias).to(input.dtype)


@checked(model=instance(nn.Module), dtype=one_of(*HALVES))
def half_frozen(model: nn.Module, dtype: str = "bfloat16") -> int:
    """Keeps the weights of a model's frozen linear layers in half precision, in place.

    Their products, most of an adapter's training, are then taken in it; adapters, head, normalisations, attention and
    all activations stay as they were. Call it on an adapted model, whose transformer is frozen; what is trained, or
    shares its weight with a layer that is not changed, is left alone, as are layers of other kinds. Weights are
    rounded for good: a bfloat16 has three digits. On a CPU without instructions for it this is slower by far, and one
    logged line says so.

    Args:
        model: with frozen ``Linear`` layers, adapted by peft, ``gb.LowRankAdapted`` or neither.
        dtype: ``"bfloat16"``, or ``"float16"`` where the device multiplies in it.

    Returns:
        how many layers were changed.

    Raises:
        ValueError: no frozen linear layer in single precision, or an adapter that is merged.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.dtype == torch.float32]
    layers = [m for m in layers if not any(p.requires_grad for p in m.parameters(recurse=False))]
    ours = {id(m) for m in layers}
    elsewhere = {id(p) for m in model.modules() if id(m) not in ours for p in m.parameters(recurse=False)}
    # a head tied to the embeddings would take them along
    layers = [m for m in layers if not any(id(p) in elsewhere for p in m.parameters(recurse=False))]
    if any(getattr(module, "merged", False) is True for module in model.modules()):
        raise ValueError("model: an adapter is merged into the weights, which would be rounded; unmerge it first")
    if not layers:
        raise ValueError(
            f"model: {type(model).__name__} has no frozen float32 Linear; freeze it, or adapt it, before this"
        )
    device = layers[0].weight.device
    if device.type == "cpu" and (cost := half_cost(dtype)) > 1:
        logger.warning(
            "half_frozen: a product in %s takes this CPU %.1f times as long as in float32; leave the layers as they "
            "are, unless it is for memory",
            dtype,
            cost,
        )
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(HALVES[dtype])
            layer.__class__ = HalfFrozenLinear
    return len(layers)
