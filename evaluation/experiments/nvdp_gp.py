"""NVDP on 1-D Gaussian-process regression with random and fixed kernels (docs/papers/nvdp.md#experiments)."""

from __future__ import annotations

import pandas as pd
import torch

from evaluation import plots
from evaluation.experiments.experiment import Check, Outcome, Scale, Workshop, signed
from evaluation.methods import TaskShape
from evaluation.scores.metrics import paired_difference, rate_spread
from evaluation.scores.scoring import SCORES, parameter_count, score_oracle, score_tasks
from inference import predict
from pp_models import TaskBatch, oracle_predict, tasks

SCALES = {
    "smoke": Scale("smoke", 10, 16, 4, test_batches=4),
    "small": Scale("small", 6_000, 64, 8),
    "paper": Scale("paper", 500_000, 128, 16, 5e-4, (0.99, 0.999), test_batches=3_125, test_batch_size=16),
}
METHODS = {
    "smoke": ["nvdp", "cnp", "np", "np+cnp+vp"],
    "small": ["nvdp", "cnp", "np", "np+cnp+vp", "np+vp"],
    "paper": ["nvdp", "nvdp+det", "cnp", "np", "np+vp", "np+cnp", "np+cnp+vp", "anp"],
}
#: floor of the predictive standard deviation of every method's head
FLOOR = 0.1
BINS = [(4, 9), (10, 24), (25, 49), (50, 96)]


def fits_key(hyperparameters: str, scale: Scale) -> str:
    """Name under which the fits of this experiment are kept."""
    return f"gp-rbf-{hyperparameters}-{scale.name}"


def train_all(
    hyperparameters: str, scale: Scale, names: list[str], seeds: list[int], workshop: Workshop
) -> dict[tuple[str, int], tuple]:
    """Every method and seed, trained (or read back)."""
    task = TaskShape(1, 1, scale.width)
    fitted = {}
    for seed in seeds:
        for name in names:
            stream = tasks.gp("rbf", scale.batch_size, seed, hyperparameters=hyperparameters)
            fitted[name, seed] = workshop.train(fits_key(hyperparameters, scale), name, task, stream, scale, seed)
    return fitted


def run(hyperparameters: str, scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains the methods on RBF tasks and scores them on the same test tasks as the exact GP."""
    scale, names = SCALES[scale_name], METHODS[scale_name]
    if (hyperparameters, scale_name) == ("fixed", "small"):
        names = names[:4]
    test = tasks.gp_test("rbf", scale.test_batch_size, hyperparameters=hyperparameters)
    batches = [test.batch(i) for i in range(scale.test_batches)]
    oracle, oracle_free = score_oracle(batches, FLOOR), score_oracle(batches)
    fitted = train_all(hyperparameters, scale, names, seeds, workshop)
    scores = {key: score_tasks(method.model, method.guide, batches) for key, (method, _) in fitted.items()}

    rows = []
    for (name, seed), (method, history) in fitted.items():
        found = scores[name, seed]
        row = {
            "model": name,
            "seed": seed,
            **{c: found[c].mean() for c in (*SCORES, "rmse", "crps", "within_1sd", "within_2sd")},
        }
        drawn = score_tasks(
            method.model, method.guide, batches[: max(1, len(batches) // 3)], weights="samples", num_samples=10
        )
        row |= {"ll, 10 draws": drawn.ll.mean(), "joint_pll, 10 draws": drawn.joint_pll.mean()}
        row["parameters"] = parameter_count(method.model, method.guide)
        row["final_kl"] = history[-1].get("kl", float("nan"))
        rows.append(row)
    for label, found in ((f"exact GP, σ ≥ {FLOOR}", oracle), ("exact GP", oracle_free)):
        rows.append({"model": label, "seed": -1, **{c: found[c].mean() for c in SCORES}})
    table = pd.DataFrame(rows)

    outcome = Outcome(f"nvdp/gp-{hyperparameters}", "", table)
    outcome.checks = _checks(scale_name, hyperparameters, seeds, names, scores, table, oracle)
    outcome.notes = [
        f"{len(batches) * scale.test_batch_size} test tasks with {scale.test_batches} distinct context sizes, the same "
        "for every method; predictions use mean weights (the mean latent for neural processes). LL is over all 400 "
        "grid points, RLL over the context points, PLL over the others, in nats per point; marginal unless 'joint'.",
        "With mean weights, a single draw, marginal and joint agree by construction. The columns '10 draws' score the "
        "log-mean-exp over ten coherent draws, on a third of the tasks.",
        "The paper's printed table was not available to us; no figure here is the paper's.",
    ]
    by_m = pd.DataFrame(
        [
            {"model": name, **{f"m={lo}–{hi}": _mean_over(scores, name, seeds, lo, hi) for lo, hi in BINS}}
            for name in names
        ]
        + [{"model": f"exact GP, σ ≥ {FLOOR}", **{f"m={lo}–{hi}": _bin(oracle, lo, hi) for lo, hi in BINS}}]
    )
    outcome.tables["LL by context size"] = by_m
    first = seeds[0]
    show = TaskBatch(batches[1].context[:3], batches[1].target[:3], {k: v[:3] for k, v in batches[1].truth.items()})
    predictions = {
        n: predict(fitted[n, first][0].model, fitted[n, first][0].guide, show.context, show.full, 100, seed=0)
        for n in names[:4]
    }
    nvdp = fitted["nvdp", first][0]
    outcome.tables["Dropout rates of NVDP by layer"] = pd.DataFrame(
        [{"layer": site, **vars(found)} for site, found in rate_spread(nvdp.guide, batches[0].context).items()]
    )
    limits = {c: float(oracle[c].mean()) for c in SCORES}
    outcome.figures = {
        "comparison": (plots.comparison_plot(table[table.seed >= 0], limits), "Test log-likelihood, one dot a seed."),
        "functions": (
            plots.fan_plot(predictions, show, show.full.x, tasks=(0, 1, 2), oracle=oracle_predict(show, show.full.x)),
            "Predictive bands and coherent function draws.",
        ),
        "rates": (plots.rate_maps(nvdp.guide, show), "Drop probabilities by layer and task, and their spread."),
        "learning": (
            plots.learning_curves({n: fitted[n, first][1] for n in names}),
            f"Training log-likelihood, seed {first}.",
        ),
    }
    return outcome


def _bin(table: pd.DataFrame, low: int, high: int) -> float:
    return float(table[(table.m >= low) & (table.m <= high)]["ll"].mean())


def _mean_over(scores: dict, name: str, seeds: list[int], low: int, high: int) -> float:
    return sum(_bin(scores[name, seed], low, high) for seed in seeds) / len(seeds)


def _checks(
    scale: str,
    kernels: str,
    seeds: list[int],
    names: list[str],
    scores: dict,
    table: pd.DataFrame,
    oracle: pd.DataFrame,
) -> list[Check]:
    def gaps(other: str, column: str) -> list[float]:
        return [float((scores["nvdp", s][column] - scores[other, s][column]).mean()) for s in seeds]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    claimed = scale == "small" and kernels == "random"  # the thresholds were measured for this protocol

    def claim(value: bool) -> bool | None:
        return bool(value) if claimed else None  # numpy's own bool is no JSON

    ll_np, rll_np, ll_path = gaps("np", "ll"), gaps("np", "rll"), gaps("np+cnp+vp", "ll")
    nvdp = table[table.model == "nvdp"]
    kl = table[table.model == "np"]["final_kl"]
    checks = [
        Check("NVDP above NP in LL", "mean over seeds > 0.07", signed(ll_np), claim(mean(ll_np) > 0.07)),
        Check(
            "NVDP above NP in RLL",
            "every seed > 0, mean > 0.10",
            signed(rll_np),
            claim(min(rll_np) > 0 and mean(rll_np) > 0.10),
        ),
        Check("NVDP above NP+CNP+VP in LL", "mean over seeds > 0.03", signed(ll_path), claim(mean(ll_path) > 0.03)),
        Check(
            "LL of NVDP", "mean over seeds in [-0.40, -0.22]", signed(nvdp.ll), claim(-0.40 <= nvdp.ll.mean() <= -0.22)
        ),
        Check("latent KL of NP collapses", "every seed < 2 nats", signed(kl), claim(bool((kl < 2).all()))),
    ]
    for seed in seeds:
        difference = paired_difference(*(_column(scores[n, seed], "ll") for n in ("nvdp", "cnp")))
        checks.append(Check(f"NVDP - CNP in LL, seed {seed}", "reported, never claimed", str(difference), None))
    one, two = nvdp.within_1sd.mean(), nvdp.within_2sd.mean()
    checks.append(
        Check(
            "coverage of NVDP",
            "1σ in 0.60–0.80, 2σ in 0.90–0.98",
            f"{one:.3f}, {two:.3f}",
            claim(0.60 <= one <= 0.80 and 0.90 <= two <= 0.98),
        )
    )
    bins = [_mean_over(scores, "nvdp", seeds, lo, hi) for lo, hi in BINS]
    checks.append(
        Check(
            "LL of NVDP rises with context size",
            "over 4–9, 10–24, 25–49, 50–96",
            signed(bins),
            claim(bins == sorted(bins)),
        )
    )
    limit = oracle.ll.mean()
    worst = max(table[table.model == n].ll.max() for n in names)
    checks.append(
        Check(
            "no method above the floored exact GP",
            f"LL <= {limit:.3f} + 0.05",
            f"{worst:+.3f}",
            bool(worst <= limit + 0.05),
        )
    )
    top = max(float(table[table.model.isin(names)][c].max()) for c in ("ll", "rll", "pll"))
    checks.append(Check("no score above the head's ceiling", "<= 1.3836", f"{top:+.3f}", bool(top <= 1.3836)))
    return checks


def _column(table: pd.DataFrame, name: str) -> torch.Tensor:
    return torch.tensor(table[name].to_numpy(copy=True))
