"""Removing ranks whose noise drowns their signal, with the optimizer's moments; the function stays where it was."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from guides.adapters.adapter_guide import AdapterGuide
from guides.adapters.lrvd_layers import lrvd_modules, module_path, rank_key, rank_log_alpha
from inference.adapters.optimizer_cutting import check_optimizers, forget, shrink, steps_done, torch_optimizers
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.adapters.low_rank_layer import RankModule, RankParameter
from pp_models.arguments import checked, instance, integer, named, number, optional
from pp_models.log_uniform import largest_gap


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


class NoRankLeft(ValueError):
    """A pruning that would leave no rank at all."""


def rank_threshold(log_alpha: dict[str, Tensor], threshold: float | str = 1.0, budget: int | None = None) -> float:
    """The value of log α below which a rank is kept.

    Args:
        log_alpha: ``[r]`` by module path.
        threshold: a number, or ``"gap"`` for the largest gap among all ranks.
        budget: the total rank to keep, those of least log α; it goes before the threshold.

    Raises:
        ValueError: an argument out of range.
    """
    together = torch.cat([v.detach().double().cpu() for v in log_alpha.values()] or [torch.empty(0)])
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


@checked(
    model=instance(nn.Module),
    threshold=named("gap", other=number(endless=True)),
    budget=integer(0),
    min_steps=integer(0),
    guide=optional(instance(AdapterGuide)),
)
def prune_ranks(
    model: nn.Module,
    optimizer: Any = None,
    threshold: float | str = 1.0,
    *,
    budget: int | None = None,
    min_steps: int = 0,
    guide: Any = None,
    allow_empty: bool = False,
    adapter: str | None = None,
) -> RankPruning:
    """Removes ranks with log α at or above a threshold: rows of A, columns of B, noise levels, and their moments.

    The scale s = lora_alpha / r of the update stays as it was, so that the function loses the removed ranks and nothing
    else; a module at rank 0 passes its input by. Call it after ``optimizer.step()``; the parameters it cuts are
    replaced by new ones, in the optimizer too. In a peft model every active adapter is cut by its own noise levels, and
    ``rank_pattern``, ``alpha_pattern`` and ``exclude_modules`` of its configuration follow, so that ``save_pretrained``
    writes the pruned adapter. What is refused is refused before anything is cut. With ``DistributedDataParallel`` wrap
    the model anew afterwards.

    Args:
        model: a model with LRVD layers, or a ``LowRankAdapted`` (then give its guide).
        optimizer: a torch optimizer (or a wrapper around one, or Pyro's) that trains these parameters, or a list of
            them.
        threshold: keep ranks with log α below; 1 by default (α = 2.7), or ``"gap"`` for the largest gap between values.
        budget: total rank to keep, in place of a threshold.
        min_steps: do nothing before the optimizer has made so many steps; early on every rank is still small.
        guide: the guide whose log α count; for a ``LowRankAdapted``.
        allow_empty: whether every rank may go.
        adapter: of a peft model, the only active adapter to prune; None for all of them.

    Returns:
        what was done, ranks by module path (by ``path:adapter`` beyond the first active adapter).

    Raises:
        ValueError: an argument out of range, an optimizer that cannot be cut, an adapter that is merged, or every rank
            would go.
    """
    if guide is None and isinstance(model, LowRankAdapted):
        raise ValueError("guide: got None; the noise levels of a LowRankAdapted are its guide's, so give that too")
    targets = _targets(model, adapter)
    log_alpha = rank_log_alpha(model) if guide is None else guide.rank_log_alpha()
    log_alpha = {key: v for key, v in log_alpha.items() if key in targets}
    paths = {path: len(v) for path, v in log_alpha.items()}
    optimizers = list(torch_optimizers(optimizer))
    if min_steps > 0:
        if not optimizers:
            raise ValueError(f"min_steps: got {min_steps}, which needs the optimizer that counts the steps")
        if steps_done(optimizers) < min_steps:
            return RankPruning(paths, 0, float("inf"))
    limit = rank_threshold(log_alpha, threshold, budget)
    keep = {path: (v < limit).nonzero().squeeze(-1) for path, v in log_alpha.items()}
    if budget is not None:  # ties at the limit: the first ones in the order of modules fill the budget
        keep = _fill(log_alpha, keep, limit, budget)
    total = sum(paths.values())
    if total and not allow_empty and not any(len(v) for v in keep.values()):
        lowest = min(float(v.min()) for v in log_alpha.values() if len(v))
        given = f"budget: got {budget}" if budget is not None else f"threshold: got {threshold!r}"
        raise NoRankLeft(
            f"{given}; it would prune all {total} ranks (the lowest log alpha is {lowest:.3g}); train longer or with a "
            "weaker KL, choose it higher, or pass allow_empty=True"
        )
    changed = [key for key, index in keep.items() if len(index) < paths[key]]
    cuts = {key: targets[key].rank_parameters() for key in changed}
    for key in changed if guide is not None else ():
        cuts[key] += guide.rank_parameters(key)
    check_optimizers([cut for each in cuts.values() for cut in each], optimizers)
    owner, configurations = _configurations(model, {targets[key].adapter for key in log_alpha})
    for key in changed:
        target, index = targets[key], keep[key]
        for cut in cuts[key]:
            shrink(cut, index, optimizers, optimizer)
        if len(index) == 0:
            forget([getattr(c.owner, c.name) for c in cuts[key]], optimizers)
            if target.adapter in configurations:
                _exclude(configurations[target.adapter], target.path.removeprefix(owner))
        target.module.set_rank(len(index), target.adapter or None)
    for name, config in configurations.items():
        _update_patterns(config, owner, [targets[key] for key, index in keep.items() if len(index)], name)
    kept = {path: len(index) for path, index in keep.items()}
    return RankPruning(kept, total - sum(kept.values()), limit)


def check_pruning(
    model: nn.Module, optimizer: Any = None, threshold: float | str = 1.0, budget: int | None = None
) -> None:
    """Refuses what :func:`prune_ranks` would, given the same, except that no rank would be left.

    Raises:
        ValueError: it would.
    """
    targets = _targets(model, None)
    rank_threshold(rank_log_alpha(model), threshold, budget)
    with_ranks = [t for t in targets.values() if t.module.ranks()[t.adapter]]
    check_optimizers([c for t in with_ranks for c in t.rank_parameters()], list(torch_optimizers(optimizer)))
    _configurations(model, {t.adapter for t in with_ranks})


class _Target(NamedTuple):
    """The ranks of one adapter in one layer."""

    path: str
    module: RankModule
    adapter: str

    def rank_parameters(self) -> list[RankParameter]:
        return self.module.rank_parameters(self.adapter or None)


def _targets(model: nn.Module, adapter: str | None) -> dict[str, _Target]:
    """What may be cut, under the names that its noise levels go by.

    Raises:
        ValueError: the adapter is not active, or its mean is merged into the base weights.
    """
    ours = isinstance(model, LowRankAdapted)
    modules: dict[str, RankModule] = model.rank_modules() if ours else dict(lrvd_modules(model))  # type: ignore[operator]
    active = {name for module in modules.values() for name in module.ranks()}
    if adapter is not None and adapter not in active:
        raise ValueError(f"adapter: got {adapter!r}; active are {', '.join(sorted(active - {''})) or 'none'}")
    found = {}
    for path, module in modules.items():
        for name in module.ranks():
            if adapter in (None, name):
                if name in getattr(module, "merged_adapters", ()):
                    raise ValueError(f"model: adapter {name!r} is merged into {path!r}; call unmerge_adapter() first")
                found[path if ours else rank_key(path, module, name)] = _Target(path, module, name)
    return found


def _fill(log_alpha: dict[str, Tensor], keep: dict[str, Tensor], limit: float, budget: int) -> dict[str, Tensor]:
    missing = budget - sum(len(v) for v in keep.values())
    filled = {}
    for path, values in log_alpha.items():
        ties = (values == limit).nonzero().squeeze(-1)[: max(missing, 0)]
        missing -= len(ties)
        filled[path] = torch.cat([keep[path], ties]).sort().values
    return filled


# -- peft's configuration ----------------------------------------------------------------------------------------------


def _configurations(model: nn.Module, adapters: set[str]) -> tuple[str, dict[str, Any]]:
    """What peft (or transformers) keeps about adapters: the path before its layers' own, and configurations by adapter.

    Raises:
        ValueError: an adapter without one.
    """
    found = ((name, m) for name, m in model.named_modules() if getattr(m, "peft_config", None))
    name, keeper = next(found, ("", None))
    known: dict[str, Any] = {} if keeper is None else dict(keeper.peft_config)  # type: ignore[arg-type]
    missing = sorted(adapters - set(known) - {""})
    if missing:
        raise ValueError(
            f"model: {type(model).__name__} has layers of adapter {missing[0]!r} but no configuration of it"
        )
    owner = module_path(name)
    return f"{owner}." if owner else "", {adapter: known[adapter] for adapter in adapters if adapter}


def _exclude(config: Any, path: str) -> None:
    """Takes a layer out of an adapter."""
    excluded = config.exclude_modules
    if not isinstance(excluded, str):
        excluded = "|".join(rf"(?:.*\.)?{re.escape(name)}" for name in sorted(excluded or ()))
    config.exclude_modules = "|".join(filter(None, [excluded, re.escape(path)]))


def _update_patterns(config: Any, owner: str, targets: list[_Target], adapter: str) -> None:
    """Writes ranks and scales into a configuration, as patterns that plain peft follows.

    Patterns of the user's own are resolved layer by layer, so that no two match one layer and their order means
    nothing.
    """
    ranks, alphas = {}, {}
    for target in targets:
        if target.adapter != adapter:
            continue
        pattern = "^" + re.escape(target.path.removeprefix(owner))  # whole: peft also matches paths that end like it
        rank = target.module.ranks()[adapter]
        alpha = target.module.update_scale(adapter) * (rank**0.5 if config.use_rslora else rank)
        if rank != config.r:
            ranks[pattern] = rank
        if alpha != config.lora_alpha:
            alphas[pattern] = alpha
    config.rank_pattern, config.alpha_pattern = ranks, alphas


def module_ranks(model: nn.Module) -> dict[str, int]:
    """Rank of every adapted layer by module path (and adapter, beyond the first), 0 where it has none left."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, RankModule):
            for adapter, rank in module.ranks().items():
                found[rank_key(module_path(name.removeprefix("backbone.")), module, adapter)] = rank
    return found
