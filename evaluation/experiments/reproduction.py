"""Runs an experiment by name, and writes what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.experiments.experiment import SCALES, Outcome, Workshop, folder_of_outcome, write_outcome
from evaluation.experiments.table import EXPERIMENTS
from evaluation.methods import METHODS


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
    if scale not in SCALES:
        raise ValueError(f"scale: got {scale!r}; it must be one of {', '.join(SCALES)}")
    seeds = ([0] if scale == "smoke" else [0, 1, 2]) if seeds is None else seeds
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {seeds}; it must be non-negative integers below 2^63, each once, at least one")
    options = _pieces(name, cpu_seconds, tasks, methods)
    folder = folder_of_outcome(results_folder(name, scale, out, cpu_seconds))
    workshop = Workshop(Path(out) / name.split("/")[0], progress, device)
    outcome = EXPERIMENTS[name].run(scale, seeds, workshop, **options)
    words = {"scale": scale, "seeds": ",".join(map(str, seeds))}
    words |= {"cpu-seconds": f"{cpu_seconds:g}"} if cpu_seconds is not None else {}
    words |= {key: ",".join(given) for key, given in (("tasks", tasks), ("methods", methods)) if given is not None}
    outcome.command = f"guidebook reproduce {name} " + " ".join(f"--{key} {value}" for key, value in words.items())
    write_outcome(outcome, folder)
    return outcome


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
