"""Learning rates over a fit: warm-up and decay by name, or any scheduler of torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

SCHEDULES = ("constant", "linear", "cosine")


def warmup_steps(warmup: float, steps: int) -> int:
    """Steps of the warm-up: a share of all steps below 1, a number of steps from 1 on; a share leaves the last one.

    Raises:
        ValueError: it is negative, not finite, or as long as the fit.
    """
    if not 0 <= warmup < math.inf or (warmup >= 1 and warmup != int(warmup)):
        raise ValueError(f"warmup: got {warmup}; it must be a share of the steps below 1, or a whole number of steps")
    found = min(math.ceil(warmup * steps), steps - 1) if warmup < 1 else int(warmup)
    if found >= steps and found > 0:
        raise ValueError(f"warmup: got {warmup}, {found} steps; the fit has {steps}")
    return found


def factor(step: int, steps: int, schedule: str, warmup: int = 0, floor: float = 0.0) -> float:
    """What multiplies a learning rate at a step.

    It grows linearly over ``warmup`` steps, to 1 at the first step after them, and from there stays (``"constant"``) or
    falls to ``floor`` at the last step, in a straight line (``"linear"``) or a half wave (``"cosine"``).

    Args:
        step: counted from 0.
        steps: steps of the fit.
        schedule: one of ``SCHEDULES``.
        warmup: steps of the warm-up.
        floor: what is left at the last step, relative to the peak.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return floor + (1 - floor) * decay(schedule, (step - warmup) / max(steps - 1 - warmup, 1))


def decay(schedule: str, done: float) -> float:
    """What is left of a learning rate when a share ``done`` of its way is behind it."""
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


class LearningRates:
    """Sets the learning rates of an optimizer at every step.

    Args:
        optimizer: whose groups' rates at the start are the peaks.
        schedule: a name of ``SCHEDULES``, or a function from the optimizer to a scheduler of torch, which is then
            stepped once a step and saved with the optimizer.
        steps: steps of the fit.
        warmup: see :func:`warmup_steps`.
        final: learning rate at the last step; None for 0.

    Raises:
        ValueError: an argument out of range, or options that the schedule does not take.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: str | Callable[[torch.optim.Optimizer], Any],
        steps: int,
        warmup: float = 0.0,
        final: float | None = None,
    ) -> None:
        self.optimizer, self.steps, self.final = optimizer, steps, final
        self.warmup = warmup_steps(warmup, steps)
        self.scheduler: Any = None
        self.schedule = "constant"
        if isinstance(schedule, str):
            if schedule not in SCHEDULES:
                raise ValueError(
                    f"schedule: got {schedule!r}; it must be one of {', '.join(SCHEDULES)}, or a function from an "
                    "optimizer to a torch scheduler"
                )
            if schedule == "constant" and final is not None:
                raise ValueError("final_learning_rate: schedule='constant' never falls; use 'linear' or 'cosine'")
            self.schedule = schedule
        elif callable(schedule):
            if self.warmup or final is not None:
                raise ValueError("warmup, final_learning_rate: a scheduler of torch has its own; leave them out")
            self.scheduler = schedule(optimizer)
        else:
            raise ValueError(
                f"schedule: got {type(schedule).__name__}; it must be one of {', '.join(SCHEDULES)}, or a function "
                "from an optimizer to a torch scheduler"
            )
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]

    def before(self, step: int) -> None:
        """Sets the rates that a step is made with."""
        if self.scheduler is not None or (self.schedule == "constant" and not self.warmup):
            return
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            floor = 0.0 if self.final is None or peak == 0 else self.final / peak
            group["lr"] = peak * factor(step, self.steps, self.schedule, self.warmup, floor)

    def after(self) -> None:
        """Tells a scheduler of torch that a step was made."""
        if self.scheduler is not None:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit needs: the peaks, and a scheduler's own state."""
        return {"peaks": self.peaks, "scheduler": None if self.scheduler is None else self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where ``state_dict`` was taken.

        Raises:
            ValueError: other learning rates, or a scheduler where there was none.
        """
        if list(state["peaks"]) != self.peaks:
            raise ValueError(f"learning_rate: got {self.peaks}, but the run to resume has {list(state['peaks'])}")
        if (state["scheduler"] is None) != (self.scheduler is None):
            raise ValueError("schedule: the run to resume was made with another one")
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
