"""Runs an experiment by name, and writes what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.experiments.claims import CLAIMS, NOT_RUN
from evaluation.experiments.experiment import (
    RESULTS,
    SCALES,
    Outcome,
    Results,
    Workshop,
    folder_of_outcome,
    write_outcome,
)
from evaluation.experiments.table import EXPERIMENTS
from evaluation.methods import METHODS
from pp_models.data import DataError
from pp_models.files import FileError, read_checked_json


def reproduce(
    name: str,
    scale: str = "small",
    seeds: list[int] | None = None,
    out: str | Path = "runs",
    progress: bool = True,
    device: str = "cpu",
    *,
    cpu_seconds: float | None = None,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
) -> Outcome:
    """Runs an experiment and writes its tables, figures and report.

    Args:
        name: a name of ``EXPERIMENTS``.
        scale: ``"smoke"``, ``"small"`` or ``"paper"``.
        seeds: seeds; 0, 1, 2 by default (0 at smoke scale).
        out: folder; fits are kept in ``out/FAMILY/fits`` and results in ``out/FAMILY/EXPERIMENT-SCALE``.
        progress: show progress.
        device: where the methods are trained: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"auto"``. The published results
            here are the CPU's.
        cpu_seconds: of training for every fit, in place of the scale's; this and the rest for experiments that can be
            run in pieces (``common/gp``, ``common/images``), and results are then in ``out/FAMILY/EXPERIMENT-30s``.
        tasks: task distributions, of those that the experiment has.
        methods: names of ``METHODS``.

    Raises:
        ValueError: unknown experiment, scale, tasks or method, no seeds, a seed out of range or given twice, seconds
            out of range, an option that the experiment does not have, or no such device.
        CheckpointError: the folder cannot be written to, or holds somebody's tables, pictures or report.
    """
    EXPERIMENTS.check(name)
    seeds = _checked(scale, seeds)
    options = _pieces(name, cpu_seconds, tasks, methods)
    folder = folder_of_outcome(results_folder(name, scale, out, cpu_seconds))
    workshop = Workshop(Path(out) / name.split("/")[0], progress, device)
    start = time.monotonic()
    outcome = EXPERIMENTS[name].run(scale, seeds, workshop, **options)
    outcome.seconds = round(time.monotonic() - start, 1)
    words = {"cpu-seconds": f"{cpu_seconds:g}"} if cpu_seconds is not None else {}
    words |= {key: ",".join(given) for key, given in (("tasks", tasks), ("methods", methods)) if given is not None}
    outcome.command = command_of(name, scale, seeds, **words)
    write_outcome(outcome, folder)
    return outcome


def _checked(scale: str, seeds: list[int] | None) -> list[int]:
    """The seeds of a run at a scale.

    Raises:
        ValueError: unknown scale, no seeds, a seed out of range or given twice.
    """
    if scale not in SCALES:
        raise ValueError(f"scale: got {scale!r}; it must be one of {', '.join(SCALES)}")
    seeds = ([0] if scale == "smoke" else [0, 1, 2]) if seeds is None else seeds
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {seeds}; it must be non-negative integers below 2^63, each once, at least one")
    return seeds


def command_of(name: str, scale: str, seeds: Sequence[int], **words: str) -> str:
    """What one types to run an experiment so."""
    words = {"scale": scale, "seeds": ",".join(map(str, seeds)), **words}
    return f"guidebook reproduce {name} " + " ".join(f"--{key} {value}" for key, value in words.items())


def important_first() -> list[str]:
    """Every experiment, common ground first, then the families' own in turn, each in the order of the table.

    Those come last that no claim but such as cannot be tested here rests on.
    """
    decisive = {name for cs in CLAIMS.values() for c in cs if c.stands != NOT_RUN for name in c.experiments}
    families: dict[str, list[str]] = {}
    for name in EXPERIMENTS:
        families.setdefault(name.split("/")[0], []).append(name)
    common = families.pop("common", [])
    rounds = zip_longest(*families.values())
    names = [*common, *(name for some in rounds for name in some if name is not None)]
    return sorted(names, key=lambda name: name not in decisive)


#: minutes of processor time that three seeds of an experiment took at small scale, where that was measured
MEASURED_MINUTES = {
    "bnnp/sweeps": 78.0,
    "lrvd/minilm-cola": 61.0,
    "lrvd/minilm-docstrings": 84.0,
    "lrvd/minilm-sst2": 74.0,
}


def standing(name: str, scale: str, out: str | Path) -> Results | None:
    """The results of an experiment that stand in a folder; None where there are none, or none that can be read."""
    path = results_folder(name, scale, out) / RESULTS
    try:
        return read_checked_json(path, Results, "the results of an experiment")
    except (OSError, FileError):
        return None


def plan(scale: str = "small", seeds: list[int] | None = None, out: str | Path = "runs") -> pd.DataFrame:
    """Every experiment in the order in which :func:`reproduce_all` runs them.

    Columns: ``experiment``, ``what``, ``claims`` (rows of docs/results/index.md), ``minutes`` (that its last run in
    this folder took, or three seeds took us; NaN where neither is known), ``stands`` (whether that run was of these
    seeds).

    Args:
        scale: as for :func:`reproduce`.
        seeds: seeds.
        out: folder of the runs.

    Raises:
        ValueError: unknown scale, or seeds out of range.
    """
    seeds = _checked(scale, seeds)
    rows = []
    for name in important_first():
        found = standing(name, scale, out)
        keys = [c.key for claims in CLAIMS.values() for c in claims if name in c.experiments]
        ours = MEASURED_MINUTES.get(name, math.nan) if scale == "small" else math.nan
        minutes = ours if found is None or found.seconds is None else found.seconds / 60
        stands = found is not None and found.command == command_of(name, scale, seeds)
        rows.append([name, EXPERIMENTS[name].title, ", ".join(keys), minutes, stands])
    return pd.DataFrame(rows, columns=["experiment", "what", "claims", "minutes", "stands"])


def reproduce_all(
    scale: str = "small",
    seeds: list[int] | None = None,
    out: str | Path = "runs",
    progress: bool = True,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Runs every experiment, the most important first; what stands is skipped, and a kill costs the fit it was in.

    One that cannot be run, for want of data or of a part that is not installed, is named with its reason, and the next
    goes on.

    Args:
        scale: as for :func:`reproduce`, as are the rest.
        seeds: seeds.
        out: folder of the runs.
        progress: show progress.
        device: where to train.
        say: what is told of each.

    Returns:
        :func:`plan`'s table with a column ``outcome``: ``"stands"``, how many claims held, or why it was not run.
    """
    table = plan(scale, seeds, out)
    outcomes = []
    for name, stands in zip(table.experiment, table.stands, strict=True):
        if stands:
            outcomes.append("stands")
            say(f"{name}: stands")
            continue
        try:
            outcome = reproduce(name, scale, seeds, out, progress, device)
        except (DataError, ImportError, OSError, ValueError) as error:
            outcomes.append(f"not run: {error}")
        else:
            claims = [check.holds for check in outcome.checks if check.holds is not None]
            outcomes.append(f"{sum(claims)} of {len(claims)} claims held")
        say(f"{name}: {outcomes[-1]}")
    return table.assign(outcome=outcomes)


def results_folder(name: str, scale: str, out: str | Path, cpu_seconds: float | None = None) -> Path:
    """Where the results of an experiment are."""
    return Path(out) / (f"{name}-{scale}" if cpu_seconds is None else f"{name}-{scale}-{cpu_seconds:g}s")


def _pieces(
    name: str, cpu_seconds: float | None, tasks: Sequence[str] | None, methods: Sequence[str] | None
) -> dict[str, Any]:
    """The options of an experiment that can be run in pieces; none for the others, which refuse them."""
    options = {"cpu_seconds": cpu_seconds, "tasks": tasks, "methods": methods}
    own = EXPERIMENTS[name].tasks
    if not own:
        for key, value in options.items():
            if value is not None:
                which = " and ".join(each for each in EXPERIMENTS if EXPERIMENTS[each].tasks)
                raise ValueError(f"{key}: got {value!r}; {name} has no such option, {which} have")
        return {}
    if cpu_seconds is not None and not 0 < cpu_seconds < math.inf:
        raise ValueError(f"cpu_seconds: got {cpu_seconds}; it must be positive and finite")
    for key, given in (("tasks", tasks), ("methods", methods)):
        if given is not None and (not given or len(set(given)) < len(given)):
            raise ValueError(f"{key}: got {list(given)}; it must be names, each once, at least one")
    for each in tasks or ():
        if each not in own:
            raise ValueError(f"tasks: got {each!r}; {name} has {', '.join(own)}")
    for each in methods or ():
        METHODS.check(each, "methods")
    return options
