"""Active learning on GP tasks: query where the predictive variance is largest, or at random, by NVDP and its rivals."""

from __future__ import annotations

import pandas as pd

from evaluation import plots
from evaluation.experiments.experiment import Check, Outcome, Workshop
from evaluation.experiments.nvdp_gp import SCALES, train_all
from evaluation.scores.metrics import log_likelihoods, rmse
from inference import predict
from inference.active_context import acquire
from pp_models import tasks

METHODS = ["nvdp", "cnp", "np", "np+cnp+vp"]
ACQUISITIONS = ("max sd", "random")


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Uses the fits of nvdp/gp-random (trains them where they are not there yet); 4 to 20 points."""
    scale = SCALES[scale_name]
    fitted = train_all("random", scale, METHODS, seeds, workshop)
    pool = tasks.gp_test("rbf", 60, seed=3_000_000).batch(0).full
    budget = 20 if scale_name != "smoke" else 6
    rows = []
    for (name, seed), (method, _) in fitted.items():
        for acquisition in ACQUISITIONS:
            for batch in acquire(method.model, method.guide, pool, 4, budget, acquisition, seed):
                prediction = predict(method.model, method.guide, batch.context, batch.full, 1, weights="mean")
                found, y = log_likelihoods(prediction, batch), batch.full.y
                assert y is not None
                rows.append(
                    {
                        "model": name,
                        "seed": seed,
                        "acquisition": acquisition,
                        "points": batch.context.num_points,
                        "ll": float(found.ll.mean()),
                        "rmse": float(rmse(prediction, y).mean()),
                    }
                )
    long = pd.DataFrame(rows)
    last = long[long.points == budget].pivot_table(
        index=["model", "seed"], columns="acquisition", values="ll", sort=False
    )
    table = last.reset_index().rename(columns={a: f"ll, {a}" for a in ACQUISITIONS})
    table["lost by max sd"] = table["ll, random"] - table["ll, max sd"]
    outcome = Outcome("nvdp/active-learning", "", table)
    outcome.tables["Every step"] = long
    lost = table.groupby("model")["lost by max sd"].mean()
    outcome.checks = [
        Check(
            "max sd against random queries",
            "reported: LL lost by querying the largest predictive sd",
            ", ".join(f"{name} {value:+.3f}" for name, value in lost.items()),
            None,
        ),
        Check(
            "NVDP loses less by its own queries than NP",
            "reported",
            f"{lost['nvdp']:+.3f} against {lost['np']:+.3f}",
            None,
        ),
    ]
    outcome.notes = [
        f"60 tasks, from 4 to {budget} points of a 400-point grid; a query goes to the largest predictive standard "
        "deviation or to a random point. LL over all 400 points.",
    ]
    outcome.figures["queries"] = (plots.query_curves(long), "LL against queried points, mean over seeds.")
    return outcome
