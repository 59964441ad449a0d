"""Whether a saved optimizer is the one at hand: options, and for every parameter tensors of its own shape."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: of what an optimizer keeps of one parameter
MOST_ENTRIES = 10_000
#: what an optimizer cannot make a step without, once it has made one
NEEDED: dict[type, set[str]] = {
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
}


def check_optimizer_state(
    held: Any,
    optimizer: torch.optim.Optimizer,
    given: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    where: Any,
) -> None:
    """Refuses what ``optimizer.load_state_dict`` would take and a step would fail on, or go on differently from.

    Args:
        held: what was read.
        optimizer: as it was made for this fit.
        given: its groups' options as they were given.
        names: of its parameters, by their id.
        where: the run is.

    Raises:
        ValueError: another optimizer, or an option that differs; the message names it.
    """
    other = f"optimizer: the run in {where} was made with another one"
    try:
        groups, states = list(held["param_groups"]), dict(held["state"])
        sizes = [len(group["params"]) for group in groups]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{other} ({type(error).__name__}: {error})") from None
    if sizes != [len(group["params"]) for group in optimizer.param_groups]:
        raise ValueError(f"{other} (groups of {sizes} parameters)")
    for group, saved in zip(given, groups, strict=True):
        for name, value in group.items():
            if name not in saved:
                raise ValueError(f"{other} (it has no option {name})")
            tensors = isinstance(value, Tensor) or isinstance(saved[name], Tensor)
            if name not in ("lr", "initial_lr") and not tensors and saved[name] != value:  # rates have their own check
                held_value = reprlib.repr(saved[name])  # it may be anything
                raise ValueError(f"optimizer: {name} is {value!r}, but the run to resume has {held_value}")
        if unknown := sorted(set(map(str, saved)) - set(group) - {"params", "initial_lr"}):
            raise ValueError(f"{other} (an option {unknown[0]})")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, state in states.items():
        if not isinstance(index, int) or not 0 <= index < len(parameters) or not isinstance(state, dict):
            raise ValueError(f"{other} (a state of parameter {index!r})")
        name = names.get(id(parameters[index]), f"parameter {index}")
        _check_entry(state, parameters[index], NEEDED.get(type(optimizer), set()), f"{other} ({name}: ")


def _check_entry(state: Mapping[str, Any], parameter: Tensor, needed: set[str], opening: str) -> None:
    """The state of one parameter."""
    missing = sorted(needed - set(state)) if state else []
    if missing:
        raise ValueError(f"{opening}{missing[0]} is missing)")
    for name, value in state.items():
        for tensor in _tensors(value, f"{opening}{name} "):
            if name in needed and tensor.shape != parameter.shape and tensor.numel() != 1:
                raise ValueError(f"{opening}{name} has shape {list(tensor.shape)} instead of {list(parameter.shape)})")
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise ValueError(f"{opening}{name} says shape {list(tensor.shape)}, more than it holds)")
            if tensor.is_complex() != parameter.is_complex() or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{opening}{name} holds values that no step writes)")


def _tensors(value: Any, opening: str) -> list[Tensor]:
    """Tensors in what an optimizer keeps of one parameter, which may be lists of them.

    Raises:
        ValueError: there are more entries than any optimizer keeps.
    """
    found: list[Tensor] = []
    left = [value]
    for _ in range(MOST_ENTRIES):
        if not left:
            return found
        each = left.pop()
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, dict):
            left += each.values()
        elif isinstance(each, list | tuple | set):
            left += each
    raise ValueError(f"{opening}has more than {MOST_ENTRIES} entries)")
