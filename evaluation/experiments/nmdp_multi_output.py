"""Regression with several outputs: one function, where a plain regressor wins, and cells, where the context counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from evaluation import plots
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.nmdp_parts import Pair, Size, ceiling, description, mixture, process, train
from evaluation.scores.metrics import calibration_error
from inference import Prediction, predict
from pp_models import TaskBatch, tasks
from pp_models.tasks.regression_tasks import DIVISIONS, RegressionTasks

#: floor of every scale, in standardised units
FLOOR = 0.05
SCALES = {
    "smoke": Size(4, 8, 3, 2, 2, 2, 4),
    "small": Size(2_000, 64, 8, 16, 8, 24, 50),
    "paper": Size(35_700, 128, 8, 16, 100, 100, 200),
}
#: iterations of the scikit-learn network, and draws behind a calibration error
FITS = {"smoke": 3, "small": 200, "paper": 500}
#: test rows of a task below paper scale
MOST = 300
LEARNED = ("CNP", "NMDP, strict", "NMDP, context")


def run(table: str, scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Compares NMDP and a CNP with a mean, a ridge regression and a network, under both divisions of the table."""
    size = SCALES[scale_name]
    rows: list[dict[str, Any]] = []
    stream: RegressionTasks
    for division in DIVISIONS:
        test = tasks.multi_output(table, "test", 2, 1_000_000, division=division)
        if scale_name != "paper" and test.counts.num_target[0] > MOST:
            test = tasks.multi_output(table, "test", 2, 1_000_000, division=division, num_target=MOST)
        batches = [test.batch(i) for i in range(max(1, size.test_tasks // 2))]
        for name, fit in PLAIN.items():
            for seed in seeds if name == "network" else seeds[:1]:
                found = fit(test, batches, seed, FITS[scale_name])
                rows.append({"model": name, "seed": seed, "division": division} | _scores(found, batches))
        for seed in seeds:
            stream = tasks.multi_output(table, "train", size.batch_size, seed, division=division)
            for name in LEARNED:
                if name == "CNP":
                    build = process("CNP", stream.dim_x, stream.dim_y, size, FLOOR)
                else:
                    build = mixture(stream.dim_x, stream.dim_y, size, name.removeprefix("NMDP, "), FLOOR)
                key = f"nmdp-multi-output-{table}-{division}-{scale_name}"
                pair = train(workshop, key, name, build, stream, seed, size)
                found = [_predict(pair, batch, size.draws, i) for i, batch in enumerate(batches)]
                rows.append({"model": name, "seed": seed, "division": division} | _scores(found, batches))
    long = pd.DataFrame(rows)
    wide = long.pivot_table(
        index=["model", "seed"], columns="division", values=["mse", "ece", "ll", "joint_ll"], sort=False
    )
    wide.columns = [f"{score}, {division}" for score, division in wide.columns]
    outcome = Outcome(f"nmdp/multi-output-{table}", "", wide.reset_index())
    outcome.tables["By division"] = long
    outcome.checks = _checks(long, seeds, scale_name, test.dim_y)
    outcome.notes = [
        f"{test.source}; {test.duplicates} repeated rows left out. Inputs and outputs are standardised by the training "
        "rows, so the mean predictor's squared error is about 1. random: a task is a random draw of rows, 3 to 100 as "
        "context and 100 as target in training, 30 training rows and "
        f"{'all' if scale_name == 'paper' else f'at most {MOST} random'} test rows for the test: one function, which a "
        "regressor that remembers the training rows knows without a context. clusters: a task is a cell of the input "
        "space, and a fifth of the cells is held out.",
        description(size, "strict and context, as named", FLOOR, test.dim_y),
        "mean, ridge and network (scikit-learn, two hidden layers of 128) read all training rows and no context; "
        "'mean of the context' and 'ridge on the context' read nothing else. Their scale is that of their residuals on "
        "the training rows, or on the context. ece: mean distance of the PIT's distribution from uniform over 19 "
        "levels, by 100 draws. ll and joint_ll: nats a row, summed over outputs.",
    ]
    outcome.figures["errors"] = (
        plots.comparison_plot(
            outcome.table.rename(columns=lambda c: c.replace("mse", "squared error")),
            scores=[f"squared error, {d}" for d in DIVISIONS],
        ),
        "Squared error in standardised units, one dot a seed; lower is better.",
    )
    return outcome


def _predict(pair: Pair, batch: TaskBatch, draws: int, seed: int) -> tuple[Prediction, Prediction]:
    """For the marginal scores and for the joint one."""
    model, guide = pair
    drawn = predict(model, guide, batch.context, batch.target.x, max(draws, 100), seed=seed)
    return drawn, predict(model, guide, batch.context, batch.target.x, 1, weights="mean", seed=seed)


def _scores(found: list[tuple[Prediction, Prediction]], batches: list[TaskBatch]) -> dict[str, float]:
    rows = []
    for (drawn, closed), batch in zip(found, batches, strict=True):
        y = batch.target.y
        assert y is not None
        rows.append(
            [
                (closed.mean - y).square().mean(),
                calibration_error(drawn, y),
                closed.log_prob(y).mean(),
                (drawn.joint_log_prob(y) / y.shape[-2]).mean(),
            ]
        )
    mean = torch.tensor([[float(v) for v in row] for row in rows]).mean(0).tolist()
    return dict(zip(("mse", "ece", "ll", "joint_ll"), mean, strict=True))


# -- regressors without a latent ---------------------------------------------------------------------------------------


def _gaussian(mean: Tensor, scale: Tensor, seed: int) -> tuple[Prediction, Prediction]:
    """Predictions ``[*B, N, Dy]`` with one scale an output, floored like those of the others."""
    scale = scale.clamp_min(FLOOR).expand_as(mean)
    draws = mean + scale * torch.randn(100, *mean.shape, generator=torch.Generator().manual_seed(seed))
    one = Independent(Normal(mean.unsqueeze(0), scale.unsqueeze(0)), 1)
    return Prediction(one.expand((100, *mean.shape[:-1])), draws), Prediction(one, draws[:1])  # type: ignore[arg-type]


def _from_rows(fit: Callable[[np.ndarray, np.ndarray, int, int], Any]) -> Callable[..., list]:
    """A scikit-learn regressor of all training rows."""

    def found(test: RegressionTasks, batches: list[TaskBatch], seed: int, iterations: int) -> list:
        x, y = test.x[test.train_rows], test.y[test.train_rows]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a network that still improves is told so
            regressor = fit(x.numpy(), y.numpy(), seed, iterations)

        def predicted(inputs: Tensor) -> Tensor:
            flat = regressor.predict(inputs.flatten(0, -2).numpy())
            return torch.as_tensor(flat, dtype=inputs.dtype).reshape(*inputs.shape[:-1], -1)

        scale = (y - predicted(x)).std(0)
        return [_gaussian(predicted(batch.target.x), scale, i) for i, batch in enumerate(batches)]

    return found


def _ridge(x: np.ndarray, y: np.ndarray, seed: int, iterations: int) -> Any:
    from sklearn.linear_model import RidgeCV

    return RidgeCV(alphas=np.logspace(-2, 3, 11)).fit(x, y)


def _network(x: np.ndarray, y: np.ndarray, seed: int, iterations: int) -> Any:
    from sklearn.neural_network import MLPRegressor

    return MLPRegressor(
        hidden_layer_sizes=(128, 128), max_iter=iterations, early_stopping=True, random_state=seed % 2**32
    ).fit(x, y)


def _mean(test: RegressionTasks, batches: list[TaskBatch], seed: int, iterations: int) -> list:
    return [_gaussian(torch.zeros_like(_y(b)), torch.ones(()), i) for i, b in enumerate(batches)]


def _context_mean(test: RegressionTasks, batches: list[TaskBatch], seed: int, iterations: int) -> list:
    found = []
    for i, batch in enumerate(batches):
        known = batch.context.y
        assert known is not None
        mean = known.mean(1, keepdim=True).expand_as(_y(batch))
        found.append(_gaussian(mean, known.std(1, keepdim=True), i))
    return found


def _context_ridge(test: RegressionTasks, batches: list[TaskBatch], seed: int, iterations: int) -> list:
    """y = ȳ + (x - x̄) W with a penalty of 1 a weight; its scale is that of the leave-one-out residuals."""
    found = []
    for i, batch in enumerate(batches):
        x, y = batch.context.x.double(), batch.context.y
        assert y is not None
        middle, level = x.mean(1, keepdim=True), y.double().mean(1, keepdim=True)
        gram = (x - middle) @ (x - middle).mT
        solved = torch.linalg.inv(gram + torch.eye(gram.shape[-1], dtype=gram.dtype))
        weight = solved @ (y.double() - level)
        mean = level + (batch.target.x.double() - middle) @ (x - middle).mT @ weight
        residual = weight / solved.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        scale = residual.square().mean(1, keepdim=True).sqrt()
        found.append(_gaussian(mean.to(y.dtype), scale.to(y.dtype), i))
    return found


def _y(batch: TaskBatch) -> Tensor:
    assert batch.target.y is not None
    return batch.target.y


PLAIN: dict[str, Callable[..., list]] = {
    "mean": _mean,
    "ridge": _from_rows(_ridge),
    "network": _from_rows(_network),
    "mean of the context": _context_mean,
    "ridge on the context": _context_ridge,
}


def _checks(long: pd.DataFrame, seeds: list[int], scale: str, outputs: int) -> list[Check]:
    by = long.set_index(["division", "model", "seed"]).mse
    plain = long.groupby(["division", "model"]).mse.mean()
    judged = scale != "smoke"
    nmdp = [float(plain["clusters", "mean"] - by["clusters", "NMDP, context", s]) for s in seeds]
    checks = [
        Check(
            "clusters: NMDP (context) below the mean predictor",
            "squared error lower, every seed",
            signed(nmdp),
            min(nmdp) > 0 if judged else None,
        )
    ]
    for division in DIVISIONS:
        for name in ("CNP", "network", "mean of the context"):
            gap = float(plain[division, "NMDP, context"] - plain[division, name])
            label = f"{division}: squared error of NMDP (context) less that of {name}"
            checks.append(Check(label, "reported", signed([gap]), None))
    top = float(long[long.model.isin(LEARNED)].ll.max())
    most = ceiling(FLOOR, outputs)
    checks.append(Check("no score above the floor's ceiling", f"<= {most:.3f} nats a row", f"{top:+.3f}", top <= most))
    return checks
