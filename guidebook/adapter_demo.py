"""The demo's LRVD panel: a planted rank, and MiniLM on made-up opinions where its packages are installed."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pandas as pd

from evaluation import plots
from evaluation.adapters.adapter_method import AdapterBudget
from evaluation.adapters.adapter_training import predict_classes, train_adapter
from evaluation.adapters.planted_rank import PlantedTask, fit_planted
from evaluation.adapters.rank_analysis import energy_curve, kept_ranks
from evaluation.scores.calibration_metrics import score_classes
from pp_models.adapters.text_networks import load_network, tokenise
from pp_models.data import DataError
from pp_models.tasks.text_tasks import template_sentences

#: steps of the planted problem as a share of NVDP's, and of MiniLM's adapters
PLANTED_SHARE, TEXT_SHARE = 0.75, 0.02
#: how far log α may travel: in so few steps the usual 14 would outrun what the factors learn
TEXT_TRAVEL = 6.0
TEXT_METHODS = {"lora": "LoRA", "lrvd": "LRVD"}


def planted_figures(steps: int, seed: int) -> dict[str, tuple[Any, str, str]]:
    """Figures, titles and captions for five problems: log α of every rank, and the energy of the first ones."""
    task = PlantedTask(steps=max(1, int(steps * PLANTED_SHARE)))
    found = fit_planted(task, 5, seed)
    curve = energy_curve(found.b, found.a, found.log_alpha)
    kept = ", ".join(map(str, found.kept().tolist()))
    scales = {f"problem {i + 1}": row for i, row in enumerate(found.log_alpha)}
    orders = {"by log α": curve.energy, "SVD": curve.bound, "random order": curve.random}
    return {
        "lrvd_scales": (
            plots.scale_plot(scales),
            "Noise by rank",
            f"log α of {task.rank} ranks after {task.steps} steps; the update has rank {len(task.singular_values)}, "
            f"and {kept} ranks are below the threshold.",
        ),
        "lrvd_energy": (
            plots.energy_plot(orders),
            "Energy of the first ranks",
            "Share of the learned update in its first m ranks: ordered by log α, at best, and at random.",
        ),
    }


def text_table(steps: int, seed: int) -> pd.DataFrame | str:
    """LoRA and LRVD on MiniLM, scored on made-up opinions of which a tenth is mislabelled.

    Returns:
        one row a method, or one line saying what is not installed.
    """
    budget = AdapterBudget(steps=max(2, int(steps * TEXT_SHARE)), batch_size=8, draws=4, travel=TEXT_TRAVEL)
    train, test = template_sentences(160, seed), template_sentences(64, seed + 1)
    rows = []
    try:
        base = load_network("minilm")
        tokens = {name: tokenise(base, texts) for name, texts in (("train", train), ("test", test))}
        for name, title in TEXT_METHODS.items():
            found = train_adapter(name, replace(base, network=deepcopy(base.network)), tokens["train"], 2, budget, seed)
            method = found.method if found.method.stochastic else None
            probs = predict_classes(found.reader, tokens["test"], method, seed, budget.draws)
            log_alpha = found.method.log_alpha()
            kept = kept_ranks(log_alpha) if log_alpha else found.method.ranks()
            row: dict[str, Any] = {"model": title, **score_classes(probs, test.labels).as_dict()}
            rows.append(row | {"ranks": sum(found.method.ranks().values()), "log α < 1": sum(kept.values())})
    except DataError as error:
        return str(error)
    return pd.DataFrame(rows)
