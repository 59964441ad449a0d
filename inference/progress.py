"""The progress bar of a fit."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
