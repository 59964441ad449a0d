"""Tables as tasks: abalone by sex, where almost no tasks are there to learn a prior from."""

from __future__ import annotations

import csv

import torch
from torch import Tensor

from pp_models.arguments import checked, one_of
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.tasks.data_files import reading, text_of
from pp_models.tasks.downloads import find
from pp_models.tasks.point_counts import ShareCounts, random_subsets
from pp_models.tasks.task_stream import TaskStream

ABALONE = "uci/abalone.csv"
#: it has 190 kB
MOST_TABLE_BYTES = 2**24
#: sexes that a prior is learned from, and the one that it is tried on
TRAIN_SEXES, TEST_SEXES = ("M", "F"), ("I",)
#: rows of the published data set by sex
ROWS = {"M": 1528, "F": 1307, "I": 1342}


def read_abalone() -> dict[str, Tensor]:
    """Rows by sex (``M``, ``F``, ``I``): seven measurements and the rings, ``[n, 8]`` float64.

    Raises:
        DataError: the file is nowhere, or is not what it should be.
    """
    path = find(ABALONE)
    if path is None:
        raise DataError(
            f"abalone: no file {ABALONE}; take abalone.data from archive.ics.uci.edu (data set 1), add a header line, "
            "and put it into the folder that GUIDEBOOK_DATA names"
        )
    rows: dict[str, list[list[float]]] = {sex: [] for sex in (*TRAIN_SEXES, *TEST_SEXES)}
    with reading(path, "table of abalones"):
        for row in list(csv.reader(text_of(path, MOST_TABLE_BYTES).splitlines()))[1:]:
            rows[row[0]].append([float(v) for v in row[1:9]])
        tables = {sex: torch.tensor(values, dtype=torch.float64) for sex, values in rows.items()}
    if any(table.dim() != 2 or table.shape[1] != 8 for table in tables.values()):
        raise DataError(f"{ABALONE}: every row needs a sex, seven measurements and the rings")
    found = {sex: len(table) for sex, table in tables.items()}
    if found != ROWS:  # its publisher gives no hash
        raise DataError(f"{ABALONE}: it has rows {found}; abalone has {ROWS} and a header line")
    if not all(bool(torch.isfinite(table).all()) for table in tables.values()):
        raise DataError(f"{ABALONE}: it holds values that are not finite; replace {path}")
    return tables


class AbaloneTasks(TaskStream):
    """Rings from seven measurements; a task is a sex. Males and females train, infants test.

    Everything is standardised by the training sexes. Batches are ``x [T, N, 7]``, ``y [T, N, 1]``; ``truth`` holds
    ``sex``, an index into ``sexes``.

    Args:
        split: ``"train"`` (a batch holds random subsets of both sexes in turn) or ``"test"``.
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
        num_points: rows used a task; None for as many as every sex of the split has.
        context_share, num_context: see ``ShareCounts``; by default 0.1 to 0.5, and a quarter for the test.
        dtype: of x and y.

    Attributes:
        ring_scale: rings in one unit of y, to report errors in rings.

    Raises:
        ValueError: unknown split, or counts out of range.
        DataError: see :func:`read_abalone`.
    """

    @checked(split=one_of("train", "test"))
    def __init__(
        self,
        split: str = "train",
        batch_size: int = 2,
        seed: int = 0,
        *,
        num_points: tuple[int, int] | None = None,
        context_share: tuple[float, float] | None = None,
        num_context: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(batch_size, seed)
        tables = read_abalone()
        known = torch.cat([tables[sex] for sex in TRAIN_SEXES])
        mean, scale = known.mean(0), known.std(0)
        self.ring_scale = float(scale[-1])
        self.sexes = TRAIN_SEXES if split == "train" else TEST_SEXES
        self.tables = [((tables[sex] - mean) / scale).to(dtype) for sex in self.sexes]
        fewest = min(len(table) for table in self.tables)
        if context_share is None:
            context_share = (0.1, 0.5) if split == "train" else (0.25, 0.25)
        self.counts = ShareCounts(num_points or (fewest, fewest), context_share, num_context)
        if self.counts.num_points[1] > fewest:
            raise ValueError(f"num_points: got {num_points}; a sex of this split has only {fewest} rows")

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: counts, then rows."""
        m, n = self.counts.draw(generator)
        sex = torch.arange(self.batch_size) % len(self.tables)
        parts = []
        for i in sex.tolist():
            (chosen,) = random_subsets(1, len(self.tables[i]), (n,), generator)
            order = torch.randperm(n, generator=generator)
            parts.append(self.tables[i][chosen[0][order]])
        rows = torch.stack(parts)
        x, y = rows[..., :7], rows[..., 7:]
        return TaskBatch(Dataset(x[:, :m], y[:, :m]), Dataset(x[:, m:], y[:, m:]), {"sex": sex})
