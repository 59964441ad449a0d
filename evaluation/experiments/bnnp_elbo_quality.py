"""How near BNNP's bound is to the evidence of one small data set, over noise levels (BNNP, section 6.2)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn

from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.plots.style import INK, WIDTH, colours, look
from guides import BNNWeightGuide
from inference import fit
from inference.objectives import make
from inference.objectives.task_objective import effective_sample_size, log_mean_exp
from pp_models import BayesianNetwork, Dataset, FixedGaussianPrior
from pp_models.task_plates import PARTICLE_PLATE

SIZES = [1, 20, 20, 1]
TRUE_NOISE = 0.05
#: noise levels, steps of BNNP and of mean-field VI, draws for the evidence and for the final bounds
SCALES: dict[str, tuple[tuple[float, ...], int, int, int, int]] = {
    "smoke": ((0.1,), 20, 20, 2_000, 200),
    "small": ((0.05, 0.1, 0.3, 1.0), 1_000, 4_000, 1_000_000, 4_000),
    "paper": (tuple(10 ** (-2 + 3 * i / 39) for i in range(40)), 5_000, 20_000, 10_000_000, 10_000),
}
#: an evidence from fewer effective draws than this is not shown as one
MIN_EFFECTIVE = 500


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
    objective = make("elbo", num_particles=100, max_plate_nesting=0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        values = torch.stack([objective.terms(model, guide, data).bound.sum() for _ in range(max(2, draws // 100))])
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def train_on(model: nn.Module, guide: nn.Module, data: Dataset, steps: int, seed: int) -> None:
    """Adam at 5e-3, the last quarter at 1e-3."""
    for part, rate in ((3 * steps // 4, 5e-3), (steps - 3 * steps // 4, 1e-3)):
        objective = make("elbo", num_particles=8, max_plate_nesting=0)
        optimizer = partial(torch.optim.Adam, lr=rate, fused=True)
        fit(model, guide, data, objective, part, seed, optimizer, "cpu", progress=False, max_grad_norm=100.0)


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """BNNP's guide and mean-field VI on one data set a seed, for each noise level."""
    levels, steps, mean_field_steps, evidence_draws, bound_draws = SCALES[scale_name]
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        data = data_set(seed)
        for noise in levels:
            workshop.console.print(f"elbo quality: seed {seed}, noise {noise:.3g}")
            model = network(noise)
            evidence, effective = log_evidence(model, data, evidence_draws, seed)
            row: dict[str, Any] = {"model": f"noise {noise:.3g}", "seed": seed, "noise": noise}
            row |= {"log_evidence": evidence, "effective_draws": effective}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                guides: dict[str, Any] = {
                    "bnnp": BNNWeightGuide(model, "real", "real"),
                    "mean_field": AutoNormal(model),
                }
                guides["mean_field"](data)
            for name, guide in guides.items():
                train_on(model, guide, data, steps if name == "bnnp" else mean_field_steps, seed)
                row[name], row[f"{name}_se"] = _bound(model, guide, data, bound_draws)
                row[f"{name}_gap"] = evidence - row[name]
            rows.append(row)
    table = pd.DataFrame(rows)
    outcome = Outcome("bnnp/elbo-quality", "", table)
    known = table[table.effective_draws > MIN_EFFECTIVE]
    at = known[(known.noise - 0.1).abs() < 1e-6]
    small = scale_name != "smoke" and len(at) > 0

    def claim(value: bool) -> bool | None:
        return bool(value) if small else None

    outcome.checks = [
        Check(
            "BNNP's bound is within a nat of the evidence at noise 0.1 (B1)",
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
            "gap > -0.1 - 3 standard errors, wherever the evidence is known",
            f"smallest {known.bnnp_gap.min():+.3f}",
            claim((known.bnnp_gap > -0.1 - 3 * known.bnnp_se).all()),
        ),
    ]
    outcome.notes = [
        f"Evidences are averages over {evidence_draws:,} draws from the prior; where fewer than {MIN_EFFECTIVE} of "
        "them count, as at small noise, the evidence is not known and the gap is no claim. mean_field is Pyro's "
        "AutoNormal."
    ]
    if len(table):
        outcome.figures["bounds"] = (_figure(table), "ELBO less log evidence by noise level, one dot a seed.")
    return outcome


def _figure(table: pd.DataFrame) -> Figure:
    with look():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        for name, label, colour in zip(("bnnp", "mean_field"), ("BNNP", "mean-field VI"), colours(2), strict=True):
            sure = table.effective_draws > MIN_EFFECTIVE
            for rows, fill in ((table[sure], colour), (table[~sure], "none")):
                axes.scatter(rows.noise, -rows[f"{name}_gap"], s=36, facecolor=fill, edgecolor=colour,
                             label=label if fill != "none" else None)  # fmt: skip
        axes.axhline(0.0, color=INK, linewidth=1.0)
        axes.set(xscale="log", xlabel="noise sd of the likelihood", ylabel="bound less log evidence (nats)")
        axes.set_yscale("symlog", linthresh=1.0)
        low = min(-1.0, float(-table[["bnnp_gap", "mean_field_gap"]].max().max()))
        ticks = [1.0, 0.0, *(-(10.0**i) for i in range(1 + math.ceil(math.log10(-low))))]
        axes.set_yticks(ticks, [f"{t:g}".replace("-", "−") for t in ticks])
        axes.set_ylim(1.3 * low, 1.0)
        levels = sorted(table.noise.unique())
        shown = levels if len(levels) <= 6 else [levels[0], levels[len(levels) // 2], levels[-1]]
        axes.set_xticks(shown, [f"{t:.2g}" for t in shown])
        axes.minorticks_off()
        title = f"hollow: fewer than {MIN_EFFECTIVE} effective draws behind the evidence"
        figure.legend(loc="outside lower center", ncols=2, title=title, title_fontsize=9)
    return figure
