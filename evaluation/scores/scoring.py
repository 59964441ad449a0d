"""Scores of a fitted method on test tasks, one row a task, and the exact-GP oracle's beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch

from evaluation.scores.metrics import crps, gaussian_parts, log_likelihoods, rmse, sigma_coverage
from inference import predict
from inference.prediction import Prediction
from pp_models import (
    Dataset,
    MixtureDensityNetwork,
    TaskBatch,
    oracle_joint_log_likelihood,
    oracle_log_likelihood,
)
from pp_models.contract import as_guide
from pp_models.tasks.table_columns import TableColumns

#: of one draw (mean weights) the joint forms equal the marginal ones and say nothing more
MARGINAL = ("ll", "rll", "pll")
SCORES = (*MARGINAL, "joint_ll", "joint_pll")


def score_tasks(
    model: Any,
    guide: Any,
    batches: Iterable[TaskBatch],
    *,
    weights: str = "mean",
    num_samples: int = 1,
    seed: int = 0,
    columns: TableColumns | None = None,
) -> pd.DataFrame:
    """Scores every task of some test batches.

    Args:
        model: the model.
        guide: its guide; sees the context only.
        batches: test tasks; predictions are made at all their points.
        weights: ``"mean"`` (one pass, as NVDP's code evaluates) or ``"samples"``.
        num_samples: draws for ``"samples"``.
        seed: seed of those draws.
        columns: of the table that the tasks are from: scores are then in its units, and the error is told by output
            (``rmse y1``).

    Returns:
        One row a task: ``m`` (context points), ``ll``, ``rll``, ``pll`` and their joint forms (nats per point and
        output), ``rmse`` and ``crps`` and 1σ / 2σ coverage over the target points.
    """
    rows = []
    for number, batch in enumerate(batches):
        full = batch.full
        prediction = predict(model, guide, batch.context, full, num_samples, weights=weights, seed=seed + number)
        if columns is not None:
            mean, scale = (torch.as_tensor(v).to(full.x.device) for v in (columns.y_mean, columns.y_scale))
            prediction = prediction.in_units(mean, scale)
            batch = columns.in_units(batch)
            full = batch.full
        found = log_likelihoods(prediction, batch)
        y = full.y
        asked = torch.arange(full.num_points, device=full.x.device) >= batch.context.num_points
        is_target = full.known_mask() & (asked if full.observed is None else asked.unsqueeze(-1))
        assert y is not None
        scores = {
            "m": batch.context.counts,
            **{name: getattr(found, name) for name in SCORES},
            "rmse": rmse(prediction, y, is_target),
            "crps": crps(prediction, y, is_target, method=_crps_method(prediction)),
            "within_1sd": sigma_coverage(prediction, y, is_target, (1.0,))[0],
            "within_2sd": sigma_coverage(prediction, y, is_target, (2.0,))[0],
            "sd": prediction.std.mean((-1, -2)),
        }
        for d, column in enumerate([] if columns is None else columns.y):
            known = is_target if is_target.dim() < y.dim() else is_target[..., d]
            scores[f"rmse {column.name}"] = _rmse_of(prediction.mean[..., d], y[..., d], known)
        rows.append(pd.DataFrame({name: value.double().cpu().numpy() for name, value in scores.items()}))
    return pd.concat(rows, ignore_index=True)


def _rmse_of(mean: torch.Tensor, y: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Of one output ``[*B, N]`` where it is known, ``[*B]``; NaN where it nowhere is."""
    squares = torch.where(known, y - mean, torch.zeros_like(y)).square().sum(-1)
    return torch.where(known.any(-1), (squares / known.sum(-1)).sqrt(), torch.nan)


def mean_weights_predict(model: Any, guide: Any, context: Dataset) -> bool:
    """Whether a method's predictive of a single point is that of its mean weights.

    NVDP is evaluated so (its code release), and a mixture's is exact: each point picks an expert by the mean of the
    weights. Everything else predicts by draws.
    """
    return isinstance(model, MixtureDensityNetwork) or as_guide(guide).rates(context) is not None


def score_as_used(
    model: Any,
    guide: Any,
    batches: Sequence[TaskBatch],
    num_samples: int = 20,
    seed: int = 0,
    columns: TableColumns | None = None,
) -> pd.DataFrame:
    """:func:`score_tasks` by the predictive that a method is used with: joint likelihoods always rest on draws.

    Args:
        model: the model.
        guide: its guide.
        batches: test tasks.
        num_samples: draws.
        seed: seed of those draws.
        columns: of the table that the tasks are from, whose units the scores are then in.
    """
    found = score_tasks(model, guide, batches, weights="samples", num_samples=num_samples, seed=seed, columns=columns)
    if mean_weights_predict(model, guide, batches[0].context):
        marginal = score_tasks(model, guide, batches, columns=columns)
        marginal[["joint_ll", "joint_pll"]] = found[["joint_ll", "joint_pll"]]
        return marginal
    return found


def _crps_method(prediction: Prediction) -> str:
    """Closed forms: of a mixture of Gaussians where the predictive is one, else of the Gaussian of the same moments."""
    try:
        gaussian_parts(prediction)
    except ValueError:
        return "gaussian"
    return "mixture"


def score_classes(
    model: Any, guide: Any, batches: Iterable[TaskBatch], *, num_samples: int = 32, seed: int = 0
) -> pd.DataFrame:
    """Scores every task of some test batches whose y is a class.

    Args:
        model: the model.
        guide: its guide; sees the context only.
        batches: test tasks.
        num_samples: posterior draws.
        seed: seed of those draws.

    Returns:
        One row a task: ``m`` (context points), ``pll`` (log-probability of the target points' classes, nats a point)
        and ``accuracy``.
    """
    rows = []
    for number, batch in enumerate(batches):
        target = batch.target
        assert target.y is not None
        prediction = predict(model, guide, batch.context, target, num_samples, seed=seed + number)
        mask, counts = target.full_mask(), target.counts
        right = prediction.mean.argmax(-1) == target.y
        scores = torch.where(mask, prediction.log_prob(target.y), 0.0)
        columns = {
            "m": batch.context.counts,
            "pll": scores.sum(-1) / counts,
            "accuracy": (right & mask).sum(-1) / counts,
        }
        rows.append(pd.DataFrame({name: value.double().cpu().numpy() for name, value in columns.items()}))
    return pd.concat(rows, ignore_index=True)


def score_oracle(batches: Iterable[TaskBatch], min_scale: float | None = None) -> pd.DataFrame:
    """The same likelihood columns for the exact Gaussian process that drew the tasks.

    Args:
        batches: GP tasks (their ``truth`` holds the kernel).
        min_scale: floor of the predictive standard deviation, as a model's head has.
    """
    rows = []
    for batch in batches:
        columns = {"m": batch.context.counts}
        for name, points in (("ll", "full"), ("rll", "context"), ("pll", "target")):
            columns[name] = oracle_log_likelihood(batch, points, min_scale).mean(-1)
            columns["joint_" + name] = oracle_joint_log_likelihood(batch, points, min_scale)
        rows.append(pd.DataFrame({name: value.double().cpu().numpy() for name, value in columns.items()}))
    return pd.concat(rows, ignore_index=True)


def parameter_count(*modules: torch.nn.Module) -> int:
    """Trainable parameters of some modules."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)
