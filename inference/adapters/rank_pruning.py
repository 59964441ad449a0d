"""Removing ranks whose noise drowns their signal, with the optimizer's moments; the function stays where it was."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from guides.adapters.lrvd_layers import lrvd_modules, module_path, rank_log_alpha
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.adapters.low_rank_layer import RankModule, RankParameter


@dataclass(frozen=True)
class RankPruning:
    """What a pruning did.

    Args:
        kept: ranks left by module path, those at 0 included.
        removed: how many ranks were taken away.
        threshold: the value of log α from which on they were; infinite where nothing was looked at yet.
    """

    kept: dict[str, int]
    removed: int
    threshold: float

    @property
    def total_rank(self) -> int:
        """Ranks left in all modules together."""
        return sum(self.kept.values())


def largest_gap(values: Tensor) -> float:
    """The middle of the largest gap between sorted values of log α; infinite for fewer than two."""
    ordered = values.sort().values
    if len(ordered) < 2:
        return float("inf")
    widest = int(ordered.diff().argmax())
    return float(ordered[widest] + ordered[widest + 1]) / 2


def rank_threshold(log_alpha: dict[str, Tensor], threshold: float | str = 1.0, budget: int | None = None) -> float:
    """The value of log α below which a rank is kept.

    Args:
        log_alpha: ``[r]`` by module path.
        threshold: a number, or ``"gap"`` for the largest gap among all ranks.
        budget: the total rank to keep, those of least log α; it goes before the threshold.

    Raises:
        ValueError: an argument out of range.
    """
    together = torch.cat([v.detach().double().cpu() for v in log_alpha.values()])
    if budget is not None:
        if budget < 0:
            raise ValueError(f"budget: got {budget}; it must be at least 0")
        if budget >= len(together):
            return float("inf")
        ordered = together.sort().values
        return float(ordered[budget])
    if threshold == "gap":
        return largest_gap(together)
    if isinstance(threshold, str) or not threshold == threshold:
        raise ValueError(f"threshold: got {threshold!r}; it must be a number or 'gap'")
    return float(threshold)


def prune_ranks(
    model: nn.Module,
    optimizer: Any = None,
    threshold: float | str = 1.0,
    *,
    budget: int | None = None,
    min_steps: int = 0,
    guide: Any = None,
    allow_empty: bool = False,
) -> RankPruning:
    """Removes ranks with log α at or above a threshold: rows of A, columns of B, noise levels, and their moments.

    The scale s = lora_alpha / r of the update stays as it was, so that the function loses the removed ranks and nothing
    else; a module at rank 0 passes its input by. Call it after ``optimizer.step()``; the parameters it cuts are
    replaced by new ones, in the optimizer too. In a peft model ``rank_pattern``, ``alpha_pattern`` and
    ``exclude_modules`` of the active adapter's configuration follow, so that ``save_pretrained`` writes the pruned
    adapter. With ``DistributedDataParallel`` wrap the model anew afterwards.

    Args:
        model: a model with LRVD layers, or a ``LowRankAdapted`` (then give its guide).
        optimizer: a torch optimizer (or a wrapper around one, or Pyro's) that trains these parameters, or a list of
            them.
        threshold: keep ranks with log α below; 1 by default (α = 2.7), or ``"gap"`` for the largest gap between values.
        budget: total rank to keep, in place of a threshold.
        min_steps: do nothing before the optimizer has made so many steps; early on every rank is still small.
        guide: the guide whose log α count; for a ``LowRankAdapted``.
        allow_empty: whether every rank may go.

    Raises:
        ValueError: an argument out of range, or every rank would go.
    """
    log_alpha = rank_log_alpha(model) if guide is None else guide.rank_log_alpha()
    paths = {path: len(v) for path, v in log_alpha.items()}
    optimizers = list(_torch_optimizers(optimizer))
    if min_steps > 0:
        if not optimizers:
            raise ValueError(f"min_steps: got {min_steps}, which needs the optimizer that counts the steps")
        if _steps_done(optimizers) < min_steps:
            return RankPruning(paths, 0, float("inf"))
    limit = rank_threshold(log_alpha, threshold, budget)
    keep = {path: (v < limit).nonzero().squeeze(-1) for path, v in log_alpha.items()}
    if budget is not None:  # ties at the limit: the first ones in the order of modules fill the budget
        keep = _fill(log_alpha, keep, limit, budget)
    total = sum(paths.values())
    if total and not allow_empty and not any(len(v) for v in keep.values()):
        lowest = min(float(v.min()) for v in log_alpha.values() if len(v))
        given = f"budget: got {budget}" if budget is not None else f"threshold: got {threshold!r}"
        raise ValueError(
            f"{given}; it would prune all {total} ranks (the lowest log alpha is {lowest:.3g}); train longer or with a "
            "weaker KL, choose it higher, or pass allow_empty=True"
        )
    modules = rank_modules(model)
    for path, index in keep.items():
        if len(index) == paths[path]:
            continue
        module = modules[path.partition(":")[0]]
        cuts = module.rank_parameters() + ([] if guide is None else guide.rank_parameters(path))
        for cut in cuts:
            _shrink(cut, index, optimizers, optimizer)
        if len(index) == 0:
            _forget([getattr(c.owner, c.name) for c in cuts], optimizers)
        module.set_rank(len(index))
    kept = {path: len(index) for path, index in keep.items()}
    _update_configuration(model, modules, kept, paths)
    return RankPruning(kept, total - sum(kept.values()), limit)


def rank_modules(model: nn.Module) -> dict[str, RankModule]:
    """The adapted layers by module path, ours or peft's."""
    if isinstance(model, LowRankAdapted):
        return model.rank_modules()
    return dict(lrvd_modules(model))


def _fill(log_alpha: dict[str, Tensor], keep: dict[str, Tensor], limit: float, budget: int) -> dict[str, Tensor]:
    missing = budget - sum(len(v) for v in keep.values())
    filled = {}
    for path, values in log_alpha.items():
        ties = (values == limit).nonzero().squeeze(-1)[: max(missing, 0)]
        missing -= len(ties)
        filled[path] = torch.cat([keep[path], ties]).sort().values
    return filled


# -- optimizers --------------------------------------------------------------------------------------------------------


def _torch_optimizers(optimizer: Any) -> Iterable[torch.optim.Optimizer]:
    if optimizer is None:
        return
    if isinstance(optimizer, torch.optim.Optimizer) and not hasattr(optimizer, "optimizer"):
        yield optimizer
    elif isinstance(optimizer, pyro.optim.PyroOptim):
        yield from optimizer.optim_objs.values()
    elif hasattr(optimizer, "optimizer"):  # accelerate's and Fabric's wrappers
        yield from _torch_optimizers(optimizer.optimizer)
    elif isinstance(optimizer, list | tuple):
        for one in optimizer:
            yield from _torch_optimizers(one)
    else:
        raise ValueError(f"optimizer: got {type(optimizer).__name__}; it must be a torch or Pyro optimizer, or a list")


def _steps_done(optimizers: list[torch.optim.Optimizer]) -> int:
    counts = [int(state["step"]) for o in optimizers for state in o.state.values() if "step" in state]
    return max(counts, default=0)


def _shrink(cut: RankParameter, index: Tensor, optimizers: list[torch.optim.Optimizer], given: Any) -> None:
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
                key: _sliced(key, value, old, cut.dim, index) for key, value in optimizer.state.pop(old).items()
            }
    for pyro_optimizer in [given] if isinstance(given, pyro.optim.PyroOptim) else []:
        for table in (pyro_optimizer.optim_objs, pyro_optimizer.grad_clip):
            if old in table:
                table[new] = table.pop(old)
    store = pyro.get_param_store()
    for name in [n for n, p in store._params.items() if p is old]:
        del store[name]  # announced anew, with the new shape, at the next call


def _sliced(key: str, value: Any, old: Tensor, dim: int, index: Tensor) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.shape != old.shape:
        raise ValueError(
            f"optimizer: its state {key!r} has shape {list(value.shape)} for a parameter of shape {list(old.shape)}; "
            "only moments of the parameter's own shape can be cut (Adam, AdamW, SGD with momentum, RMSprop ...)"
        )
    return value.index_select(dim, index)


def _forget(parameters: list[Tensor], optimizers: list[torch.optim.Optimizer]) -> None:
    """Takes parameters without entries out of the optimizers."""
    gone = {id(p) for p in parameters}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        for p in [p for p in optimizer.state if id(p) in gone]:
            del optimizer.state[p]


# -- peft's configuration ----------------------------------------------------------------------------------------------


def _update_configuration(
    model: nn.Module, modules: dict[str, RankModule], kept: dict[str, int], before: dict[str, int]
) -> None:
    """Writes the new ranks into the configuration of the active adapter, as patterns that plain peft follows."""
    peft_model: Any = next((m for m in model.modules() if hasattr(m, "peft_config")), None)
    if peft_model is None:
        return
    active = peft_model.active_adapter
    config = peft_model.peft_config[active if isinstance(active, str) else active[0]]
    ranks, alphas, empty = {}, {}, []
    for path, rank in kept.items():
        if rank == before[path] or ":" in path:
            continue
        if rank == 0:
            empty.append(re.escape(path))
            continue
        pattern = "^" + re.escape(path)  # the whole path: peft would match any module whose path ends like it
        scale = modules[path].update_scale()
        ranks[pattern] = rank
        alphas[pattern] = scale * (rank**0.5 if config.use_rslora else rank)
    config.rank_pattern = ranks | {k: v for k, v in (config.rank_pattern or {}).items() if k not in ranks}
    config.alpha_pattern = alphas | {k: v for k, v in (config.alpha_pattern or {}).items() if k not in alphas}
    if empty:
        excluded = config.exclude_modules
        if not isinstance(excluded, str):
            excluded = "|".join(rf"(?:.*\.)?{re.escape(name)}" for name in sorted(excluded or ()))
        config.exclude_modules = "|".join(filter(None, [excluded, *empty]))


def module_ranks(model: nn.Module) -> dict[str, int]:
    """Rank of every adapted layer by module path, 0 where it has none left."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, RankModule):
            factors = module.factors()
            found[module_path(name.removeprefix("backbone."))] = 0 if factors is None else len(factors[0])
    return found
