"""A PyroModule whose parameters are its own: no two instances can ever share one through Pyro's global store."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.runtime import _PYRO_STACK

from pp_models.arguments import check_weights
from pp_models.recorded_arguments import Recorded

#: who has which prefix in Pyro's store, as long as they live
_owners: weakref.WeakValueDictionary[str, ParameterModule] = weakref.WeakValueDictionary()
#: what was last announced under a name; anything else that the store holds there came from a file or by hand
_announced: weakref.WeakValueDictionary[str, torch.Tensor] = weakref.WeakValueDictionary()


class ParameterModule(Recorded, PyroModule):
    """Base of every model and guide.

    Pyro names parameters by attribute path in one global store, so two guides of one class would overwrite each
    other's. Here each instance (each deep copy too) has a number in its parameter names, the least that no living
    instance of its class has; and parameters are announced to Pyro only where something listens (``SVI`` and the
    compiled ELBOs do). ``torch.optim`` sees the very same tensors through ``parameters()``.

    Module and store agree: what was loaded into the store, or set in it, is taken over into the module's parameters
    when they are next announced; a parameter that was replaced in the module replaces its entry in the store.
    """

    def __init__(self) -> None:
        super().__init__()
        self._prefix = ""

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
        if _owners.get(self._prefix) is not self:  # not announced yet, a deep copy, or loaded from a file
            kind = type(self).__name__
            if f"{kind}_0" in _owners:
                gc.collect()  # the name may be held by a module that nobody can reach any more
            self._prefix = next(name for i in itertools.count() if (name := f"{kind}_{i}") not in _owners)
            _owners[self._prefix] = self
        return self._prefix

    def announce_parameters(self) -> None:
        """Emits one ``pyro.param`` statement for each trainable parameter.

        Raises:
            ValueError: the store was given a value of another shape.
        """
        prefix, store = self.parameter_prefix, pyro.get_param_store()
        for name, value in self.named_parameters():
            if value.requires_grad:
                full = f"{prefix}.{name}"
                stored = store._params.get(full)
                if stored is not None and stored is not value:
                    if stored is not _announced.get(full):
                        _take_over(full, store[full], value)
                    del store[full]
                _announced[full] = value
                pyro.param(full, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(getattr(handler, "param_only", False) for handler in _PYRO_STACK):
            self.announce_parameters()
        return super().__call__(*args, **kwargs)


def _take_over(name: str, stored: torch.Tensor, value: torch.Tensor) -> None:
    """Writes what the store was given into the module's own parameter."""
    if stored.shape != value.shape:
        raise ValueError(
            f"param store: {name!r} has shape {list(stored.shape)}, and the module's parameter {list(value.shape)}; "
            "load a store saved with the same modules, or call pyro.clear_param_store() to keep the module's"
        )
    with torch.no_grad():
        value.copy_(stored)


def part_of(layer: torch.nn.Module, rows: list[int] | None = None, columns: list[int] | None = None) -> torch.nn.Linear:
    """A linear layer with some of another's outputs, or reading some of its inputs."""
    assert isinstance(layer, torch.nn.Linear)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    if rows is not None:
        weight, bias = weight[rows], bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    found = torch.nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    with torch.no_grad():
        found.weight.copy_(weight)
        found.bias.copy_(bias)
    return found


def mlp(
    widths: list[int], activation: type[torch.nn.Module] = torch.nn.ReLU, *, kaiming: bool = True, **options: Any
) -> torch.nn.Sequential:
    """Linear layers of the given widths with activations between them.

    Args:
        widths: input width, hidden widths, output width.
        activation: class of the activation, built with ``options``.
        kaiming: start from Kaiming-normal weights (NVDP's code); torch's own initial values otherwise.
    """
    check_weights("width", widths)
    layers: list[torch.nn.Module] = []
    for i, (k_in, k_out) in enumerate(itertools.pairwise(widths)):
        layer = torch.nn.Linear(k_in, k_out)
        if kaiming:
            torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.normal_(layer.bias, std=1e-3)
        layers.append(layer)
        if i < len(widths) - 2:
            layers.append(activation(**options))
    return torch.nn.Sequential(*layers)
