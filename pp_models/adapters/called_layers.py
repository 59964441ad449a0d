"""Whether a network calls the layers that were adapted, or reads their weights; and its frozen statistics."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from pp_models.adapters.low_rank_layer import RankModule


def note_call(module: Any, *_: Any) -> None:
    """Hook of every adapted layer; that it has one also keeps torch's transformer layers from their fast path."""
    if not torch.compiler.is_compiling():
        module.called = True


def hold_statistics(module: nn.Module, *_: Any) -> None:
    """Hook of normalisations: those of a frozen network use the running statistics, and never move them."""
    if module.training and not any(p.requires_grad for p in module.parameters()):
        module.eval()


def watch_layers(network: nn.Module) -> None:
    """Puts those hooks into an adapted network, once each."""
    for module in network.modules():
        if isinstance(module, RankModule) and note_call not in module._forward_hooks.values():  # type: ignore[unreachable]
            module.register_forward_hook(note_call)  # type: ignore[unreachable]
        running = getattr(module, "running_mean", None) is not None
        if running and hold_statistics not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(hold_statistics)


def check_called(network: nn.Module, *_: Any) -> None:
    """After a first forward pass: refuses an adapted layer that was read and not called. As a hook it goes away.

    Raises:
        TypeError: there is one.
    """
    if torch.compiler.is_compiling():
        return
    for key in [key for key, hook in network._forward_hooks.items() if hook is check_called]:
        del network._forward_hooks[key]
    layers = {name: m for name, m in network.named_modules() if isinstance(m, RankModule) and not m.called}
    for name, module in layers.items():
        if module.read:
            raise TypeError(  # Pyro adds a table of shapes to a ValueError of a model
                f"targets: {name!r} is never called, {type(network).__name__} reads its weight instead, so that an "
                "adapter has no effect there; leave it out"
            )
    if layers:
        first, others = next(iter(layers)), f" and {len(layers) - 1} others" if len(layers) > 1 else ""
        warnings.warn(
            f"targets: {first!r}{others} took no part in the first forward pass; adapters of layers that are never "
            "called have no effect",
            stacklevel=2,
        )
