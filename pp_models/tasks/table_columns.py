"""What the columns of a table are, and how they become inputs and outputs of about unit size, and come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pp_models.arguments import shown
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.files import STRICT

NUMBER, DATE, CATEGORY = "number", "date", "category"
#: a text column with more different values than this is no category: it would be as many inputs
MOST_CATEGORIES = 100
#: a date is days since this
EPOCH = pd.Timestamp("1970-01-01", tz="UTC")
#: rows that a message names
NAMED_ROWS = 5


@dataclass(frozen=True)
class Column:
    """A column, and its scaling.

    Args:
        name: of the column.
        kind: ``"number"``, ``"date"`` (days since 1970) or ``"category"`` (one-hot, or class indices as an output).
        mean: of the training rows, taken away from a number or date.
        scale: their standard deviation, which it is divided by.
        categories: in order, as words.
    """

    __pydantic_config__ = STRICT

    name: str
    kind: str = NUMBER
    mean: float = 0.0
    scale: float = 1.0
    categories: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.kind not in (NUMBER, DATE, CATEGORY):
            raise ValueError(f"kind: got {self.kind!r}; it must be number, date or category")
        if not (np.isfinite(self.mean) and np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale: got {self.mean} and {self.scale}; a scaling is finite, its scale positive")
        if (self.kind == CATEGORY) != bool(self.categories):
            raise ValueError(f"categories: got {len(self.categories)} for a column of kind {self.kind}")

    @property
    def width(self) -> int:
        """Inputs that it becomes."""
        return len(self.categories) if self.kind == CATEGORY else 1


@dataclass(frozen=True)
class TableColumns:
    """The columns of a table of tasks; what a saved fit knows of its data.

    Args:
        task: columns that together say which task a row is of; empty for one data set.
        x: inputs, a time first.
        y: outputs: numbers, or one category.
        time: the input that is a time, by which rows are sorted; None without one.
    """

    __pydantic_config__ = STRICT

    task: list[str]
    x: list[Column]
    y: list[Column]
    time: str | None = None

    def __post_init__(self) -> None:
        if not self.x or not self.y:
            raise ValueError(f"{'y' if self.x else 'x'}: got no column; it must name at least one")

    @property
    def dim_x(self) -> int:
        """Inputs, one for each category."""
        return sum(column.width for column in self.x)

    @property
    def dim_y(self) -> int:
        """Outputs; 1 for classes."""
        return len(self.y)

    @property
    def classes(self) -> list[str]:
        """The classes of the output, in the order of their indices; empty for numbers."""
        return self.y[0].categories

    @property
    def y_mean(self) -> np.ndarray:
        """What was taken away from the outputs ``[Dy]``."""
        return np.array([column.mean for column in self.y])

    @property
    def y_scale(self) -> np.ndarray:
        """What they were divided by ``[Dy]``."""
        return np.array([column.scale for column in self.y])

    def in_units(self, batch: TaskBatch) -> TaskBatch:
        """Tasks of scaled rows with inputs and outputs in the table's units (float64); dates are days since 1970."""
        scalings = {
            "x": ([c.mean for c in self.x for _ in range(c.width)], [c.scale for c in self.x for _ in range(c.width)]),
            "y": ([c.mean for c in self.y], [c.scale for c in self.y]),
        }

        def restored(name: str, values: Tensor) -> Tensor:
            mean, scale = (torch.tensor(part, dtype=torch.float64, device=values.device) for part in scalings[name])
            return mean + scale * values.double()

        def part(data: Dataset) -> Dataset:
            y = data.y if data.y is None or self.classes else restored("y", data.y)
            return Dataset.unchecked(restored("x", data.x), y, data.mask, data.observed)

        return TaskBatch.unchecked(part(batch.context), part(batch.target), {})

    def inputs(self, frame: pd.DataFrame) -> np.ndarray:
        """Scaled inputs ``[n, Dx]`` float64.

        Raises:
            DataError: a column or value is missing, of another kind, or a category that training had not.
        """
        require_columns(frame, [column.name for column in self.x], "x")
        refuse_missing(frame, [column.name for column in self.x], "x")
        return np.concatenate([_input(column, frame[column.name]) for column in self.x], 1)

    def outputs(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Scaled outputs ``[n, Dy]`` float64, or class indices ``[n]``; and which of them are there ``[n, Dy]``.

        What is missing is 0.

        Raises:
            DataError: a column is missing, or a value is no number or no class that training had.
        """
        require_columns(frame, [column.name for column in self.y], "y")
        there = frame[[column.name for column in self.y]].notna().to_numpy(copy=True)
        if self.classes:
            return np.where(there[:, 0], codes(self.y[0], frame[self.y[0].name], "y"), 0), there
        values = np.stack([numbers(frame[c.name], NUMBER, "y") for c in self.y], 1)
        return np.where(there, (values - self.y_mean) / self.y_scale, 0.0), there

    def task_names(self, frame: pd.DataFrame) -> pd.Series:
        """Which task each row is of, as a word.

        Raises:
            DataError: a column or value is missing.
        """
        return task_names(frame, self.task)


def fit_columns(
    frame: pd.DataFrame,
    training: np.ndarray,
    task: list[str],
    x: list[str],
    y: list[str],
    time: str | None = None,
    categorical: Sequence[str] = (),
    classes: bool | None = None,
    keep_constant: bool = False,
) -> TableColumns:
    """Kinds and scalings of columns; means and standard deviations are those of the training rows.

    Args:
        frame: all rows; categories are those of all, so that no task lacks one.
        training: ``[n]`` bool.
        task: names of columns.
        x: names of inputs, the time among them.
        y: names of outputs.
        time: an input that is a date, or a number.
        categorical: inputs of numbers that are categories.
        classes: whether the output is a class; None decides by its values (text, categories and booleans are).
        keep_constant: take a column of one value, with scale 1, which is refused otherwise.

    Raises:
        DataError: a column is missing, twice there, constant, or holds what cannot be scaled.
    """
    require_columns(frame, x, "x")
    require_columns(frame, y, "y")
    chosen = [*task, *x, *y]
    for name in chosen:
        if chosen.count(name) > 1:
            raise DataError(f"x, y: column {shown(name)} is named twice; a column is a task, an input or an output")
    for name in set(categorical) - set(x):
        raise DataError(f"categorical: got {shown(name)}; it must be one of x, which has {', '.join(x)}")
    refuse_missing(frame, x, "x")
    inputs = []
    for name in x:
        kind = CATEGORY if name in categorical else _kind(frame[name])
        if name == time and kind == CATEGORY:
            raise DataError(
                f"time: column {shown(name)} holds {shown(frame[name].iloc[0])}; it must hold numbers "
                "or dates as 2024-05-31"
            )
        inputs.append(_fitted(name, kind, frame[name], training, "x", keep_constant))
    kinds = [_kind(frame[name]) for name in y]
    if classes is None:
        classes = len(y) == 1 and (kinds[0] == CATEGORY or _is_bool(frame[y[0]]))
    if classes and len(y) > 1:
        raise DataError(f"y: got {len(y)} columns; classes are one column: fit one after the other")
    outputs = []
    for name, kind in zip(y, kinds, strict=True):
        if not classes and kind != NUMBER:
            example = shown(frame[name].dropna().iloc[0])
            raise DataError(f"y: column {shown(name)} holds {example}; an output must hold numbers, or be one class")
        outputs.append(_fitted(name, CATEGORY if classes else NUMBER, frame[name], training, "y", keep_constant))
    return TableColumns(task, inputs, outputs, time)


def require_columns(frame: pd.DataFrame, names: Sequence[str], argument: str) -> None:
    """Refuses a table that lacks a column.

    Raises:
        DataError: it does.
    """
    for name in names:
        if name not in frame.columns:
            have = ", ".join(map(str, frame.columns[:12])) + (" …" if len(frame.columns) > 12 else "")
            raise DataError(f"{argument}: got {shown(name)}; it must be a column of the table, which has {have}")


def refuse_missing(frame: pd.DataFrame, names: Sequence[str], argument: str) -> None:
    """Refuses rows that lack a value which nobody can do without.

    Raises:
        DataError: some do; with their number, the first of them, and the columns.
    """
    missing = frame[list(names)].isna()
    bad = missing.any(axis=1).to_numpy()
    if bad.any():
        columns = ", ".join(missing.columns[missing.any()])
        raise DataError(
            f"{argument}: {_rows(bad)} lack a value in {columns}; inputs and tasks must be there: fill or drop them"
        )


def task_names(frame: pd.DataFrame, task: Sequence[str]) -> pd.Series:
    """Which task each row is of, as a word; ``""`` for all of one data set.

    Raises:
        DataError: a column or value is missing.
    """
    if not task:
        return pd.Series("", index=frame.index)
    require_columns(frame, task, "task")
    refuse_missing(frame, task, "task")
    words = words_of(frame[task[0]])
    for name in task[1:]:
        words = words + " · " + words_of(frame[name])
    return words


def words_of(values: pd.Series) -> pd.Series:
    """Values as words, by which they are compared: 1, 1.0 and "1" are one; missing ones are None."""
    return values.astype(object).where(values.notna(), None).map(_word)


def _word(value: Any) -> str | None:
    # whole numbers become fractions where a value of their column is missing
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return None if value is None else str(int(value)) if whole else str(value)


def codes(column: Column, values: pd.Series, argument: str) -> np.ndarray:
    """Index of each value among the column's categories ``[n]``; -1 where it is missing.

    Raises:
        DataError: a value is none of them.
    """
    words = words_of(values)
    found = pd.Index(column.categories).get_indexer(words).astype(np.int64)
    unknown = (found < 0) & words.notna().to_numpy()
    if unknown.any():
        known = ", ".join(column.categories[:8]) + (" …" if len(column.categories) > 8 else "")
        raise DataError(
            f"{argument}: {_rows(unknown)} hold {shown(words[unknown].iloc[0])} in column "
            f"{shown(column.name)}; it must "
            f"be one of those of the training data: {known}"
        )
    return found


def numbers(values: pd.Series, kind: str, argument: str) -> np.ndarray:
    """A column as float64 ``[n]``, NaN where a value is missing.

    Args:
        values: the column.
        kind: ``"number"``, or ``"date"``, which is days since 1970.
        argument: whose value it is, for the message.

    Raises:
        DataError: a value is no number or date, or infinite.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    if kind == DATE:
        found = _dates(values)
        days = ((found - EPOCH) / pd.Timedelta(days=1)).to_numpy(dtype=np.float64, na_value=np.nan)
    elif values.dtype.kind == "m":
        days = (values / pd.Timedelta(days=1)).to_numpy(dtype=np.float64, na_value=np.nan)
    elif values.dtype.kind in "cM":
        days = np.full(len(values), np.nan)
    else:
        days = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.isnan(days) & values.notna().to_numpy()
    if bad.any():
        raise DataError(
            f"{argument}: {_rows(bad)} hold {shown(values[bad].iloc[0])} in column "
            f"{shown(values.name)}; it must be a {kind}"
        )
    if np.isinf(days).any():
        raise DataError(
            f"{argument}: {_rows(np.isinf(days))} are infinite in column {shown(values.name)}; every "
            "value must be finite"
        )
    return days


def _dates(values: pd.Series) -> pd.Series:
    return pd.to_datetime(values, format="ISO8601" if _is_text(values) else None, errors="coerce", utc=True)


def _is_text(values: pd.Series) -> bool:
    return pd.api.types.infer_dtype(values, skipna=True) == "string"


def _is_bool(values: pd.Series) -> bool:
    return pd.api.types.infer_dtype(values, skipna=True) == "boolean"


def _kind(values: pd.Series) -> str:
    """What a column seems to hold."""
    there = values.dropna()
    if isinstance(values.dtype, pd.CategoricalDtype):
        return CATEGORY
    found = pd.api.types.infer_dtype(there, skipna=True)
    if found in ("datetime64", "datetime", "date"):
        return DATE
    if found == "string" and len(there) and bool(pd.to_numeric(there, errors="coerce").notna().all()):
        return NUMBER  # numbers that came as text; categorical= takes them as words
    if found == "string":
        if len(there) and bool(there.str.match(r"\s*\d{4}-\d\d-\d\d").all()) and bool(_dates(there).notna().all()):
            return DATE
        return CATEGORY
    if found.startswith("mixed") and found != "mixed-integer-float":
        return CATEGORY
    return NUMBER


def _fitted(
    name: str, kind: str, values: pd.Series, training: np.ndarray, argument: str, keep_constant: bool
) -> Column:
    if kind == CATEGORY:
        there = values.dropna()
        if isinstance(values.dtype, pd.CategoricalDtype):  # its own order
            known = [str(word) for word in words_of(pd.Series(values.cat.categories)) if word in set(words_of(there))]
        else:
            known = [str(word) for word in words_of(pd.Series(_in_order(there)))]
        if len(known) > MOST_CATEGORIES:
            raise DataError(
                f"{argument}: column {shown(name)} has {len(known)} different values, such as {shown(known[0])}; "
                f"categories are at most {MOST_CATEGORIES}: drop it, group them, or give it as a number"
            )
        if len(known) < (1 if keep_constant else 2):
            raise _constant(argument, name, known)
        return Column(name, CATEGORY, categories=known)
    found = numbers(values, kind, argument)[training]
    found = found[~np.isnan(found)]
    if not len(found):
        raise DataError(f"{argument}: column {shown(name)} holds no value in the training rows; it must hold some")
    with np.errstate(over="ignore", invalid="ignore"):
        scaler = StandardScaler().fit(found[:, None])
    mean, scale = float(scaler.mean_[0]), float(scaler.scale_[0])
    if not (np.isfinite(mean) and np.isfinite(scale)):
        largest = float(np.abs(found).max())
        raise DataError(
            f"{argument}: column {shown(name)} reaches {largest:.3g}; its square must be finite: rescale it"
        )
    if not keep_constant and (found == found[0]).all():
        raise _constant(argument, name, [f"{found[0]:g}"])
    return Column(name, kind, mean, scale)


def _in_order(values: pd.Series) -> list:
    try:
        different = pd.unique(values)
    except TypeError:  # lists, say
        held = shown(values.iloc[0])
        raise DataError(
            f"x, y: column {shown(values.name)} holds {held}; it must hold numbers, dates or texts"
        ) from None
    try:
        return sorted(different)
    except TypeError:  # of several types
        return sorted(different, key=str)


def _constant(argument: str, name: str, known: list[str]) -> DataError:
    value = known[0] if known else "nothing"
    return DataError(f"{argument}: column {shown(name)} is {value} in all training rows; it must vary: drop it")


def _input(column: Column, values: pd.Series) -> np.ndarray:
    """A column's inputs ``[n, width]``."""
    if column.kind == CATEGORY:
        return np.eye(column.width)[codes(column, values, "x")]
    return ((numbers(values, column.kind, "x") - column.mean) / column.scale)[:, None]


def _rows(bad: np.ndarray) -> str:
    """How many rows, and which first: ``3 row(s) (1, 4, 7)``; counted from 0."""
    where = np.flatnonzero(bad)
    named = ", ".join(map(str, where[:NAMED_ROWS])) + (" …" if len(where) > NAMED_ROWS else "")
    return f"{len(where)} row(s), counted from 0 ({named}),"
