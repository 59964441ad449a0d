"""What a grid's cells share: its settings, its tasks by seed, and how a cell is scored on them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from evaluation.methods import TaskShape
from evaluation.run_configuration import OWN_DATA
from evaluation.scores.scoring import score_classes, score_tasks
from evaluation.trust import HELD_OUT_BATCH_SIZE, held_out_tasks
from inference.held_out import held_out_batches
from pp_models.files import STRICT
from pp_models.tasks.frame_files import rows_bytes
from pp_models.tasks.frame_tasks import FrameTasks
from pp_models.tasks.task_stream import TaskStream, batches_of
from pp_models.tasks.task_table import task_stream

#: where in a stream without a test protocol the test batches begin
TEST_BATCH = 10_000_000


@dataclass(frozen=True)
class GridSettings:
    """What every cell of a grid shares, and what a resumed one must share with the first call."""

    tasks: str
    steps: int
    num_particles: int | None
    width: int
    batch_size: int
    learning_rate: float
    max_grad_norm: float
    test_tasks: int
    draws: int
    snr_particles: tuple[int, ...]
    snr_repeats: int
    num_simulations: int

    __pydantic_config__ = STRICT


class GridTasks:
    """Training and test tasks of a seed."""

    def __init__(self, tasks: str | TaskStream, test: TaskStream | None, settings: GridSettings) -> None:
        self.tasks, self.test, self.settings = tasks, test, settings
        self.own = tasks if isinstance(tasks, FrameTasks) else None
        self.training(0)  # an unknown name is refused before anything runs

    def training(self, seed: int) -> TaskStream:
        if isinstance(self.tasks, str):
            return task_stream(self.tasks, self.settings.batch_size, seed)
        if self.own is not None:
            return self.own.of("train", self.settings.batch_size, seed)
        return self.tasks

    def own_split(self, *names: str) -> FrameTasks:
        """The first of these splits of one's own table that has tasks.

        Raises:
            ValueError: none has.
        """
        assert self.own is not None
        held = next((name for name in names if self.own.pools.get(name)), None)
        if held is None:
            raise ValueError("tasks: the table has no tasks to score on; give them a share by split=(0.8, 0.1, 0.1)")
        return self.own.of(held, self.settings.batch_size, 0)

    @cached_property
    def test_batches(self) -> list[Any]:
        """The same for every cell."""
        stream, start = self.test, 0
        if stream is None and self.own is not None:
            stream = self.own_split("test", "validation")
        elif stream is None and isinstance(self.tasks, str):
            stream = task_stream(self.tasks, 8, 0, test=True)
        elif stream is None:
            stream, start = self.tasks, TEST_BATCH  # type: ignore[assignment]
        return batches_of(stream, start, self.settings.test_tasks)

    @cached_property
    def watched(self) -> list[Any] | None:
        """Tasks of one's own table that tell where training was best; None where none are left to score on then."""
        if self.own is None or not (self.own.pools["validation"] and self.own.pools["test"]):
            return None
        return held_out_batches(self.own_split("validation"))

    @cached_property
    def held_out(self) -> list[Any]:
        """Tasks of the training distribution that no training reaches, for verdicts."""
        if isinstance(self.tasks, str):
            return held_out_tasks(task_stream(self.tasks, HELD_OUT_BATCH_SIZE, 0))
        return held_out_tasks(self.tasks if self.own is None else self.own_split("test", "validation"))

    @cached_property
    def task(self) -> TaskShape:
        """Widths of the tasks."""
        options = {} if self.own is None else {"num_classes": len(self.own.classes)}
        return TaskShape.of(self.training(0), self.settings.width, **options)


def scores_of_tasks(model: nn.Module, guide: nn.Module, streams: GridTasks, draws: int) -> dict[str, Any]:
    """Scores of the test tasks; of a table in its units, the error by output."""
    own = streams.own
    if own is not None and own.classes:
        found = score_classes(model, guide, streams.test_batches, num_samples=draws)
        return {"pll": float(found["pll"].mean()), "own_scores": {"accuracy": float(found["accuracy"].mean())}}
    columns = None if own is None else own.columns
    found = score_tasks(model, guide, streams.test_batches, weights="samples", num_samples=draws, columns=columns)
    row: dict[str, Any] = {name: float(found[name].mean()) for name in ("pll", "joint_pll", "ll", "rmse")}
    if columns is not None and len(columns.y) > 1:  # outputs of other units have no error in common
        row["rmse"] = math.nan
        row["own_scores"] = {f"rmse {c.name}": float(found[f"rmse {c.name}"].mean()) for c in columns.y}
    return row


def name_of_tasks(tasks: str | TaskStream) -> str:
    """What the settings call the tasks; a table of one's own by the content of its rows."""
    if isinstance(tasks, FrameTasks):
        return f"{OWN_DATA}, rows {hashlib.sha256(rows_bytes(tasks)).hexdigest()[:12]}"
    return tasks if isinstance(tasks, str) else type(tasks).__name__
