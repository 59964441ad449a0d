"""Predictions for a table: its rows with outputs are contexts, those without are predicted, in the table's units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from inference import prediction_tables
from inference.data_dtype import parameter_dtype
from inference.predict import predict
from inference.prediction import Prediction
from inference.prediction_units import in_units
from pp_models.arguments import CALLABLE, DRAWS, SEED, checked, instance, one_of
from pp_models.data import DataError, Dataset
from pp_models.tasks.frame_tasks import FrameTasks
from pp_models.tasks.frames import read_frame
from pp_models.tasks.table_columns import TableColumns

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class FrameQuery:
    """What a table asks: contexts and inputs of its tasks, scaled, and where the answers belong.

    Args:
        context: rows with outputs, ``[T, M]``.
        inputs: rows that lack some or all, ``[T, N]``, without y.
        rows: the predicted rows of the table, in its order: task and inputs.
        task: which task each is of ``[R]``.
        point: and which of its points ``[R]``.
    """

    context: Dataset
    inputs: Dataset
    rows: pd.DataFrame
    task: Tensor
    point: Tensor


def query(columns: TableColumns, frame: Any, dtype: torch.dtype = torch.float32) -> FrameQuery:
    """Contexts and inputs of a table.

    Args:
        columns: as they were when the model was fitted.
        frame: as for :func:`pp_models.tasks.from_dataframe`; columns of outputs may be missing from it.
        dtype: of x and y.

    Raises:
        DataError: a column, input or task is missing, a category is unknown, or no row is to be predicted.
    """
    table = read_frame(frame)
    names = columns.task_names(table)
    x = torch.from_numpy(columns.inputs(table)).to(dtype)
    if not bool(torch.isfinite(x).all()):
        raise DataError(f"x: a value is too far from the training rows; scaled, it must be finite in {dtype}")
    known = [c.name for c in columns.y if c.name in table.columns]
    held = (
        table
        if len(known) == len(columns.y)
        else table.assign(**{c.name: None for c in columns.y if c.name not in known})
    )
    outputs, there = columns.outputs(held)
    y = torch.from_numpy(outputs) if columns.classes else torch.from_numpy(outputs).to(dtype)
    complete: np.ndarray = np.asarray(there.all(1))
    if complete.all():
        wanted = ", ".join(c.name for c in columns.y)
        raise DataError(f"frame: every row has {wanted}; rows to predict must be there with {wanted} left empty")
    some: np.ndarray = np.asarray(there.any(1))
    observed = torch.from_numpy(there) if (some & ~complete).any() else None
    task = pd.factorize(names)[0]
    contexts, inputs = [], []
    point = np.zeros(len(table), dtype=np.int64)
    for rows in pd.DataFrame({"task": task}).groupby("task", sort=True).indices.values():
        given, asked = rows[some[rows]], rows[~complete[rows]]
        point[asked] = np.arange(len(asked))
        contexts.append(Dataset(x[given], y[given], observed=None if observed is None else observed[given]))
        inputs.append(Dataset(x[asked]))
    asked = np.flatnonzero(~complete)
    shown = [*columns.task, *[c.name for c in columns.x if c.name not in columns.task]]
    return FrameQuery(
        Dataset.pad(contexts),
        Dataset.pad(inputs),
        table.loc[asked, shown],
        torch.from_numpy(task[asked].astype(np.int64)),
        torch.from_numpy(point[asked]),
    )


class FramePrediction(Prediction):
    """The posterior predictive of the rows of a table, R of them, in the table's units (float64).

    ``.mean``, ``.std`` ``[R, Dy]``, ``.samples`` ``[S, R, Dy]``, ``.quantile(q)``, ``.log_prob(y)`` ``[R]`` as for any
    :class:`Prediction`; draws are coherent over the rows of a task.

    Args:
        likelihood: distribution of each draw at each row, batch ``[S, R]``.
        samples: draws ``[S, R, Dy]`` (class indices ``[S, R]``).
        rows: task and inputs of the rows, with the table's row numbers as index.
        columns: of the table.
        task: which task each row is of ``[R]``.
    """

    def __init__(
        self, likelihood: Any, samples: Tensor, rows: pd.DataFrame, columns: TableColumns, task: Tensor
    ) -> None:
        super().__init__(likelihood, samples)
        self.rows, self.columns, self.task = rows, columns, task

    def joint_log_prob(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Joint log-density of the rows of each task ``[T]``, tasks in order of their first row in the table.

        Raises:
            DataError: y or mask do not fit the rows predicted.
        """
        scores = self._counted_scores(y, mask)
        different, place = torch.unique(self.task, return_inverse=True)
        sums = scores.new_zeros(self.num_samples, len(different)).index_add(1, place, scores)
        return torch.logsumexp(sums, 0) - math.log(self.num_samples)

    def to_dataframe(self, quantiles: Sequence[float] = (0.05, 0.95), mask: Tensor | None = None) -> pd.DataFrame:
        """One row for each that was predicted: its task and inputs, and of each output mean, std and quantiles.

        Columns are ``{y}_mean``, ``{y}_std``, ``{y}_q0.05`` …; of classes the most probable one, ``{y}``, and the
        probability of each, ``{y}_p_{class}``. The index is the row's number in the table.

        Args:
            quantiles: levels in [0, 1]; two of them are the ends of an interval.
            mask: ``[R]``, True for the rows to show; None for all.

        Raises:
            ValueError: a level out of range.
        """
        keep = None if mask is None else mask.bool().cpu().numpy()
        names = [c.name for c in self.columns.y]
        return prediction_tables.to_dataframe(self, self.rows, names, self.columns.classes, quantiles, keep)

    def to_xarray(self) -> xarray.Dataset:
        """``mean``, ``std`` ``[row, output]`` and ``samples`` ``[draw, row, output]``; task and inputs "
        "are coordinates."""
        return prediction_tables.to_xarray(self, self.rows, [c.name for c in self.columns.y], self.columns.classes)


@torch.no_grad()
@checked(
    model=CALLABLE,
    guide=CALLABLE,
    tasks=instance(FrameTasks, TableColumns),
    num_samples=DRAWS,
    weights=one_of("samples", "mean"),
    seed=SEED,
)
def predict_frame(
    model: Any,
    guide: Any,
    frame: Any,
    tasks: FrameTasks | TableColumns,
    num_samples: int = 100,
    *,
    weights: str = "samples",
    seed: int | None = None,
) -> FramePrediction:
    """Posterior predictive of the rows of a table that lack outputs, given those that have them, in the table's units.

    A row that has some of several outputs is both: its outputs are given, and all of them are predicted.

    Args:
        model: fitted on ``tasks``.
        guide: its guide.
        frame: a table with the same columns (pandas, polars, xarray, or a path); of each task, rows with outputs
            are the context, those that lack some are predicted. A task without the former is predicted by the prior.
        tasks: what it was fitted on, or its ``columns``.
        num_samples: posterior draws S.
        weights: ``"samples"``, or ``"mean"`` for the posterior mean of every latent.
        seed: of the draws; the global random state when None.

    Raises:
        DataError: a column or input is missing, a category was not there in training, or no row is to be predicted.
        ValueError: an argument out of range, or a likelihood whose outputs have no units.

    Example:
        >>> import guidebook as gb, pandas as pd
        >>> frame = pd.DataFrame({"id": [1, 1, 2, 2, 3, 3], "x": [0.0, 1, 0, 1, 0, 1], "y": [5.0, 7, 6, 8, 4, 9]})
        >>> tasks = gb.tasks.from_dataframe(frame, task="id", x="x", y="y")
        >>> model = gb.BayesianNetwork([tasks.dim_x, 8, 2 * tasks.dim_y], likelihood="gaussian-head")
        >>> guide = gb.guides.AmortisedMeanFieldGuide(model, 8)
        >>> asked = pd.DataFrame({"id": [9, 9], "x": [0.0, 0.5], "y": [6.0, None]})
        >>> list(gb.predict_frame(model, guide, asked, tasks).to_dataframe().columns)
        ['id', 'x', 'y_mean', 'y_std', 'y_q0.05', 'y_q0.95']
    """
    columns = tasks.columns if isinstance(tasks, FrameTasks) else tasks
    double = parameter_dtype(model, guide) == torch.float64
    asked = query(columns, frame, torch.float64 if double else torch.float32)
    home = next((p.device for m in (model, guide) if isinstance(m, nn.Module) for p in m.parameters()), None)
    context, inputs = asked.context.to(home), asked.inputs.to(home)
    scaled = predict(model, guide, context, inputs, num_samples, weights=weights, seed=seed)
    device = scaled.samples.device
    task, point = asked.task.to(device), asked.point.to(device)

    def select(values: Tensor) -> Tensor:
        return values[:, task, point]

    mean, scale = (torch.as_tensor(v, dtype=torch.float64, device=device) for v in (columns.y_mean, columns.y_scale))
    samples = select(scaled.samples)
    if not columns.classes:
        samples = mean + scale * samples.double()
    elif samples.dtype.is_floating_point:
        raise ValueError(
            "model: its outputs are numbers, and those of the tasks are classes; take likelihood='categorical'"
        )
    likelihood = in_units(scaled.likelihood, mean, scale, select)
    return FramePrediction(likelihood, samples, asked.rows, columns, task)
