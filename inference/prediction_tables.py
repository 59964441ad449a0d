"""A prediction as a table, one row a point, and as an xarray Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pp_models.arguments import each, number

if TYPE_CHECKING:
    import xarray

    from inference.prediction import Prediction

QUANTILES = each(number(0, 1), 0, must="hold levels")


def to_dataframe(
    prediction: Prediction,
    rows: pd.DataFrame,
    outputs: Sequence[str],
    classes: Sequence[str],
    quantiles: Sequence[float],
    keep: np.ndarray | None = None,
) -> pd.DataFrame:
    """One row a point: what is known of it, then for each output its mean, standard deviation and quantiles.

    Args:
        prediction: of points ``[*B, N]``.
        rows: what is known of the points, in order; its index is the table's.
        outputs: names.
        classes: names of classes, whose probabilities take the place of the rest; empty for numbers.
        quantiles: levels.
        keep: which points to show; None for all.
    """
    found = rows.copy()
    if classes:
        probabilities = _flat(prediction.mean, 1)
        found[outputs[0]] = np.asarray(classes, dtype=object)[probabilities.argmax(-1)]
        for i, name in enumerate(classes):
            found[f"{outputs[0]}_p_{name}"] = probabilities[:, i]
        return found if keep is None else found[keep]
    levels = QUANTILES.check("quantiles", quantiles)
    mean, std = _flat(prediction.mean, 1), _flat(prediction.std, 1)
    bounds = [_flat(prediction.quantile(level), 1) for level in levels]
    for i, name in enumerate(outputs):
        found[f"{name}_mean"], found[f"{name}_std"] = mean[:, i], std[:, i]
        for level, bound in zip(levels, bounds, strict=True):
            found[f"{name}_q{level:g}"] = bound[:, i]
    return found if keep is None else found[keep]


def to_xarray(
    prediction: Prediction, rows: pd.DataFrame, outputs: Sequence[str], classes: Sequence[str]
) -> xarray.Dataset:
    """Mean, standard deviation and draws with named dimensions ``draw``, ``row`` and ``output`` (or ``class``).

    Args:
        prediction: of points ``[*B, N]``.
        rows: what is known of the points, in order, which become coordinates.
        outputs: names.
        classes: names of classes; empty for numbers.
    """
    import xarray

    last, names = ("class", list(classes)) if classes else ("output", list(outputs))
    coordinates: dict[str, Any] = {"row": rows.index.to_numpy(), last: names}
    coordinates |= {
        str(name): ("row", values.to_numpy()) for name, values in rows.items() if str(name) not in ("row", last, "draw")
    }
    draws = prediction.samples
    samples = draws.reshape(len(draws), len(rows), -1).cpu().numpy()
    variables: dict[str, Any] = {
        "mean": (("row", last), _flat(prediction.mean, 1)),
        "std": (("row", last), _flat(prediction.std, 1)),
        "samples": (("draw", "row"), samples[..., 0]) if classes else (("draw", "row", last), samples),
    }
    return xarray.Dataset(variables, coordinates)


def points_of(shape: torch.Size) -> pd.DataFrame:
    """Task and point of each point ``[*B, N]``, in order."""
    index = np.indices(tuple(shape)).reshape(len(shape), -1)
    tasks = ["task", *(f"task_{i}" for i in range(1, len(shape) - 1))]
    return pd.DataFrame(dict(zip([*tasks[: len(shape) - 1], "point"], index, strict=True)))


def _flat(values: torch.Tensor, events: int) -> np.ndarray:
    return values.reshape(-1, *values.shape[values.dim() - events :]).cpu().numpy()
