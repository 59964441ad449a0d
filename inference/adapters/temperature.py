"""The temperature that logits are divided by: fitted on held-out data, kept with the adapter, used in predictions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

#: where a model that is not LRVD's keeps it
BUFFER = "logit_temperature"


def best_temperature(logits: Tensor, labels: Tensor, low: float = 0.05, high: float = 100.0) -> float:
    """Where the NLL of logits ``[n, C]`` over a temperature is least (Guo et al. 2017).

    The NLL is convex in 1/T, so a golden-section search on it finds the one minimum.
    """

    def loss(inverse: float) -> float:
        return float(nn.functional.cross_entropy(inverse * logits, labels))

    ratio = (math.sqrt(5) - 1) / 2
    left, right = 1 / high, 1 / low
    for _ in range(80):
        inner, outer = right - ratio * (right - left), left + ratio * (right - left)
        if loss(inner) <= loss(outer):
            right = outer
        else:
            left = inner
    return 2 / (left + right)


def _configuration(model: nn.Module) -> Any:
    """The configuration of the active adapter, where it has a place for a temperature; else None."""
    configurations = getattr(model, "peft_config", None) or {}
    active = getattr(model, "active_adapter", None)
    active = active() if callable(active) else active
    found = configurations.get(active[0] if isinstance(active, list) else active)
    return found if hasattr(found, "logit_temperature") else None


def temperature_of(model: nn.Module) -> float:
    """The temperature kept with a model's active adapter; 1 where none was fitted."""
    configuration = _configuration(model)
    if configuration is not None:
        return float(configuration.logit_temperature)
    return float(getattr(model, BUFFER, 1.0))


def keep_temperature(model: nn.Module, temperature: float) -> None:
    """Keeps it: in the configuration of an LRVD adapter, which ``save_pretrained`` writes; else as a buffer."""
    configuration = _configuration(model)
    if configuration is not None:
        configuration.logit_temperature = temperature
    elif hasattr(model, BUFFER):
        getattr(model, BUFFER).fill_(temperature)
    else:
        model.register_buffer(BUFFER, torch.tensor(temperature))
