"""Tasks from your own table: a finite set of data sets, split by task, scaled, met with random contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from pp_models.arguments import FLAG, POINTS, SEED, TASKS, TEXT, Rule, checked, each, integer, interval, number, one_of
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.tasks.frames import read_frame
from pp_models.tasks.point_counts import MOST_POINTS, uniform_integer
from pp_models.tasks.table_columns import TableColumns, fit_columns, require_columns, task_names
from pp_models.tasks.task_stream import TaskStream

SPLITS = ("train", "validation", "test")
#: points of a task that one batch shows at most, where nothing else is said: a step's cost grows with them
MAX_POINTS = 256


class FrameTasks(TaskStream):
    """A finite set of tasks, ragged as they are, each batch with contexts of random size.

    A batch holds ``batch_size`` tasks of its split (each at most once where there are as many), of each at most
    ``max_points`` random points, of which m ~ U{num_context} are context and the others target: x ``[T, N, Dx]``, y
    ``[T, N, Dy]`` (class indices ``[T, N]``) and a mask. Both are scaled (``columns``); predictions are put back into
    the table's units by :func:`inference.predict_frame`. ``truth`` holds ``task``, an index into ``names``.

    Args:
        columns: what the columns are.
        pools: by split, the tasks: each a Dataset ``[N_t, Dx]``.
        task_names: by split, their names.
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        num_context: fewest and most context points; None is all but one of what a task has. Where a task has fewer
            points, its context has fewer too.
        max_points: most points of a task in one batch.
        forecast: contexts are the first points in order of time, and targets those that follow.

    Raises:
        DataError: the split has no task.
        ValueError: an argument out of range.
    """

    @checked(
        split=one_of(*SPLITS),
        num_context=interval(integer(0, MOST_POINTS), strict=False, open_end=True),
        max_points=integer(2, MOST_POINTS),
        forecast=FLAG,
    )
    def __init__(
        self,
        columns: TableColumns,
        pools: dict[str, list[Dataset]],
        task_names: dict[str, list[str]],
        batch_size: int = 16,
        seed: int = 0,
        *,
        split: str = "train",
        num_context: tuple[int, int | None] = (0, None),
        max_points: int = MAX_POINTS,
        forecast: bool = False,
    ) -> None:
        super().__init__(batch_size, seed)
        if not pools.get(split):
            have = ", ".join(f"{len(pools.get(name, []))} {name}" for name in SPLITS)
            raise DataError(f"split: got {split!r}, which has no task (there are {have}); give it a share by split=(…)")
        self.columns, self.pools, self.task_names = columns, pools, task_names
        self.split, self.num_context, self.max_points, self.forecast = split, num_context, max_points, forecast

    @property
    def pool(self) -> list[Dataset]:
        """The tasks of this split."""
        return self.pools[self.split]

    @property
    def names(self) -> list[str]:
        """Names of the tasks of this split."""
        return self.task_names[self.split]

    @property
    def dim_x(self) -> int:
        """Inputs of a model for them: one for each number, and for each category of a text column."""
        return self.columns.dim_x

    @property
    def dim_y(self) -> int:
        """Outputs; 1 for classes."""
        return self.columns.dim_y

    @property
    def classes(self) -> list[str]:
        """Names of the classes in the order of their indices; empty for numbers."""
        return self.columns.classes

    def of(self, split: str, batch_size: int | None = None, seed: int | None = None) -> FrameTasks:
        """The stream of a split.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.
            batch_size: tasks a batch; as many as here by default.
            seed: this stream's by default.

        Raises:
            DataError: it has no task.
        """
        return FrameTasks(
            self.columns,
            self.pools,
            self.task_names,
            self.batch_size if batch_size is None else batch_size,
            self.seed if seed is None else seed,
            split=split,
            num_context=self.num_context,
            max_points=self.max_points,
            forecast=self.forecast,
        )

    @property
    def missing_outputs(self) -> bool:
        """Whether a row lacks one output and has another: the option of this name of a model."""
        return any(data.observed is not None for pool in self.pools.values() for data in pool)

    @property
    def train(self) -> FrameTasks:
        """The training tasks."""
        return self.of("train")

    @property
    def validation(self) -> FrameTasks:
        """The validation tasks."""
        return self.of("validation")

    @property
    def test(self) -> FrameTasks:
        """The test tasks."""
        return self.of("test")

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: tasks, then for each its points and how many of them are context."""
        few = len(self.pool) < self.batch_size
        index = (
            torch.randint(len(self.pool), (self.batch_size,), generator=generator)
            if few
            else torch.randperm(len(self.pool), generator=generator)[: self.batch_size]
        )
        parts = [self._divided(self.pool[i], generator) for i in index.tolist()]
        context, target = Dataset.pad([p[0] for p in parts]), Dataset.pad([p[1] for p in parts])
        return TaskBatch(context, target, {"task": index})

    def _divided(self, data: Dataset, generator: torch.Generator) -> tuple[Dataset, Dataset]:
        """Context and target of one task."""
        n = min(data.num_points, self.max_points)
        if self.forecast:
            start = uniform_integer(0, data.num_points - n, generator)
            order = torch.arange(start, start + n)
        else:
            order = torch.randperm(data.num_points, generator=generator)[:n]
        low, high = self.num_context
        most = n - 1 if high is None else min(high, n - 1)
        m = uniform_integer(min(low, most), most, generator)
        return data.points(order[:m]), data.points(order[m:])

    def description(self) -> bytes:
        """Columns and scalings, as a fit's folder keeps them (``data.json``); no rows."""
        from pp_models.tasks.frame_files import description_bytes

        return description_bytes(self)

    def __repr__(self) -> str:
        sizes = [data.num_points for data in self.pool]
        points = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        outputs = f"{len(self.classes)} classes" if self.classes else f"{self.dim_y} outputs"
        return f"FrameTasks({self.split}: {len(sizes)} tasks of {points} points, {self.dim_x} inputs, {outputs})"


_NAMES: Rule = each(TEXT, 1, must="name at least one column")


def _column_names(value: Any, argument: str, least: int = 1) -> list[str]:
    """One name or several as a list."""
    if not least and (value is None or (isinstance(value, list | tuple) and not value)):
        return []
    return _NAMES.check(argument, [value] if isinstance(value, str) else value)


@checked(
    batch_size=TASKS,
    seed=SEED,
    split=each(number(0, 1), 3, 3, "be three shares, of training, validation and test tasks"),
    max_points=POINTS,
)
def from_dataframe(
    frame: Any,
    task: str | Sequence[str] | None = None,
    x: str | Sequence[str] = (),
    y: str | Sequence[str] = (),
    time: str | None = None,
    *,
    group: str | None = None,
    categorical: str | Sequence[str] = (),
    classes: bool | None = None,
    split: Sequence[float] = (0.8, 0.1, 0.1),
    batch_size: int = 16,
    seed: int = 0,
    num_context: tuple[int, int | None] = (0, None),
    max_points: int = MAX_POINTS,
    forecast: bool = False,
    dtype: torch.dtype = torch.float32,
    keep_constant: bool = False,
) -> FrameTasks:
    """Tasks from a table with one row a point, for :func:`inference.fit` as they are.

    Numbers and dates are brought to mean 0 and standard deviation 1 over the training rows (scikit-learn's
    ``StandardScaler``), texts become one-hot inputs; both are remembered in ``tasks.columns``, and a prediction by
    :func:`inference.predict_frame` is in the table's own units. A row without
    outputs is no point: it is neither context nor target, and can be predicted. One that lacks some of several is a
    point of the others (``Dataset.observed``): what is missing has no density, and no encoder sees it; build models
    with ``missing_outputs=tasks.missing_outputs`` so that their guides are told which. Rows that are
    there twice are two measurements.

    Args:
        frame: a pandas or polars DataFrame, an xarray Dataset, or the path of a CSV, Parquet or NetCDF file.
        task: the column, or columns, that say which task a row is of; None takes all rows as one data set, whose rows
            are split in place of tasks.
        x: columns of inputs: numbers, dates (datetimes, or text as 2024-05-31), or texts of at most 100 different
            values, which become one-hot inputs.
        y: columns of outputs: numbers; or one column of texts or booleans, which are classes.
        time: an input that is a time: rows are sorted by it. It need not be among x.
        group: a column of groups of tasks (patients, sites): all tasks of a group go to one split.
        categorical: those of x that hold numbers but are categories.
        classes: whether y is a class; None decides by its values.
        split: shares of training, validation and test tasks, drawn by ``seed``.
        batch_size: tasks a batch.
        seed: of the split and of the stream.
        num_context: fewest and most context points of a task; None is all but one.
        max_points: most points of a task in one batch.
        forecast: contexts are the past, targets what follows; needs ``time``.
        dtype: of x and y.
        keep_constant: take a column of one value, which is refused otherwise.

    Returns:
        The stream of training tasks; ``.validation`` and ``.test`` are the others.

    Raises:
        DataError: a column is missing or cannot be used, inputs are missing (with the rows), or there are no points.
        ValueError: an argument out of range.

    Example:
        >>> import guidebook as gb, pandas as pd
        >>> frame = pd.DataFrame({"id": [1, 1, 2, 2, 3, 3], "x": [0.0, 1, 0, 1, 0, 1], "y": [5.0, 7, 6, 8, 4, 9]})
        >>> tasks = gb.tasks.from_dataframe(frame, task="id", x="x", y="y", split=(0.4, 0.3, 0.3))
        >>> tasks.dim_x, tasks.dim_y, len(tasks.names)
        (1, 1, 1)
    """
    table = read_frame(frame)
    tasks, inputs, outputs = (
        _column_names(task, "task", 0),
        _column_names(x, "x", 0 if time else 1),
        _column_names(y, "y"),
    )
    if time is not None:
        require_columns(table, [time], "time")
        inputs = [time, *[name for name in inputs if name != time]]
    elif forecast:
        raise ValueError("forecast: got True without time; it must be told by time=… what comes first")
    if group is not None and not tasks:
        raise ValueError(f"group: got {group!r} without task; a group is of tasks: name their column by task=…")
    task_columns = [group, *[t for t in tasks if t != group]] if group else tasks
    names = task_names(table, task_columns)
    divided_by = task_names(table, [group]) if group else names
    if not tasks:  # rows in place of tasks
        divided_by = pd.Series(np.arange(len(table)).astype(str), index=table.index)
    part_of = _split(divided_by, split, seed)
    training = (part_of == "train").to_numpy()
    columns = fit_columns(
        table, training, task_columns, inputs, outputs, time, _column_names(categorical, "categorical", 0), classes,
        keep_constant,
    )  # fmt: skip
    return _streams(
        columns, table, names, part_of, dtype, batch_size=batch_size, seed=seed, num_context=num_context,
        max_points=max_points, forecast=forecast,
    )  # fmt: skip


def _split(names: pd.Series, shares: Sequence[float], seed: int) -> pd.Series:
    """The split of each row: those of a name together, by a permutation that the seed gives."""
    total = sum(shares)
    if not shares[0] > 0 or abs(total - 1) > 1e-6:
        raise ValueError(f"split: got {tuple(shares)}; it must sum to 1 and give the training tasks a share")
    different = pd.unique(names)
    order = np.random.default_rng(seed).permutation(len(different))
    held = [round(share * len(different)) for share in shares[1:]]
    for i, share in enumerate(shares[1:]):  # a share of few tasks is at least one of them
        if share > 0 and held[i] == 0 and len(different) >= 3:
            held[i] = 1
    held = held if sum(held) < len(different) else [0, 0]
    where = {}
    for rank, i in enumerate(order):
        where[different[i]] = "validation" if rank < held[0] else "test" if rank < sum(held) else "train"
    return names.map(where)


def _streams(
    columns: TableColumns, table: pd.DataFrame, names: pd.Series, part_of: pd.Series, dtype: torch.dtype, **options: Any
) -> FrameTasks:
    inputs = columns.inputs(table)
    outputs, there = columns.outputs(table)
    some = there.any(1)
    order = np.argsort(inputs[:, 0], kind="stable") if columns.time else np.arange(len(table))
    if not some.any():
        raise DataError(f"y: no row has any of {', '.join(c.name for c in columns.y)}; some must")
    lacking = bool((some & ~there.all(1)).any())
    if not np.isfinite(inputs.astype(np.float32)).all() or not np.isfinite(outputs.astype(np.float32)).all():
        raise DataError("x, y: a value is too far from the training rows to be scaled; it must be finite in float32")
    x = torch.from_numpy(inputs).to(dtype)
    y = torch.from_numpy(outputs) if columns.classes else torch.from_numpy(outputs).to(dtype)
    pools: dict[str, list[Dataset]] = {name: [] for name in SPLITS}
    found: dict[str, list[str]] = {name: [] for name in SPLITS}
    frame = pd.DataFrame({"task": names.to_numpy(), "split": part_of.to_numpy(), "row": np.arange(len(table))})
    frame = frame.iloc[order[np.asarray(some)[order]]]
    known = torch.from_numpy(there) if lacking else None
    for (task, split), rows in frame.groupby(["task", "split"], sort=False)["row"]:
        index = torch.from_numpy(rows.to_numpy(copy=True))
        pools[str(split)].append(Dataset(x[index], y[index], observed=None if known is None else known[index]))
        found[str(split)].append(str(task))
    if not pools["train"]:
        raise DataError("y: no training task has a row with outputs; some must")
    return FrameTasks(columns, pools, found, **options)
