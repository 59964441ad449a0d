"""Runs an experiment by name, and writes what came out."""

from __future__ import annotations

from pathlib import Path

from evaluation.experiments.experiment import SCALES, Outcome, Workshop, folder_of_outcome, write_outcome
from evaluation.experiments.table import EXPERIMENTS


def reproduce(
    name: str,
    scale: str = "small",
    seeds: list[int] | None = None,
    out: str | Path = "runs",
    progress: bool = True,
    device: str = "cpu",
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

    Raises:
        ValueError: unknown experiment or scale, no seeds, a seed out of range or given twice, or no such device.
        CheckpointError: the folder cannot be written to, or holds somebody's tables, pictures or report.
    """
    EXPERIMENTS.check(name)
    if scale not in SCALES:
        raise ValueError(f"scale: got {scale!r}; it must be one of {', '.join(SCALES)}")
    seeds = ([0] if scale == "smoke" else [0, 1, 2]) if seeds is None else seeds
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {seeds}; it must be non-negative integers below 2^63, each once, at least one")
    family, short = name.split("/")
    folder = folder_of_outcome(Path(out) / family / f"{short}-{scale}")
    workshop = Workshop(Path(out) / family, progress, device)
    outcome = EXPERIMENTS[name].run(scale, seeds, workshop)
    outcome.command = f"guidebook reproduce {name} --scale {scale} --seeds {','.join(map(str, seeds))}"
    write_outcome(outcome, folder)
    return outcome
