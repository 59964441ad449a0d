"""A prior learned from two tasks: how much of it should be trainable in BNNP."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure

from evaluation.experiments.bnnp_good_prior import scores
from evaluation.experiments.experiment import Check, Outcome, Scale, Workshop, signed
from evaluation.methods import TaskShape
from evaluation.plots.style import SOFT, WIDTH, colours, look
from guides import BNNWeightGuide, GaussianVIGuide, GlobalInducingGuide
from inference import fit, predict
from inference.objectives import make
from pp_models import BayesianNetwork, GaussianLikelihood, LearnedGaussianPrior, tasks

PROPORTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Size(NamedTuple):
    """Hidden widths, steps, weight samples S, rows a task in training, steps of the rivals, draws to predict with."""

    hidden: tuple[int, ...]
    steps: int
    particles: int
    num_points: tuple[int, int]
    rival_steps: int
    samples: int


SCALES = {
    "smoke": Size((5, 5), 3, 2, (20, 30), 5, 10),
    "small": Size((16, 16), 1_000, 8, (60, 160), 3_000, 300),
    "paper": Size((64, 64, 64), 50_000, 16, (1_307, 1_307), 50_000, 1_000),
}


def build(size: Size, proportion: float, seed: int) -> tuple[BayesianNetwork, BNNWeightGuide]:
    """The SiLU network, of whose prior a proportion is learned, from the last layer backwards; the noise is learned."""
    model = BayesianNetwork(
        [7, *size.hidden, 1],
        prior=LearnedGaussianPrior("unit", trainable=proportion, seed=seed),
        likelihood=GaussianLikelihood(0.1, learn_noise=True, max_noise=2.0),
        activation="silu",
    )
    return model, BNNWeightGuide(model)


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains on males and females, tests on infants with a quarter of them as context."""
    size = SCALES[scale_name]
    stream_of = tasks.abalone("test", 1, 1_000_000)
    batch = stream_of.batch(0)
    y = batch.target.y
    assert y is not None
    rings = stream_of.ring_scale
    rows: list[dict[str, Any]] = []

    def add(name: str, seed: int, prediction: Any, proportion: float = float("nan")) -> None:
        row: dict[str, Any] = {"model": name, "seed": seed, "proportion": proportion} | scores(prediction, y)
        row["mae_rings"] = row.pop("mae") * rings
        rows.append(row)

    for seed in seeds:
        stream = tasks.abalone("train", 2, seed, num_points=size.num_points)
        for proportion in PROPORTIONS:
            model, guide, _ = workshop.fit(
                f"bnnp-abalone-{scale_name}",
                f"trainable-{proportion:g}",
                lambda p=proportion, s=seed: build(size, p, s),  # type: ignore[misc]
                stream,
                seed,
                objective=make("pp-avi", num_particles=size.particles),
                steps=size.steps,
                learning_rate=5e-3,
                final_learning_rate=5e-4,
            )
            found = predict(model, guide, batch.context, batch.target.x, size.samples, seed=seed)
            add(f"BNNP, {proportion:.0%} of the prior learned", seed, found, proportion)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, second = (build(size, 0.0, seed)[0] for _ in range(2))  # each learns its own noise
            rivals: dict[str, tuple[BayesianNetwork, Any]] = {
                "mean-field VI": (first, GaussianVIGuide(first, "weight", (1,))),
                "inducing points": (second, GlobalInducingGuide(second, batch.context, 32)),
            }
        for name, (plain, rival) in rivals.items():
            workshop.say(f"abalone: {name}, seed {seed}")
            objective = make("elbo", num_particles=4)
            fit(plain, rival, batch.context, objective, size.rival_steps, seed, device="cpu", progress=False,
                learning_rate=5e-3, final_learning_rate=1e-4, max_grad_norm=1e3)  # fmt: skip
            add(name, seed, predict(plain, rival, batch.context, batch.target.x, size.samples, seed=seed))
        scale = Scale(scale_name, size.rival_steps, 64 if scale_name != "paper" else 256, 2)
        method, _ = workshop.train(f"abalone-{scale_name}", "np", TaskShape(7, 1, scale.width), stream, scale, seed)
        add(
            "neural process",
            seed,
            predict(method.model, method.guide, batch.context, batch.target.x, size.samples, seed=seed),
        )
    table = pd.DataFrame(rows)
    outcome = Outcome("bnnp/abalone", "", table)
    best = table[table.proportion.notna()].set_index(["proportion", "seed"])
    for column, better in (("lpd", "higher"), ("mae_rings", "lower")):
        gaps = [float(best.loc[(1.0, s), column] - best.loc[(0.0, s), column]) for s in seeds]
        name = f"whole prior learned less none learned, {column} ({better} is better)"
        outcome.checks.append(Check(name, "reported", signed(gaps), None))
    means = best.groupby("proportion").lpd.mean()
    outcome.checks.append(
        Check("proportion with the highest mean LPD", "reported", f"{means.idxmax():g} ({means.max():+.3f})", None)
    )
    outcome.notes = [
        "Two training tasks, male and female abalones; the test task is infants, a quarter of the 1,342 as context. "
        "BNNP: "
        f"hidden widths {list(size.hidden)}, SiLU, PP-AVI with S = {size.particles}, {size.steps} steps on "
        f"{size.num_points[0]} to {size.num_points[1]} rows a sex, noise learned. Mean-field VI and inducing points "
        "are fitted "
        f"to the test context alone with N(0, 1/k) ({size.rival_steps} steps); the neural process is trained on the "
        "two tasks.",
        "lpd is the mean over points of the log of the mean density (in standardised rings), ppd the log of the "
        "average "
        "density, mae_rings the mean absolute error in rings. The authors' stored files, one seed, theirs and not "
        "ours: ppd "
        "-0.852 and 1.33 rings with a fixed prior, -1.017 and 2.25 with a learned one, -0.718 and 2.56 for the NP.",
    ]
    outcome.figures["proportions"] = (_figure(table), "Held-out scores by the proportion of the prior that is learned.")
    return outcome


def _figure(table: pd.DataFrame) -> Figure:
    with look():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        panels = figure.subplots(1, 2)
        bnnp = table[table.proportion.notna()]
        for axes, column, label in zip(
            panels, ("lpd", "mae_rings"), ("LPD (nats a point)", "MAE (rings)"), strict=True
        ):
            axes.scatter(
                bnnp.proportion, bnnp[column], color=colours(1)[0], s=24, label="BNNP, one dot a seed", zorder=3
            )
            axes.plot(bnnp.groupby("proportion")[column].mean(), color=colours(1)[0], linewidth=1.2)
            for name, style in (("mean-field VI", ":"), ("inducing points", "--"), ("neural process", "-.")):
                axes.axhline(table[table.model == name][column].mean(), color=SOFT, linestyle=style, label=name)
            axes.set(xlabel="proportion learned", ylabel=label)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure
