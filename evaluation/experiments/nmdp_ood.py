"""Does a Dirichlet's doubt tell odd tasks from ordinary ones? AUROC of every score.

The scores: docs/papers/nmdp.md, eq. 18 to 21.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from evaluation.experiments.experiment import Check, Outcome, Workshop
from evaluation.experiments.nmdp_kernel_mix import FLOOR, SCALES, fitted, test_tasks
from evaluation.experiments.nmdp_parts import Pair, description
from evaluation.plots.style import WIDTH, look
from evaluation.scores.mixture_uncertainty import auroc, concentration_of, context_typicality, mixture_uncertainty
from guides import ConjugateRefinement
from pp_models import Dataset

#: context points of every task
POINTS = 20
NAMES = ["NMDP, strict", "NMDP, context"]


def _white_noise(data: Dataset) -> Dataset:
    assert data.y is not None
    generator = torch.Generator().manual_seed(17)
    scale = data.y.std(1, keepdim=True)
    return Dataset(data.x, scale * torch.randn(data.y.shape, generator=generator), data.mask)


def _stretched(data: Dataset) -> Dataset:
    assert data.y is not None
    return Dataset(data.x, 3 * data.y, data.mask)


#: odd tasks, each made from ordinary ones
SHIFTS: dict[str, Callable[[Dataset], Dataset]] = {
    "y × 3": _stretched,
    "white noise": _white_noise,
    "x + 4": lambda data: Dataset(data.x + 4, data.y, data.mask),
}


def odd_scores(pair: Pair, data: Dataset) -> dict[str, torch.Tensor]:
    """Every score of a context ``[T]``; larger should mean odder, but for α₀ and differential entropy as they are."""
    model, guide = pair
    found = mixture_uncertainty(concentration_of(guide, data)).as_dict()
    return {
        "differential entropy": found["differential_entropy"],
        "H[E z]": found["entropy_of_mean"],
        "E H[z]": found["expected_entropy"],
        "mutual information": found["mutual_information"],
        "α₀": found["total_concentration"],
        "- typicality": -context_typicality(model, guide, data),
        "- typicality of points held out": -context_typicality(model, guide, data, held_out=True),
    }


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Uses the fits of nmdp/representation; ordinary test tasks against three kinds of odd ones."""
    size = SCALES[scale_name]
    pairs = fitted("random", scale_name, NAMES, seeds, workshop)
    inside = test_tasks("random", size.test_tasks, POINTS).context
    others = test_tasks("random", size.test_tasks, POINTS, seed=2_000_000).context
    outside = {name: shift(others) for name, shift in SHIFTS.items()}
    rows: list[dict[str, Any]] = []
    for (name, seed), (model, guide) in pairs.items():
        for refined in (False, True):
            pair = (model, ConjugateRefinement(model, guide) if refined else guide)  # type: ignore[arg-type]
            ordinary = odd_scores(pair, inside)
            odd = {shift: odd_scores(pair, data) for shift, data in outside.items()}
            for score, values in ordinary.items():
                label = f"{name}{', refined' if refined else ''}: {score}"
                rows.append(
                    {"model": label, "seed": seed, "experts": name.removeprefix("NMDP, "), "refined": refined}
                    | {"score": score}
                    | {shift: auroc(values, found[score]) for shift, found in odd.items()}
                )
    table = pd.DataFrame(rows)
    table["worst"] = table[list(SHIFTS)].min(axis=1)
    outcome = Outcome("nmdp/ood", "", table)
    means = table.groupby(["experts", "refined", "score"], sort=False)[[*SHIFTS, "worst"]].mean()
    best = means["worst"].idxmax()
    dirichlet = means[~means.index.get_level_values("score").str.contains("typicality")]
    outcome.checks = [
        Check(
            "score with the best worst shift",
            "reported",
            f"{_label(best)}: {means.loc[best, 'worst']:.2f} at worst",
            None,
        ),
        Check(
            "best of the Dirichlet's own scores",
            "reported",
            f"{_label(dirichlet['worst'].idxmax())}: {dirichlet['worst'].max():.2f} at worst",
            None,
        ),
        Check(
            "differential entropy, as the paper uses it",
            "reported",
            ", ".join(f"{k[0]} {means.loc[k, 'worst']:.2f}" for k in means.index if k[1:] == (False, _PAPERS)),
            None,
        ),
    ]
    outcome.notes = [
        description(size, "strict (twice as many) and context, as named", FLOOR),
        f"{size.test_tasks} ordinary tasks against as many odd ones, {POINTS} context points each; AUROC is the chance "
        "that an odd task scores higher, and 0.5 is chance. A score below 0.5 points the wrong way: it would need "
        "another sign for that shift alone. 'worst' is the least over the three shifts. 'refined' adds conjugate "
        "updates by the context; typicality is the log-likelihood a point that the context gives itself, or that half "
        "of it gives the other.",
    ]
    outcome.figures["auroc"] = (_figure(means), "AUROC by score, mean over seeds; chance is white.")
    return outcome


_PAPERS = "differential entropy"


def _label(key: Any) -> str:
    experts, refined, score = key
    return f"{experts}{', refined' if refined else ''}, {score}"


def _figure(means: pd.DataFrame) -> Figure:
    values = means[list(SHIFTS)].to_numpy()
    with look():
        figure = Figure(figsize=(WIDTH, 1.2 + 0.24 * len(values)), layout="constrained")
        axes = figure.subplots()
        axes.imshow(values, cmap="RdBu_r", vmin=0, vmax=1, aspect="auto")
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=_ink(value))
        axes.set_xticks(np.arange(len(SHIFTS)), list(SHIFTS))
        axes.set_yticks(np.arange(len(values)), [_label(key) for key in means.index], fontsize=8)
        axes.grid(False)
    return figure


def _ink(value: float) -> str:
    return "white" if abs(value - 0.5) > 0.35 else "#222222"
