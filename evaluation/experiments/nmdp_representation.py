"""Do NMDP's weights know which kernel drew a task? Clusters, a linear probe, and two controls."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from evaluation.experiments.experiment import Check, Outcome, Workshop
from evaluation.experiments.nmdp_kernel_mix import FLOOR, SCALES, VARIANTS, fitted, test_tasks
from evaluation.experiments.nmdp_parts import description
from evaluation.plots.style import WIDTH, colours, look
from evaluation.scores.task_representation import (
    centred_log_ratio,
    context_features,
    match_amplitude,
    picture_coordinates,
    representation_scores,
)
from pp_models import Dataset
from pp_models.tasks.gp_kernels import KERNELS

COUNTS = (5, 10, 30, 46)
BY_HAND = "seven hand-made features"
#: context size of the pictures
SHOWN = 30


def run(hyperparameters: str, scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains strict and context experts, and asks of α on contexts of 5 to 46 points what it says of the kernel."""
    size = SCALES[scale_name]
    pairs = fitted(hyperparameters, scale_name, list(VARIANTS), seeds, workshop)
    batch = test_tasks(hyperparameters, size.test_tasks, max(COUNTS))
    labels = batch.truth["kernel"]
    rows: list[dict[str, Any]] = []

    def add(model: str, seed: int, drawn: str, count: int, features: torch.Tensor) -> None:
        rows.append(
            {"model": model, "seed": seed, "tasks": drawn, "points": count}
            | vars(representation_scores(features, labels, seed=0))
        )

    pictures = {}
    for count in COUNTS:
        context = batch.context.points(slice(0, count))
        versions = {"as drawn": context, "at one amplitude": _matched(batch, count)}
        for drawn, seen in versions.items():
            add(BY_HAND, -1, drawn, count, context_features(seen))
            for (name, seed), (_, guide) in pairs.items():
                with torch.no_grad():
                    alpha: torch.Tensor = guide.concentration(seen)  # type: ignore[operator]
                add(name, seed, drawn, count, centred_log_ratio(alpha))
                if (count, drawn, seed) == (SHOWN, "as drawn", seeds[0]):
                    pictures[name] = picture_coordinates(centred_log_ratio(alpha))
    long = pd.DataFrame(rows)
    wide = long[long.tasks == "as drawn"].pivot_table(
        index=["model", "seed"], columns="points", values=["probe", "nmi", "ari"], sort=False
    )
    wide.columns = [f"{score} {points}" for score, points in wide.columns]
    name = "representation" + ("" if hyperparameters == "random" else f"-{hyperparameters}")
    outcome = Outcome(f"nmdp/{name}", "", wide.reset_index())
    outcome.tables["Every context size, with the control of one amplitude"] = long
    outcome.checks = _checks(long)
    chance = float(long.chance.iloc[0])
    outcome.notes = [
        "Strict experts: p(y | x), twice as many of them; context experts: p(y | x, r(x, D)). "
        + description(size, "as named", FLOOR),
        f"{size.test_tasks} test tasks, kernels {', '.join(KERNELS[k] for k in labels.unique().tolist())} with "
        f"{hyperparameters!r} hyper-parameters; chance is {chance:.3f}. probe: accuracy of a logistic regression, five "
        "folds; nmi and ari: k-means with as many clusters as kernels. Features are the centred log-ratios of α, "
        "standardised.",
        "Controls: seven features of the context made by hand, and the same tasks with every context scaled to one "
        "standard deviation. Weights that score below the hand-made features know less of the kernel than the context "
        "shows; weights that fall with one amplitude knew the amplitude. The paper prints NMI 0.42, ARI 0.44 and a "
        "probe of 84.4 %, without its context size or clustering recipe.",
    ]
    method = next(iter(pictures.values()))[1]
    outcome.figures = {
        "probe": (_curves(long, chance), "Accuracy of the linear probe by context size, mean over seeds."),
        "picture": (
            _picture({name: found for name, (found, _) in pictures.items()}, labels, method),
            f"Tasks by the centred log-ratio of α at {SHOWN} context points, {method}, coloured by kernel.",
        ),
    }
    return outcome


def _matched(batch: Any, count: int) -> Dataset:
    part = type(batch)(batch.context.points(slice(0, count)), batch.target)
    return match_amplitude(part).context


def _checks(long: pd.DataFrame) -> list[Check]:
    drawn = long[long.tasks == "as drawn"].groupby(["model", "points"]).probe.mean()
    checks = []
    for name in VARIANTS:
        gaps = ", ".join(f"{drawn[name, c] - drawn[BY_HAND, c]:+.3f} at {c}" for c in COUNTS)
        checks.append(Check(f"{name}: probe on α less probe on hand-made features", "reported", gaps, None))
    best = long[long.model != BY_HAND].groupby(["model", "points"])[["nmi", "ari"]].mean().max()
    checks.append(Check("best NMI and ARI of any α", "reported", f"{best.nmi:.3f}, {best.ari:.3f}", None))
    return checks


def _curves(long: pd.DataFrame, chance: float) -> Figure:
    with look():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        names = list(dict.fromkeys(long.model))
        for axes, drawn in zip(panels, ("as drawn", "at one amplitude"), strict=True):
            for name, colour in zip(names, colours(len(names)), strict=True):
                line = long[(long.model == name) & (long.tasks == drawn)].groupby("points").probe.mean()
                axes.plot(line.index, line, color=colour, marker="o", markersize=4, label=name)
            axes.axhline(chance, color="#666666", linestyle=":", label="chance")
            axes.set(title=f"Tasks {drawn}", xlabel="context points")
        panels[0].set_ylabel("accuracy")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _picture(coordinates: dict[str, torch.Tensor], labels: torch.Tensor, method: str) -> Figure:
    kernels = labels.unique().tolist()
    with look():
        figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
        panels = figure.subplots(1, len(coordinates), squeeze=False)[0]
        for axes, (name, found) in zip(panels, coordinates.items(), strict=True):
            for kernel, colour in zip(kernels, colours(len(kernels)), strict=True):
                part = found[labels == kernel].numpy()
                axes.scatter(part[:, 0], part[:, 1], s=6, color=colour, alpha=0.6, linewidth=0, label=KERNELS[kernel])
            axes.set(title=name.removeprefix("NMDP, "), xlabel=f"{method} 1")
            axes.set_xticks([])
            axes.set_yticks([])
        panels[0].set_ylabel(f"{method} 2")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(kernels), markerscale=2)
    return figure
