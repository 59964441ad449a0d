"""What BNNP's experiments measure of a trained pair: predictions by context size, and the prior as a generator."""

from __future__ import annotations

from typing import Any

import torch

from evaluation.scores.metrics import interval_coverage, rmse
from evaluation.scores.two_sample import energy_distance
from inference import predict, prior_predictive
from pp_models import BayesianNetwork, Dataset, TaskBatch
from pp_models.tasks.ecg_tasks import ECGTasks
from pp_models.tasks.function_tasks import FunctionTasks


def context_scores(
    model: Any, guide: Any, batches: list[TaskBatch], counts: tuple[int, ...], num_samples: int = 100
) -> dict[str, float]:
    """Scores at the targets given the first 5, 15 … context points of the same tasks.

    Args:
        model: the model.
        guide: its guide.
        batches: test tasks with at least as many context points as the largest count.
        counts: context sizes.
        num_samples: posterior draws.

    Returns:
        By context size c: ``lpd_c`` (mean over target points of the log of the mean density, nats), ``rmse_c``, and
        ``coverage_c`` of the central 95 % interval.
    """
    found: dict[str, float] = {}
    for count in counts:
        few = [TaskBatch(batch.context.points(slice(0, count)), batch.target) for batch in batches]
        found |= {f"{name}_{count}": value for name, value in target_scores(model, guide, few, num_samples).items()}
    return found


def target_scores(model: Any, guide: Any, batches: list[TaskBatch], num_samples: int = 100) -> dict[str, float]:
    """The same at the targets given each batch's context: ``lpd``, ``rmse`` and ``coverage``."""
    rows = []
    for i, batch in enumerate(batches):
        y = batch.target.y
        assert y is not None
        prediction = predict(model, guide, batch.context, batch.target.x, num_samples, seed=i)
        inside = interval_coverage(prediction, y, levels=(0.95,))[0].mean()
        rows.append(torch.stack([prediction.log_prob(y).mean(), rmse(prediction, y).square().mean(), inside]))
    return named_scores(rows)


def named_scores(rows: list[torch.Tensor]) -> dict[str, float]:
    """``lpd``, ``rmse`` and ``coverage`` from mean log density, mean squared error and coverage of each batch."""
    lpd, mse, coverage = torch.stack(rows).double().mean(0).tolist()
    return {"lpd": lpd, "rmse": mse**0.5, "coverage": coverage}


def generator_scores(
    model: BayesianNetwork, tasks: FunctionTasks | ECGTasks, draws: int = 500, points: int = 50, seed: int = 0
) -> dict[str, float]:
    """The prior's functions against true ones: their energy distance, and the standard deviation of either."""
    x, truth = tasks.on_grid(draws, points, seed=seed + 1)
    drawn = prior_predictive(model, x, draws, seed=seed).function_samples
    return {
        "energy": energy_distance(drawn, truth),
        "function_sd": float(drawn.std(0).mean()),
        "true_sd": float(truth.std(0).mean()),
    }


def first_task(batch: TaskBatch, count: int) -> Dataset:
    """The first task of a batch, as one data set of its first context points."""
    return batch.context[0].points(slice(0, count))
