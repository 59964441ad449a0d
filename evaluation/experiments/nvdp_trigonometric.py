"""Functional ambiguity on the trigonometric toy: sine, cosine or tanh from few points, by NVDP and its rivals."""

from __future__ import annotations

import pandas as pd

from evaluation import plots
from evaluation.experiments.experiment import Check, Outcome, Scale, Workshop, signed
from evaluation.methods import TaskShape
from evaluation.scores.scoring import score_tasks
from inference import predict
from pp_models import tasks

SCALES = {
    "smoke": Scale("smoke", 10, 16, 4, test_batches=2),
    "small": Scale("small", 3_000, 64, 16, max_grad_norm=1.0, test_batches=20, test_batch_size=16),
    "paper": Scale("paper", 100_000, 128, 16, 5e-4, (0.99, 0.999), test_batches=125, test_batch_size=16),
}
METHODS = ["nvdp", "cnp", "np", "np+vp"]
COUNTS = (1, 4, 8, 20, 50)


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains with contexts of 1 to 96 points and scores at fixed context sizes."""
    scale = SCALES[scale_name]
    task = TaskShape(1, 1, scale.width, beta=1.0, shared_path=True)
    rows, fitted = [], {}
    for seed in seeds:
        for name in METHODS:
            stream = tasks.trigonometric(scale.batch_size, seed, num_context=(1, 96))
            method, _ = workshop.train(f"trigonometric-{scale.name}", name, task, stream, scale, seed)
            fitted[name, seed] = method
            for count in COUNTS:
                test = tasks.trigonometric(
                    scale.test_batch_size, 1_000_000 + count, num_context=(count, count), full_grid=True
                )
                found = score_tasks(method.model, method.guide, [test.batch(i) for i in range(scale.test_batches)])
                rows.append(
                    {
                        "model": name,
                        "seed": seed,
                        "m": count,
                        **{c: found[c].mean() for c in ("ll", "pll", "rmse", "sd", "within_1sd", "within_2sd")},
                    }
                )
    long = pd.DataFrame(rows)
    wide = long.pivot_table(index=["model", "seed"], columns="m", values=["ll", "rmse", "sd"], sort=False)
    wide.columns = [f"{value} m={m}" for value, m in wide.columns]
    outcome = Outcome("nvdp/trigonometric", "", wide.reset_index())
    outcome.tables["Every score by context size"] = long
    for count in (20, 50):
        rmse = long[long.m == count].pivot(index="seed", columns="model", values="rmse")
        gap = rmse["nvdp"] - rmse["np"]
        outcome.checks.append(
            Check(
                f"NVDP closer than NP at m = {count}",
                "RMSE difference < 0, mean over seeds",
                signed(gap),
                bool(gap.mean() < 0) if scale_name == "small" else None,
            )
        )
    sd = long[long.model == "nvdp"].groupby("m").sd.mean()
    outcome.checks.append(
        Check(
            "NVDP's predictive sd shrinks as contexts disambiguate",
            "sd falls from m = 1 to 50",
            signed(sd),
            bool(sd.loc[1] > sd.loc[50]) if scale_name == "small" else None,
        )
    )
    outcome.notes = [
        "NVDP here reads the encoder's representation as well as its rates, as the paper's demo does. Contexts of 1 to "
        "96 points are trained on, so that few points are not out of range."
    ]
    if scale.max_grad_norm is not None:
        outcome.notes.append(f"Gradient norms of every method are clipped to {scale.max_grad_norm}.")
    few = tasks.trigonometric(3, 7, num_context=(2, 2), full_grid=True).batch(0)
    first = seeds[0]
    predictions = {
        n: predict(fitted[n, first].model, fitted[n, first].guide, few.context, few.full, 100, seed=0) for n in METHODS
    }
    outcome.figures["ambiguity"] = (
        plots.fan_plot(predictions, few, few.full.x, tasks=(0, 1, 2)),
        "Two context points: which family is it?",
    )
    return outcome
