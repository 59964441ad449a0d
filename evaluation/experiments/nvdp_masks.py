"""NVDP's weights drawn as Gaussians, as true masks and not at all, beside an ensemble; and what its variance is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

from evaluation.experiments.common_fits import DRAWS, LEVELS, Budget, TestTasks, trained
from evaluation.experiments.common_gp import sized
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.methods import Method
from evaluation.plots.style import WIDTH, colours, look
from evaluation.scores.metrics import log_likelihoods, mixture_crps
from guides import BernoulliExpertGuide
from guides.networks.dropout_normal import DropoutNormal
from inference import predict
from inference.active_context import acquire
from inference.prediction import Prediction, pointwise, stack_distributions
from pp_models import Dataset, TaskBatch, oracle_predict
from pp_models.task_plates import task_plates

TASKS = "gp-rbf-fixed"
#: context points; training has four at least
SIZES = (4, 6, 10, 20, 40)
#: networks of the ensemble, which share what one network may spend
MEMBERS = 5
SCALES = {
    "smoke": Budget(0, 5, 8, 1, 4),
    "small": Budget(24.0, test_batches=4),
    "paper": Budget(300.0, test_batches=16),
}
GAUSSIAN, MASKS, MEAN = "nvdp, Gaussian weights", "nvdp, Bernoulli masks", "nvdp, mean weights"
ONE, ENSEMBLE, EXACT = "1 CNP", f"{MEMBERS} CNPs", "exact GP"
QUERIES = ("information", "max sd", "random")
#: how far masks and their moments may be apart in log-likelihood, nats a point
NEAR = 0.02


def masked(guide: BernoulliExpertGuide) -> Callable[[Dataset], dict[str, Any]]:
    """The guide with true dropout: weights θ m, each m ~ Bernoulli(1 - P) on its own (docs/papers/nvdp.md, eq. 1)."""

    def run(data: Dataset) -> dict[str, Any]:
        with task_plates(data.batch_shape, data.x.device):
            values = guide.sample_context(data)
            for site, fn in zip(guide.sites, guide.layer_distributions(data), strict=True):
                assert isinstance(fn, DropoutNormal)
                kept = pyro.sample(f"{site}.mask", dist.Bernoulli(1 - fn.rate).to_event(2))
                values[site] = pyro.sample(site, dist.Delta(kept * fn.weight, event_dim=2))
        return values

    return run


def together(predictions: Sequence[Prediction]) -> Prediction:
    """The equal mixture of the predictions of several networks."""
    samples = torch.cat([p.samples for p in predictions])
    likelihood = stack_distributions([p.likelihood for p in predictions], samples.shape[:-1])
    return Prediction(likelihood, samples)


def parts(prediction: Prediction) -> tuple[torch.Tensor, torch.Tensor]:
    """Aleatoric and epistemic variance of every output: mean of the draws' variances, variance of their means."""
    return prediction.likelihood.variance.mean(0), prediction.likelihood.mean.var(0, correction=0)


def ways(nvdp: Method, cnps: Sequence[Method], batch: TaskBatch, seed: int) -> dict[str, Prediction]:
    """Every prediction at the targets of a batch; the first of the CNPs has had what the others share."""
    at = batch.target.without_y()

    def by(model: Any, guide: Any, draws: int = 1, weights: str = "samples") -> Prediction:
        return predict(model, guide, batch.context, at, draws, weights=weights, seed=seed)

    alone, *members = [by(each.model, each.guide) for each in cnps]
    return {
        GAUSSIAN: by(nvdp.model, nvdp.guide, DRAWS),
        MASKS: by(nvdp.model, masked(nvdp.guide), DRAWS),  # type: ignore[arg-type]
        MEAN: by(nvdp.model, nvdp.guide, weights="mean"),
        ONE: alone,
        ENSEMBLE: together(members),
    }


def scores(prediction: Prediction, batch: TaskBatch) -> dict[str, float]:
    """Log density, CRPS, coverage and the parts of the variance at the targets of a batch."""
    y = batch.target.y
    assert y is not None
    normal = pointwise(prediction.likelihood, 0)
    means, scales = normal.mean.movedim(0, -1), normal.stddev.movedim(0, -1)
    level = (2 * prediction.cdf(y) - 1).abs()
    aleatoric, epistemic = parts(prediction)
    return {
        "ll": float(prediction.log_prob(y).mean()),
        "crps": float(mixture_crps(torch.full_like(means, 1 / means.shape[-1]), means, scales, y).mean()),
        **{f"in {100 * share:g} %": float((level <= share).float().mean()) for share in LEVELS},
        "aleatoric": float(aleatoric.mean()),
        "epistemic": float(epistemic.mean()),
    }


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains NVDP, a CNP and five that share its CPU seconds; predicts, splits variances and asks for points."""
    budget = SCALES[scale_name]
    size, count = budget.test_batch_size, budget.test_batches
    by_size = {m: [sized(TASKS, size, m).batch(i) for i in range(count)] for m in SIZES}
    test = TestTasks(TASKS, [], by_size, [])
    share = budget._replace(cpu_seconds=budget.cpu_seconds / MEMBERS)
    rows: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    for seed in seeds:
        nvdp, _ = trained(workshop, test, budget, "nvdp", seed)
        cnps = [trained(workshop, test, budget, "cnp", seed)[0]]
        cnps += [trained(workshop, test, share, "cnp", 100 * (seed + 1) + i)[0] for i in range(MEMBERS)]
        for points, batches in by_size.items():
            for number, batch in enumerate(batches):
                for name, prediction in ways(nvdp, cnps, batch, number).items():
                    rows.append({"model": name, "seed": seed, "points": points, **scores(prediction, batch)})
        asked += queries(nvdp, by_size[SIZES[0]], seed, scale_name)
    long = pd.DataFrame(rows)
    both = ["model", "seed"]
    table = long.drop(columns="points").groupby(both, sort=False).mean()
    for points in (SIZES[0], SIZES[-1]):
        table[f"ll {points} points"] = long[long.points == points].groupby(both).ll.mean()
    table = table.reset_index()
    split = long.groupby(["model", "points"], sort=False)[["ll", "aleatoric", "epistemic"]].mean().reset_index()
    split = split[split.model.isin([GAUSSIAN, ENSEMBLE])]
    split = pd.concat([split, _exact(by_size)], ignore_index=True)
    outcome = Outcome("nvdp/masks", "", table)
    outcome.checks = _checks(scale_name, table, long, split, pd.DataFrame(asked), seeds)
    split[["aleatoric", "epistemic"]] **= 0.5
    outcome.tables["Standard deviation by part"] = split
    outcome.notes = [
        f"Tasks {TASKS}, methods by their recipes, {budget.cpu_seconds:g} CPU seconds for NVDP, as many for the one "
        f"CNP and for the {MEMBERS} of the ensemble together. {size * count} tasks with each of "
        f"{', '.join(map(str, SIZES))} context points; scores are of single target points, {DRAWS} draws of weights. "
        "Every scale is at least 0.1, the noise of the data is 0.02.",
        "The variance of a prediction is the mean of its draws' variances (aleatoric) and the variance of their means "
        f"(epistemic); networks of the ensemble count as draws. The exact GP's are noise and posterior. Queries: "
        f"{asked[0]['tasks']} tasks, from {asked[0]['from']} to {asked[0]['to']} points, by what a point tells of the "
        "weights (mutual information by draws: the epistemic part), by the whole predictive sd, and at random; LL of "
        "all points with mean weights.",
    ]
    outcome.figures["parts"] = (
        _figure(long, split),
        "Roots of the parts of the variance by points.",
    )
    return outcome


def queries(nvdp: Method, batches: Sequence[TaskBatch], seed: int, scale: str) -> list[dict[str, Any]]:
    """Log-likelihood of all points after each way of asking for more of them."""
    pool, start, end = batches[0].full, 4, 6 if scale == "smoke" else 16
    found = []
    for name in QUERIES:
        last = acquire(nvdp.model, nvdp.guide, pool, start, end, name, seed)[-1]
        prediction = predict(nvdp.model, nvdp.guide, last.context, last.full, 1, weights="mean")
        ll = float(log_likelihoods(prediction, last).ll.mean())
        found.append({"acquisition": name, "seed": seed, "ll": ll, "tasks": len(pool.x), "from": start, "to": end})
    return found


def _exact(by_size: dict[int, list[TaskBatch]]) -> pd.DataFrame:
    """Noise and posterior variance of the Gaussian process that drew the tasks."""
    rows = []
    for points, batches in by_size.items():
        variances, noises = [], []
        for batch in batches:
            assert batch.truth is not None
            variances.append(oracle_predict(batch, batch.target.x)[1].square().mean())
            noises.append(batch.truth["noise"].square().mean())
        noise = float(torch.stack(noises).mean())
        rows.append(
            {
                "model": EXACT,
                "points": points,
                "aleatoric": noise,
                "epistemic": float(torch.stack(variances).mean()) - noise,
            }
        )
    return pd.DataFrame(rows)


def _checks(
    scale: str, table: pd.DataFrame, long: pd.DataFrame, split: pd.DataFrame, asked: pd.DataFrame, seeds: list[int]
) -> list[Check]:
    def claim(value: bool) -> bool | None:
        return bool(value) if scale == "small" else None

    by = table.set_index(["model", "seed"])

    def gaps(a: str, b: str, column: str = "ll") -> list[float]:
        return [float(by.loc[(a, s), column] - by.loc[(b, s), column]) for s in seeds]

    masks, drawn, rival = gaps(MASKS, GAUSSIAN), gaps(GAUSSIAN, MEAN), gaps(GAUSSIAN, ENSEMBLE)
    near = max(map(abs, masks)) < NEAR
    checks = [
        Check(
            "true masks score as their Gaussian moments, LL", f"within {NEAR} in every seed", signed(masks), claim(near)
        ),
        Check("drawn weights above mean weights, LL", "every seed > 0", signed(drawn), claim(min(drawn) > 0)),
        Check(f"NVDP above {ENSEMBLE} of the same CPU, LL", "every seed > 0", signed(rival), claim(min(rival) > 0)),
        Check(
            f"the same of CRPS, less {ENSEMBLE}'s",
            "reported; below 0 is better",
            signed(gaps(GAUSSIAN, ENSEMBLE, "crps")),
            None,
        ),
        Check(f"{ENSEMBLE} less {ONE} of the same CPU, LL", "reported", signed(gaps(ENSEMBLE, ONE)), None),
    ]
    outside = {m: [abs(float(by.loc[(m, s), "in 95 %"]) - 0.95) for s in seeds] for m in (GAUSSIAN, ENSEMBLE)}
    words = "; ".join(f"{m} {signed(v)}" for m, v in outside.items())
    nearer = all(a <= b for a, b in zip(outside[GAUSSIAN], outside[ENSEMBLE], strict=True))
    checks.append(
        Check(
            f"NVDP's 95 % intervals no worse than {ENSEMBLE}'s",
            "distance of coverage to 0.95, every seed",
            words,
            claim(nearer),
        )
    )
    early = gaps(GAUSSIAN, ENSEMBLE, f"ll {SIZES[0]} points")
    checks.append(Check(f"NVDP less {ENSEMBLE}, {SIZES[0]} points, LL", "reported", signed(early), None))
    means = long[long.model == GAUSSIAN].groupby(["seed", "points"])[["aleatoric", "epistemic"]].mean()
    few, many = SIZES[0], SIZES[-1]
    left = {p: [float(means.loc[(s, many), p] / means.loc[(s, few), p]) for s in seeds] for p in means.columns}
    falls, stays = max(left["epistemic"]) < 1, all(0.5 < v < 2 for v in left["aleatoric"])
    where = f"{many} points over {few}"
    checks += [
        Check(f"the epistemic part falls, {where}", "ratio < 1 in every seed", signed(left["epistemic"]), claim(falls)),
        Check(f"the aleatoric part stays, {where}", "ratio between 0.5 and 2", signed(left["aleatoric"]), claim(stays)),
    ]
    exact = split[split.model == EXACT].set_index("points").epistemic
    ratio = f"{exact[many] / exact[few]:.5f}"
    checks.append(Check(f"the exact GP's epistemic part, {where}", "reported", ratio, None))
    ll = asked.pivot_table(index="seed", columns="acquisition", values="ll")
    for name in QUERIES[:-1]:
        checks.append(Check(f"queries by {name} less random, LL", "reported", signed(ll[name] - ll["random"]), None))
    return checks


def _figure(long: pd.DataFrame, split: pd.DataFrame) -> Figure:
    with look():
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        names = [GAUSSIAN, ENSEMBLE, EXACT]
        for axes, part in zip(panels, ("aleatoric", "epistemic"), strict=True):
            for colour, name in zip(colours(len(names)), names, strict=True):
                rows = split[split.model == name]
                axes.plot(rows.points, rows[part], color=colour, marker="o", label=name)
                seeds = long[long.model == name].groupby(["points", "seed"])[part].mean()
                for (points, _), value in seeds.items():
                    axes.plot([points], [value**0.5], ".", color=colour, ms=3)
            axes.set(title=part, xlabel="context points", ylim=(0, None))
        panels[0].set_ylabel("standard deviation")
        panels[1].legend(fontsize=8)
    return figure
