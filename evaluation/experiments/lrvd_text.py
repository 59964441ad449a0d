"""LRVD and its rivals on sentences and questions: MiniLM (offline), DeBERTa-v3 and LLaMA (from the hub)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from evaluation import plots
from evaluation.adapters.adapter_method import AdapterBudget
from evaluation.adapters.adapter_methods import ADAPTER_METHODS
from evaluation.adapters.adapter_training import takes_halves
from evaluation.adapters.rank_analysis import EnergyCurve, rank_stability, rank_table
from evaluation.experiments.experiment import Outcome, Workshop
from evaluation.experiments.lrvd_text_claims import OURS, claims, energy_curves, gauge_rows
from evaluation.experiments.lrvd_text_runs import PRUNED, PRUNED_AT, Run, TextRuns
from evaluation.scores.calibration_metrics import (
    average_draws,
    entropy,
    fit_temperature,
    mutual_information,
    score_classes,
)
from evaluation.scores.mixture_uncertainty import auroc
from evaluation.scores.selective_prediction import area_under_risk_coverage
from pp_models.adapters.text_networks import TextNetwork, load_network, tiny_network, tokenise
from pp_models.tasks.text_tasks import TextSet, load_text, template_sentences


class Size(NamedTuple):
    """Texts to train on, to hold out for choices, to test on and of another corpus; the budget."""

    train: int
    validation: int
    test: int
    odd: int
    budget: AdapterBudget


_ALL = 10**9
#: by architecture and scale
SIZES: dict[str, dict[str, Size]] = {
    "minilm": {
        "smoke": Size(48, 16, 32, 16, AdapterBudget(steps=4, batch_size=8, draws=2, travel=5.2)),
        "small": Size(1_200, 200, 400, 200, AdapterBudget(steps=300, half_frozen=True)),
        "paper": Size(_ALL, 400, _ALL, 800, AdapterBudget(steps=4_000, batch_size=32, max_len=64)),
    },
    "deberta": {
        "smoke": Size(48, 16, 32, 16, AdapterBudget(steps=4, batch_size=8, draws=2, travel=5.2)),
        "small": Size(1_200, 200, 400, 200, AdapterBudget(steps=300)),
        "paper": Size(_ALL, 400, _ALL, 800, AdapterBudget(steps=9_999, batch_size=32, max_len=128, max_grad_norm=0.1)),
    },
    "llama": {
        "smoke": Size(48, 16, 32, 16, AdapterBudget(steps=4, batch_size=8, draws=2, travel=5.2)),
        "small": Size(600, 200, 400, 200, AdapterBudget(batch_size=4, learning_rate=1e-4, max_len=300)),
        "paper": Size(_ALL, 100, _ALL, 800, AdapterBudget(steps=5_000, batch_size=4, learning_rate=1e-4, max_len=300)),
    },
}
#: tasks of another size: pairs of sentences fill twice the tokens, and there are fewer docstrings
OTHER_SIZES: dict[tuple[str, str, str], Size] = {
    ("minilm", "mrpc", "small"): Size(1_200, 200, 400, 200, AdapterBudget(steps=300, batch_size=8, half_frozen=True)),
    ("minilm", "docstrings", "small"): Size(400, 140, 400, 200, AdapterBudget(steps=300, half_frozen=True)),
}
#: by architecture what an experiment is called, and its tasks
EXPERIMENTS = {
    "minilm": ("LRVD and its rivals on MiniLM-L6", ("cola", "mrpc", "sst2", "docstrings")),
    "deberta": (
        "LRVD and its rivals on DeBERTa-v3-base",
        ("cola", "mrpc", "sst2", "rte", "qnli", "qqp", "mnli"),
    ),
    "llama": (
        "LRVD and its rivals on a LLaMA",
        ("winogrande-s", "winogrande-m", "arc-challenge", "arc-easy", "obqa", "boolq"),
    ),
}
#: what is called out of distribution; for pairs of sentences the corpus is read as pairs
OTHER_CORPUS = {"docstrings": "docstrings-odd", "sst2": "cola", "obqa": "arc-challenge", "boolq": "arc-challenge"}
#: what the tables call the trained methods
TITLES = {
    "lora": "LoRA",
    "lora-dropout": "LoRA dropout (MC)",
    "adalora": "AdaLoRA",
    "sora": "SoRA",
    "ordered": "nested dropout",
    "blob": "BLoB",
    "sparse-subspace": "sparse subspace",
    "fixed-noise": "noise alone, α = 1",
    "pvera": "PVeRA",
    "monteclora": "MonteCLoRA",
    "lrvd": "LRVD",
    "lrvd-kappa-3": "LRVD, κ = 3",
    "lrvd-shared-sigma": "LRVD, shared σ",
}
LAPLACE_TITLES = {"diagonal": "LoRA, diagonal Laplace", "kronecker": "LoRA, Kronecker Laplace"}
#: AUROC of mutual information, its means, which point estimates do not have, and risk over coverage by two doubts
DOUBT = ("odd_by_entropy", "odd_by_mi", "mi", "mi_odd", "aurc_entropy", "aurc_mi")
#: of those, what the first table has no room for
ASIDE = ("mi", "mi_odd", "aurc_entropy", "aurc_mi")


def other_corpus(task: str) -> str:
    """The set that odd texts come from."""
    if task.startswith("arc"):
        return "winogrande-s"
    return OTHER_CORPUS.get(task, "arc-challenge" if task.startswith("winogrande") else "sst2")


def text_sets(task: str, size: Size) -> dict[str, TextSet]:
    """Train, validation, test and odd texts; the same for every seed.

    Validation texts come from the training set and are not trained on.
    """
    train, test = load_text(task, "train").shuffled(), load_text(task, "test").shuffled()
    held = train.take(range(min(size.validation, len(train) // 4)))
    rest = train.take(range(len(held), min(len(train), len(held) + size.train)))
    odd = load_text(other_corpus(task), "test").shuffled(1).first(size.odd)
    if test.pairs is not None:
        odd = replace(odd, pairs=(*odd.texts[1:], odd.texts[0]))
    return {"train": rest, "validation": held, "test": test.first(size.test), "odd": odd}


def made_up_sets(size: Size, questions: bool) -> dict[str, TextSet]:
    """The same from template sentences; the odd ones have their words in reverse order."""
    make = partial(template_sentences, questions=questions)
    odd = make(size.odd, 3)
    odd = replace(odd, texts=tuple(" ".join(reversed(text.split())) for text in odd.texts))
    return {
        "train": make(size.train, 0),
        "validation": make(size.validation, 1),
        "test": make(size.test, 2),
        "odd": odd,
    }


def prepare(architecture: str, task: str, scale_name: str, workshop: Workshop) -> tuple[TextRuns, dict[str, TextSet]]:
    """Texts and transformer of an experiment; hub architectures are tiny, random and offline at smoke scale."""
    size = OTHER_SIZES.get((architecture, task, scale_name), SIZES[architecture][scale_name])
    tiny = scale_name == "smoke" and architecture != "minilm"
    sets = made_up_sets(size, architecture == "llama") if tiny else text_sets(task, size)
    words = [text for each in sets.values() for text in each.texts]
    base = tiny_network(architecture, words) if tiny else load_network(architecture)

    def load() -> TextNetwork:
        return replace(base, network=deepcopy(base.network))

    tokens = {name: tokenise(base, each, size.budget.max_len) for name, each in sets.items()}
    folder = workshop.folder / "fits" / f"{architecture}-{task}-{scale_name}"
    classes = sets["train"].num_classes
    return TextRuns(folder, load, tokens, classes, size.budget, workshop.say, workshop.device), sets


def run(architecture: str, task: str, scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains every method with every seed (or reads it back) and compares predictions on the same test texts."""
    runs, sets = prepare(architecture, task, scale_name, workshop)
    labels = sets["test"].labels
    table = Predictions(labels, sets["validation"].labels)
    lrvd: dict[int, Run] = {}
    for seed in seeds:
        for name in ADAPTER_METHODS:
            found, title = runs.trained(name, seed), TITLES[name]
            facts = {"rank": sum(found.facts["ranks"].values()), "step_ms": found.facts["step_ms"]}
            stochastic = "draws.test" in found.tensors
            table.add(f"{title}, mean" if stochastic else title, seed, found.group("mean"), **facts)
            if stochastic:
                table.add(title, seed, found.group("draws"), **facts)
            if name == "lora":
                _add_lora_variants(table, runs, found, seed, facts)
        lrvd[seed] = runs.trained("lrvd", seed)
        _add_pruned(table, runs, seed)
    everything = pd.DataFrame(table.rows)
    outcome = Outcome(f"lrvd/{architecture}-{task}", "", everything.drop(columns=list(ASIDE)))
    energies = {seed: energy_curves(found) for seed, found in lrvd.items()}
    gauge = pd.DataFrame([row for seed, curves in energies.items() for row in gauge_rows(curves, seed)])
    tempered = table.tempered()
    outcome.checks = claims(everything, lrvd, gauge, tempered, judged=scale_name != "smoke")
    outcome.tables["With a temperature"] = tempered
    outcome.tables["Alignment with the SVD"] = gauge.groupby("seed", as_index=False).mean(numeric_only=True)
    outcome.tables["How many draws"] = by_draws([found.tensors for found in lrvd.values()], labels)
    doubt = everything.groupby("model", as_index=False, sort=False)[list(DOUBT)].mean()
    outcome.tables["Doubt"] = doubt[["model", *DOUBT]]
    _draw(outcome, lrvd, [pair for curves in energies.values() for pair in curves.values()])
    outcome.notes = _notes(runs, sets)
    return outcome


class Predictions:
    """Scores of every model and seed, raw and with a temperature.

    Args:
        labels: of the test texts.
        held_out: labels of the texts that temperatures are fitted to.
    """

    def __init__(self, labels: Tensor, held_out: Tensor) -> None:
        self.labels, self.held_out = labels, held_out
        self.rows: list[dict[str, Any]] = []
        #: by model the NLL of each test text with a temperature, one tensor a seed
        self.nll: dict[str, list[Tensor]] = {}

    def add(self, model: str, seed: int, probs: dict[str, Tensor], **facts: Any) -> None:
        """Scores predictions ``[S, n, C]`` of ``validation``, ``test`` and ``odd`` texts."""
        logs = {kind: _log(average_draws(probs[kind])) for kind in ("validation", "test")}
        temperature = fit_temperature(logs["validation"], self.held_out)
        logits = (logs["test"] / temperature).log_softmax(-1)
        calm = score_classes(logits.exp().unsqueeze(0), self.labels)
        found = {"model": model, "seed": seed} | scores(probs["test"], probs["odd"], self.labels)
        self.rows.append(found | {"T": temperature, "nll_T": calm.nll, "ece_T": calm.ece} | facts)
        self.nll.setdefault(model, []).append(-logits[torch.arange(len(self.labels)), self.labels])

    def difference(self, model: str, other: str) -> tuple[float, float]:
        """NLL with a temperature less another model's, and its standard error over test texts, paired."""
        gap = torch.stack(self.nll[model]).mean(0) - torch.stack(self.nll[other]).mean(0)
        return float(gap.mean()), float(gap.std() / len(gap) ** 0.5)

    def tempered(self) -> pd.DataFrame:
        """One row a model: T, NLL and ECE with it, and the NLL beside LoRA's with its own and beside LRVD's."""
        means = pd.DataFrame(self.rows).groupby("model", sort=False)[["T", "nll_T", "ece_T", "rank"]].mean()
        table = means.reset_index()
        for other, name in (("LoRA", "lora"), (OURS, "lrvd")):
            gaps = [self.difference(model, other) for model in table.model]
            table[f"less_{name}"], table[f"less_{name}_se"] = map(list, zip(*gaps, strict=True))
        return table


def scores(test: Tensor, odd: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of ``[S, n, C]`` predictions, how well doubt tells another corpus (AUROC) and errors (AURC)."""
    found = score_classes(test, labels).as_dict()
    probs = average_draws(test)
    wrong = (probs.argmax(-1) != labels).double()
    found["odd_by_entropy"] = auroc(entropy(probs), entropy(average_draws(odd)))
    found["aurc_entropy"] = area_under_risk_coverage(entropy(probs), wrong)
    if len(test) > 1:
        inside, outside = mutual_information(test), mutual_information(odd)
        found |= {"odd_by_mi": auroc(inside, outside), "mi": float(inside.mean()), "mi_odd": float(outside.mean())}
        found["aurc_mi"] = area_under_risk_coverage(inside, wrong)
    return found


def by_draws(runs: Sequence[dict[str, Tensor]], labels: Tensor) -> pd.DataFrame:
    """Scores of LRVD's first S draws, means over seeds; S = 0 is the posterior mean."""
    rows = []
    for tensors in runs:
        drawn = tensors["draws.test"]
        for count in sorted({0, *(n for n in (1, 2, 5) if n < len(drawn)), len(drawn)}):
            found = score_classes(drawn[:count] if count else tensors["mean.test"], labels)
            rows.append({"draws": count, "acc": found.acc, "nll": found.nll, "ece": found.ece, "brier": found.brier})
    return pd.DataFrame(rows).groupby("draws", as_index=False).mean()


def _add_lora_variants(table: Predictions, runs: TextRuns, lora: Run, seed: int, facts: dict[str, Any]) -> None:
    """Early stopping, Laplace, noise without training and the ensemble: all from LoRA runs."""
    early = lora.group("early-mean")
    if early:
        table.add("LoRA, stopped early", seed, early, **facts)
    for structure, title in LAPLACE_TITLES.items():
        table.add(title, seed, runs.laplace(structure, seed).group("draws"), **facts)
    table.add("LoRA, training-free noise", seed, runs.training_free(seed).group("draws"), **facts)
    # three networks to keep and three trainings to pay for
    cost = {"rank": 3 * facts["rank"], "step_ms": 3 * facts["step_ms"]}
    table.add("ensemble of 3 LoRA", seed, runs.ensemble(seed), **cost)


def _add_pruned(table: Predictions, runs: TextRuns, seed: int) -> None:
    """LRVD after pruning, and LoRA with as many ranks as the stricter threshold kept."""
    for method in PRUNED:
        run = runs.trained(method, seed)
        for threshold in PRUNED_AT:
            name, kept = f"pruned{threshold:g}-", run.facts[f"kept_at_{threshold:g}"]
            title = f"{TITLES[method]} pruned at {threshold:g}"
            table.add(f"{title}, mean", seed, run.group(f"{name}mean"), rank=kept)
            if drawn := run.group(f"{name}draws"):
                table.add(title, seed, drawn, rank=kept)
        kept = run.facts["kept_tenth"]
        table.add(f"{TITLES[method]} pruned to a tenth, mean", seed, run.group("tenth-mean"), rank=kept)
    kept = runs.trained("lrvd", seed).facts[f"kept_at_{PRUNED_AT[-1]:g}"]
    for by in ("magnitude", "svd"):
        table.add(f"LoRA truncated by {by}", seed, runs.truncated(by, kept, seed).group("mean"), rank=kept)
    found = runs.truncated("magnitude", kept, seed, "ordered")
    table.add(f"{TITLES['ordered']}, truncated", seed, found.group("mean"), rank=kept)


def _log(probs: Tensor) -> Tensor:
    return probs.double().clamp_min(torch.finfo(torch.float64).tiny).log()


def _draw(outcome: Outcome, lrvd: dict[int, Run], pairs: list[tuple[EnergyCurve, EnergyCurve]]) -> None:
    tables = {t: [rank_table(found.scales(), t) for found in lrvd.values()] for t in PRUNED_AT}
    curves = [pd.DataFrame(found.facts["sweep"], columns=["threshold", "rank", "score"]) for found in lrvd.values()]
    outcome.figures["ranks"] = (
        plots.rank_heatmaps(tables[1.0]),
        "Ranks with log α below 1 while training, by layer and by kind of module, averaged over seeds; nothing is "
        "removed while training.",
    )
    outcome.figures["stability"] = (
        plots.stability_plot({f"log α < {t:g}": rank_stability(found) for t, found in tables.items()}),
        "Total rank over training, mean and standard deviation over seeds.",
    )
    outcome.figures["thresholds"] = (
        plots.threshold_plot(curves, "accuracy of the posterior mean"),
        "Test accuracy against the total rank that a threshold of log α leaves, one line a seed.",
    )
    outcome.figures["scales"] = (
        plots.scale_plot({f"seed {seed}": torch.cat(list(r.scales()[-1][1].values())) for seed, r in lrvd.items()}),
        "log α of every rank of all modules after training, sorted.",
    )
    outcome.figures["energy"] = (
        plots.energy_plot(
            {
                "SVD": torch.stack([curve.bound for curve, _ in pairs]),
                "by size": torch.stack([by_size.energy for _, by_size in pairs]),
                "by log α": torch.stack([curve.energy for curve, _ in pairs]),
                "random order": torch.stack([curve.random for curve, _ in pairs]),
            }
        ),
        "Share of the energy of a module's update in its first m components, mean and range over modules and seeds.",
    )


def _notes(runs: TextRuns, sets: dict[str, TextSet]) -> list[str]:
    size, base = runs.budget, runs.load()
    counts: Sequence[str] = [f"{len(runs.sets[k])} {k}" for k in ("train", "validation", "test", "odd")]
    return [
        f"{base.source}; {sets['train'].source}, of which {', '.join(counts)} texts (odd: {sets['odd'].source}), the "
        f"same for every seed and method. LoRA of rank {size.rank} (lora_alpha {size.lora_alpha}) on every matched "
        f"linear layer and a linear head; AdamW {size.learning_rate:g} falling linearly to 0, no weight decay, "
        f"the gradient of the mean clipped to {size.max_grad_norm:g}, {size.steps} steps of {size.batch_size} texts of "
        f"at most {size.max_len} tokens, the transformer's own dropout off. Predictions average the probabilities of "
        f"{size.draws} draws; rows named mean are the posterior mean alone.",
        f"LRVD: z ~ N(1, α) a rank and sequence, KL counted once a rank, T = {size.temperature:g}, 20 % warm-up, log α "
        f"from -4 with a learning rate whose sum over the run is {size.travel:g}. Shared σ: log σ² from -8. BLoB: "
        "flipout on A, prior sd 0.2, KL weighted 0.02. SoRA: gates from 1, a shrinkage of 1.5 over the run. AdaLoRA: "
        "to a quarter of the ranks. Nested dropout: p = 0.2; truncated as LoRA is, by size. Sparse subspace: BLoB on a "
        "tenth of the weights of A, which moves 20 times. LoRA dropout: 0.1, on in prediction. Laplace: linearised, "
        "its prior precision chosen on validation texts, 100 draws of logits; temperatures, early stopping and the "
        "size of the training-free noise are chosen on the same texts. PVeRA: shared factors of rank 256, vectors at "
        "0.01. MonteCLoRA: peft's, four samples, scaled by 0.005. LoRA truncated: as many ranks as LRVD keeps at "
        "threshold 1. Pruned to a tenth: the ranks of least log α that make a tenth of all, or those that threshold 1 "
        "leaves.",
        "T: the temperature of the averaged probabilities' logarithms, fitted to the validation texts; nll_T and ece_T "
        "with it. less_lora and less_lrvd: nll_T less that of LoRA, and of LRVD's posterior mean, each with its own "
        "temperature, means over seeds, with the standard error over test texts of the paired difference.",
        "Texts of a batch are about equally long."
        + " The frozen layers multiply in bfloat16." * takes_halves(size, runs.device),
        "rank: ranks in use over all modules. odd_by_entropy and odd_by_mi: AUROC of predictive entropy and mutual "
        "information for texts of another corpus; mi and mi_odd: mean mutual information in nats; aurc: the error rate "
        "averaged over coverages, where texts of most entropy, or mutual information, are left out first. step_ms: "
        "median processor time of a training step on this machine, which other work may disturb.",
    ]
