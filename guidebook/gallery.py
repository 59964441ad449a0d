"""Fitted methods that come with the package: predict, inspect and compare at once, without training."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyro.infer
from torch import nn

from evaluation.findings import Finding, Verdict
from evaluation.run_configuration import RunConfiguration
from evaluation.scores.scoring import score_oracle, score_tasks
from inference import checkpoint
from pp_models.arguments import checked
from pp_models.data import TaskBatch
from pp_models.files import STRICT, FileError, read_checked_json, read_regular
from pp_models.registry import Registry
from pp_models.sealed_tensors import unsealed_tensors
from pp_models.tasks.branch_tasks import branch_oracle
from pp_models.tasks.downloads import no_downloads
from pp_models.tasks.task_table import task_stream

#: a card ``NAME.json`` and weights ``NAME.safetensors`` for every entry
FOLDER = Path(__file__).with_name("weights")
MOST_BYTES = 1_000_000
#: test tasks of a score, a stream of seed ``TEST_SEED``
BATCHES, BATCH_SIZE = 4, 16
SCORES = ("ll", "rll", "pll", "rmse", "crps", "within_1sd", "within_2sd")


@dataclass(frozen=True)
class Card:
    """What is known of an entry.

    Args:
        configuration: what was fitted, and how; on one thread of such a machine ``guidebook fit`` gives these weights.
        weights_sha256: of the file of weights.
        parameters: trained numbers.
        cpu_seconds: that the fit took, of one thread.
        num_samples: draws of a prediction that was scored; 0 for the mean weights.
        scores: mean scores of the test tasks, nats a point; see :func:`evaluation.scores.scoring.score_tasks`.
        exact: the same of the exact answer, as far as there is one.
        floor: of the standard deviations of both; None where the method has none.
        level: of the verdict.
        reason: of the verdict.
        findings: of the verdict.
    """

    __pydantic_config__ = STRICT

    configuration: RunConfiguration
    weights_sha256: str
    parameters: int
    cpu_seconds: float
    num_samples: int
    scores: dict[str, float]
    exact: dict[str, float]
    floor: float | None
    level: str
    reason: str
    findings: list[Finding]

    @property
    def verdict(self) -> Verdict:
        """The verdict as :func:`evaluation.verdict` gave it, without its numbers."""
        return Verdict(self.level, self.reason, self.findings)


class Pretrained(NamedTuple):
    """An entry of the gallery.

    Args:
        model: the fitted model.
        guide: its guide.
        objective: what trained them.
        name: of the entry.
        card: what is known of it.
    """

    model: nn.Module
    guide: nn.Module
    objective: pyro.infer.ELBO
    name: str
    card: Card


@checked()
def load_pretrained(name: str) -> Pretrained:
    """A fitted method by name, from the package's own files: nothing is downloaded, and no code in them is run.

    Args:
        name: ``"nvdp-gp-rbf"`` …; :func:`pretrained` lists all.

    Raises:
        ValueError: unknown name.
        FileError: a file of the package is missing or altered.

    Example:
        >>> import guidebook as gb
        >>> fitted = gb.load_pretrained("nvdp-gp-rbf")
        >>> test = gb.tasks.gp_test("rbf", batch_size=2).batch(0)
        >>> prediction = gb.predict(fitted.model, fitted.guide, test.context, test.full.x, num_samples=20)
    """
    card = read_card(name)
    weights = weights_path(name)
    try:
        content = read_regular(weights, MOST_BYTES)
    except OSError as error:
        raise FileError(f"{weights}: cannot be read ({error.strerror or error}); install the package anew") from None
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise FileError(f"{weights}: truncated or altered (SHA-256 differs from its card's); install the package anew")
    tensors, _ = unsealed_tensors(content, weights)
    with no_downloads("loading from the gallery"):
        method = card.configuration.build()
    checkpoint.load_into({"model": method.model, "guide": method.guide}, tensors)
    method.model.eval()
    method.guide.eval()
    return Pretrained(method.model, method.guide, method.objective, name, card)


def pretrained() -> pd.DataFrame:
    """The gallery, one row an entry, by tasks and score.

    Columns: ``method``, ``tasks``, ``pll`` (held-out log-likelihood of the test tasks, nats a point), ``exact`` (the
    same of the process that drew them; NaN where that is not known), ``within_1sd``, ``verdict``, ``cpu_seconds`` of
    training, ``parameters``.
    """
    rows = {}
    for name in names():
        card = read_card(name)
        rows[name] = {
            "method": card.configuration.model,
            "tasks": card.configuration.tasks,
            "pll": card.scores["pll"],
            "exact": card.exact.get("pll", float("nan")),
            "within_1sd": card.scores["within_1sd"],
            "verdict": card.level,
            "cpu_seconds": card.cpu_seconds,
            "parameters": card.parameters,
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
    return table.sort_values(["tasks", "pll"], ascending=[True, False])


def names() -> Registry[Path]:
    """The card of every entry, by its name."""
    cards = {path.stem: path for path in FOLDER.glob("*.json")}
    cards = {name: cards[name] for name in sorted(cards)}
    return Registry("name", cards, "guidebook list pretrained")


def card_path(name: str) -> Path:
    """Where the card of an entry is."""
    return FOLDER / f"{name}.json"


def weights_path(name: str) -> Path:
    """Where the weights of an entry are."""
    return FOLDER / f"{name}.safetensors"


def read_card(name: str) -> Card:
    """The card of an entry.

    Raises:
        ValueError: unknown name.
        FileError: it is altered, or not readable.
    """
    names().check(name)
    try:
        return read_checked_json(card_path(name), Card, "a card of the gallery")
    except OSError as error:
        raise FileError(f"{card_path(name)}: cannot be read ({error.strerror or error})") from None


def scored_tasks(tasks: str) -> list[TaskBatch]:
    """The tasks that an entry is scored on."""
    stream = task_stream(tasks, BATCH_SIZE, 0, test=True)
    return [stream.batch(i) for i in range(BATCHES)]


def scores_of(fitted: Any, batches: Iterable[TaskBatch], num_samples: int) -> dict[str, float]:
    """Mean scores of a model and guide on tasks.

    Args:
        fitted: has ``model`` and ``guide``.
        batches: :func:`scored_tasks` for those of a card.
        num_samples: draws of a prediction; 0 for the mean weights.
    """
    how: dict[str, Any] = {"weights": "samples", "num_samples": num_samples} if num_samples else {"weights": "mean"}
    table = score_tasks(fitted.model, fitted.guide, batches, **how)
    return {name: float(table[name].mean()) for name in SCORES}


def exact_scores(tasks: str, batches: list[TaskBatch], floor: float | None) -> dict[str, float]:
    """Scores of the process that drew the tasks, its standard deviation not below a floor; empty where not known."""
    if tasks.startswith("gp-"):
        table = score_oracle(batches, floor)
        return {name: float(table[name].mean()) for name in ("ll", "rll", "pll")}
    if tasks == "branches":
        return {"pll": float(sum(branch_oracle(batch, 1000)[0].double().mean() for batch in batches) / len(batches))}
    return {}


def main(arguments: list[str] | None = None) -> None:
    """Trains entries, as a maintainer does."""
    from guidebook.gallery_training import ENTRIES, make_entries, markdown

    parser = argparse.ArgumentParser(prog="python -m guidebook.gallery", description="Trains the gallery's entries.")
    parser.add_argument("name", help=f"all, or one of {', '.join(ENTRIES)}; or table, to print that of docs/gallery.md")
    parser.add_argument("--cpu-seconds", type=float, default=120.0, help="of training, for each")
    parser.add_argument("--anew", action="store_true", help="also those that are there")
    parser.add_argument("--judge", action="store_true", help="train none: score and judge those that are there")
    given = parser.parse_args(arguments)
    if given.name == "table":
        print(markdown())
        return
    make_entries(ENTRIES if given.name == "all" else [given.name], given.cpu_seconds, given.anew, given.judge)


if __name__ == "__main__":
    main()
