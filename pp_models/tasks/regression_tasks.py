"""Regression with several outputs as tasks: random subsets of one table, or cells of its input space."""

from __future__ import annotations

import torch
from torch import Tensor

from pp_models.arguments import POINTS, SEED, checked, interval, one_of
from pp_models.data import Dataset, TaskBatch
from pp_models.tasks.point_counts import PointCounts, random_subsets
from pp_models.tasks.regression_tables import RegressionTable, load_table
from pp_models.tasks.task_stream import TaskStream

DIVISIONS = ("random", "clusters")
#: rows a cell has at least, where the number of cells is not given
CELL = 64


def cells(x: Tensor, count: int) -> Tensor:
    """Divides rows into ``count`` cells of near-equal size, by halving along the direction of largest variance.

    Unlike k-means it leaves no cell too small to be a task, and nothing in it is random.

    Args:
        x: inputs ``[n, Dx]`` float64, standardised.
        count: a power of two, at most n / 2.

    Returns:
        The cell of each row, long ``[n]``; sizes differ by one at most between the halves of a cell.

    Raises:
        ValueError: count is no power of two, or too large.
    """
    if count < 1 or count & (count - 1) or 2 * count > len(x):
        raise ValueError(
            f"num_clusters: got {count}; it must be a power of two and at most {len(x) // 2}, half the rows"
        )
    parts = [torch.arange(len(x))]
    while len(parts) < count:
        halves = []
        for part in parts:
            centred = x[part] - x[part].mean(0)
            direction = torch.linalg.eigh(centred.mT @ centred).eigenvectors[:, -1]
            direction = direction * direction[direction.abs().argmax()].sign()  # eigenvectors have no sign of their own
            order = (centred @ direction).argsort(stable=True)
            halves += [part[order[: len(part) // 2]], part[order[len(part) // 2 :]]]
        parts = halves
    cell = torch.empty(len(x), dtype=torch.long)
    for i, part in enumerate(parts):
        cell[part] = i
    return cell


class RegressionTasks(TaskStream):
    """Rows of one table with Dy outputs, standardised by the training rows (inputs and outputs alike).

    ``division="random"`` is the protocol of DNP and DSVNP: 80 % of the rows train, and a task is a random draw of
    N_c ~ U{3..100} of them as context and 100 others as target. All its tasks are one function, so a plain regressor
    that remembers the training rows needs no context. For the test the context is 30 random training rows and the
    target all test rows. ``division="clusters"`` makes tasks that differ: each is a cell of the input space (see
    :func:`cells`); 80 % of the cells train and the others test, each split at random into context and target.

    Batches are ``x [T, N, Dx]``, ``y [T, N, Dy]``; ``truth`` holds ``row`` (of the table, long ``[T, N]``, context
    first) and ``cell``, long ``[T]`` (0 with ``"random"``).

    Args:
        table: a name (see ``load_table``) or a ``RegressionTable``.
        split: ``"train"`` or ``"test"``.
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
        division: ``"random"`` or ``"clusters"``.
        num_context: smallest and largest number of context points; None is 3 to 100 (30 for the test), or 3 to half a
            cell (a quarter of a cell for the test).
        num_target: number of target points; None is 100 (all test rows for the test), or the rest of a cell.
        num_clusters: cells, a power of two; None for as many as leave 64 rows in each.
        split_seed: seed of the 80/20 split; streams that train and test must share it.
        dtype: of x and y.

    Raises:
        ValueError: unknown name, split or division, or counts that the rows cannot meet.
        DataError: see :func:`pp_models.tasks.regression_tables.load_table`.
    """

    @checked(
        split=one_of("train", "test"),
        division=one_of(*DIVISIONS),
        num_target=POINTS,
        num_clusters=POINTS,
        split_seed=SEED,
        num_context=interval(POINTS, strict=False),
    )
    def __init__(
        self,
        table: str | RegressionTable = "synthetic",
        split: str = "train",
        batch_size: int = 16,
        seed: int = 0,
        *,
        division: str = "random",
        num_context: tuple[int, int] | None = None,
        num_target: int | None = None,
        num_clusters: int | None = None,
        split_seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(batch_size, seed)
        table = load_table(table) if isinstance(table, str) else table
        self.source, self.duplicates = table.source, table.duplicates
        self.split, self.division = split, division
        generator = torch.Generator().manual_seed(split_seed)
        n = len(table.x)
        if division == "clusters":
            if num_clusters is None:
                num_clusters = 2 ** (max(n // CELL, 2).bit_length() - 1)
            spread = table.x.std(0).clamp_min(1e-12)
            self.cell = cells((table.x - table.x.mean(0)) / spread, num_clusters)
            order = torch.randperm(num_clusters, generator=generator)
            training_cells = order[: max(1, int(0.8 * num_clusters))]
            is_training = torch.isin(self.cell, training_cells)
        else:
            self.cell = torch.zeros(n, dtype=torch.long)
            is_training = torch.zeros(n, dtype=torch.bool)
            is_training[torch.randperm(n, generator=generator)[: int(0.8 * n)]] = True
        self.train_rows, self.test_rows = is_training.nonzero()[:, 0], (~is_training).nonzero()[:, 0]

        def standardised(values: Tensor) -> Tensor:
            known = values[self.train_rows]
            scale = known.std(0)
            # a constant column says nothing: it becomes 0
            return ((values - known.mean(0)) / torch.where(scale > 0, scale, 1.0)).to(dtype)

        self.x, self.y = standardised(table.x), standardised(table.y)
        self.dim_x, self.dim_y = self.x.shape[1], self.y.shape[1]
        rows = self.train_rows if split == "train" else self.test_rows
        self.groups = [rows[self.cell[rows] == i] for i in self.cell[rows].unique().tolist()]
        fewest = min(len(group) for group in self.groups)
        few_test = division == "random" and split == "test"
        if num_context is None:
            if division == "clusters":
                num_context = (3, fewest // 2) if split == "train" else (fewest // 4, fewest // 4)
            else:
                num_context = (30, 30) if few_test else (3, 100)
        if num_target is None and division == "random":
            num_target = fewest if few_test else 100
        # the context of a random test task comes from the training rows
        room = fewest + num_context[1] if few_test else fewest
        most = room if num_target is None else num_context[1] + num_target
        if most > room or (few_test and num_context[1] > len(self.train_rows)):
            raise ValueError(
                f"num_context, num_target: got {num_context} and {num_target}; a task here has only {fewest} rows"
            )
        self.counts = PointCounts(num_context, (num_target or 1, num_target), most)
        self._takes_all = few_test

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: counts, cells, then rows."""
        m, t = self.counts.draw(generator)
        if self.division == "clusters" and self.counts.num_target[1] is None:
            t = self.counts.most_points - m
        chosen = torch.randint(len(self.groups), (self.batch_size,), generator=generator)
        rows = []
        for group in (self.groups[i] for i in chosen.tolist()):
            if self._takes_all:
                context = self.train_rows[torch.randperm(len(self.train_rows), generator=generator)[:m]]
                (target,) = random_subsets(1, len(group), (t,), generator)
                rows.append(torch.cat([context, group[target[0]]]))
            else:
                parts = random_subsets(1, len(group), (m, t), generator)
                rows.append(group[torch.cat(parts, -1)[0]])
        row = torch.stack(rows)
        x, y = self.x[row], self.y[row]
        truth = {"row": row, "cell": self.cell[row[:, -1]]}
        return TaskBatch(Dataset(x[:, :m], y[:, :m]), Dataset(x[:, m:], y[:, m:]), truth)
