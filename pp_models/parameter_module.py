"""A PyroModule whose parameters are its own: no two instances can ever share one through Pyro's global store."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.runtime import _PYRO_STACK

_serial_numbers = itertools.count()


class ParameterModule(PyroModule):
    """Base of every model and guide.

    Pyro names parameters by attribute path in one global store, so two guides of one class would overwrite each
    other's. Here each instance (each deep copy too) has a serial number in its parameter names, and parameters are
    announced to Pyro only where something listens (``SVI`` and the compiled ELBOs do). ``torch.optim`` sees the very
    same tensors through ``parameters()``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._identity = (id(self), next(_serial_numbers))

    def __getattr__(self, name: str) -> Any:
        # PyroModule announces parameters at every attribute access; announcing once a call costs a fraction of it.
        members = self.__dict__
        for kind in ("_parameters", "_modules"):
            if kind in members and name in members[kind]:
                found = members[kind][name]
                if not isinstance(found, PyroModule) and not name.endswith("_unconstrained"):
                    return found
        return super().__getattr__(name)

    @property
    def parameter_prefix(self) -> str:
        """What this instance's names in Pyro's parameter store begin with."""
        if self._identity[0] != id(self):  # a deep copy, or loaded from a file
            self._identity = (id(self), next(_serial_numbers))
        return f"{type(self).__name__}_{self._identity[1]}"

    def announce_parameters(self) -> None:
        """Emits one ``pyro.param`` statement for each trainable parameter."""
        prefix = self.parameter_prefix
        for name, value in self.named_parameters():
            if value.requires_grad:
                pyro.param(f"{prefix}.{name}", value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(getattr(handler, "param_only", False) for handler in _PYRO_STACK):
            self.announce_parameters()
        return super().__call__(*args, **kwargs)


def mlp(widths: list[int], activation: type[torch.nn.Module] = torch.nn.ReLU, **options: Any) -> torch.nn.Sequential:
    """Linear layers of the given widths with activations between them, Kaiming-normal weights (NVDP's code).

    Args:
        widths: input width, hidden widths, output width.
        activation: class of the activation, built with ``options``.
    """
    layers: list[torch.nn.Module] = []
    for i, (k_in, k_out) in enumerate(itertools.pairwise(widths)):
        layer = torch.nn.Linear(k_in, k_out)
        torch.nn.init.kaiming_normal_(layer.weight)
        torch.nn.init.normal_(layer.bias, std=1e-3)
        layers.append(layer)
        if i < len(widths) - 2:
            layers.append(activation(**options))
    return torch.nn.Sequential(*layers)
