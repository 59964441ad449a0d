"""BNNP's two limits: contexts whose likelihood is taken in portions, and attention, whose predictions hang together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure

from evaluation.experiments.bnnp_objectives import training_tasks
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.nmdp_parts import Pair
from evaluation.experiments.nvdp_full_rates import kept_bytes
from evaluation.plots.style import WIDTH, colours, look
from guides import BNNWeightGuide
from inference import predict
from inference.objectives import make
from inference.step_cost import step_cost
from pp_models import BayesianAttentionNetwork, BayesianNetwork, LearnedGaussianPrior, TaskBatch, tasks

NOISE = 0.1
#: how the likelihood of a context is taken in training -> the guide's arguments, the size of a portion left out
PORTIONS: dict[str, dict[str, Any]] = {
    "whole": {"solver": "primal"},
    "portions": {"chunk_gradient": "exact"},
    "one portion": {"chunk_gradient": "single"},
}
#: of target points that are asked for alone, and with how many others
ALONE, OTHERS = 6, (0, 5, 19)


class Size(NamedTuple):
    """Size of a run.

    Args:
        hidden: widths of the perceptron.
        attention: width of the attention network.
        steps: optimizer steps, in portions and of attention.
        particles: weight samples S.
        batch_size: tasks a step.
        points: context and target points of the large tasks, fewest and most.
        portion: points of a portion.
        test_tasks: test tasks.
    """

    hidden: tuple[int, ...]
    attention: int
    steps: tuple[int, int]
    particles: int
    batch_size: int
    points: tuple[int, int]
    portion: int
    test_tasks: int


SCALES = {
    "smoke": Size((4, 4), 4, (3, 3), 2, 2, (30, 40), 8, 2),
    "small": Size((16, 16), 8, (250, 300), 4, 2, (320, 480), 64, 32),
    "paper": Size((64, 64), 32, (20_000, 20_000), 16, 5, (1_000, 2_000), 128, 256),
}


def perceptron(hidden: tuple[int, ...], **options: Any) -> Pair:
    """A tanh network and its guide; the noise is given."""
    model = BayesianNetwork([1, *hidden, 1], prior=LearnedGaussianPrior("unit"), activation="tanh", noise_scale=NOISE)
    return model, BNNWeightGuide(model, **options)


def attention(width: int) -> Pair:
    """The attention network of one block and its guide."""
    model = BayesianAttentionNetwork(
        1, 1, width, 1, 2, prior=LearnedGaussianPrior("unit"), noise_scale=NOISE, activation="tanh"
    )
    return model, BNNWeightGuide(model)


def large_tasks(size: Size, batch_size: int, seed: int) -> tasks.SquaredExponentialTasks:
    """The functions of bnnp/objectives with many points."""
    return tasks.squared_exponential(batch_size, seed, lengthscale=1.0, x_range=(-4.0, 4.0), num_points=size.points)


def asked_together(pair: Pair, batch: TaskBatch, draws: int = 50) -> dict[str, float]:
    """Log density of some targets when each is asked for with more and more others, and how its mean moves."""
    model, guide = pair
    x, y = batch.target.x, batch.target.y
    assert y is not None
    found: dict[str, float] = {}
    first: list[torch.Tensor] = []
    for others in OTHERS:
        scores, moved = [], []
        for i in range(ALONE):
            asked = torch.cat([x[:, i : i + 1], x[:, ALONE : ALONE + others]], 1)
            prediction = predict(model, guide, batch.context, asked, draws, seed=i)  # the same weights every time
            answers = torch.cat([y[:, i : i + 1], y[:, ALONE : ALONE + others]], 1)
            scores.append(prediction.log_prob(answers)[:, 0])
            mean, sd = prediction.mean[:, 0], prediction.std[:, 0]
            if not others:
                first.append(mean)
            moved.append((mean - first[i]).abs() / sd)
        found[f"lpd, {others} others"] = float(torch.stack(scores).mean())
        if others:
            found[f"moved by {others} others"] = float(torch.stack(moved).mean())
    return found


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains on large contexts in three ways, and a perceptron and an attention network on small ones."""
    size = SCALES[scale_name]
    large = large_tasks(size, size.test_tasks, 1_000_000).batch(0)
    small = tasks.squared_exponential(
        size.test_tasks, 1_000_000, lengthscale=1.0, x_range=(-4.0, 4.0), num_points=(60, 60), num_context=20
    ).batch(0)
    objective = make("pp-avi", num_particles=size.particles)
    rows: list[dict[str, Any]] = []
    together: list[dict[str, Any]] = []
    for seed in seeds:

        def fitted(name: str, build: Callable[[], Pair], stream: Any, steps: int, seed: int = seed) -> Pair:
            model, guide, _ = workshop.fit(
                f"bnnp-limits-{scale_name}", name, build, stream, seed, objective=objective, steps=steps,
                learning_rate=5e-3, final_learning_rate=5e-4, max_grad_norm=10.0,
            )  # fmt: skip
            return model.eval(), guide.eval()

        stream: Any = large_tasks(size, size.batch_size, seed)
        for name, given in PORTIONS.items():
            options = given if name == "whole" else {**given, "chunk_size": size.portion}
            build = partial(perceptron, size.hidden, **options)
            pair = fitted(name.replace(" ", "-"), build, stream, size.steps[0])
            assert large.target.y is not None
            found = predict(*pair, large.context, large.target.x, 50, seed=0).log_prob(large.target.y)
            row = {"model": name, "seed": seed, "lpd": float(found.mean())}
            row["MiB kept"] = kept_bytes(*pair, objective, stream.batch(0)) / 2**20
            if scale_name != "smoke":
                row["ms a step"] = 1000 * step_cost(*pair, stream, objective)
            rows.append(row)
        stream = training_tasks(size.batch_size, seed)
        for name, build in (
            ("perceptron", partial(perceptron, size.hidden)),
            ("attention", partial(attention, size.attention)),
        ):
            pair = fitted(name, build, stream, size.steps[1])
            together.append({"model": name, "seed": seed, **asked_together(pair, small)})
    table, others = pd.DataFrame(rows), pd.DataFrame(together)
    outcome = Outcome("bnnp/limits", "", table)
    outcome.tables["Targets asked for together"] = others
    outcome.checks = _checks(scale_name, table, others, seeds)
    outcome.notes = [
        f"PP-AVI with S = {size.particles}, {size.batch_size} tasks a step, Adam 5e-3 to 5e-4, noise {NOISE}. "
        f"Portions: hidden widths {list(size.hidden)}, {size.steps[0]} steps on functions of {size.points[0]} to "
        f"{size.points[1]} points, the context's statistics summed over {size.portion} points at a time (portions: "
        "each computed again for its gradient; one portion: the gradient of one of them a layer, drawn anew each "
        "step). MiB kept: tensors that a step keeps for its backward pass; ms: CPU milliseconds on the machine "
        "that wrote this, beside whatever else ran there.",
        f"Attention: one block of width {size.attention} and a perceptron of {list(size.hidden)}, {size.steps[1]} "
        f"steps on functions of 24 to 40 points; {ALONE} targets of {size.test_tasks} tasks with 20 context "
        "points, each asked for alone and with others by the same draws of weights. moved: distance of its "
        "predictive mean from that alone, in predictive sd.",
    ]
    outcome.figures["together"] = (_figure(others), "Log density of a target by how many others are asked for with it.")
    return outcome


def _checks(scale: str, table: pd.DataFrame, others: pd.DataFrame, seeds: list[int]) -> list[Check]:
    def claim(value: bool) -> bool | None:
        return bool(value) if scale == "small" else None

    by = table.set_index(["model", "seed"])
    gap = {
        n: [float(by.loc[(n, s), "lpd"] - by.loc[("whole", s), "lpd"]) for s in seeds]
        for n in ("portions", "one portion")
    }
    less = [float(by.loc[("portions", s), "MiB kept"] / by.loc[("whole", s), "MiB kept"]) for s in seeds]
    asked = others.set_index(["model", "seed"])
    most, column = OTHERS[-1], f"moved by {OTHERS[-1]} others"
    moved = {n: [float(asked.loc[(n, s), column]) for s in seeds] for n in ("perceptron", "attention")}
    change = [
        float(asked.loc[("attention", s), f"lpd, {most} others"] - asked.loc[("attention", s), "lpd, 0 others"])
        for s in seeds
    ]
    return [
        Check(
            "portions train as the whole does, lpd",
            "within 0.1 in every seed",
            signed(gap["portions"]),
            claim(max(map(abs, gap["portions"])) < 0.1),
        ),
        Check(
            "so does the gradient of one portion, lpd",
            "difference > -0.1 in every seed",
            signed(gap["one portion"]),
            claim(min(gap["one portion"]) > -0.1),
        ),
        Check(
            "portions keep less memory",
            "ratio < 1 in every seed",
            ", ".join(f"{v:.2f}" for v in less),
            claim(max(less) < 1),
        ),
        Check(
            "a perceptron's predictions are each their own",
            "moved < 1e-3 in every seed",
            ", ".join(f"{v:.1e}" for v in moved["perceptron"]),
            claim(max(moved["perceptron"]) < 1e-3),
        ),
        Check(
            f"attention's hang together: moved by {most} others",
            "> 0.05 predictive sd in every seed",
            signed(moved["attention"]),
            claim(min(moved["attention"]) > 0.05),
        ),
        Check(f"attention: lpd with {most} others less alone", "reported", signed(change), None),
    ]


def _figure(others: pd.DataFrame) -> Figure:
    with look():
        figure = Figure(figsize=(WIDTH * 0.7, 3.0), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(others.model))
        for colour, name in zip(colours(len(names)), names, strict=True):
            for number, (_, row) in enumerate(others[others.model == name].iterrows()):
                values = [row[f"lpd, {count} others"] for count in OTHERS]
                axes.plot(OTHERS, values, color=colour, marker="o", label=None if number else name)
        axes.set(xlabel="other targets", ylabel="log density")
        axes.legend()
    return figure
