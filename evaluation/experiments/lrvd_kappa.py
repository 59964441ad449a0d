"""How heavy should the KL be? Ranks kept and scores against κ, on a planted rank and on sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from evaluation import plots
from evaluation.adapters.planted_rank import fit_planted
from evaluation.experiments.experiment import Check, Outcome, Workshop
from evaluation.experiments.lrvd_planted import SCALES, TASK
from evaluation.experiments.lrvd_text import TITLES, prepare
from evaluation.experiments.lrvd_text_runs import Run, TextRuns
from evaluation.scores.calibration_metrics import score_classes

#: κ: what a rank's KL is multiplied by against the summed log-likelihood (T times what the count makes of a rank)
PLANTED = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
TEXT = (1.0, 3.0, 10.0, 30.0, 100.0)
THRESHOLD = 1.0
SENTENCES = "docstrings"


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Sweeps κ on both problems; text runs with κ = 1 and rivals are those of ``lrvd/minilm-docstrings``."""
    planted = _planted(scale_name, seeds, workshop)
    runs, sets = prepare("minilm", SENTENCES, scale_name, workshop)
    labels = {kind: sets[kind].labels for kind in ("validation", "test")}
    rows: list[dict[str, Any]] = []

    def add(model: str, seed: int, found: Run, **facts: Any) -> None:
        test = score_classes(found.tensors.get("draws.test", found.tensors["mean.test"]), labels["test"]).as_dict()
        at_mean = {
            f"mean_nll_{kind}": score_classes(found.tensors[f"mean.{kind}"], labels[kind]).nll for kind in labels
        }
        rows.append({"model": model, "seed": seed} | facts | test | at_mean)

    grid = TEXT[:2] if scale_name == "smoke" else TEXT
    for seed in seeds:
        for name in ("lora", "fixed-noise"):
            found = runs.trained(name, seed)
            add(TITLES[name], seed, found, rank=sum(found.facts["ranks"].values()))
        for kappa in grid:
            found = _tempered(runs, kappa).trained("lrvd", seed)
            add(f"LRVD, κ = {kappa:g}", seed, found, kappa=kappa, rank=found.facts[f"kept_at_{THRESHOLD:g}"])
    table = pd.DataFrame(rows)
    outcome = Outcome("lrvd/kappa", "", table)
    outcome.tables["Planted rank 4 of 16"] = planted.groupby("kappa", as_index=False).mean(numeric_only=True)
    if scale_name != "smoke":
        outcome.checks = claims(table, planted)
    outcome.figures["kappa"] = (
        plots.kappa_plot(planted, table),
        "Left: share of the ranks with log α below 1. Right: NLL on sentences. Lines join means over seeds.",
    )
    outcome.notes = [
        "κ is what the KL of one rank is multiplied by against the log-likelihood summed over the data: T, times the "
        "weights of a rank where the KL counts once a weight. The planted problem is that of lrvd/planted, the "
        "sentences those of lrvd/minilm-docstrings, with its budget.",
        "rank: ranks with log α below 1 (all of them for LoRA and noise alone). nll, ece: of 10 draws on test "
        "sentences, of all ranks; mean_nll: at the posterior mean, on validation sentences (by which a user would "
        "choose κ) and on test sentences.",
    ]
    return outcome


def _tempered(runs: TextRuns, kappa: float) -> TextRuns:
    """The same runs with another temperature; that of κ = 1 is the experiment's own."""
    if kappa == runs.budget.temperature:
        return runs
    budget = replace(runs.budget, temperature=kappa)
    return replace(runs, folder=runs.folder / f"kappa-{kappa:g}", budget=budget)


def _planted(scale_name: str, seeds: list[int], workshop: Workshop) -> pd.DataFrame:
    """One row a κ and problem."""
    size, rows = SCALES[scale_name], []
    for kappa in PLANTED[::4] if scale_name == "smoke" else PLANTED:
        task = size.of(replace(TASK, temperature=kappa / (2 * TASK.dim)))
        for seed in seeds:
            workshop.say(f"planted: κ = {kappa:g}, seed {seed}, {size.problems} problems of {task.steps} steps")
            found = fit_planted(task, size.problems, seed)
            for kept, error in zip(found.kept(THRESHOLD).tolist(), found.error(THRESHOLD).tolist(), strict=True):
                exact = float(kept == len(task.singular_values))
                rows.append({"kappa": kappa, "kept": kept, "share": kept / task.rank, "exact": exact, "error": error})
    return pd.DataFrame(rows)


def claims(table: pd.DataFrame, planted: pd.DataFrame) -> list[Check]:
    """What κ does, means over seeds and problems.

    Args:
        table: text, one row a model and seed, with ``kappa``, ``rank``, ``nll`` and ``mean_nll_validation``.
        planted: one row a κ and problem, with ``kept`` and ``exact``.
    """
    exact = planted.groupby("kappa").exact.mean()
    works = [float(str(kappa)) for kappa, share in exact.items() if share >= 0.9]
    text = table.dropna(subset="kappa").groupby("kappa").mean(numeric_only=True)
    means = table.groupby("model").mean(numeric_only=True)
    best = float(text.mean_nll_validation.idxmin())
    falling = [bool(found.is_monotonic_decreasing) for found in (planted.groupby("kappa").kept.mean(), text["rank"])]
    yes = ["never more" if found else "more somewhere" for found in falling]
    one, lora, alone = text.loc[1.0], means.loc["LoRA"], means.loc[TITLES["fixed-noise"]]
    return [
        Check("planted: exact at κ = 100 and at 300", ">= 90 % of problems", _list(works), {100.0, 300.0} <= {*works}),
        Check("a heavier KL keeps fewer ranks", "never more", f"planted {yes[0]}, text {yes[1]}", all(falling)),
        Check(
            "no κ suits both problems",
            "validation NLL on text lowest at a κ that misses the planted rank",
            f"text {best:g}; planted {_list(works)}",
            best not in works,
        ),
        Check(
            "text, κ = 1: NLL of draws against LoRA",
            "<= 0.80 times",
            f"{one.nll:.3f} of {lora.nll:.3f}: {one.nll / lora.nll:.2f} times",
            one.nll <= 0.8 * lora.nll,
        ),
        Check(
            "text, κ = 1: ECE of draws against LoRA",
            "<= 0.50 times",
            f"{one.ece:.3f} of {lora.ece:.3f}",
            one.ece <= 0.5 * lora.ece,
        ),
        Check(
            "text, κ = 1: draws against the posterior mean",
            "lower NLL",
            f"{one.nll:.3f} against {one.mean_nll_test:.3f}",
            one.nll < one.mean_nll_test,
        ),
        Check(
            "text: learned α against noise alone, α = 1",
            "reported",
            f"NLL {one.nll:.3f} against {alone.nll:.3f}; both less LoRA's {one.nll - lora.nll:+.3f}, "
            f"{alone.nll - lora.nll:+.3f}",
            None,
        ),
    ]


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"
