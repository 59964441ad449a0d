"""What every experiment shares: scales, trained methods that are kept and resumed, checks, and the files written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from torch import nn

from evaluation.methods import Method, TaskShape, build
from evaluation.report import Code, Heading, Picture, Prose, Section, Table, as_png, write_report
from inference import fit
from inference.training_setup import make_fabric
from pp_models.files import STRICT, make_folder, sealed_json
from pp_models.own_files import refuse_others, write_own
from pp_models.tasks.task_stream import TaskStream

RESULTS = "results.json"
SCALES = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Scale:
    """Size of a run.

    Args:
        name: ``"smoke"`` (seconds; proves that it runs), ``"small"`` (minutes on two CPU cores) or ``"paper"``.
        steps: optimizer steps.
        width: hidden width of every network.
        batch_size: tasks a step.
        learning_rate: of Adam.
        betas: of Adam.
        max_grad_norm: gradient norms are clipped to this; None for no clipping.
        test_batches: test batches.
        test_batch_size: tasks in each; all tasks of a batch share their number of context points.
    """

    name: str
    steps: int
    width: int
    batch_size: int
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = None
    test_batches: int = 150
    test_batch_size: int = 4


@dataclass(frozen=True)
class Check:
    """A claim and what was measured.

    Args:
        name: what is claimed, in words.
        criterion: the threshold, in words.
        measured: the numbers.
        holds: whether it holds; None where it is reported without being a claim.
    """

    name: str
    criterion: str
    measured: str
    holds: bool | None

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if self.holds is not None:  # comparisons of table entries give NumPy's own, which JSON does not know
            object.__setattr__(self, "holds", bool(self.holds))


@dataclass
class Outcome:
    """What an experiment found.

    Args:
        name: ``family/experiment``.
        command: the command that reproduces it.
        table: one row a method and seed.
        checks: claims with their measurements.
        figures: matplotlib figures by file stem, with a caption each.
        notes: what a reader must know.
        tables: further tables by title.
        seconds: that it took.
    """

    name: str
    command: str
    table: pd.DataFrame
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, tuple[Any, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Results:
    """What ``results.json`` holds of an outcome."""

    name: str
    command: str
    checks: list[Check]
    notes: list[str]
    table: list[dict[str, str | float | bool | None]]
    #: that the run took, fits among them that it did not find ready; None for a result of an earlier version
    seconds: float | None = None

    __pydantic_config__ = STRICT


class Workshop:
    """Trains methods into a folder and finds them there again.

    Args:
        folder: where fits are kept.
        progress: show progress bars.
        device: where to train, see :func:`inference.fit`; results are computed on the CPU.

    Raises:
        ValueError: a device that is not there.
    """

    def __init__(self, folder: str | Path, progress: bool = True, device: str = "cpu") -> None:
        self.device_name, self.device = device, make_fabric(device, "32-true").device
        self.folder = make_folder(folder, "out")
        self.progress = progress
        self.console = Console(stderr=True, quiet=not progress)

    def say(self, line: str) -> None:
        """Shows a line as it is: brackets are no markup."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def train(
        self, key: str, name: str, task: TaskShape, tasks: TaskStream, scale: Scale, seed: int, steps: int | None = None
    ) -> tuple[Method, list[dict[str, float]]]:
        """A method trained with a seed; continued from (or read from) its checkpoint where there is one.

        Args:
            key: names the task distribution and scale; fits under one key are shared between experiments.
            name: the method.
            task: its widths.
            tasks: the training stream.
            scale: steps and optimizer.
            seed: seed of the initial parameters and of the fit.
            steps: steps, if not the scale's.

        Returns:
            The method and its training history.
        """
        steps = steps or scale.steps
        self.say(f"{key}: {name}, seed {seed}, {steps} steps")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            method = build(name, replace(task, recipe="paper"))
        optimizer = partial(torch.optim.Adam, lr=scale.learning_rate, betas=scale.betas, fused=True)
        result = fit(
            method.model,
            method.guide,
            tasks,
            method.objective,
            steps=steps,
            seed=seed,
            optimizer=optimizer,
            checkpoint_dir=self.folder / "fits" / key / f"{name}-seed{seed}",
            resume=True,
            progress=self.progress,
            device=self.device_name,
            max_grad_norm=scale.max_grad_norm,
        )
        return method, result.history

    def fit(
        self,
        key: str,
        name: str,
        build: Callable[[], tuple[nn.Module, nn.Module]],
        tasks: Any,
        seed: int,
        **options: Any,
    ) -> tuple[nn.Module, nn.Module, list[dict[str, float]]]:
        """A model and guide of one's own, trained with a seed; continued from (or read from) its checkpoint.

        Args:
            key: names the task distribution and scale.
            name: names the pair and its objective.
            build: makes the model and its guide.
            tasks: the training stream.
            seed: seed of the initial parameters and of the fit.
            **options: of :func:`inference.fit`, ``objective`` and ``steps`` among them.

        Returns:
            The model, the guide and the training history.
        """
        self.say(f"{key}: {name}, seed {seed}, {options['steps']} steps")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, guide = build()
        folder = self.folder / "fits" / key / f"{name}-seed{seed}"
        options = {"device": self.device_name, **options}
        result = fit(
            model, guide, tasks, seed=seed, checkpoint_dir=folder, resume=True, progress=self.progress, **options
        )
        return model, guide, result.history


def folder_of_outcome(folder: Path) -> Path:
    """Makes the folder of an outcome, or refuses one that holds somebody's tables or pictures.

    Raises:
        CheckpointError: it does, or it cannot be written to.
    """
    folder = make_folder(folder, "out")
    refuse_others(folder, "out", RESULTS, "*.csv", "*.png", "report.html")
    return folder


def write_outcome(outcome: Outcome, folder: Path) -> None:
    """Writes ``results.json``, ``table.csv`` (and other tables), one PNG a figure and ``report.html``.

    Raises:
        CheckpointError: the folder cannot be written to, or holds somebody's files of these names.
    """
    folder = folder_of_outcome(folder)
    rows = json.loads(outcome.table.to_json(orient="records"))
    result = Results(outcome.name, outcome.command, outcome.checks, outcome.notes, rows, outcome.seconds)
    write_own(folder / RESULTS, sealed_json(asdict(result)))
    write_own(folder / "table.csv", outcome.table.to_csv(index=False).encode())
    for title, table in outcome.tables.items():
        name = "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")
        write_own(folder / f"{name}.csv", table.to_csv(index=False).encode())
    pngs = {stem: as_png(figure) for stem, (figure, _) in outcome.figures.items()}
    for stem, png in pngs.items():
        write_own(folder / f"{stem}.png", png)
    sections: list[Section] = []
    if outcome.checks:
        sections += [Heading(_verdict(outcome.checks)), Table(check_table(outcome.checks))]
    sections += [Heading("Results"), Table(summary(outcome.table)), *(Prose(n) for n in outcome.notes)]
    for title, table in outcome.tables.items():
        sections += [Heading(title), Table(table)]
    for stem, (figure, caption) in outcome.figures.items():
        sections += [Heading(stem.replace("_", " ").capitalize()), Picture(figure, caption, png=pngs[stem])]
    sections += [Heading("To reproduce"), Code(outcome.command)]
    write_report(folder, outcome.name, sections)


def _verdict(checks: Iterable[Check]) -> str:
    """How many of the claims held, in words."""
    claims = [check.holds for check in checks if check.holds is not None]
    if not claims:
        return "Verdict: nothing is claimed; measurements"
    return f"Verdict: {sum(claims)} of {len(claims)} claim{'s' if len(claims) > 1 else ''} held"


def check_table(checks: Iterable[Check]) -> pd.DataFrame:
    """Checks as a table; ``holds`` reads yes, MISSED or (reported)."""
    word = {True: "yes", False: "MISSED", None: "(reported)"}
    return pd.DataFrame(
        [{"claim": c.name, "criterion": c.criterion, "measured": c.measured, "holds": word[c.holds]} for c in checks],
        columns=["claim", "criterion", "measured", "holds"],
    )


def summary(table: pd.DataFrame, by: str = "model") -> pd.DataFrame:
    """Mean and standard error over seeds of every numeric column, one row a model, in order of appearance.

    A table of several tasks, whose column is ``task``, has a row for each of them and each model.
    """
    keys = ["task", by] if "task" in table else [by]
    numeric = [c for c in table.columns if c not in (*keys, "seed") and pd.api.types.is_numeric_dtype(table[c])]
    rows = []
    for names, part in table.groupby(keys, sort=False):
        row: dict[str, Any] = dict(zip(keys, names, strict=True))
        row["seeds"] = part["seed"].nunique() if "seed" in part else 1
        for column in numeric:
            values = part[column].dropna()
            row[column] = _mean_and_error(values) if len(values) else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _mean_and_error(values: pd.Series) -> str:
    if values.nunique() == 1 and float(values.iloc[0]).is_integer() and len(values) > 1:
        return str(int(values.iloc[0]))  # a count, the same for every seed
    return f"{values.mean():.3f}" + (f" ± {values.sem():.3f}" if len(values) > 1 else "")


def signed(values: Iterable[float]) -> str:
    """Numbers with their signs, for a table cell."""
    return ", ".join(f"{value:+.3f}" for value in values)
