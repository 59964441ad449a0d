"""How near BNNP's bound is to the evidence of one small data set, over noise levels."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch import nn

from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.plots.style import INK, WIDTH, colours, look, symlog_ticks
from guides import BNNWeightGuide, GaussianVIGuide, GlobalInducingGuide
from inference import fit
from inference.objectives import make
from inference.objectives.task_objective import effective_sample_size, log_mean_exp
from pp_models import BayesianNetwork, Dataset, FixedGaussianPrior, tasks
from pp_models.task_plates import PARTICLE_PLATE

SIZES = [1, 20, 20, 1]
TRUE_NOISE = 0.05


class Size(NamedTuple):
    """Noise levels; steps at the first level and at each further one, of BNNP, of the others, and of the meta-trained
    guide; draws for the evidence and for the final bounds."""

    levels: tuple[float, ...]
    bnnp_steps: tuple[int, int]
    other_steps: tuple[int, int]
    meta_steps: tuple[int, int]
    evidence_draws: int
    bound_draws: int


SCALES = {
    "smoke": Size((0.1,), (20, 20), (20, 20), (3, 3), 2_000, 200),
    "small": Size((0.05, 0.1, 0.3, 1.0), (1_000, 300), (4_000, 1_000), (1_500, 400), 1_000_000, 4_000),
    "paper": Size(
        tuple(10 ** (-2 + 3 * i / 39) for i in range(40)),
        (5_000, 1_000),
        (20_000, 5_000),
        (50_000, 1_000),
        10**7,
        10_000,
    ),
}
#: an evidence from fewer effective draws than this is not shown as one
MIN_EFFECTIVE = 500
#: column -> name in the figure
METHODS = {
    "bnnp": "BNNP",
    "bnnp_meta": "BNNP, meta-trained",
    "inducing": "global inducing points",
    "network_vi": "fully correlated VI",
    "layer_vi": "VI correlated by layer",
    "unit_vi": "VI correlated by unit",
    "mean_field": "mean-field VI",
}


def network(noise: float) -> BayesianNetwork:
    """The tanh network of the experiment, N(0, 1/k) on every weight."""
    return BayesianNetwork(SIZES, prior=FixedGaussianPrior(), noise_scale=noise, activation="tanh")


def data_set(seed: int) -> Dataset:
    """Ten points drawn from the model itself."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        x = torch.rand(10, 1) * 8 - 4
        y = poutine.trace(network(TRUE_NOISE)).get_trace(Dataset(x)).nodes["y"]["value"]
    return Dataset(x, y)


@torch.no_grad()
def log_evidence(
    model: BayesianNetwork, data: Dataset, draws: int, seed: int, batch: int = 20_000
) -> tuple[float, float]:
    """log p(y) by draws from the prior, and the effective number of draws behind it."""
    values: list[torch.Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, draws, batch):
            with pyro.plate(PARTICLE_PLATE, min(batch, draws - start), dim=-1):
                site: Any = poutine.trace(model).get_trace(data).nodes["y"]
            values.append(site["fn"].log_prob(site["value"]).double())
    weights = torch.cat(values)
    return float(log_mean_exp(weights)), float(effective_sample_size(weights))


def _bound(model: nn.Module, guide: Any, data: Dataset, draws: int) -> tuple[float, float]:
    """The ELBO's mean over many draws and its standard error."""
    objective = make("elbo", num_particles=100)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        values = torch.stack([objective.terms(model, guide, data).bound.sum() for _ in range(max(2, draws // 100))])
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def train_on(model: nn.Module, guide: nn.Module, data: Any, steps: int, seed: int) -> None:
    """The ELBO by Adam at 5e-3, falling to 1e-3 over the last quarter of the steps."""
    for part, rate in ((3 * steps // 4, 5e-3), (steps - 3 * steps // 4, 1e-3)):
        objective = make("elbo", num_particles=8)
        optimizer = partial(torch.optim.Adam, lr=rate, fused=True)
        fit(model, guide, data, objective, part, seed, optimizer, "cpu", progress=False, max_grad_norm=100.0)


def other_data_sets(batch_size: int, seed: int) -> tasks.NetworkTasks:
    """Data sets of the same kind, for the meta-trained guide."""
    return tasks.network_draws(
        batch_size,
        seed,
        hidden=tuple(SIZES[1:-1]),
        activation="tanh",
        x_range=(-4.0, 4.0),
        noise_scale=TRUE_NOISE,
        num_points=(10, 10),
        num_context=5,
    )


def _guides(model: BayesianNetwork, data: Dataset, seed: int) -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "bnnp": BNNWeightGuide(model, final_targets="real", final_noise="real"),
            "bnnp_meta": BNNWeightGuide(model, final_targets="real", final_noise="real"),
            "inducing": GlobalInducingGuide(model, data, 5),
            "network_vi": GaussianVIGuide(model, "network"),
            "layer_vi": GaussianVIGuide(model, "layer"),
            "unit_vi": GaussianVIGuide(model, "unit"),
            "mean_field": GaussianVIGuide(model, "weight"),
        }


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Every method on one data set a seed; from one noise level to the next each goes on from where it was."""
    size = SCALES[scale_name]
    steps = {name: size.other_steps for name in METHODS} | {"bnnp": size.bnnp_steps, "bnnp_meta": size.meta_steps}
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        data = data_set(seed)
        model = network(size.levels[0])
        guides = _guides(model, data, seed)
        for i, noise in enumerate(size.levels):
            model.likelihood.noise_scale = noise  # type: ignore[assignment]
            evidence, effective = log_evidence(model, data, size.evidence_draws, seed)
            row: dict[str, Any] = {"model": f"noise {noise:.3g}", "seed": seed, "noise": noise}
            row |= {"log_evidence": evidence, "effective_draws": effective}
            for name, guide in guides.items():
                workshop.say(f"elbo quality: seed {seed}, noise {noise:.3g}, {METHODS[name]}")
                shown = other_data_sets(8, seed) if name == "bnnp_meta" else data
                train_on(model, guide, shown, steps[name][min(i, 1)], seed + 1000 * i)
                row[name], row[f"{name}_se"] = _bound(model, guide, data, size.bound_draws)
                row[f"{name}_gap"] = evidence - row[name]
            rows.append(row)
    table = pd.DataFrame(rows)
    outcome = Outcome("bnnp/elbo-quality", "", table[[c for c in table if not c.endswith("_se")]])
    known = table[table.effective_draws > MIN_EFFECTIVE]
    at = known[(known.noise - 0.1).abs() < 1e-6]
    small = scale_name != "smoke" and len(at) > 0

    def claim(value: bool) -> bool | None:
        return bool(value) if small else None

    outcome.checks = [
        Check(
            "BNNP's bound is within a nat of the evidence at noise 0.1",
            "-0.1 <= gap <= 1 in every seed whose evidence is known",
            signed(at.set_index("seed").bnnp_gap),
            claim(at.bnnp_gap.between(-0.1, 1.0).all()),
        ),
        Check(
            "mean-field VI is at least 10 nats below it",
            "difference >= 10 in every seed",
            signed((at.bnnp - at.mean_field).set_axis(at.seed)),
            claim((at.bnnp - at.mean_field >= 10).all()),
        ),
        Check(
            "no bound above the evidence",
            "gap > -0.1 - 3 standard errors, for every method, wherever the evidence is known",
            "smallest " + signed([min(known[f"{name}_gap"].min() for name in METHODS)]) if len(known) else "none known",
            claim(all((known[f"{name}_gap"] > -0.1 - 3 * known[f"{name}_se"]).all() for name in METHODS)),
        ),
        *(
            Check(f"gap of {METHODS[name]} at noise 0.1", "reported", signed(at[f"{name}_gap"]), None)
            for name in METHODS
            if name not in ("bnnp", "mean_field")
        ),
    ]
    outcome.notes = [
        f"Evidences are averages over {size.evidence_draws:,} draws from the prior; where fewer than {MIN_EFFECTIVE} "
        "of them count, as at small noise, the evidence is not known and the gap is no claim.",
        f"Steps at the first noise level and at each further one: BNNP {size.bnnp_steps}, meta-trained on other data "
        f"sets from the same network {size.meta_steps}, the others {size.other_steps}. Inducing points: 5.",
    ]
    if len(table):
        outcome.figures["bounds"] = (_figure(table), "ELBO less log evidence by noise level, one dot a seed.")
    return outcome


def _figure(table: pd.DataFrame) -> Figure:
    with look():
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        axes = figure.subplots()
        for (name, label), colour in zip(METHODS.items(), colours(len(METHODS)), strict=True):
            sure = table.effective_draws > MIN_EFFECTIVE
            for rows, fill in ((table[sure], colour), (table[~sure], "none")):
                axes.scatter(rows.noise, -rows[f"{name}_gap"], s=36, facecolor=fill, edgecolor=colour,
                             label=label if fill != "none" else None)  # fmt: skip
        axes.axhline(0.0, color=INK, linewidth=1.0)
        axes.set(xscale="log", xlabel="noise sd of the likelihood", ylabel="bound less log evidence (nats)")
        axes.set_yscale("symlog", linthresh=1.0)
        low = min(-1.0, float(-table[[f"{name}_gap" for name in METHODS]].max().max()))
        axes.set_yticks(*symlog_ticks(1.3 * low, 1.0))
        axes.set_ylim(1.3 * low, 1.0)
        levels = sorted(table.noise.unique())
        shown = levels if len(levels) <= 6 else [levels[0], levels[len(levels) // 2], levels[-1]]
        axes.set_xticks(shown, [f"{t:.2g}" for t in shown])
        axes.minorticks_off()
        title = f"hollow: fewer than {MIN_EFFECTIVE} effective draws behind the evidence"
        figure.legend(loc="outside lower center", ncols=3, title=title, title_fontsize=9)
    return figure
