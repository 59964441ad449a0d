"""Which point to ask for next: what it tells of the weights, the predictive spread, or chance."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from evaluation import plots
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.nmdp_kernel_mix import FLOOR, fitted
from evaluation.experiments.nmdp_kernel_mix import SCALES as MIX_SCALES
from evaluation.experiments.nmdp_parts import Pair, Size, description, mixture, scores, train
from inference.active_context import ACQUISITIONS, acquire, entropy_of_mean
from pp_models import TaskBatch, tasks

SCALES = {
    "smoke": Size(4, 8, 3, 2, 4, 3, 4),
    "small": Size(3_000, 48, 8, 16, 16, 48, 64),
    "paper": Size(20_000, 128, 8, 16, 32, 300, 200),
}
#: first and last number of context points
POINTS = {"smoke": (2, 4), "small": (2, 10), "paper": (2, 20)}
#: candidates a task
POOL = {"smoke": 12, "small": 40, "paper": 100}


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Uses the fits of nmdp/representation on kernels, and strict experts of its own on the branches."""
    size = SCALES[scale_name]
    start, budget = POINTS[scale_name]
    mix = fitted("random", scale_name, ["NMDP, context"], seeds, workshop)
    # candidates are the contexts; the targets are scored and never asked for, the same for every acquisition
    held = {"kernels, context": _kernel_tasks(scale_name, size), "branches, strict": _branch_tasks(scale_name, size)}
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        branches = train(
            workshop,
            f"nmdp-branches-active-{scale_name}",
            "NMDP, strict",
            mixture(1, 1, size, "strict", FLOOR),
            tasks.branches(size.batch_size, seed),
            seed,
            size,
        )
        pairs: dict[str, Pair] = {"kernels, context": mix["NMDP, context", seed], "branches, strict": branches}
        for name, (model, guide) in pairs.items():
            pool, test = held[name].context, held[name].target
            for acquisition in ACQUISITIONS:
                for batch in acquire(model, guide, pool, start, budget, acquisition, seed):
                    found = scores((model, guide), [TaskBatch(batch.context, test)], size.draws)
                    with torch.no_grad():
                        doubt = entropy_of_mean(guide.concentration(batch.context))  # type: ignore[operator]
                    rows.append(
                        {"model": name, "seed": seed, "acquisition": acquisition, "points": batch.context.num_points}
                        | found[["ll", "joint_ll", "mse"]].mean().to_dict()
                        | {"H[E z]": float(doubt.mean())}
                    )
    long = pd.DataFrame(rows)
    area = long[long.points > start].groupby(["model", "seed", "acquisition"], sort=False)
    table = area[["ll", "joint_ll", "H[E z]"]].mean().unstack("acquisition")
    table.columns = [f"{score}, {acquisition}" for score, acquisition in table.columns]
    outcome = Outcome("nmdp/active-context", "", table.reset_index())
    outcome.tables["Every step"] = long
    for name in held:
        part = table.loc[name]
        for acquisition in ACQUISITIONS[:-1]:
            gaps = list(part[f"ll, {acquisition}"] - part["ll, random"])
            outcome.checks.append(Check(f"{name}: LL of {acquisition!r} less random", "reported", signed(gaps), None))
    outcome.notes = [
        f"{size.test_tasks} tasks of {POOL[scale_name]} candidates, from {start} to {budget} points; the table "
        "averages over all steps after the first, which all acquisitions share. Scores are of as many other points, "
        "which nobody may ask for, in nats a point. information: I(z; y | x) by draws, from the prediction alone; "
        "entropy drop: the expected fall of H[E z] when the guide reads the new point; max sd: the predictive standard "
        "deviation. A guide's own doubt is no measure of its errors: hold the fall of H[E z] against the scores.",
        "kernels: a mix of GP kernels, context experts. branches: strict experts, where the weights are all there is "
        f"to learn of a task. Branches: {description(size, 'strict', FLOOR)} Kernels: "
        + description(MIX_SCALES[scale_name], "context", FLOOR),
    ]
    outcome.figures["queries"] = (plots.query_curves(long), "LL against queried points, mean over seeds.")
    return outcome


def _kernel_tasks(scale: str, size: Size) -> TaskBatch:
    count = POOL[scale]
    counts: Any = {"num_context": (count, count), "num_target": (count, count), "max_points": None}
    return tasks.gp("mix", size.test_tasks, 3_000_000, **counts).batch(0)


def _branch_tasks(scale: str, size: Size) -> TaskBatch:
    count = POOL[scale]
    return tasks.branches(size.test_tasks, 3_000_000, num_context=(count, count), num_target=count).batch(0)
