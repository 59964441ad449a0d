"""Progress bars: of a fit, and of other long computations in named stages."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

#: steps after which a fit says how long it will take
FORECAST_AFTER = 10


def in_words(seconds: float) -> str:
    """A length of time as one says it: 40 s, 3 min, 2 h 10 min."""
    if seconds < 99.5:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class FitProgress:
    """A bar with loss and log-likelihood, and after ten steps a line on stderr that says how long all will take; a
    context manager.

    Args:
        steps: steps in all.
        done: steps already done.
        enabled: False shows nothing.
    """

    def __init__(self, steps: int, done: int = 0, enabled: bool = True) -> None:
        self._progress = Progress(
            TextColumn("fit"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not enabled,
            transient=False,
        )
        self._steps, self._done = steps, done
        self._said = not enabled or steps - done <= FORECAST_AFTER
        self._first = 0.0

    def __enter__(self) -> FitProgress:
        self._progress.start()
        self._task = self._progress.add_task("fit", total=self._steps, completed=self._done, numbers="")
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def stepped(self, step: int) -> None:
        """A step is done, counted from 1."""
        if self._said:
            return
        if step == self._done + 1:  # which also sets up what the others find
            self._first = time.perf_counter()
        elif step == self._done + FORECAST_AFTER:
            self._said = True
            left = self._steps - self._done
            seconds = left * (time.perf_counter() - self._first) / (FORECAST_AFTER - 1)
            print(f"{left:,} steps will take about {in_words(seconds)}", file=sys.stderr)

    def update(self, step: int, row: dict[str, float]) -> None:
        """Moves the bar and shows the numbers of a logged row."""
        labels = (("loss", "loss"), ("log_likelihood", "LL"), ("held_out_loss", "held-out"))
        shown = [f"{label} {row[key]:.3f}" for key, label in labels if key in row]
        self._progress.update(self._task, completed=step, numbers="  ".join(shown))


class Stages:
    """A bar on stderr with the name of what is being done; a context manager.

    It leaves nothing behind, and where stderr is no terminal (a log, a pipe) it shows nothing at all.

    Args:
        enabled: False shows nothing anywhere.
        console: where; stderr by default.
    """

    def __init__(self, enabled: bool = True, console: Console | None = None) -> None:
        console = Console(stderr=True) if console is None else console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """The next stage, of ``total`` pieces of which ``done`` are done; the one before is taken off."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total, completed=done)

    def advance(self, pieces: int = 1) -> None:
        """So many pieces more are done."""
        if self._task is not None:
            self._progress.advance(self._task, pieces)

    def rename(self, name: str) -> None:
        """What the stage is doing now."""
        if self._task is not None:
            self._progress.update(self._task, description=name)
