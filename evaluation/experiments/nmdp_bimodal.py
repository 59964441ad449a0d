"""A process with two modes: who finds both, and who knows that all points of a task share one."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from evaluation import plots
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.nmdp_parts import Size, description, mixture, process, scores, train
from inference import predict
from pp_models import TaskBatch, tasks
from pp_models.tasks.mixed_offset_tasks import (
    mixed_offset_joint_log_likelihood,
    mixed_offset_log_likelihood,
    mixed_offset_predict,
)

#: floor of every scale; the noise is 0.05
FLOOR = 0.02
SCALES = {
    "smoke": Size(4, 8, 3, 2, 4, 8, 8),
    "small": Size(4_000, 64, 8, 16, 16, 256, 200),
    "paper": Size(100_000, 128, 8, 16, 16, 3_000, 1_000, 5e-4),
}
METHODS = ("NMDP, strict", "NMDP, context", "CNP", "NP", "ANP")
ORACLE = "exact mixture of two GPs"
#: targets of a test task, half of them where the modes part
TARGETS = 20


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains on tasks whose contexts cannot tell the sign of the jump, and holds the scores to the exact ones."""
    size = SCALES[scale_name]
    test = tasks.mixed_offset(8, 1_000_000, num_target=(TARGETS, TARGETS))
    batches = [test.batch(i) for i in range(max(1, size.test_tasks // 8))]
    rows: list[dict[str, Any]] = []
    pairs = {}
    for seed in seeds:
        for name in METHODS:
            stream = tasks.mixed_offset(size.batch_size, seed)
            if name.startswith("NMDP"):
                build = mixture(1, 1, size, name.removeprefix("NMDP, "), FLOOR)
            else:
                build = process(name, 1, 1, size, FLOOR)
            pairs[name, seed] = train(workshop, f"nmdp-bimodal-{scale_name}", name, build, stream, seed, size)
            found = scores(pairs[name, seed], batches, size.draws)
            rows.append({"model": name, "seed": seed, **found[["ll", "joint_ll", "mse"]].mean().to_dict()})
    best = _exact(batches)
    rows.append({"model": ORACLE, "seed": -1, **best})
    table = pd.DataFrame(rows)
    outcome = Outcome("nmdp/bimodal", "", table)
    outcome.checks = _checks(table, seeds, best, scale_name)
    outcome.notes = [
        f"y = f(x) ± 1 for x > 0, f a GP (lengthscale 0.5, scale 0.3), noise 0.05; the sign is a coin, and contexts "
        f"(1 to 16 points) lie in x < 0. {len(batches) * 8} test tasks of {TARGETS} targets in [-2, 2]. Nats a point. "
        + description(size, "strict and context, as named", FLOOR),
        "ll scores points one by one, joint_ll all targets of a task together: jointly the sign costs ln 2 = "
        f"{math.log(2):.3f} nats once, one by one at every point with x > 0. Joint scores of NMDP, NP and ANP rest on "
        f"{size.draws} draws and are biased downwards. No model may lie above the exact mixture but by chance.",
    ]
    shown = tasks.mixed_offset(2, 1_000_003, num_context=(6, 6), grid=80).batch(0)
    grid = torch.linspace(-2.2, 2.2, 121)
    densities = {name: _density(pairs[name, seeds[0]], shown, grid, size.draws) for name in METHODS}
    densities[ORACLE] = _exact_density(shown, grid)
    outcome.figures = {
        "densities": (
            plots.density_plot(densities, shown, shown.target.x[0, :, 0], grid),
            f"Predictive densities, seed {seeds[0]}: the context (dots) leaves two modes for x > 0.",
        ),
        "comparison": (
            plots.comparison_plot(table[table.seed >= 0], {k: best[k] for k in ("ll", "joint_ll")}, ("ll", "joint_ll")),
            "Test log-likelihood, marginal and joint, one dot a seed; the exact answer dashed.",
        ),
    }
    return outcome


def _exact(batches: list[TaskBatch]) -> dict[str, float]:
    marginal = torch.cat([mixed_offset_log_likelihood(b) for b in batches]).mean()
    joint = torch.cat([mixed_offset_joint_log_likelihood(b) for b in batches]).mean()
    errors = []
    for batch in batches:
        weight, mean, _ = mixed_offset_predict(batch, batch.target.x)
        assert batch.target.y is not None
        errors.append(((weight[..., None, None] * mean).sum(0) - batch.target.y).square().mean())
    return {"ll": float(marginal), "joint_ll": float(joint), "mse": float(torch.stack(errors).mean())}


def _density(pair: Any, batch: TaskBatch, grid: Tensor, draws: int) -> Tensor:
    """Predictive density ``[T, Ny, N]`` on a grid of y."""
    model, guide = pair
    found = predict(model, guide, batch.context, batch.target.x, draws, seed=0)
    return torch.stack([found.log_prob(torch.full_like(batch.target.x, float(v))).exp() for v in grid], 1)


def _exact_density(batch: TaskBatch, grid: Tensor) -> Tensor:
    weight, mean, sd = mixed_offset_predict(batch, batch.target.x)
    density = torch.distributions.Normal(mean, sd).log_prob(grid.double()).exp()  # [2, T, N, Ny]
    return (weight[..., None, None] * density).sum(0).mT


def _checks(table: pd.DataFrame, seeds: list[int], best: dict[str, float], scale: str) -> list[Check]:
    by = table.set_index(["model", "seed"])

    def gaps(a: str, b: str, column: str) -> list[float]:
        return [float(by.loc[(a, s), column] - by.loc[(b, s), column]) for s in seeds]

    judged = scale != "smoke"
    checks = []
    for column, words in (("joint_ll", "joint"), ("ll", "marginal")):
        for other in ("CNP", "NP", "ANP"):
            found = gaps("NMDP, context", other, column)
            criterion = "every seed > 0" if other == "CNP" else "reported"
            holds = min(found) > 0 if judged and other == "CNP" else None
            checks.append(Check(f"NMDP (context) above {other}, {words} LL", criterion, signed(found), holds))
    for column in ("ll", "joint_ll"):
        worst = float(table[table.model != ORACLE][column].max())
        label = f"no model above the exact {column}"
        limit, shown = f"<= {best[column]:+.3f} + 0.05", f"highest {worst:+.3f}"
        checks.append(Check(label, limit, shown, worst <= best[column] + 0.05))
    return checks
