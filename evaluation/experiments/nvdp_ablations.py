"""NVDP's parts taken away one at a time: variational prior, its gradient, KL scale, rate structure."""

from __future__ import annotations

import pandas as pd

from evaluation import plots
from evaluation.experiments.experiment import Check, Outcome, Scale, Workshop, signed
from evaluation.experiments.nvdp_gp import FLOOR
from evaluation.methods import METHODS, TaskShape
from evaluation.scores.metrics import rate_spread
from evaluation.scores.scoring import MARGINAL, score_oracle, score_tasks
from pp_models import tasks

SCALES = {
    "smoke": Scale("smoke", 10, 16, 4, test_batches=4),
    "small": Scale("small", 3_000, 64, 8),
    "paper": Scale("paper", 500_000, 128, 16, 5e-4, (0.99, 0.999), test_batches=3_125, test_batch_size=16),
}
VARIANTS = ["nvdp", "nvdp+det", "nvdp-no-prior", "nvdp-sum", "nvdp-layer"]


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains every variant on random-kernel GP tasks; rates are also looked at half-way."""
    scale = SCALES[scale_name]
    test = tasks.gp_test("rbf", scale.test_batch_size)
    batches = [test.batch(i) for i in range(scale.test_batches)]
    many = tasks.gp_test("rbf", 64, seed=2_000_000).batch(0)
    rows = []
    for seed in seeds:
        for name in VARIANTS:
            task = TaskShape(1, 1, scale.width)
            key = f"gp-rbf-ablations-{scale.name}"
            half = {}
            if name in ("nvdp", "nvdp-sum"):
                stream = tasks.gp("rbf", scale.batch_size, seed)
                method, _ = workshop.train(f"{key}-half", name, task, stream, scale, seed, max(1, scale.steps // 2))
                half["rate_spread_half_way"] = _hidden_spread(method.guide, many.context)
            stream = tasks.gp("rbf", scale.batch_size, seed)
            method, history = workshop.train(key, name, task, stream, scale, seed)
            found = score_tasks(method.model, method.guide, batches)
            last = [row["kl"] for row in history[-max(1, len(history) // 10) :]]
            row = {"model": name, "seed": seed, **{c: found[c].mean() for c in MARGINAL}}
            row |= {"kl": sum(last) / len(last), "rate_spread": _hidden_spread(method.guide, many.context), **half}
            rows.append(row)
    table = pd.DataFrame(rows)
    oracle = score_oracle(batches, FLOOR)
    outcome = Outcome("nvdp/ablations", "", table)
    by = {name: table[table.model == name].set_index("seed") for name in VARIANTS}

    def claim(value: bool) -> bool | None:
        return bool(value) if scale_name == "small" else None

    full, none, layer = by["nvdp"], by["nvdp-no-prior"], by["nvdp-layer"]
    half, half_sum = full.rate_spread_half_way, by["nvdp-sum"].rate_spread_half_way
    gain, layer_gain = full.ll - none.ll, full.ll - layer.ll
    outcome.checks = [
        Check(
            "rates differ between tasks with the mean-reduced KL",
            "spread > 0.05 in every seed, half-way",
            signed(half),
            claim((half > 0.05).all()),
        ),
        Check(
            "the literal summed KL switches the adaptation off",
            "spread < 0.01 in every seed, half-way",
            signed(half_sum),
            claim((half_sum < 0.01).all()),
        ),
        Check(
            "the variational prior keeps both branches together",
            "KL per weight < 1 with it, > 50 without",
            f"{signed(full.kl)} with; {signed(none.kl)} without",
            claim((full.kl < 1).all() and (none.kl > 50).all()),
        ),
        Check(
            "and costs no likelihood",
            "LL difference > -0.02, mean over seeds",
            signed(gain),
            claim(gain.mean() > -0.02),
        ),
        Check(
            "row and column experts matter",
            "LL gain over one rate a layer > 0.08, mean over seeds",
            signed(layer_gain),
            claim(layer_gain.mean() > 0.08),
        ),
        Check(
            "no variant above the floored exact GP",
            f"LL <= {oracle.ll.mean():.3f} + 0.05",
            f"{table.ll.max():+.3f}",
            bool(table.ll.max() <= oracle.ll.mean() + 0.05),
        ),
    ]
    outcome.notes = [
        "kl is the mean KL per weight (NVDP's reduction) for all but nvdp-sum, where it is nats per task; it is "
        "averaged over the last tenth of training. rate_spread is the across-task standard deviation of the drop "
        "probability, averaged over the hidden layers.",
    ]
    outcome.tables["Variants"] = pd.DataFrame([{"model": n, "what": METHODS[n][0]} for n in VARIANTS])
    limits = {c: float(oracle[c].mean()) for c in MARGINAL}
    outcome.figures["comparison"] = (plots.comparison_plot(table, limits), "Test log-likelihood, one dot a seed.")
    return outcome


def _hidden_spread(guide, data) -> float:
    layers = list(rate_spread(guide, data).values())[1:-1]
    return sum(layer.weight_spread for layer in layers) / max(len(layers), 1)
