"""Progress bars: of a fit, and of other long computations in named stages."""

from __future__ import annotations

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


class FitProgress:
    """A bar with loss and log-likelihood; a context manager.

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

    def __enter__(self) -> FitProgress:
        self._progress.start()
        self._task = self._progress.add_task("fit", total=self._steps, completed=self._done, numbers="")
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def update(self, step: int, row: dict[str, float]) -> None:
        """Moves the bar and shows the numbers of a logged row."""
        shown = [f"{label} {row[key]:.3f}" for key, label in (("loss", "loss"), ("log_likelihood", "LL")) if key in row]
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
