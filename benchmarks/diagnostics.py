"""Diagnostics of many tasks at once beside a loop over ArviZ, on the same draws, timed in turns in one run.

Run: python -m benchmarks.diagnostics [--device cpu]
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
import typer

from evaluation.diagnostics import ess, psis, rhat

CHAINS, DRAWS = 2, 250


def reference() -> dict[str, Callable[[np.ndarray], float]]:
    """ArviZ's functions of one task's draws ``[chain, draw]``."""
    import arviz
    from arviz.stats import diagnostics

    logging.getLogger("arviz").setLevel(logging.ERROR)
    return {
        "ess (bulk)": diagnostics._ess_bulk,
        "R-hat": diagnostics._rhat_rank,
        "k-hat": lambda x: float(np.asarray(arviz.psislw(x.reshape(-1).copy())[1])),
    }


OURS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"ess (bulk)": ess, "R-hat": rhat, "k-hat": psis}


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, the device's work finished."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main(device: str = "cpu", repeats: int = 3, most: int = 10_000) -> None:
    """Prints seconds and the ratio at 10, 1,000 and 10,000 tasks; a loop over 10,000 is timed on 1,000 of them."""
    where = torch.device(device)
    print("| statistic | tasks | ours, s | loop over ArviZ, s | ratio | largest difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = reference()
        for name, function in OURS.items():
            for tasks in (10, 1_000, 10_000):
                if tasks > most:
                    continue
                draws = torch.randn(
                    CHAINS, DRAWS, tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
                )
                here, columns = draws.to(where), draws.permute(2, 0, 1).numpy()
                looped = min(tasks, 1_000)
                function(here)
                found = function(here).cpu()[:looped]
                pairs = [
                    (
                        seconds(lambda: function(here), where),  # noqa: B023
                        seconds(lambda: [theirs[name](column) for column in columns[:looped]], torch.device("cpu")),  # noqa: B023
                    )
                    for _ in range(repeats if tasks < 10_000 else 1)
                ]
                ours, loop = median(p[0] for p in pairs), median(p[1] for p in pairs) * tasks / looped
                expected = torch.tensor(
                    [float(theirs[name](column)) for column in columns[:looped]], dtype=torch.float64
                )
                gap = float((found - expected).abs().max())
                print(f"| {name} | {tasks:,} | {ours:.4f} | {loop:.3f} | {loop / ours:,.0f} | {gap:.0e} |")


if __name__ == "__main__":
    typer.run(main)
