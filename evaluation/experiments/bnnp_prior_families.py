"""Priors of weights that are no Gaussians, under a guide that takes any prior: predictions, and functions drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from evaluation import plots
from evaluation.experiments.bnnp_objectives import Size
from evaluation.experiments.bnnp_scoring import context_scores, generator_scores
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.nmdp_parts import Pair
from guides import AmortisedMeanFieldGuide, BNNWeightGuide
from inference.objectives import make
from pp_models import (
    BayesianNetwork,
    FixedGaussianPrior,
    LearnedGaussianPrior,
    SpikeAndSlabPrior,
    StudentTPrior,
    tasks,
)

NOISE, COUNTS = 0.1, (5, 30)
#: prior -> how it is made, and whether its guide is the layerwise one, which needs a Gaussian
PRIORS: dict[str, tuple[Callable[[], Any], bool]] = {
    "Gaussian": (FixedGaussianPrior, False),
    "Student-t, 3 degrees": (partial(StudentTPrior, 3.0), False),
    "Student-t, 1 degree": (partial(StudentTPrior, 1.0), False),
    "spike and slab": (partial(SpikeAndSlabPrior, 0.3, 2.0, 0.1), False),
    "Gaussian, layerwise guide": (FixedGaussianPrior, True),
    "learned Gaussian, layerwise guide": (partial(LearnedGaussianPrior, "unit"), True),
}
GAUSSIAN, OTHERS = "Gaussian", ("Student-t, 3 degrees", "Student-t, 1 degree", "spike and slab")
#: functions, smooth and with jumps
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "smooth": partial(tasks.squared_exponential, lengthscale=1.0, x_range=(-4.0, 4.0)),
    "jumps": tasks.heaviside,
}
SCALES = {
    "smoke": Size((4, 4), 3, 2, 2, 1),
    "small": Size((16, 16), 1_000, 8, 4, 3),
    "paper": Size((64, 64), 50_000, 16, 16, 20),
}


def pair(hidden: tuple[int, ...], prior: str) -> Pair:
    """The tanh network under a prior, and a guide that takes it; the noise is given."""
    make_prior, layerwise = PRIORS[prior]
    model = BayesianNetwork([1, *hidden, 1], prior=make_prior(), activation="tanh", noise_scale=NOISE)
    return model, BNNWeightGuide(model) if layerwise else AmortisedMeanFieldGuide(model, 64)


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains every prior on smooth functions and on functions with jumps, each guide on the evidence bound."""
    size = SCALES[scale_name]
    objective = make("pp-avi", num_particles=size.particles)
    rows: list[dict[str, Any]] = []
    for kind, functions in FUNCTIONS.items():
        test = functions(16, 1_000_000, num_points=(60, 60), num_context=30)
        batches = [test.batch(i) for i in range(size.test_batches)]
        for seed in seeds:
            stream = functions(size.batch_size, seed, num_points=(24, 40))
            for name in PRIORS:
                model, guide, _ = workshop.fit(
                    f"bnnp-prior-families-{kind}-{scale_name}", name.replace(", ", "-").replace(" ", "-"),
                    partial(pair, size.hidden, name), stream, seed, objective=objective, steps=size.steps,
                    learning_rate=5e-3, final_learning_rate=5e-4, max_grad_norm=10.0,
                )  # fmt: skip
                assert isinstance(model, BayesianNetwork)
                found = context_scores(model, guide, batches, COUNTS) | generator_scores(model, stream, seed=seed)
                rows.append({"task": kind, "model": name, "seed": seed} | found)
    table = pd.DataFrame(rows)
    outcome = Outcome("bnnp/prior-families", "", table)
    outcome.checks = _checks(scale_name, table, seeds)
    outcome.notes = [
        f"A tanh network of hidden widths {list(size.hidden)}, {size.steps} steps of {size.batch_size} tasks of PP-AVI "
        f"with S = {size.particles}, Adam 5e-3 to 5e-4, noise {NOISE}. The layerwise guide (BNNP's) needs a Gaussian "
        "prior; the others are under an amortised mean-field guide of width 64, whose KL to them is by draws. smooth: "
        "draws of a GP of length scale 1 on [-4, 4]; jumps: functions that jump between -1 and 1. Spike and slab: "
        "weights from N(0, 2²) with probability 0.3, else from N(0, 0.1²); all scales over the root of the fan-in.",
        f"{16 * len(batches)} test tasks of 30 target points; predictions by 100 draws. lpd: nats a point with 5 and "
        "30 context points. energy: distance of 500 functions drawn from the prior from true ones; 0 is none.",
    ]
    wide = table.assign(model=table.model + " · " + table.task).drop(columns="task")
    outcome.figures["scores"] = (
        plots.comparison_plot(wide, scores=["lpd_5", "lpd_30", "energy"]),
        "Log density by context size, and the prior's distance as a generator, one dot a seed.",
    )
    return outcome


def _checks(scale: str, table: pd.DataFrame, seeds: list[int]) -> list[Check]:
    by = table.set_index(["task", "model", "seed"])
    checks = []
    for kind in FUNCTIONS:
        for name in OTHERS:
            gap = {
                column: [float(by.loc[(kind, name, s), column] - by.loc[(kind, GAUSSIAN, s), column]) for s in seeds]
                for column in ("lpd_5", "lpd_30", "energy")
            }
            better = bool(min(gap["lpd_30"]) > 0) if scale == "small" else None
            checks.append(
                Check(f"{kind}: {name} above the Gaussian, lpd with 30 points", "> 0 in every seed",
                      signed(gap["lpd_30"]), better)
            )  # fmt: skip
            value = f"{signed(gap['lpd_5'])}; energy {signed(gap['energy'])}"
            checks.append(
                Check(f"{kind}: the same with 5 points, and the distance as a generator", "reported", value, None)
            )
    return checks
