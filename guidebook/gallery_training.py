"""How the gallery's entries are made: ``python -m guidebook.gallery all``."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import torch

from evaluation.run_configuration import RunConfiguration, affordable, configure, train
from evaluation.scores.scoring import parameter_count
from guidebook.gallery import (
    FOLDER,
    MOST_BYTES,
    Card,
    card_path,
    exact_scores,
    load_pretrained,
    pretrained,
    scored_tasks,
    scores_of,
    weights_path,
)
from guidebook.inspection import verdict_of
from pp_models.files import FileError, make_folder, sealed_json, write_atomically
from pp_models.likelihoods import floor_of
from pp_models.registry import Registry
from pp_models.sealed_tensors import sealed_tensors

#: name, which is that of a method and of tasks -> what differs from the method's recipe
ENTRIES: Registry[dict[str, Any]] = Registry(
    "name",
    {
        f"{model}-{tasks}": {"model": model, "tasks": tasks, **options}
        for model, tasks, options in (
            ("nvdp", "gp-rbf", {}),
            ("nvdp", "gp-rbf-fixed", {}),
            ("nvdp+path", "gp-rbf-tnp", {}),
            ("cnp+path", "gp-rbf-tnp", {}),
            ("convcnp", "gp-rbf-tnp", {"width": 60}),  # 64 are more than a megabyte
            ("nmdp-kernels", "gp-rbf-tnp", {}),
            ("bnnp", "gp-rbf-fixed", {}),
            ("nmdp", "gp-mix-tnp", {}),
            ("nmdp-kernels", "gp-mix-tnp", {}),
            ("convcnp", "gp-mix-tnp", {"width": 60}),
            ("tnp-d", "gp-mix-tnp", {}),
            ("nmdp-strict", "branches", {}),
            ("nvdp", "digits", {}),
            ("nvdp+path", "digits", {}),
            ("nmdp", "digits", {}),
            ("convcnp", "digits", {}),
            ("nvdp", "mnist", {}),
            ("nmdp", "mnist", {}),
        )
    },
    "python -m guidebook.gallery --help",
)
#: methods whose predictions are scored by draws: their mean weights are no predictive
DRAWS = {"bnnp": 50}
#: posterior draws of a verdict
VERDICT_DRAWS = 200


def make_entries(names: Iterable[str], cpu_seconds: float, anew: bool = False, judge: bool = False) -> None:
    """Trains entries one by one, on one thread; what is there already is kept.

    Args:
        names: of ``ENTRIES``.
        cpu_seconds: of training, for each.
        anew: also those that are there.
        judge: train none: score and judge those that are there, as they are.

    Raises:
        ValueError: unknown name, or seconds out of range.
        FileError: a file cannot be written, or is too large for the package.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    make_folder(FOLDER, "folder")
    for name in names:
        entry = ENTRIES.find(name)
        if judge:
            print(judge_entry(name), flush=True)
        elif card_path(name).exists() and not anew:
            print(f"{name}: is there", flush=True)
        else:
            print(make_entry(name, cpu_seconds, **entry), flush=True)


def make_entry(name: str, cpu_seconds: float, **options: Any) -> str:
    """Trains one entry and writes its weights and then its card; a line about it."""
    configuration = configure(**options)
    steps, _ = affordable(configuration, cpu_seconds, "cpu")
    configuration = replace(configuration, steps=steps)
    method = configuration.build()
    start = time.process_time()
    train(configuration, method, device="cpu", progress=False)
    seconds = time.process_time() - start
    weights = {
        f"{key}.{parameter}": tensor
        for key, module in (("model", method.model), ("guide", method.guide))
        for parameter, tensor in module.state_dict().items()
    }
    content = sealed_tensors(weights, {"name": name, "step": steps})
    if len(content) > MOST_BYTES:
        raise FileError(f"{weights_path(name)}: would have {len(content):,} bytes; the package takes {MOST_BYTES:,}")
    found = card_of(configuration, method, hashlib.sha256(content).hexdigest(), seconds)
    write_atomically(weights_path(name), content)
    return _written(name, found)


def judge_entry(name: str) -> str:
    """Scores and judges an entry as it is, and writes its card anew; a line about it."""
    fitted = load_pretrained(name)
    held = fitted.card
    return _written(name, card_of(held.configuration, fitted, held.weights_sha256, held.cpu_seconds))


def card_of(configuration: RunConfiguration, fitted: Any, weights_sha256: str, seconds: float) -> Card:
    """The card of a fit: its scores and its verdict."""
    batches = scored_tasks(configuration.tasks)
    num_samples = DRAWS.get(configuration.model, 0)
    found = verdict_of(configuration, fitted, VERDICT_DRAWS, progress=False)
    return Card(
        configuration=configuration,
        weights_sha256=weights_sha256,
        parameters=parameter_count(fitted.model, fitted.guide),
        cpu_seconds=round(seconds, 1),
        num_samples=num_samples,
        scores=scores_of(fitted, batches, num_samples),
        exact=exact_scores(configuration.tasks, batches, floor_of(fitted.model)),
        floor=floor_of(fitted.model),
        level=found.level,
        reason=found.reason,
        findings=found.findings,
    )


def _written(name: str, card: Card) -> str:
    write_atomically(card_path(name), sealed_json(asdict(card)))
    exact = card.exact.get("pll", math.nan)
    return (
        f"{name}: {card.configuration.steps} steps, {card.cpu_seconds:.0f} s, pll {card.scores['pll']:.3f} "
        f"(exact {exact:.3f}), {card.level}"
    )


def markdown() -> str:
    """The table of all entries as docs/gallery.md has it."""
    lines = ["| | held-out LL | exact | within 1 sd | verdict | CPU s | parameters |", "|---|---|---|---|---|---|---|"]
    for name, row in pretrained().iterrows():
        exact = "" if math.isnan(row["exact"]) else f"{row['exact']:.2f}"
        lines.append(
            f"| `{name}` | {row['pll']:.2f} | {exact} | {row['within_1sd']:.0%} | {row['verdict']} | "
            f"{row['cpu_seconds']:.0f} | {row['parameters']:,} |"
        )
    return "\n".join(lines)
