"""What it takes to adapt to a task at test time, NMDP against gradient steps, and how fast A4 and A5 train."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from evaluation.experiments.common_fits import Budget, TestTasks, target_score, trained
from evaluation.experiments.common_gp import sized
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.nmdp_ladder import rung, rung_objective
from evaluation.experiments.nmdp_parts import Pair, Size, description, scores
from evaluation.methods import Method
from evaluation.plots.style import WIDTH, colours, look
from inference import fit, predict
from inference.objectives import TaskObjective
from inference.step_cost import step_cost
from pp_models import TaskBatch, tasks

TASKS = "gp-mix-tnp"
FLOOR = 0.01
AMORTISED, BY_GRADIENTS = ("nmdp", "nmdp-attention"), ("maml", "cavia")
#: context points of the tasks that are adapted to, and points of a task in all: see sized
CONTEXTS = (3, 10, 40)
#: gradient steps at test; they train with five
INNER = (0, 1, 5, 10)
BUDGETS = {
    "smoke": Budget(0, 2, 8, 1, 2),
    "small": Budget(10.0, test_batches=4),
    "paper": Budget(300.0, test_batches=16),
}
SIZES = {
    "smoke": Size(4, 8, 3, 2, 2, 4, 4),
    "small": Size(400, 32, 8, 16, 16, 48, 64, 2e-3),
    "paper": Size(50_000, 64, 8, 16, 32, 400, 1_000),
}
#: points of a training curve
CURVE = 20
RUNGS = ("A4", "A5")
#: draws of a step's gradient on one batch
GRADIENTS = 16


def milliseconds(method: Method, batch: TaskBatch, repeats: int) -> float:
    """CPU milliseconds from the contexts of a batch to predictions at its targets, by mean weights; the median."""
    found = []
    for _ in range(repeats + 1):
        start = time.process_time()
        predict(method.model, method.guide, batch.context, batch.target.without_y(), 1, weights="mean")
        found.append(1000 * (time.process_time() - start))
    return float(torch.tensor(found[1:]).median())  # the first sets things up


def adaptation(method: Method, by_size: dict[int, list[TaskBatch]], repeats: int) -> dict[str, float]:
    """Log-likelihood of the targets by size of the context, and what a prediction takes, alone and among many."""
    row = {f"ll_{m}": target_score(method, batches) for m, batches in by_size.items()}
    batch = by_size[CONTEXTS[1]][0]
    many = len(batch)
    return row | {
        "ms, 1 task": milliseconds(method, batch[:1], repeats),
        f"ms a task of {many}": milliseconds(method, batch, repeats) / many,
    }


def curve(name: str, kind: str, size: Size, seed: int, workshop: Workshop) -> tuple[pd.DataFrame, dict[str, float]]:
    """Held-out scores along the training of a rung, and how noisy its gradients are at the start and at the end."""
    if kind == "branches":
        stream: Any = tasks.branches(size.batch_size, seed)
        test = [tasks.branches(size.test_tasks, 1_000_000, num_context=(3, 3)).batch(0)]
    else:
        stream = tasks.gp("mix", size.batch_size, seed, **tasks.TNP_COUNTS)
        test = [tasks.gp("mix", 8, 1_000_000, **tasks.TNP_COUNTS).batch(i) for i in range(max(1, size.test_tasks // 8))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pair = rung(name, size, "strict" if kind == "branches" else "context", FLOOR)()
    objective = rung_objective(name, size)
    batch = stream.batch(0)
    found = {"noise, start": gradient_noise(pair, objective, batch, seed)}
    points: list[dict[str, float]] = []

    def watch(row: dict[str, float]) -> None:
        for module in pair:
            module.eval()
        table = scores(pair, test, size.draws)
        points.append({"step": row["step"], "ll": float(table.ll.mean()), "joint": float(table.joint_ll.mean())})
        for module in pair:
            module.train()

    workshop.say(f"{kind}: {name}, seed {seed}, {size.steps} steps")
    fit(
        *pair,
        stream,
        objective,
        steps=size.steps,
        seed=seed,
        learning_rate=size.learning_rate,
        max_grad_norm=10.0,
        final_learning_rate=size.learning_rate / 100,
        callbacks=[watch],
        log_every=max(1, size.steps // CURVE),
        progress=workshop.progress,
        device=workshop.device_name,
    )
    found["noise, end"] = gradient_noise(pair, objective, batch, seed)
    return pd.DataFrame(points), found


def gradient_noise(pair: Pair, objective: TaskObjective, batch: TaskBatch, seed: int) -> float:
    """Standard deviation of a step's gradient over draws, over the norm of its mean, on one batch."""
    parameters = [p for module in pair for p in module.parameters() if p.requires_grad]
    drawn = []
    for number in range(GRADIENTS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1_000 * seed + number)
            loss = objective.reduce(objective.terms(*pair, batch))
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        drawn.append(torch.cat([g.flatten() for g in gradients if g is not None]).double())
    every = torch.stack(drawn)
    return float(every.var(0).sum().sqrt() / every.mean(0).norm())


def reached(curves: dict[str, pd.DataFrame], score: str) -> dict[str, float]:
    """The first step of each curve whose score is that which all of them reach."""
    level = min(c[score].max() for c in curves.values())
    return {name: float(c.step[c[score] >= level].iloc[0]) for name, c in curves.items()}


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains NMDP, MAML and CAVIA for the same CPU seconds, adapts to new tasks, and follows A4 and A5."""
    budget, size = BUDGETS[scale_name], SIZES[scale_name]
    by_size = {
        m: [sized(TASKS, budget.test_batch_size, m).batch(i) for i in range(budget.test_batches)] for m in CONTEXTS
    }
    test = TestTasks(TASKS, [], by_size, [])
    repeats = 1 if scale_name == "smoke" else 15
    rows: list[dict[str, Any]] = []
    inner: list[dict[str, Any]] = []
    training: list[dict[str, Any]] = []
    curves: dict[tuple[str, str, int], pd.DataFrame] = {}
    for seed in seeds:
        for name in (*AMORTISED, *BY_GRADIENTS):
            method, _ = trained(workshop, test, budget, name, seed)
            rows.append({"model": name, "seed": seed, **adaptation(method, by_size, repeats)})
            for steps in INNER if name in BY_GRADIENTS else ():
                method.guide.descent.steps = steps  # type: ignore[union-attr]
                inner.append({"model": name, "steps": steps, **adaptation(method, by_size, repeats)})
        for kind in ("branches", "GP mix"):
            both = {name: curve(name, kind, size, seed, workshop) for name in RUNGS}
            curves |= {(kind, name, seed): points for name, (points, _) in both.items()}
            steps_to = {s: reached({n: c for n, (c, _) in both.items()}, s) for s in ("ll", "joint")}
            for name, (points, noise) in both.items():
                best = {f"best {s}": float(points[s].max()) for s in ("ll", "joint")}
                to = {f"steps to common {s}": steps_to[s][name] for s in ("ll", "joint")}
                training.append({"tasks": kind, "model": name, "seed": seed, **best, **to, **noise})
    table, trainings = pd.DataFrame(rows), pd.DataFrame(training)
    outcome = Outcome("nmdp/adaptation", "", table)
    outcome.tables["Training"] = trainings
    outcome.tables["Gradient steps at test"] = pd.DataFrame(inner).groupby(["model", "steps"]).mean().reset_index()
    outcome.checks = _checks(scale_name, table, trainings, seeds)
    spent = _step_costs(size) if scale_name != "smoke" else ""
    outcome.notes = [
        f"Adaptation: {TASKS}, methods by their recipes, {budget.cpu_seconds:g} CPU seconds of training each; "
        f"{budget.test_batches * budget.test_batch_size} tasks with each of {', '.join(map(str, CONTEXTS))} context "
        f"points. ms: CPU milliseconds from {CONTEXTS[1]} context points to predictions at the other points, a forward "
        "pass by mean weights (nmdp's experts are closed-form regressions, nmdp-attention's attend to the context) or "
        "after five gradient steps, on the machine that wrote this, beside whatever else ran there.",
        "Training: A4 is the Dirichlet guide by the ELBO (npvi, 4 draws), A5 by importance-weighted EM. "
        + description(size, "strict on the branches, context on the GP mix", FLOOR)
        + f" Scores of {size.test_tasks} held-out tasks at {CURVE} steps; the common score is the lower of the two "
        f"best ones. noise: standard deviation over {GRADIENTS} draws of a step's gradient on one batch, over the norm "
        f"of their mean.{spent}",
    ]
    outcome.figures["training"] = (_figure(curves), "Held-out log-likelihood along training; a line a seed.")
    return outcome


def _step_costs(size: Size) -> str:
    """CPU milliseconds of a training step of both rungs, as a sentence."""
    found = []
    for kind, experts in (("branches", "strict"), ("GP mix", "context")):
        for name in RUNGS:
            stream: Any = tasks.branches(size.batch_size, 0)
            if kind != "branches":
                stream = tasks.gp("mix", size.batch_size, 0, **tasks.TNP_COUNTS)
            cost = step_cost(*rung(name, size, experts, FLOOR)(), stream, rung_objective(name, size))
            found.append(f"{name} {1000 * cost:.1f} on {kind}")
    return f" CPU milliseconds a training step: {', '.join(found)}."


def _checks(scale: str, table: pd.DataFrame, training: pd.DataFrame, seeds: list[int]) -> list[Check]:
    def claim(value: bool) -> bool | None:
        return bool(value) if scale == "small" else None

    by = table.set_index(["model", "seed"])
    checks = []
    for name in AMORTISED:
        for rival in BY_GRADIENTS:
            times = [float(by.loc[(rival, s), "ms, 1 task"] / by.loc[(name, s), "ms, 1 task"]) for s in seeds]
            words = ", ".join(f"{v:.2f}" for v in times)
            checks.append(
                Check(
                    f"{rival} takes longer than {name} to predict a task",
                    "ratio > 1 in every seed",
                    words,
                    claim(min(times) > 1),
                )
            )
    for rival in BY_GRADIENTS:
        column = f"ll_{CONTEXTS[1]}"
        gaps = [float(by.loc[("nmdp", s), column] - by.loc[(rival, s), column]) for s in seeds]
        checks.append(Check(f"nmdp less {rival}, {CONTEXTS[1]} points, LL", "reported", signed(gaps), None))
    rungs = training.set_index(["tasks", "model", "seed"])
    for kind in dict.fromkeys(training.tasks):
        for score in ("ll", "joint"):
            a4, a5 = ([float(rungs.loc[(kind, n, s), f"steps to common {score}"]) for s in seeds] for n in RUNGS)
            words = "; ".join(
                f"{n} " + ", ".join(f"{v:.0f}" for v in each) for n, each in zip(RUNGS, (a4, a5), strict=True)
            )
            sooner = all(b < a for a, b in zip(a4, a5, strict=True))
            checks.append(
                Check(
                    f"{kind}: A5 is sooner at the common {score} than A4",
                    "fewer steps in every seed",
                    words,
                    claim(sooner),
                )
            )
        a4, a5 = ([float(rungs.loc[(kind, n, s), "noise, end"]) for s in seeds] for n in RUNGS)
        checks.append(
            Check(f"{kind}: noise of a gradient at the end", "reported", f"A4 {signed(a4)}; A5 {signed(a5)}", None)
        )
    return checks


def _figure(curves: dict[tuple[str, str, int], pd.DataFrame]) -> Figure:
    with look():
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        kinds = list(dict.fromkeys(kind for kind, _, _ in curves))
        for axes, kind in zip(figure.subplots(1, len(kinds)), kinds, strict=True):
            for colour, name in zip(colours(len(RUNGS)), RUNGS, strict=True):
                own = [points for (k, n, _), points in curves.items() if (k, n) == (kind, name)]
                for number, points in enumerate(own):
                    axes.plot(points.step, points.ll, color=colour, label=None if number else name)
                    axes.plot(points.step, points.joint, color=colour, ls=":")
            axes.set(title=f"{kind} (dotted: joint)", xlabel="step")
        figure.axes[0].set_ylabel("nats a point")
        figure.axes[-1].legend()
    return figure
