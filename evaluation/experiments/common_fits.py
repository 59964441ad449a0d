"""One fit of the common ground: trained by its method's recipe within a budget, scored, and kept with its scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evaluation.experiments.experiment import Workshop
from evaluation.methods import Method
from evaluation.run_configuration import (
    CONFIGURATION,
    RunConfiguration,
    affordable,
    configure,
    read_configuration,
    train,
)
from evaluation.scores.scoring import mean_weights_predict, parameter_count, score_as_used, score_oracle
from inference import checkpoint, predict
from inference.prediction import Prediction
from pp_models import TaskBatch, oracle_log_likelihood, oracle_predict
from pp_models.files import STRICT, make_folder, read_checked_json, sealed_json

FILE = "scores.json"
#: what is scored, nats a point but for the last two
SCORES = ("ll", "rll", "pll", "joint_ll", "joint_pll", "rmse", "crps")
#: central intervals whose coverage is measured
LEVELS = (0.5, 0.8, 0.95)
#: draws of a prediction, where it is not that of the mean weights, and of every joint likelihood
DRAWS = 32
#: points of a learning curve
CURVE = 8


class Budget(NamedTuple):
    """How much is spent on each fit.

    Args:
        cpu_seconds: of training, tasks drawn within it; 0 for ``steps`` instead.
        steps: optimizer steps where there are no seconds.
        width: hidden width; None for the recipe's.
        test_batches: batches of test tasks.
        test_batch_size: tasks in each.
    """

    cpu_seconds: float
    steps: int = 0
    width: int | None = None
    test_batches: int = 16
    test_batch_size: int = 16


SCALES = {"smoke": Budget(0, 2, 8, 1, 4), "small": Budget(30.0), "paper": Budget(300.0)}


def budget_of(scale: str, cpu_seconds: float | None) -> Budget:
    """That of a scale, or its test tasks with so many seconds."""
    return SCALES[scale] if cpu_seconds is None else SCALES[scale]._replace(cpu_seconds=cpu_seconds, steps=0)


class TestTasks(NamedTuple):
    """What every method is scored on.

    Args:
        name: of the task distribution.
        batches: test tasks.
        by_size: for each number of context points, the same tasks with that many.
        watched: tasks of the learning curve.
    """

    name: str
    batches: list[TaskBatch]
    by_size: dict[int, list[TaskBatch]]
    watched: list[TaskBatch]


@dataclass(frozen=True)
class FitScores:
    """What came out of a fit.

    Args:
        steps: optimizer steps.
        seconds: CPU seconds of training; None for a fit that was interrupted and resumed.
        parameters: trained numbers.
        scores: means over test tasks.
        coverage: share of the target points in central intervals, by their level in percent.
        by_size: log-likelihood of a target point by number of context points.
        curve: CPU seconds, and log-likelihood of a target point of a few tasks after them.
    """

    steps: int
    seconds: float | None
    parameters: int
    scores: dict[str, float]
    coverage: dict[str, float]
    by_size: dict[str, float]
    curve: list[tuple[float, float]] = field(default_factory=list)

    __pydantic_config__ = STRICT

    def row(self) -> dict[str, Any]:
        """The numbers of a table."""
        row: dict[str, Any] = {**self.scores, **{f"in {level} %": share for level, share in self.coverage.items()}}
        if self.steps:
            row |= {"parameters": self.parameters, "steps": self.steps}
        if self.seconds is not None:
            row |= {"seconds": self.seconds, "ms a step": 1000 * self.seconds / self.steps}
        return row


def fit_folder(workshop: Workshop, tasks: str, budget: Budget, name: str, seed: int) -> Path:
    """Where a fit and its scores are kept: a run that ``guidebook inspect`` opens too."""
    spent = f"{budget.cpu_seconds:g}s" if budget.cpu_seconds else f"{budget.steps}steps"
    return workshop.folder / "fits" / f"{tasks}-{spent}" / f"{name}-seed{seed}"


def configuration_in(folder: Path, tasks: str, budget: Budget, name: str, seed: int, device: str) -> RunConfiguration:
    """What is fitted there: that which was begun, or else the method's recipe for as many steps as the budget buys."""
    if (folder / CONFIGURATION).exists():
        return read_configuration(folder)
    configuration = configure(name, tasks, seed=seed, width=budget.width, steps=budget.steps or None)
    if budget.cpu_seconds:
        steps, _ = affordable(configuration, budget.cpu_seconds, device)
        configuration = replace(configuration, steps=steps)
    checkpoint.write(folder, CONFIGURATION, sealed_json(asdict(configuration)))
    return configuration


class LearningCurve:
    """Scores a method on a few tasks while it is trained, and leaves the time that this takes out.

    Args:
        method: what is trained.
        batches: tasks.
    """

    def __init__(self, method: Method, batches: Sequence[TaskBatch]) -> None:
        self.method, self.batches = method, batches
        self.points: list[tuple[float, float]] = []
        self.start, self.scoring = time.process_time(), 0.0

    def seconds(self) -> float:
        """CPU seconds of training so far."""
        return time.process_time() - self.start - self.scoring

    def __call__(self, row: dict[str, float]) -> None:
        """Called with the metrics of a fit, which this leaves as it would have been."""
        spent, here = self.seconds(), time.process_time()
        modules = self.method.model, self.method.guide
        for module in modules:
            module.eval()
        self.points.append((round(spent, 3), target_score(self.method, self.batches)))
        for module in modules:
            module.train()
        self.scoring += time.process_time() - here


def trained(
    workshop: Workshop, test: TestTasks, budget: Budget, name: str, seed: int, watch: bool = False
) -> tuple[Method, LearningCurve]:
    """A method trained (or continued, or read back) within its budget, ready to predict, and how it came to be."""
    folder = make_folder(fit_folder(workshop, test.name, budget, name, seed), "out")
    configuration = configuration_in(folder, test.name, budget, name, seed, workshop.device_name)
    method = configuration.build()
    curve = LearningCurve(method, test.watched)
    train(
        configuration,
        method,
        checkpoint_dir=folder,
        resume=True,
        progress=workshop.progress,
        device=workshop.device_name,
        callbacks=[curve] if watch else [],
        log_every=max(1, configuration.steps // CURVE),
    )
    return method, curve


def fit_scores(workshop: Workshop, test: TestTasks, budget: Budget, name: str, seed: int) -> FitScores:
    """The scores of a method and seed: read where they stand, else measured after the fit."""
    folder = fit_folder(workshop, test.name, budget, name, seed)
    if (folder / FILE).exists():
        return read_checked_json(folder / FILE, FitScores, "the scores of a fit")
    whole = not checkpoint.read_index(folder)  # else it was interrupted
    workshop.say(f"{folder.parent.name}: {name}, seed {seed}")
    method, curve = trained(workshop, test, budget, name, seed, watch=True)
    seconds = curve.seconds()
    table = score_as_used(method.model, method.guide, test.batches, DRAWS)
    result = FitScores(
        steps=read_configuration(folder).steps,
        seconds=round(seconds, 3) if whole else None,
        parameters=parameter_count(method.model, method.guide),
        scores={score: float(table[score].mean()) for score in SCORES},
        coverage=_coverage(_levels(method, test.batches)),
        by_size={str(size): target_score(method, batches) for size, batches in test.by_size.items()},
        curve=curve.points if whole else [],
    )
    checkpoint.write(folder, FILE, sealed_json(asdict(result)))
    return result


def predictive(method: Method, batch: TaskBatch, seed: int = 0) -> Prediction:
    """The prediction that a method is used with, at the targets."""
    how = "mean" if mean_weights_predict(method.model, method.guide, batch.context) else "samples"
    at = batch.target.without_y()
    return predict(method.model, method.guide, batch.context, at, DRAWS, weights=how, seed=seed)


def target_score(method: Method, batches: Sequence[TaskBatch]) -> float:
    """Log-likelihood of a target point, nats; its mean over tasks."""
    found = []
    for number, batch in enumerate(batches):
        assert batch.target.y is not None
        found.append(predictive(method, batch, number).log_prob(batch.target.y).double().mean(-1))
    return float(torch.cat(found).mean()) / batches[0].target.y.shape[-1]  # type: ignore[union-attr]


def _levels(method: Method, batches: Sequence[TaskBatch]) -> list[Tensor]:
    """Of every target, the level of the central interval whose end it is ``[*B, N, Dy]``."""
    found = []
    for number, batch in enumerate(batches):
        assert batch.target.y is not None
        found.append((2 * predictive(method, batch, number).cdf(batch.target.y).double() - 1).abs())
    return found


def _coverage(levels: Sequence[Tensor]) -> dict[str, float]:
    """Share of targets in central intervals; the mean over tasks, each counting once."""
    return {
        f"{100 * level:g}": float(torch.cat([(each <= level).double().mean((-1, -2)) for each in levels]).mean())
        for level in LEVELS
    }


def exact_scores(test: TestTasks, floor: float) -> FitScores:
    """The same of the Gaussian process that drew the tasks, its standard deviation not below the floor."""
    table = score_oracle(test.batches, floor)
    levels, errors = [], []
    for batch in test.batches:
        mean, sd = oracle_predict(batch, batch.target.x)
        error = batch.target.y - mean  # type: ignore[operator]
        levels.append((2 * torch.special.ndtr(error / sd.clamp_min(floor)) - 1).abs())
        errors.append(error.square().mean((-1, -2)).sqrt())
    scores = {score: float(table[score].mean()) for score in SCORES if score in table}
    scores |= {"rmse": float(torch.cat(errors).mean())}
    by_size = {
        str(size): float(torch.cat([oracle_log_likelihood(b, "target", floor).mean(-1) for b in batches]).mean())
        for size, batches in test.by_size.items()
    }
    return FitScores(0, None, 0, scores, _coverage(levels), by_size)
