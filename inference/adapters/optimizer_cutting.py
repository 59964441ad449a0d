"""Cutting parameters down to some of their entries, in their modules, their optimizers and Pyro's store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pp_models.adapters.low_rank_layer import RankParameter


def torch_optimizers(optimizer: Any) -> Iterable[torch.optim.Optimizer]:
    if optimizer is None:
        return
    if isinstance(optimizer, torch.optim.Optimizer) and not hasattr(optimizer, "optimizer"):
        yield optimizer
    elif isinstance(optimizer, pyro.optim.PyroOptim):
        yield from torch_optimizers(list(optimizer.optim_objs.values()))  # some are schedulers around one
    elif hasattr(optimizer, "optimizer"):  # accelerate's and Fabric's wrappers
        yield from torch_optimizers(optimizer.optimizer)
    elif isinstance(optimizer, list | tuple):
        for one in optimizer:
            yield from torch_optimizers(one)
    else:
        raise ValueError(f"optimizer: got {type(optimizer).__name__}; it must be a torch or Pyro optimizer, or a list")


def steps_done(optimizers: list[torch.optim.Optimizer]) -> int:
    counts = [int(state["step"]) for o in optimizers for state in o.state.values() if "step" in state]
    return max(counts, default=0)


def check_optimizers(cuts: list[RankParameter], optimizers: list[torch.optim.Optimizer]) -> None:
    """Refuses optimizers whose state for these parameters cannot be cut.

    Raises:
        ValueError: there is one.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                "optimizer: LBFGS keeps one state for all parameters, which cannot be cut; use Adam or SGD"
            )
        for cut in cuts:
            parameter = getattr(cut.owner, cut.name)
            for key, value in optimizer.state.get(parameter, {}).items():
                shaped = isinstance(value, Tensor) and value.dim() > 0
                if (shaped and value.shape != parameter.shape) or isinstance(value, list | tuple | dict):
                    held = f"shape {list(value.shape)}" if shaped else f"type {type(value).__name__}"
                    raise ValueError(
                        f"optimizer: its state {key!r} has {held} for a parameter of shape {list(parameter.shape)}; "
                        "only moments of the parameter's own shape can be cut (Adam, AdamW, SGD with momentum ...)"
                    )


def shrink(cut: RankParameter, index: Tensor, optimizers: list[torch.optim.Optimizer], given: Any) -> None:
    """Replaces a parameter by its entries at ``index``, in its module, the optimizers and Pyro's store."""
    old = getattr(cut.owner, cut.name)
    index = index.to(old.device)
    # a new parameter, for graphs that are still alive remember the old one's shape
    new = nn.Parameter(old.detach().index_select(cut.dim, index).contiguous(), requires_grad=old.requires_grad)
    if old.grad is not None:
        new.grad = old.grad.index_select(cut.dim, index)
    setattr(cut.owner, cut.name, new)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
        if old in optimizer.state:
            optimizer.state[new] = {
                key: value.index_select(cut.dim, index) if isinstance(value, Tensor) and value.dim() else value
                for key, value in optimizer.state.pop(old).items()
            }
    for pyro_optimizer in [given] if isinstance(given, pyro.optim.PyroOptim) else []:
        for table in (pyro_optimizer.optim_objs, pyro_optimizer.grad_clip):
            if old in table:
                table[new] = table.pop(old)
    store = pyro.get_param_store()
    for name in [n for n, p in store._params.items() if p is old]:
        del store[name]  # announced anew, with the new shape, at the next call


def forget(parameters: list[Tensor], optimizers: list[torch.optim.Optimizer]) -> None:
    """Takes parameters without entries out of the optimizers."""
    gone = {id(p) for p in parameters}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        for p in [p for p in optimizer.state if id(p) in gone]:
            del optimizer.state[p]
