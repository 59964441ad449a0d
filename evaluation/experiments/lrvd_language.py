"""LRVD on a GPT-2-class language model: perplexity, calibration a token, and where the ranks stay."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import pandas as pd
import torch

from evaluation import plots
from evaluation.adapters.adapter_method import AdapterBudget, PlainLora
from evaluation.adapters.adapter_reader import AdaptedReader
from evaluation.adapters.adapter_training import train_adapter
from evaluation.adapters.rank_analysis import kept_ranks, rank_table
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.lrvd_text import TITLES
from pp_models.adapters.text_networks import TextNetwork, TokenSet, load_network, tiny_network, token_blocks
from pp_models.tasks import hub_text
from pp_models.tasks.text_tasks import template_sentences

METHODS = ("lora", "lora-dropout", "lrvd")
#: texts of a prediction batch: probabilities of a whole vocabulary are large
AT_ONCE = 4


class Size(NamedTuple):
    """Paragraphs to train and to test on (0 for all), tokens a block, and the budget."""

    train: int
    test: int
    block: int
    budget: AdapterBudget


SCALES = {
    "smoke": Size(60, 20, 16, AdapterBudget(steps=6, batch_size=4, draws=2, travel=5.2)),
    "small": Size(2_000, 200, 128, AdapterBudget(steps=300, batch_size=4, draws=5, learning_rate=2e-4)),
    "paper": Size(0, 0, 256, AdapterBudget(2_000, 64, 32, 32, learning_rate=2e-4, draws=5)),
}


class TokenScores(NamedTuple):
    """NLL in nats a token, and ECE (15 bins) of the most probable next token."""

    nll: float
    ece: float


@torch.no_grad()
def score_tokens(
    reader: AdaptedReader, texts: TokenSet, method: PlainLora | None, draws: int, seed: int
) -> TokenScores:
    """Scores of next tokens under probabilities averaged over draws; labels are shifted once, -100 is left out.

    Args:
        reader: with logits of all tokens.
        texts: blocks of tokens.
        method: whose draws to average; None for the posterior mean.
        draws: S.
        seed: of the draws.
    """
    reader.eval()
    right, confidence, hits = [], [], []
    for number, rows in enumerate(torch.arange(len(texts)).split(AT_ONCE)):
        batch = texts.take(rows).to(reader.device)
        labels = batch.labels[:, 1:].flatten()
        turns: Any = nullcontext(range(1)) if method is None else method.drawing(draws, seed + number)
        total: Any = 0.0
        with turns as each:
            for _ in each:
                total = total + reader(batch.inputs)[:, :-1].flatten(0, 1).softmax(-1)
        probs = (total / (1 if method is None else draws))[labels != -100]
        labels = labels[labels != -100]
        right.append(probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1).double().cpu())
        top, predicted = probs.max(-1)
        confidence.append(top.double().cpu())
        hits.append((predicted == labels).double().cpu())
    tiny = torch.finfo(torch.float64).tiny
    nll = -torch.cat(right).clamp_min(tiny).log().mean()
    gap = torch.cat(hits) - torch.cat(confidence)
    place = (torch.cat(confidence) * 15).ceil().long().clamp(1, 15) - 1
    ece = torch.zeros(15, dtype=torch.float64).index_add_(0, place, gap).abs().sum() / len(gap)
    return TokenScores(float(nll), float(ece))


def prepare(scale_name: str) -> tuple[TextNetwork, TokenSet, TokenSet, str]:
    """Transformer, training and test blocks, and what they are; offline and tiny at smoke scale."""
    size = SCALES[scale_name]
    if scale_name == "smoke":
        train, test = (template_sentences(n, seed).texts for n, seed in ((size.train, 0), (size.test, 1)))
        base, source = tiny_network("gpt2", (*train, *test)), "made-up sentences"
    else:
        train, test = (tuple(hub_text.lines(split)) for split in ("train", "test"))
        base, source = load_network("gpt2"), "WikiText-2"
    blocks = [
        token_blocks(base, lines[: count or None], size.block)
        for lines, count in ((train, size.train), (test, size.test))
    ]
    return base, blocks[0], blocks[1], source


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Adapts by LoRA, LoRA with dropout and LRVD, and scores the test blocks at the mean and with draws."""
    size = SCALES[scale_name]
    rows: list[dict[str, Any]] = []
    tables, by_kind = [], []
    for seed in seeds:
        for name in METHODS:
            workshop.say(f"language model: {name}, seed {seed}, {size.budget.steps} steps")
            base, train, test, source = prepare(scale_name)
            found = train_adapter(name, base, train, 0, size.budget, seed, device=workshop.device)
            total = sum(found.method.ranks().values())
            log_alpha = found.method.log_alpha()
            kept = sum(kept_ranks(log_alpha).values()) if log_alpha else total
            for method in (None, found.method) if found.method.stochastic else (None,):
                score = score_tokens(found.reader, test, method, size.budget.draws, seed)
                title = TITLES[name] if method is not None or not found.method.stochastic else f"{TITLES[name]}, mean"
                row: dict[str, Any] = {"model": title, "seed": seed, "perplexity": math.exp(score.nll)}
                rows.append(row | score._asdict() | {"rank": total, "kept_at_1": kept, "step_ms": found.step_ms})
            if name == "lrvd":
                tables.append(rank_table(found.scales))
                last = tables[-1][tables[-1].step == size.budget.steps]
                by_kind.append(last.groupby("kind").kept.sum())
    table = pd.DataFrame(rows)
    outcome = Outcome("lrvd/gpt2", "", table)
    means = table.groupby("model").mean(numeric_only=True)
    gap = means.loc["LRVD"] - means.loc["LoRA"]
    outcome.checks = [
        Check("LRVD less LoRA: nll, ece", "reported", signed([gap.nll, gap.ece]), None),
        Check("ranks kept at 1 of those offered", "reported", f"{means.loc['LRVD'].kept_at_1:.0f}", None),
    ]
    kinds = pd.concat(by_kind, axis=1).mean(axis=1)
    outcome.tables["Ranks by kind"] = kinds.rename("kept").rename_axis("kind").reset_index()
    outcome.figures["ranks"] = (plots.rank_heatmaps(tables), "Ranks with log α below 1 while training.")
    budget = size.budget
    outcome.notes = [
        f"{base.source}, {source}, {len(train)} training and {len(test)} test blocks of {size.block} tokens; LoRA of "
        f"rank {budget.rank} on the attention's and the MLP's linear layers, {budget.steps} steps of "
        f"{budget.batch_size} blocks. Probabilities are averaged over {budget.draws} draws; ece is that of the next "
        "token. LRVD's KL is counted once a rank and divided by the number of tokens.",
    ]
    return outcome
