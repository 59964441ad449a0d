"""Tables, figure and page of a swap matrix."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation import plots
from evaluation.findings import TRUST
from evaluation.report import Code, Heading, Picture, Prose, Section, Settings, Table, as_png, write_report
from pp_models.own_files import write_own


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, one row a combination, the best held-out likelihood first; failed runs are counted.

    Args:
        table: what :func:`compare` returns.
    """
    keys = ["model", "guide", "objective"]
    scores = ["pll", "joint_pll", "rmse", "ess", "snr_guide", "seconds"]
    groups = table.groupby(keys, sort=False)
    scores += [name for name in table.columns if str(name).startswith("rmse ") or name == "accuracy"]  # of own data
    found = groups[scores].mean()
    found.insert(1, "pll_sd", groups["pll"].std())
    found.insert(0, "runs", groups["status"].apply(lambda s: int((s == "ok").sum())))
    found.insert(1, "failed", groups["status"].apply(lambda s: int((s != "ok").sum())))
    return found.reset_index().sort_values("pll", ascending=False, ignore_index=True)


def failures(table: pd.DataFrame) -> list[str]:
    """One line for each model, guide and reason for which runs failed.

    Args:
        table: what :func:`compare` returns.
    """
    failed = table[table["status"] != "ok"]
    lines = []
    for (model, guide, reason), rows in failed.groupby(["model", "guide", "reason"], sort=False):
        names = list(dict.fromkeys(rows["objective"]))
        under = names[0] if len(names) == 1 else f"{len(names)} objectives"
        runs = f"{len(rows)} run" + ("s" if len(rows) > 1 else "")
        lines.append(f"{model} with {guide} under {under} ({runs}): {reason}")
    return lines


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """One line a run: what its verdict is and why; of a failed run, why it failed.

    Args:
        table: what :func:`compare` returns.
    """
    failed = table["status"] != "ok"
    found = table[["model", "guide", "objective", "seed"]].copy()
    found["verdict"] = table["verdict"].where(~failed, "failed")
    found["why"] = table["why"].where(~failed, table["reason"])
    alike = [name for name in ("model", "guide", "objective", "seed") if len(found) > 1 and found[name].nunique() == 1]
    return found.drop(columns=alike)


#: what a swap report is made of
SWAP_FILES = ("compare.csv", "gradient_noise.csv", "compare.png", "report.html")


def write_swap_report(folder: Path, table: pd.DataFrame, noise: pd.DataFrame, settings: Mapping[str, Any]) -> None:
    """Writes ``compare.csv``, ``gradient_noise.csv``, ``compare.png`` and ``report.html`` into a folder.

    Args:
        folder: where.
        table: what ``evaluation.compare`` returns.
        noise: its ``attrs["gradient_noise"]``.
        settings: what all runs share, by name.

    Raises:
        CheckpointError: the folder cannot be written to, or holds somebody's files of these names.
    """
    write_own(folder / "compare.csv", table.to_csv(index=False).encode())
    if len(noise):
        write_own(folder / "gradient_noise.csv", noise.to_csv(index=False).encode())
    sections: list[Section] = []
    scores = summarise(table)
    judged = (table["verdict"].fillna("") != "").any()
    if judged:
        good = int((table["verdict"] == TRUST).sum())
        sections += [
            Heading(f"Verdict: {good} of {len(table)} runs can be trusted"),
            Prose(
                f"Of each fit, from {settings['num_simulations']} simulated tasks and as many draws; guidebook inspect "
                "tells more of a single run. A fit that is not to be trusted as a posterior may still predict well."
            ),
            Table(verdicts(table)),
        ]
    sections += [
        Heading("Held-out likelihood"),
        Prose(
            f"Means over seeds after {settings['steps']} steps on {settings['tasks']}, scored on "
            f"{settings['test_tasks']} test tasks with {settings['draws']} draws; pll is of the target points, nats "
            "per point."
        ),
        Table(scores[scores["runs"] > 0].dropna(axis="columns", how="all") if scores["runs"].any() else scores),
    ]
    if (table["status"] == "ok").any():
        figure = plots.swap_matrix_plot(table, noise)
        png = as_png(figure)
        write_own(folder / "compare.png", png)
        sections.append(Picture(figure, "Likelihood against training time, gradient noise, and weights.", png=png))
    failed = table[table["status"] != "ok"]
    if len(failed) and not judged:
        sections += [Heading("Failed"), Table(failed[["model", "guide", "objective", "seed", "reason"]])]
    sections += [Heading("Every run"), Table(table.drop(columns=["reason", "verdict", "why"]))]
    names = {n: list(dict.fromkeys(table[n])) for n in ("model", "guide", "objective", "seed")}
    words = " ".join(f"--{n}s {shlex.quote(','.join(map(str, values)))}" for n, values in names.items())
    if settings["tasks"].startswith("own-data"):
        words += " --data FILE --task COLUMN --x COLUMNS --y COLUMNS"
    else:
        words += f" --tasks {shlex.quote(settings['tasks'])}"
    own = ("steps", "num_particles", "width", "batch_size", "learning_rate")
    options = {name.replace("_", "-"): settings[name] for name in own if settings[name] is not None}
    options |= {"simulations": settings["num_simulations"], "out": folder.name}
    more = (f"--{name} {shlex.quote(str(value))}" for name, value in options.items())
    command = " ".join([f"guidebook compare {words}", *more])
    sections += [Heading("Settings"), Settings(settings), Code(command)]
    write_report(folder, "Swap matrix", sections)
