"""Every method on the same tasks, with one floor and one budget: tables, curves, calibration and what each costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation.experiments.common_fits import DRAWS, LEVELS, Budget, FitScores, TestTasks, exact_scores, fit_scores
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.plots.style import INK, WIDTH, colours, look
from pp_models.tasks.task_table import TASKS

#: the methods of the papers, that with a path beside its rates among them; the path alone; and those compared with
PAPERS = ("nvdp", "nvdp+path", "nmdp", "nmdp-kernels", "bnnp")
PATH_ALONE = "cnp+path"
RIVALS = ("cnp", "np", "anp", "bnp", "dnp", "convcnp", "tnp-d")
METHODS = (*PAPERS, PATH_ALONE, *RIVALS)
#: kernels know that functions are stationary or nearly periodic, which images are not
ON_LINES_ALONE = ("nmdp-kernels",)
EXACT = "exact GP"
#: a fit that spent less or more of its budget than this is named
SPENT = (0.8, 1.25)
Found = dict[tuple[str, str, int], FitScores]


def run(
    experiment: str,
    tests: Sequence[TestTasks],
    budget: Budget,
    seeds: list[int],
    workshop: Workshop,
    methods: Sequence[str],
) -> Outcome:
    """Trains every method on every task distribution, and sets them side by side.

    Args:
        experiment: its name.
        tests: what is scored of each task distribution.
        budget: of each fit.
        seeds: of the fits.
        workshop: where the fits are.
        methods: names.
    """
    found: Found = {}
    for test in tests:
        for seed in seeds:
            for method in methods:
                found[test.name, method, seed] = fit_scores(workshop, test, budget, method, seed)
        if test.name.startswith("gp-"):
            found[test.name, EXACT, -1] = exact_scores(test, TASKS.find(test.name).min_scale)
    rows = [{"task": t, "model": m, "seed": s, **scores.row()} for (t, m, s), scores in found.items()]
    table = pd.DataFrame(rows)
    outcome = Outcome(experiment, "", table)
    outcome.tables = {
        "Log-likelihood of a target point": by_task(table, "pll"),
        "Joint log-likelihood of the targets": by_task(table, "joint_pll"),
    }
    claimed = budget.cpu_seconds > 0
    outcome.checks = [check for test in tests for check in _checks(table[table.task == test.name], test.name, claimed)]
    outcome.notes = _notes(found, budget, seeds)
    outcome.figures = {
        "context_size": (
            context_figure(found),
            "Log-likelihood of the same tasks' targets by number of context points.",
        ),
        "calibration": (
            calibration_figure(found),
            "Share of target points inside central intervals, less their level.",
        ),
    }
    if any(scores.curve for scores in found.values()):
        outcome.figures["by_seconds"] = (learning_figure(found), "Log-likelihood of a few held-out tasks.")
    return outcome


def by_task(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row a method, one column a task distribution: mean over seeds, and their standard deviation."""
    rows = []
    for name, part in table.groupby("model", sort=False):
        row: dict[str, Any] = {"model": name}
        for task in table.task.unique():
            values = part[part.task == task][column].dropna()
            spread = f" ± {values.std():.2f}" if len(values) > 1 else ""
            row[task] = f"{values.mean():.2f}{spread}" if len(values) else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _checks(table: pd.DataFrame, task: str, claimed: bool) -> list[Check]:
    """Whether the papers' best is at or above the best rival; what rates add to a path; nothing above the exact GP."""
    mean = table[table.model != EXACT].groupby("model")[["pll", "joint_pll"]].mean()
    checks = []
    ours, rivals = ([n for n in group if n in mean.index] for group in (PAPERS, RIVALS))
    if ours and rivals:
        for column, words in (("pll", "marginal"), ("joint_pll", "joint")):
            best, other = mean.loc[ours, column].idxmax(), mean.loc[rivals, column].idxmax()
            gap = float(mean.loc[best, column] - mean.loc[other, column])
            judged = claimed and column == "pll"
            checks.append(
                Check(
                    f"{task}: the papers' best at or above the best rival, {words}",
                    "difference >= 0, nats a point" if judged else "reported",
                    f"{best} - {other}: {gap:+.3f}",
                    gap >= 0 if judged else None,
                )
            )
    if {"nvdp+path", PATH_ALONE} <= set(mean.index):
        both = table[table.model.isin(("nvdp+path", PATH_ALONE))].pivot(index="seed", columns="model", values="pll")
        gaps = both["nvdp+path"] - both[PATH_ALONE]
        checks.append(Check(f"{task}: what NVDP's rates add to the path alone", "reported", signed(gaps), None))
    exact = table[table.model == EXACT]
    if len(exact):
        above = {c: float(table[table.model != EXACT][c].max() - exact[c].iloc[0]) for c in ("pll", "joint_pll")}
        measured = ", ".join(f"{name} {value:+.3f}" for name, value in above.items())
        checks.append(Check(f"{task}: nothing above the exact GP", "<= 0.05", measured, max(above.values()) <= 0.05))
    return checks


def _notes(found: Found, budget: Budget, seeds: list[int]) -> list[str]:
    tasks = list(dict.fromkeys(task for task, _, _ in found))
    floors = {task: TASKS.find(task).min_scale for task in tasks}
    floor = ", ".join(f"{value:g}" for value in dict.fromkeys(floors.values()))
    spent = f"{budget.cpu_seconds:g} CPU seconds" if budget.cpu_seconds else f"{budget.steps} steps"
    notes = [
        f"Every fit has its method's own recipe (docs/recipes.md) and {spent} of one thread, tasks drawn within it; "
        f"the cost of a step is measured first. {len(seeds)} seed{'s' if len(seeds) > 1 else ''}; "
        f"the test tasks are the same for every method.",
        f"The floor of every standard deviation is {floor} (BNNP's learned noise has none). NVDP and NMDP predict a "
        f"point by their mean weights, the others by {DRAWS} draws, which every joint likelihood rests on; it says "
        "little more than the marginal one where a method has no latent. ll is over all points of a task, rll over its "
        "context, pll over its targets, nats a point and output.",
        "± is the standard error over seeds in the long table and their standard deviation in the short ones.",
    ]
    off = [
        f"{method} on {task}, seed {seed} ({scores.seconds:.0f} s)"
        for (task, method, seed), scores in found.items()
        if budget.cpu_seconds and scores.seconds is not None
        if not SPENT[0] <= scores.seconds / budget.cpu_seconds <= SPENT[1]
    ]
    if off:
        notes.append(f"Measured at other speeds than they ran at, and so given less or more: {'; '.join(off)}.")
    return notes


def _style(method: str, methods: Sequence[str]) -> dict[str, Any]:
    """Lines of the papers' methods are whole, the path's dotted, the rivals' dashed, the exact answer black."""
    if method == EXACT:
        return {"color": INK, "linewidth": 1.4}
    palette = colours(10)
    group = (
        [m for m in methods if m in (*PAPERS, PATH_ALONE)]
        if method in (*PAPERS, PATH_ALONE)
        else [m for m in methods if m not in (*PAPERS, PATH_ALONE, EXACT)]
    )
    line = "-" if method in PAPERS else ":" if method == PATH_ALONE else "--"
    return {"color": palette[group.index(method) % 10], "linestyle": line, "linewidth": 1.6 if line == "-" else 1.2}


def _panels(found: Found, height: float = 2.3) -> tuple[Figure, dict[str, Any], list[str]]:
    """One panel a task distribution, and the methods."""
    tasks = list(dict.fromkeys(task for task, _, _ in found))
    methods = list(dict.fromkeys(method for _, method, _ in found))
    columns = min(2, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(WIDTH, 0.9 + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=False)
    for axes in list(grid.flat)[len(tasks) :]:
        axes.set_visible(False)
    panels = dict(zip(tasks, grid.flat, strict=False))
    for task, axes in panels.items():
        axes.set_title(task)
    return figure, panels, methods


def _legend(figure: Figure, panels: dict[str, Any]) -> None:
    named: dict[str, Any] = {}
    for axes in panels.values():
        named |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=4)


def _low(values: Sequence[float], most: float = 2.0) -> float:
    """The lower end of an axis: what lies far below the rest is cut off."""
    finite = np.array([v for v in values if math.isfinite(v)])
    return max(float(finite.min()), float(np.median(finite)) - most) - 0.1


def context_figure(found: Found) -> Figure:
    """Log-likelihood against the number of context points: mean and range over seeds."""
    with look():
        figure, panels, methods = _panels(found)
        for task, axes in panels.items():
            seen: list[float] = []
            for method in methods:
                curves = [scores.by_size for (t, m, _), scores in found.items() if (t, m) == (task, method)]
                if not curves:
                    continue
                sizes = [int(size) for size in curves[0]]
                values = np.array([[curve[str(size)] for size in sizes] for curve in curves])
                axes.plot(sizes, values.mean(0), label=method, marker=".", **_style(method, methods))
                if len(values) > 1:
                    colour = _style(method, methods)["color"]
                    axes.fill_between(sizes, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
                seen += values.mean(0).tolist()
            axes.set(xscale="log", ylim=(_low(seen), None), xlabel="context points", ylabel="nats a target point")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
        _legend(figure, panels)
    return figure


def learning_figure(found: Found) -> Figure:
    """Log-likelihood of a few held-out tasks against CPU seconds of training, a line a seed."""
    with look():
        figure, panels, methods = _panels(found)
        for task, axes in panels.items():
            seen: list[float] = []
            for (t, method, _), scores in found.items():
                if t == task and scores.curve:
                    seconds, values = zip(*scores.curve, strict=True)
                    axes.plot(seconds, values, label=method, **_style(method, methods))
                    seen += values
            axes.set(xlabel="CPU seconds", ylabel="nats a target point", ylim=(_low(seen) if seen else None, None))
        _legend(figure, panels)
    return figure


def calibration_figure(found: Found) -> Figure:
    """Coverage of central intervals less their level, a dot a seed: right of 0 too cautious, left too sure."""
    with look():
        methods = list(dict.fromkeys(method for _, method, _ in found))
        figure, panels, _ = _panels(found, 0.5 + 0.2 * len(methods))
        for task, axes in panels.items():
            axes.axvline(0, color=INK, linewidth=1)
            for place, (level, colour) in enumerate(zip(LEVELS, colours(len(LEVELS)), strict=True)):
                points = [
                    (100 * (scores.coverage[f"{100 * level:g}"] - level), methods.index(method) + 0.22 * (place - 1))
                    for (t, method, _), scores in found.items()
                    if t == task
                ]
                axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=3.5, label=f"{level:.0%} intervals")
            axes.set_yticks(range(len(methods)), methods)
            axes.set(xlabel="points of coverage too many", ylim=(len(methods) - 0.4, -0.6))
        _legend(figure, panels)
    return figure
