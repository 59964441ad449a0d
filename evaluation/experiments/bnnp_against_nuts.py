"""BNNP's guide and mean-field VI against long NUTS runs on a small network."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoNormal

from evaluation.experiments.bnnp_elbo_quality import train_on
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.plots.style import INK, WIDTH, colours, look
from guides import BNNWeightGuide
from inference import nuts, predict
from pp_models import BayesianNetwork, Dataset, LearnedGaussianPrior

NOISE = 0.2
#: steps of BNNP, of mean-field VI, warm-up and draws of NUTS, draws of a prediction
SCALES = {
    "smoke": (10, 10, 20, 20, 50),
    "small": (1_500, 4_000, 1_000, 4_000, 4_000),
    "paper": (5_000, 20_000, 5_000, 20_000, 20_000),
}


def _problem(seed: int) -> tuple[BayesianNetwork, Dataset]:
    """One hidden layer of 5 under a prior that is not the default one, and 8 points drawn from it."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = BayesianNetwork([1, 5, 1], prior=LearnedGaussianPrior("unit"), noise_scale=NOISE, activation="tanh")
        for parameter in model.prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter)).requires_grad_(False)
        x = torch.linspace(-2, 2, 8).unsqueeze(-1)
        outputs = model(Dataset(x))
        return model, Dataset(x, outputs + NOISE * torch.randn_like(outputs))


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Predictive means and standard deviations of functions on a grid, beside those of NUTS."""
    steps, mean_field_steps, warmup, samples, draws = SCALES[scale_name]
    grid = torch.linspace(-3, 3, 61).unsqueeze(-1)
    inside = grid[:, 0].abs() <= 2
    rows: list[dict[str, Any]] = []
    curves: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for seed in seeds:
        workshop.say(f"BNNP against NUTS: seed {seed}")
        model, data = _problem(seed)
        reference = nuts(model, data, warmup, samples, seed=seed, target_accept=0.9)
        functions = {"nuts": reference.predict(grid).function_samples}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            exact, mean_field = BNNWeightGuide(model, final_targets="real", final_noise="real"), AutoNormal(model)
            mean_field(data)
        for name, guide, count in (("bnnp", exact, steps), ("mean_field", mean_field, mean_field_steps)):
            train_on(model, guide, data, count, seed)
            functions[name] = predict(model, guide, data, grid, draws, seed=0).function_samples
        moments = {name: (f.mean(0)[:, 0], f.std(0)[:, 0]) for name, f in functions.items()}
        curves = curves or moments
        row: dict[str, Any] = {"model": "tanh [1, 5, 1]", "seed": seed, "divergences": reference.diverging}
        mean, sd = moments["nuts"]
        for name in ("bnnp", "mean_field"):
            error = (moments[name][0] - mean)[inside].abs()
            row[f"{name}_mean_error"] = float(error.max()) / NOISE
            row[f"{name}_sd_ratio"] = float((moments[name][1] / sd)[inside].mean())
        rows.append(row)
    table = pd.DataFrame(rows)
    outcome = Outcome("bnnp/against-nuts", "", table)
    by = table.set_index("seed")

    def claim(value: bool) -> bool | None:
        return bool(value) if scale_name != "smoke" else None

    outcome.checks = [
        Check(
            "BNNP's predictive mean is NUTS's",
            "largest difference between the data < 0.2 noise sd in every seed",
            signed(by.bnnp_mean_error),
            claim((by.bnnp_mean_error < 0.2).all()),
        ),
        Check(
            "mean-field VI is visibly worse",
            "its largest difference is larger in every seed",
            signed(by.mean_field_mean_error),
            claim((by.mean_field_mean_error > by.bnnp_mean_error).all()),
        ),
        Check(
            "spread of functions between the data",
            "reported: sd over NUTS's sd, BNNP; mean-field VI",
            f"{signed(by.bnnp_sd_ratio)}; {signed(by.mean_field_sd_ratio)}",
            None,
        ),
    ]
    outcome.notes = ["mean_error is in noise standard deviations (0.2); sd_ratio is 1 where spread equals NUTS's."]
    outcome.figures["functions"] = (_figure(grid[:, 0], curves), f"Functions' mean ± 2 sd, seed {seeds[0]}.")
    return outcome


def _figure(x: torch.Tensor, curves: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Figure:
    labels = {"nuts": "NUTS", "bnnp": "BNNP", "mean_field": "mean-field VI"}
    palette = dict(zip(("bnnp", "mean_field"), colours(2), strict=True)) | {"nuts": INK}
    with look():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        for name, (mean, sd) in curves.items():
            axes.plot(x, mean, color=palette[name], linewidth=1.8, label=labels[name])
            for side in (-2, 2):
                axes.plot(x, mean + side * sd, color=palette[name], linewidth=1.0, linestyle="--")
        axes.set(xlabel="x", ylabel="y")
        axes.legend(loc="best")
    return figure
