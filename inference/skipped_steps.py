"""Steps whose loss or gradient is not finite: found on the device, skipped, named, and too many in a row refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger("guidebook")

#: non-finite steps in a row after which a fit stops
MAX_BAD_STEPS = 3


class TrainingDiverged(RuntimeError):
    """Three steps in a row had a loss or gradient that was not finite; the message says where and what to try."""


class SkippedSteps:
    """Keeps on the device which steps were bad, until it is time to read them.

    Args:
        names: names of the parameters.
        found: ``(step, parameter)`` of every step skipped so far; grows in place.
        folder: of the checkpoints, for the message.
    """

    def __init__(self, names: list[str], found: list[tuple[int, str]], folder: Path | None) -> None:
        self.names, self.found, self.folder = names, found, folder
        # step, was it bad, index of the first bad gradient, and which parameters had one
        self._record: list[tuple[int, Tensor, Tensor, list[int]]] = []

    def note(self, step: int, loss: Tensor, norms: Tensor, used: list[int]) -> Tensor:
        """Whether a step is bad, on the device.

        Args:
            step: its number.
            loss: a scalar.
            norms: of the gradients that there are ``[G]``.
            used: which parameters have those gradients.
        """
        bad = ~(torch.isfinite(loss.detach()) & torch.isfinite(norms).all())
        first = torch.isfinite(norms).logical_not().to(torch.uint8).argmax()
        self._record.append((step, bad, first, used))
        return bad

    def report(self, hint: Callable[[], str] = str) -> None:
        """Reads what was noted, names the bad steps in the log, and forgets.

        Args:
            hint: what else may be said where training has diverged.

        Raises:
            TrainingDiverged: the last three in a row were bad.
        """
        flags = torch.stack([bad for _, bad, _, _ in self._record]).tolist() if self._record else []
        for (step, _, index, used), bad in zip(self._record, flags, strict=True):
            if bad:
                where = self.names[used[int(index)]]
                self.found.append((step, where))
                logger.warning("step %d: loss or gradient not finite (first in %s); step skipped", step, where)
        self._record.clear()
        if any(flags) and longest_run(self.found) >= MAX_BAD_STEPS:
            last = self.found[-MAX_BAD_STEPS:]
            kept = "" if self.folder is None else f" The last checkpoint in {self.folder} is intact."
            raise TrainingDiverged(
                f"steps {', '.join(str(s) for s, _ in last)}: loss or gradient not finite, first in {last[-1][1]}; "
                "stopped with the parameters of the last good step. Try a smaller learning_rate, max_grad_norm=1.0, "
                f"precision='64-true', or a likelihood with a larger noise floor.{hint()}{kept}"
            )


def longest_run(skipped: list[tuple[int, str]]) -> int:
    """The most steps in a row that were skipped; several updates of one step count once."""
    longest = run = 0
    previous = None
    for step, _ in skipped:
        if step == previous:
            continue
        run = run + 1 if previous is not None and step == previous + 1 else 1
        longest, previous = max(longest, run), step
    return longest
