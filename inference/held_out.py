"""Held-out tasks during a fit: their loss at every logged step, and when to stop for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from inference.training_step import Sealed, TrainingStep
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.tasks.task_stream import TaskStream

#: batches taken of a stream, which has no end
OF_A_STREAM = 8
#: the row's name for it
HELD_OUT = "held_out_loss"


def held_out_batches(tasks: Any) -> list[Any]:
    """The batches that a fit is watched on.

    Raises:
        ValueError: there are none, or something else among them.
    """
    if isinstance(tasks, TaskBatch | Dataset):
        found = [tasks]
    elif isinstance(tasks, TaskStream):
        found = [tasks.batch(i) for i in range(OF_A_STREAM)]
    elif isinstance(tasks, Iterable) and not isinstance(tasks, str | torch.Tensor):
        found = list(islice(tasks, 1 + 10_000))
    else:
        raise ValueError(f"validation: got {type(tasks).__name__}; it must be a TaskBatch, a Dataset, or several")
    wrong = next((batch for batch in found if not isinstance(batch, TaskBatch | Dataset)), None)
    if not found or wrong is not None or len(found) > 10_000:
        got = "none" if not found else "more than 10,000" if wrong is None else f"a {type(wrong).__name__}"
        raise ValueError(f"validation: got {got}; it must hold TaskBatch or Dataset, at least one")
    if any((batch.full if isinstance(batch, TaskBatch) else batch).y is None for batch in found):
        raise DataError("validation: y is None; a loss needs observed points")
    return found


class HeldOutLoss:
    """The objective's mean loss over held-out batches, by the same random numbers each time.

    Args:
        step_module: model, guide and objective.
        batches: of tasks that are not trained on.
        device: where the modules are.
        dtype: of their parameters.
        seed: of the draws.
    """

    def __init__(
        self,
        step_module: TrainingStep,
        batches: Sequence[Any],
        device: torch.device,
        dtype: torch.dtype | None,
        seed: int,
    ) -> None:
        self.step_module, self.seed, self.device = step_module, seed, device
        self.batches = [batch.to(device, dtype) for batch in batches]

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """The loss, left out where it is not finite; modules and random state are left as they were."""
        training = self.step_module.training
        self.step_module.eval()
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(self.seed)
                losses = [self.step_module(Sealed(batch))[0].double() for batch in self.batches]
        finally:
            self.step_module.train(training)
        loss = float(torch.stack(losses).mean())
        return {HELD_OUT: loss} if math.isfinite(loss) else {}


def out_of_patience(history: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Whether the lowest held-out loss is at least so many logged rows ago."""
    losses = [row[HELD_OUT] for row in history if row.get(HELD_OUT) is not None]
    if len(losses) <= patience:
        return False
    return min(losses[-patience:]) > min(losses[:-patience])
