"""BNNP by its number of draws, by the covariance of its learned prior, and on points that come one by one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure
from pyro import poutine

from evaluation.experiments.bnnp_objectives import pair, test_tasks, training_tasks
from evaluation.experiments.bnnp_scoring import context_scores, generator_scores
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.plots.style import WIDTH, colours, look
from guides import BNNWeightGuide
from guides.networks.bnn_online import OnlinePosterior
from inference.objectives import make
from inference.prediction import likelihood_of_points
from inference.step_cost import step_cost
from pp_models import Dataset, LearnedGaussianPrior, TaskBatch
from pp_models.task_plates import PARTICLE_PLATE

COUNTS = (5, 30)
#: covariance of the learned prior -> its arguments
PRIORS: dict[str, dict[str, Any]] = {
    "independent": {"granularity": "weight"},
    "unit, full": {"granularity": "unit"},
    "unit, low rank": {"granularity": "unit", "covariance": "low-rank", "rank": 2},
    "unit, sparse": {"granularity": "unit", "covariance": "sparse", "density": 0.3},
    "layer, full": {"granularity": "layer"},
}
#: what a stream begins with, and in what portions further points come
FIRST, PORTION = 5, 5


class Size(NamedTuple):
    """Size of a run: hidden widths, steps, weight samples S, tasks a step, test batches, and the S of the sweep."""

    hidden: tuple[int, ...]
    steps: int
    particles: int
    batch_size: int
    test_batches: int
    draws: tuple[int, ...]


SCALES = {
    "smoke": Size((4, 4), 4, 2, 2, 1, (1, 2)),
    "small": Size((16, 16), 600, 16, 4, 3, (1, 2, 4, 16, 64)),
    "paper": Size((64, 64), 50_000, 32, 5, 20, (1, 2, 4, 8, 16, 32, 64, 128)),
}


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains with each number of draws and each prior, and follows one of the fits along streams of points."""
    size = SCALES[scale_name]
    batches = test_tasks(size.test_batches)
    rows: list[dict[str, Any]] = []
    streams: list[dict[str, Any]] = []
    for seed in seeds:
        stream = training_tasks(size.batch_size, seed)

        def fitted(name: str, prior: str, draws: int, seed: int = seed, stream: Any = stream) -> tuple:
            objective = make("pp-avi", num_particles=draws)
            model, guide, _ = workshop.fit(
                f"bnnp-sweeps-{scale_name}", name, lambda: pair(size.hidden, LearnedGaussianPrior(**PRIORS[prior])),
                stream, seed, objective=objective, steps=size.steps, learning_rate=5e-3, final_learning_rate=5e-4,
            )  # fmt: skip
            spent: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
            if scale_name != "smoke":
                spent["ms a step"] = 1000 * step_cost(model, guide, stream, objective)
            return model, guide, spent

        for draws in size.draws:
            model, guide, spent = fitted(f"draws-{draws}", "unit, full", draws)
            row = {"sweep": "draws", "model": f"S = {draws}", "seed": seed}
            rows.append(row | context_scores(model, guide, batches, COUNTS) | spent)
        for prior in PRIORS:
            model, guide, spent = fitted(f"prior-{prior}", prior, size.particles)
            row = {"sweep": "prior", "model": prior, "seed": seed} | context_scores(model, guide, batches, COUNTS)
            rows.append(row | generator_scores(model, stream, seed=seed) | spent)
            if prior == "unit, full":
                streams += [{"seed": seed} | found for found in stream_scores(guide, batches)]
    followed = pd.DataFrame(streams)
    ends = followed[followed.points == followed.points.max()]
    for name in ("anew", "updated"):
        begin = followed[followed.points == FIRST].set_index("seed")[name]
        for _, end in ends.iterrows():
            row = {"sweep": "stream", "model": f"stream, {name}", "seed": int(end.seed), "lpd_30": end[name]}
            rows.append(row | {"lpd_5": begin[int(end.seed)]})
    table = pd.DataFrame(rows)
    outcome = Outcome("bnnp/sweeps", "", table)
    outcome.checks = _checks(scale_name, table, followed, seeds, size)
    outcome.notes = [
        f"{size.steps} steps of {size.batch_size} tasks of PP-AVI, hidden widths {list(size.hidden)}, Adam 5e-3 to "
        f"5e-4, likelihood noise 0.1 (the data's is 0.05); the sweep of priors has S = {size.particles}. "
        f"{16 * len(batches)} held-out tasks with 30 target points; predictions by 100 draws. ms a step are CPU "
        "milliseconds on the machine that wrote this, beside whatever else ran there.",
        f"Streams begin with {FIRST} points and go on in portions of {PORTION}: updated keeps the draws of the hidden "
        "layers and updates the last layer's posterior in closed form, anew calls the guide on all points so far. "
        "lpd is the log density of a target point, nats.",
    ]
    outcome.figures["sweeps"] = (
        _figure(table, followed),
        "Log density of a target point by draws in training, and along a stream of points; a line a seed.",
    )
    return outcome


@torch.no_grad()
def stream_scores(guide: BNNWeightGuide, batches: list[TaskBatch], num_samples: int = 100) -> list[dict[str, float]]:
    """Log density of the targets as context points come in portions: updated in the last layer, and inferred anew."""
    most = min(batch.context.num_points for batch in batches)
    found = [{"points": points, "anew": 0.0, "updated": 0.0} for points in range(FIRST, most + 1, PORTION)]
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        online = OnlinePosterior.start(guide, batch.context.points(slice(0, FIRST)), num_samples)
        for row in found:
            if row["points"] > FIRST:
                portion = slice(int(row["points"]) - PORTION, int(row["points"]))
                online = online.update(batch.context.points(portion))
            row["updated"] += _log_density(guide, online, batch.target) / len(batches)
            whole = OnlinePosterior.start(guide, batch.context.points(slice(0, int(row["points"]))), num_samples)
            row["anew"] += _log_density(guide, whole, batch.target) / len(batches)
    return found


def _log_density(guide: BNNWeightGuide, posterior: OnlinePosterior, target: Dataset) -> float:
    """Mean over target points of the log of the mean density over draws."""
    weights = posterior.draw()
    assert target.y is not None
    with pyro.plate(PARTICLE_PLATE, len(posterior.gram), dim=-1 - len(target.batch_shape)):
        found = poutine.trace(poutine.condition(guide.model, data=weights)).get_trace(target.without_y())
    log_prob = likelihood_of_points(found.nodes["y"]).log_prob(target.y)
    return float((torch.logsumexp(log_prob, 0) - math.log(len(log_prob))).mean())


def _checks(scale: str, table: pd.DataFrame, streams: pd.DataFrame, seeds: list[int], size: Size) -> list[Check]:
    def claim(value: bool) -> bool | None:
        return bool(value) if scale == "small" else None

    by = table.set_index(["model", "seed"])
    most, one = f"S = {size.draws[-1]}", f"S = {size.draws[0]}"
    gains = [float(by.loc[(most, s), "lpd_30"] - by.loc[(one, s), "lpd_30"]) for s in seeds]
    full = [float(by.loc[("unit, full", s), "lpd_30"] - by.loc[("independent", s), "lpd_30"]) for s in seeds]
    checks = [
        Check(f"{most} above {one} in training, 30 points", "every seed > 0", signed(gains), claim(min(gains) > 0)),
        Check("correlated within a unit above independent, 30 points", "reported", signed(full), None),
    ]
    for name in ("unit, low rank", "unit, sparse", "layer, full"):
        found = [float(by.loc[(name, s), "lpd_30"] - by.loc[("unit, full", s), "lpd_30"]) for s in seeds]
        checks.append(Check(f"{name} less unit, full, 30 points", "reported", signed(found), None))
    last = streams[streams.points == streams.points.max()].set_index("seed")
    lost = [float(last.loc[s, "anew"] - last.loc[s, "updated"]) for s in seeds]
    first = streams[streams.points == FIRST].set_index("seed")
    won = [float(last.loc[s, "updated"] - first.loc[s, "updated"]) for s in seeds]
    checks += [
        Check(
            f"what the last layer alone learns of a stream, {FIRST} to {int(streams.points.max())} points",
            "every seed > 0",
            signed(won),
            claim(min(won) > 0),
        ),
        Check("what it loses against inferring anew at the end", "reported", signed(lost), None),
    ]
    return checks


def _figure(table: pd.DataFrame, streams: pd.DataFrame) -> Figure:
    with look():
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        palette = colours(2)
        for _, part in table[table.sweep == "draws"].groupby("seed"):
            left.plot([int(m.split()[-1]) for m in part.model], part.lpd_30, color=palette[0], marker="o")
        left.set_xscale("log", base=2)
        left.set_xlabel("draws S in training")
        left.set_ylabel("log density, 30 points")
        for number, (_, part) in enumerate(streams.groupby("seed")):
            for colour, name in zip(palette, ("anew", "updated"), strict=True):
                right.plot(part.points, part[name], color=colour, label=name if not number else None)
        right.set_xlabel("points of the stream")
        right.legend()
    return figure
