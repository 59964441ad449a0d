"""Time series by BNNP: what comes next, and what lies between, by what the network reads time with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from evaluation import plots
from evaluation.experiments.bnnp_scoring import named_scores, target_scores
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.nmdp_parts import Pair
from guides import BNNWeightGuide
from inference.objectives import make
from pp_models import BayesianAttentionNetwork, BayesianNetwork, LearnedGaussianPrior, TaskBatch, tasks
from pp_models.tasks.ecg_tasks import ECGTasks
from pp_models.tasks.task_stream import TaskStream

NOISE = 0.1
#: of the empirical Gaussian: the weight of a diagonal covariance
SHRINKAGE = 0.1
GAUSSIAN, MEAN = "Gaussian of the training series", "mean of the training series"
#: how the network reads time
TRUNKS = ("time", "sines and cosines", "attention")
QUESTIONS = ("between", "next")


class Size(NamedTuple):
    """Size of a run: hidden widths, width of attention, steps, weight samples S, tasks a step, test batches."""

    hidden: tuple[int, ...]
    attention: int
    steps: int
    particles: int
    batch_size: int
    test_batches: int


SCALES = {
    "smoke": Size((4, 4), 4, 3, 2, 2, 1),
    "small": Size((24, 24), 12, 600, 8, 4, 3),
    "paper": Size((64, 64), 32, 50_000, 16, 16, 6),
}


class InOrder(TaskStream):
    """Series whose context is what came first, and whose targets are what came next.

    Args:
        series: tasks with points at random times.
    """

    def __init__(self, series: ECGTasks) -> None:
        super().__init__(series.batch_size, series.seed)
        self.series = series

    def sample(self, generator: torch.Generator) -> TaskBatch:
        batch = self.series.sample(generator)
        full = batch.full
        order = full.x[..., 0].argsort(-1).unsqueeze(-1)
        assert full.y is not None
        x, y = full.x.gather(1, order), full.y.gather(1, order)
        count = batch.context.num_points
        ordered = type(full)(x, y)
        return TaskBatch(ordered.points(slice(0, count)), ordered.points(slice(count, None)))


def series(split: str, batch_size: int, seed: int, question: str, points: tuple[int, int]) -> TaskStream:
    """Recorded beats; of their points 30 to 70 % are the context."""
    found = tasks.ecg("ecg200", split, batch_size, seed, num_points=points, context_share=(0.3, 0.7))
    return InOrder(found) if question == "next" else found


def pair(size: Size, trunk: str) -> Pair:
    """A network over time and its guide; the noise is given."""
    options: dict[str, Any] = {"prior": LearnedGaussianPrior("unit"), "noise_scale": NOISE, "activation": "tanh"}
    if trunk == "attention":
        model: BayesianNetwork = BayesianAttentionNetwork(1, 1, size.attention, 1, 2, **options)
    else:
        features = 16 if trunk == "sines and cosines" else 0
        model = BayesianNetwork([1, *size.hidden, 1], input_features=features, **options)
    return model, BNNWeightGuide(model)


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains every trunk on either question, and scores the test beats."""
    size = SCALES[scale_name]
    rows: list[dict[str, Any]] = []
    train = tasks.ecg("ecg200", "train", 1, 0).series
    assert train is not None
    for question in QUESTIONS:
        test = series("test", 16, 1_000_000, question, (48, 48))
        batches = [test.batch(i) for i in range(size.test_batches)]
        for name, rival in RIVALS.items():
            rows.append({"task": question, "model": name, "seed": seeds[0]} | rival(train, batches))
        for seed in seeds:
            stream = series("train", size.batch_size, seed, question, (32, 48))
            for trunk in TRUNKS:
                model, guide, _ = workshop.fit(
                    f"bnnp-sequences-{question}-{scale_name}", trunk.replace(" ", "-"), partial(pair, size, trunk),
                    stream, seed, objective=make("pp-avi", num_particles=size.particles), steps=size.steps,
                    learning_rate=5e-3, final_learning_rate=5e-4, max_grad_norm=10.0,
                )  # fmt: skip
                rows.append({"task": question, "model": trunk, "seed": seed} | target_scores(model, guide, batches))
    table = pd.DataFrame(rows)
    outcome = Outcome("bnnp/sequences", "", table)
    outcome.checks = _checks(scale_name, table, seeds)
    outcome.notes = [
        "ECG200's beats of 96 samples, standardised; 48 random samples of each test beat, 30 to 70 % of them as "
        "context: random ones (between), or the earliest (next). Trunks: a perceptron of hidden widths "
        f"{list(size.hidden)} that reads time, the same with 16 sines and cosines of it at learned frequencies, and an "
        f"attention block of width {size.attention}, whose context points attend to one another, and so do its "
        f"targets. {size.steps} steps of {size.batch_size} series of PP-AVI with S = {size.particles}, Adam 5e-3 to "
        f"5e-4, noise {NOISE}.",
        "Rivals that are not amortised: mean and variance of the training series at every sample; and their joint "
        f"Gaussian (its covariance shrunk by {SHRINKAGE:g} towards the diagonal), conditioned on the context exactly. "
        "lpd: nats a target point by 100 draws. coverage: of central 95 % intervals.",
    ]
    wide = table.assign(model=table.model + " · " + table.task).drop(columns="task")
    outcome.figures["scores"] = (
        plots.comparison_plot(wide, scores=["lpd", "rmse"]),
        "Log density and root mean squared error of the targets, one dot a seed.",
    )
    return outcome


# -- rivals that know the training series ------------------------------------------------------------------------------


def _by_moments(train: Tensor, batches: list[TaskBatch], joint: bool) -> dict[str, float]:
    """Scores of the training series' Gaussian, at each sample by itself or conditioned on the context."""
    mean, centred = train.mean(0), train - train.mean(0)
    covariance = centred.T @ centred / (len(train) - 1)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * covariance.diagonal().diag()
    found = []
    for batch in batches:
        place = {p: ((getattr(batch, p).x[..., 0].double() + 3) / 6 * 95).round().long() for p in ("context", "target")}
        assert batch.context.y is not None and batch.target.y is not None
        for t in range(len(batch)):
            c, i = place["context"][t], place["target"][t]
            expected, variance = mean[i], covariance.diagonal()[i]
            if joint:
                gain = torch.linalg.solve(covariance[c][:, c], covariance[c][:, i])
                expected = expected + gain.T @ (batch.context.y[t, :, 0].double() - mean[c])
                variance = variance - (covariance[c][:, i] * gain).sum(0)
            y = batch.target.y[t, :, 0].double()
            normal = torch.distributions.Normal(expected, variance.clamp_min(1e-6).sqrt())
            inside = ((y - expected).abs() < 1.96 * normal.scale).double().mean()
            found.append(torch.stack([normal.log_prob(y).mean(), (y - expected).square().mean(), inside]))
    return named_scores(found)


RIVALS: dict[str, Callable[[Tensor, list[TaskBatch]], dict[str, float]]] = {
    MEAN: partial(_by_moments, joint=False),
    GAUSSIAN: partial(_by_moments, joint=True),
}


def _checks(scale: str, table: pd.DataFrame, seeds: list[int]) -> list[Check]:
    checks = []
    for question in QUESTIONS:
        part = table[table.task == question].set_index(["model", "seed"]).lpd
        for name in TRUNKS:
            gap = [float(part[name, seed] - part[MEAN, seeds[0]]) for seed in seeds]
            holds = bool(min(gap) > 0) if scale == "small" else None
            checks.append(Check(f"{question}: {name} above {MEAN}, lpd", "> 0 in every seed", signed(gap), holds))
        for name in TRUNKS[1:]:
            gap = [float(part[name, seed] - part["time", seed]) for seed in seeds]
            checks.append(Check(f"{question}: {name} less time alone, lpd", "reported", signed(gap), None))
        best = max(float(part[name].mean()) for name in TRUNKS)
        checks.append(
            Check(
                f"{question}: the best trunk less {GAUSSIAN}",
                "reported",
                signed([best - float(part[GAUSSIAN, seeds[0]])]),
                None,
            )
        )
    return checks
