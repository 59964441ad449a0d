"""Pruning of ranks within Hugging Face's Trainer."""

from __future__ import annotations

import warnings
from typing import Any

from guides.adapters.lrvd_layers import lrvd_modules, rank_log_alpha
from inference.adapters.rank_pruning import NoRankLeft, RankPruning, check_pruning, prune_ranks
from pp_models.arguments import NUMBER, checked, integer, named

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        f"inference.adapters.lrvd_callback: {error.name or 'transformers'} is missing; pip install guidebook[adapters]"
    ) from None


def _unwrapped(model: Any) -> Any:
    return getattr(model, "module", model)


class LrvdCallback(TrainerCallback):
    """Prunes ranks after optimizer steps, and keeps how many are left.

    With several processes ranks are pruned at the end only, for gradients are exchanged in buckets of fixed sizes.
    What cannot be pruned is refused before training (an optimizer's moments: after the first step). Where every rank
    would go the model stays as it is, and a warning says so.

    Args:
        prune_every: optimizer steps between prunings; None for the end of training only, 0 for never.
        threshold: see ``prune_ranks``.
        budget: see ``prune_ranks``.
        min_steps: no pruning before this step; early every rank is still small.

    Attributes:
        history: ``(step, RankPruning)`` of every pruning, and at logged steps ``(step, soft count of ranks below the
            threshold)`` in ``soft_counts``.

    Raises:
        ValueError: an argument out of range.
    """

    #: set by :class:`LrvdTrainerMixin`, which gives the model a checkpoint's ranks before it loads one
    in_lrvd_trainer = False

    @checked(prune_every=integer(0), threshold=named("gap", other=NUMBER), budget=integer(0), min_steps=integer(0))
    def __init__(
        self,
        prune_every: int | None = None,
        threshold: float | str = 1.0,
        budget: int | None = None,
        min_steps: int = 0,
    ) -> None:
        self.prune_every, self.threshold, self.budget, self.min_steps = prune_every, threshold, budget, min_steps
        self.history: list[tuple[int, RankPruning]] = []
        self.soft_counts: list[tuple[int, int]] = []
        self._first = False

    def _prune(self, step: int, model: Any, optimizer: Any) -> None:
        try:
            done = prune_ranks(_unwrapped(model), optimizer, self.threshold, budget=self.budget)
        except NoRankLeft as error:
            warnings.warn(f"step {step}: nothing was pruned; {error}", stacklevel=2)
        else:
            self.history.append((step, done))

    def _check(self, model: Any, optimizer: Any) -> None:
        if self.prune_every != 0:
            check_pruning(_unwrapped(model), optimizer, self.threshold, self.budget)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Refuses what could not be pruned, or not be opened again.

        Raises:
            ValueError: it is so.
        """
        self._first = True
        self._check(model, optimizer)
        if self.prune_every and args.load_best_model_at_end and not self.in_lrvd_trainer:
            raise ValueError(
                f"load_best_model_at_end: got True with prune_every={self.prune_every}, after which checkpoints differ "
                "in their ranks; derive the Trainer from LrvdTrainerMixin, or prune at the end (prune_every=None)"
            )

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Prunes where it is time to."""
        if self._first:
            self._first = False
            self._check(model, optimizer)
            for module in lrvd_modules(_unwrapped(model)).values():
                for watch in module.kl_watches():
                    watch.warn()
        step = state.global_step
        if self.prune_every and args.world_size == 1 and step % self.prune_every == 0 and step >= self.min_steps:
            self._prune(step, model, optimizer)

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Counts the ranks below the threshold, pruned or not."""
        if not isinstance(self.threshold, str):
            values = rank_log_alpha(_unwrapped(model)).values()
            self.soft_counts.append((state.global_step, sum(int((v < self.threshold).sum()) for v in values)))

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Prunes once more, at the end."""
        if self.prune_every != 0 and state.global_step >= self.min_steps:
            self._prune(state.global_step, model, optimizer)
