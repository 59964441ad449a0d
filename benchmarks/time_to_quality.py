"""How good each method is after so many seconds of CPU, beside its rivals and the exact answer.

Every fit has the method's own recipe (``evaluation.recipes``), one thread, and as many steps as the budget buys: the
cost of a step is measured first, on a copy. Tasks are drawn within the budget; scoring is not.

Run: python -m benchmarks.time_to_quality --tasks gp-rbf-fixed --budgets 30,90 --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from evaluation.methods import Method
from evaluation.run_configuration import affordable, configure
from evaluation.run_configuration import train as fit_configured
from evaluation.scores.scoring import score_as_used, score_oracle
from pp_models.tasks.task_table import TASKS, task_stream

OURS = ("nvdp", "nvdp+path", "cnp+path", "cnp+kernels", "nmdp", "nmdp-kernels", "bnnp")
RIVALS = ("cnp", "anp", "convcnp", "tnp-d")
SCORES = ("ll", "rll", "pll", "joint_pll")


def train(name: str, tasks: str, seconds: float, seed: int, width: int | None) -> tuple[Method, int, float]:
    """A method trained for so many seconds of CPU: the method, its steps, and the seconds it took."""
    configuration = configure(name, tasks, seed=seed, width=width)
    steps, _ = affordable(configuration, seconds, "cpu")
    configuration = replace(configuration, steps=steps)
    method = configuration.build()
    start = time.process_time()
    fit_configured(configuration, method, device="cpu", progress=False)
    return method, steps, time.process_time() - start


def run(
    tasks: str, names: list[str], budgets: list[float], seeds: list[int], width: int | None, batches: int
) -> pd.DataFrame:
    """All fits, one row each."""
    floor = TASKS.find(tasks).min_scale
    test = task_stream(tasks, 16, 0, test=True)
    held_out = [test.batch(i) for i in range(batches)]
    rows = []
    if tasks.startswith("gp-"):
        exact = score_oracle(held_out, floor)
        rows.append({"method": "exact", "budget": math.nan, "seed": -1, **{s: exact[s].mean() for s in SCORES}})
    for budget in budgets:
        for name in names:
            for seed in seeds:
                method, steps, seconds = train(name, tasks, budget, seed, width)
                row = {"method": name, "budget": budget, "seed": seed, "steps": steps, "seconds": seconds}
                scores = score_as_used(method.model, method.guide, held_out)
                row |= {name: float(scores[name].mean()) for name in SCORES}
                rows.append(row)
                print(
                    " ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True
                )
    return pd.DataFrame(rows).assign(tasks=tasks)


def picture(table: pd.DataFrame, column: str, path: Path) -> None:
    """Score against seconds of CPU, a line a method, the exact answer above."""
    figure, axes = plt.subplots(figsize=(7, 4))
    fits = table[table.method != "exact"]
    for name, part in fits.groupby("method", sort=False):
        mean = part.groupby("budget")[column].agg(["mean", "min", "max"])
        axes.plot(mean.index, mean["mean"], "o-" if name in OURS else "s--", label=name)
        axes.fill_between(mean.index, mean["min"], mean["max"], alpha=0.15)
    for value in table[table.method == "exact"][column]:
        axes.axhline(value, color="black", lw=1, label="exact")
    low = np.nanquantile(fits[column], 0.05)
    axes.set(xscale="log", xlabel="CPU seconds of training", ylabel=f"{column}, nats a point", ylim=(low - 0.1, None))
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    comma = lambda kind: lambda text: [kind(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--tasks", default="gp-rbf-fixed")
    parser.add_argument("--methods", type=comma(str), default=[*OURS, *RIVALS])
    parser.add_argument("--budgets", type=comma(float), default=[30.0, 90.0])
    parser.add_argument("--seeds", type=comma(int), default=[0, 1, 2])
    parser.add_argument("--width", type=int, help="of every network; that of each recipe by default")
    parser.add_argument("--test-batches", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_quality"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = run(
        arguments.tasks, arguments.methods, arguments.budgets, arguments.seeds, arguments.width, arguments.test_batches
    )
    table.to_csv(arguments.out / f"{arguments.tasks}.csv", index=False)
    means = table.groupby(["budget", "method"], sort=False, dropna=False)[list(SCORES)].agg(["mean", "std"])
    print(means.round(3).to_string())
    picture(table, "pll" if arguments.tasks.endswith("-tnp") else "ll", arguments.out / f"{arguments.tasks}.png")


if __name__ == "__main__":
    main()
