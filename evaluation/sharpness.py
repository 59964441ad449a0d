"""How sharp predictions are beside two references that anyone can have: a marginal, and a GP fitted to each context."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.predict import predict
from pp_models.data import Dataset, TaskBatch

#: tasks that a GP is fitted to, and context points of each
MOST_TASKS, MOST_POINTS = 16, 200
#: a GP needs so many points to be fitted
LEAST_POINTS = 3


@dataclass(frozen=True)
class References:
    """Scores on the first tasks of a test, one entry a task.

    Args:
        marginal: mean log-density of a target, in nats, under one Gaussian fitted to all context points ``[T]``.
        gp: the same under a Gaussian process fitted to the task's own context ``[T]``; NaN where it has too few points.
        gp_explained: share of the targets' variance that its mean explains ``[T]``.
        own_explained: share of the variance of the *context points* that the guide's mean explains ``[T]``.
    """

    marginal: Tensor
    gp: Tensor
    gp_explained: Tensor
    own_explained: Tensor


def references(model: Any, guide: Any, batches: Sequence[TaskBatch], draws: int, seed: int) -> References:
    """Scores both references on the tasks of a test, and the guide on the points that it was given.

    Args:
        model: the model.
        guide: its guide.
        batches: tasks with floating-point y.
        draws: of the guide's predictions.
        seed: of those draws.
    """
    pooled = torch.cat([_points(b.context) for b in batches])
    if len(pooled) < 2:  # no context anywhere: the targets' own spread
        pooled = torch.cat([_points(b.target) for b in batches])
    centre = pooled.nanmean(0)
    count = (~pooled.isnan()).sum(0)
    spread = ((pooled - centre).square().nansum(0) / (count - 1).clamp_min(1)).sqrt()
    marginal = torch.distributions.Normal(centre, spread.clamp_min(1e-6), validate_args=False)
    marginals, gps, gp_explained, own_explained = [], [], [], []
    left = MOST_TASKS
    for number, batch in enumerate(batches):
        flat = batch.context.batch_shape.numel()
        context, target = _flat(batch.context), _flat(batch.target)
        fitted = None
        if left > 0 and batch.context.num_points:
            found = predict(model, guide, batch.context, batch.context.without_y(), draws, seed=seed + number)
            fitted = found.mean.reshape(flat, *found.mean.shape[len(batch.context.batch_shape) :])
        for task in range(flat):
            given, asked = context[2][task], target[2][task]
            y = target[1][task][asked].double()
            marginals.append(float(marginal.log_prob(y.to(pooled.dtype)).nansum(-1).mean()) if len(y) else math.nan)
            if left <= 0 or fitted is None or int(given.sum()) < LEAST_POINTS or not len(y):
                gps.append(math.nan)
                gp_explained.append(math.nan)
                own_explained.append(math.nan)
                continue
            left -= 1
            own = context[1][task][given].double()
            own_explained.append(_explained(own, fitted[task][given].double()))
            score, mean = _gaussian_process(context[0][task][given], own, target[0][task][asked], y)
            gps.append(score)
            gp_explained.append(_explained(y, mean))
    return References(*(torch.tensor(v, dtype=torch.float64) for v in (marginals, gps, gp_explained, own_explained)))


def _points(data: Dataset) -> Tensor:
    """Outputs of the existing points ``[n, Dy]``, NaN where one is missing."""
    assert data.y is not None
    return data.y.masked_fill(~data.output_mask(), math.nan)[data.full_mask()].double()


def _flat(data: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and mask with one task dimension; y is NaN where an output is missing."""
    tasks = data.batch_shape.numel()
    y = data.y.masked_fill(~data.output_mask(), math.nan)
    return (
        data.x.reshape(tasks, *data.x.shape[-2:]),
        y.reshape(tasks, *y.shape[-2:]),
        data.full_mask().reshape(tasks, data.num_points),
    )


def _explained(y: Tensor, mean: Tensor) -> float:
    """1 - residual over total sum of squares, over all outputs; NaN where y does not vary."""
    total = float((y - y.nanmean(0)).square().nansum())
    return 1 - float((y - mean).square().nansum()) / total if total > 0 else math.nan


def _gaussian_process(x: Tensor, y: Tensor, at: Tensor, truth: Tensor) -> tuple[float, Tensor]:
    """scikit-learn's GP, an RBF with noise, fitted by its evidence: mean log-density of a target, and its mean."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    x, y = x[:MOST_POINTS].double(), y[:MOST_POINTS]
    spread = x.std(0).clamp_min(1e-6)
    score, means = 0.0, []
    for output in range(y.shape[-1]):
        known = torch.isfinite(y[:, output])
        if int(known.sum()) < LEAST_POINTS:
            return math.nan, torch.full_like(truth, math.nan)
        kernel = ConstantKernel(1.0) * RBF(1.0) + WhiteKernel(0.1, (1e-6, 10.0))
        regressor = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a hyper-parameter at its bound is fine for a reference
            regressor.fit((x / spread)[known].numpy(), y[known, output].numpy())
            mean, sd = regressor.predict((at.double() / spread).numpy(), return_std=True)
        sd = np.maximum(sd, 1e-6)
        each = -0.5 * ((truth[:, output].numpy() - mean) / sd) ** 2 - np.log(sd) - 0.5 * math.log(2 * math.pi)
        score += float(np.nansum(each)) / len(each)
        means.append(torch.as_tensor(mean))
    return score, torch.stack(means, -1)
