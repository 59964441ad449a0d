"""Trains one adapter on tokenised text by `inference.fit`, and predicts with it: the same for every method."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.adapters.adapter_method import AdapterBudget, PlainLora
from evaluation.adapters.adapter_methods import ADAPTER_METHODS
from evaluation.adapters.adapter_reader import AdaptedReader, packed
from evaluation.scores.calibration_metrics import negative_log_likelihood
from inference import fit
from pp_models import Dataset
from pp_models.adapters.half_frozen import half_cost, half_frozen
from pp_models.adapters.text_networks import TextNetwork, TokenSet

#: texts of a prediction batch
PREDICTED_AT_ONCE = 64
#: batches within which texts are sorted by length
SORTED_BATCHES = 20
#: times that a training is looked at
LOOKS = 20


@dataclass
class TrainedAdapter:
    """An adapter after training.

    Args:
        reader: in evaluation mode; its own forward is the point estimate (the posterior mean).
        method: what trained it.
        history: what the fit logged.
        step_ms: median processor time of a step, in milliseconds.
        scales: pairs of step and log α by module, for methods that have one.
        best_state: trained parameters where the NLL on validation texts was lowest; None without such texts.
        best_step: that step.
    """

    reader: AdaptedReader
    method: PlainLora
    history: list[dict[str, float]] = field(default_factory=list)
    step_ms: float = 0.0
    scales: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)
    best_state: dict[str, Tensor] | None = None
    best_step: int = 0


def trained_state(reader: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters that are trained, by name, on the host."""
    return {name: p.detach().cpu().clone() for name, p in reader.named_parameters() if p.requires_grad}


def load_trained_state(reader: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts parameters back.

    Raises:
        ValueError: the state is of another adapter.
    """
    known = {name: p for name, p in reader.named_parameters() if p.requires_grad}
    if known.keys() != state.keys() or any(known[name].shape != value.shape for name, value in state.items()):
        raise ValueError("state: it is of another adapter; names or shapes differ")
    with torch.no_grad():
        for name, value in state.items():
            known[name].copy_(value)


def build_reader(
    name: str,
    base: TextNetwork,
    num_classes: int,
    num_data: int,
    budget: AdapterBudget,
    seed: int,
    device: str | torch.device = "cpu",
) -> tuple[AdaptedReader, PlainLora]:
    """A fresh adapter of a method, and its head, on a device. The transformer is changed in place.

    Raises:
        ValueError: unknown method.
    """
    if name not in ADAPTER_METHODS:
        raise ValueError(f"method: got {name!r}; it must be one of {', '.join(ADAPTER_METHODS)}")
    method = ADAPTER_METHODS[name](budget, num_data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = AdaptedReader(method.adapt(base), base, num_classes)
    if takes_halves(budget, device):
        half_frozen(reader.network)
    return reader.to(device), method


def takes_halves(budget: AdapterBudget, device: str | torch.device) -> bool:
    """Whether the frozen layers multiply in bfloat16: where the budget says so, and the device is faster with it."""
    return budget.half_frozen and half_cost(device=str(device)) < 1


def grouped_by_length(lengths: Tensor, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
    """A random order of texts of lengths ``[n]`` in which a batch has texts of about one length: little is padding.

    The order is random, then sorted within stretches of twenty batches, whose batches are shuffled. Where ``n`` is no
    multiple of the batch size, the last texts are of no complete batch.
    """
    batches: list[Tensor] = []
    for stretch in torch.randperm(len(lengths), generator=generator).split(SORTED_BATCHES * batch_size):
        whole = stretch[lengths[stretch].argsort(stable=True)].split(batch_size)
        batches += [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
    batches.sort(key=len, reverse=True)  # stable: only an incomplete one moves
    return torch.cat(batches)


class TextBatches:
    """Batches of texts without end: each has the next texts of a random order, about equally long.

    Args:
        texts: all of them.
        batch_size: texts of a batch.
        seed: of the order.
        device: where batches go.
    """

    def __init__(self, texts: TokenSet, batch_size: int, seed: int, device: str | torch.device = "cpu") -> None:
        self.texts, self.batch_size, self.device = texts, batch_size, device
        self.generator = torch.Generator().manual_seed(seed)
        #: processor time at which each batch was asked for
        self.times: list[float] = []

    def __iter__(self) -> Iterator[Dataset]:
        lengths = self.texts.inputs["attention_mask"].sum(-1)
        order = torch.zeros(0, dtype=torch.long)
        while True:
            while len(order) < self.batch_size:
                again = grouped_by_length(lengths, self.batch_size, self.generator)
                order = torch.cat([order, again]) if len(lengths) < self.batch_size else again
            rows, order = order[: self.batch_size], order[self.batch_size :]
            self.times.append(time.process_time())
            yield packed(self.texts.take(rows)).to(self.device)

    def step_ms(self) -> float:
        """Median processor time from one batch to the next, in milliseconds; NaN of a single batch."""
        steps = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        return 1e3 * median(steps) if steps else float("nan")


def make_optimizer(
    parameters: Sequence[nn.Parameter], method: PlainLora, learning_rate: float
) -> torch.optim.Optimizer:
    """AdamW without decay, a method's noise levels at a rate of their own."""
    scales = method.scale_parameters()
    special = {id(p) for p in scales}
    groups: list[dict[str, Any]] = [{"params": [p for p in parameters if id(p) not in special], "lr": learning_rate}]
    if scales:
        groups.append({"params": scales, "lr": method.scale_rate()})
    return torch.optim.AdamW(groups, weight_decay=0.0, fused=True)


def train_adapter(
    name: str,
    base: TextNetwork,
    train: TokenSet,
    num_classes: int,
    budget: AdapterBudget,
    seed: int = 0,
    validation: TokenSet | None = None,
    device: str | torch.device = "cpu",
) -> TrainedAdapter:
    """Fits a method to labelled texts; the global random state is left alone.

    Args:
        name: of ``ADAPTER_METHODS``.
        base: a transformer of its own, which is changed in place.
        train: N texts; for language modelling N counts their tokens.
        num_classes: C (ignored for language modelling).
        budget: steps, ranks and rates.
        seed: of the start, the order of texts and the noise.
        validation: texts to choose an early stop by; looked at twenty times, at the posterior mean.
        device: where to train; the adapter stays there.

    Raises:
        ValueError: unknown method.
        TrainingDiverged: losses or gradients that are not finite.
    """
    per_text = 1 if train.labels.dim() == 1 else train.labels.shape[-1] - 1
    reader, method = build_reader(name, base, num_classes, per_text * len(train), budget, seed, device)
    result = TrainedAdapter(reader, method)
    model, guide, objective, texts = method.programs(reader, tuple(train.inputs), len(train))
    batches = TextBatches(train, budget.batch_size, seed, device)
    best = float("inf")

    def look(step: int) -> None:
        nonlocal best
        method.look()
        if found := method.log_alpha():
            result.scales.append((step, {path: value.cpu().clone() for path, value in found.items()}))
        if validation is None or not step:
            return
        nll = negative_log_likelihood(predict_classes(reader, validation)[0], validation.labels)
        model.train()
        if nll < best:
            best, result.best_step, result.best_state = nll, step, trained_state(reader)

    look_every = max(1, budget.steps // LOOKS)

    def logged(row: dict[str, float]) -> None:
        step = int(row["step"])
        if method.after_step is not None:
            method.after_step(step - 1, 1 - (step - 1) / budget.steps)
        if step % look_every == 0 or step == budget.steps:
            look(step)

    look(0)
    found = fit(
        model,
        guide,
        batches,
        objective,
        budget.steps,
        seed,
        partial(make_optimizer, method=method, learning_rate=budget.learning_rate),
        str(device),
        compile=False,
        progress=False,
        callbacks=[logged],
        schedule="linear",
        max_grad_norm=budget.max_grad_norm * texts * per_text,
        log_every=look_every if method.after_step is None else 1,
    )
    reader.eval()
    result.history, result.step_ms = found.history, batches.step_ms()
    return result


@torch.no_grad()
def predict_classes(
    reader: AdaptedReader, texts: TokenSet, method: PlainLora | None = None, seed: int = 0, draws: int = 1
) -> Tensor:
    """Class probabilities ``[S, n, C]``, on the host: at the posterior mean (S = 1), or of S draws of a given method.

    Args:
        reader: of classes, not of tokens; left in evaluation mode.
        texts: n texts.
        method: whose draws to take.
        seed: of the draws.
        draws: S.
    """
    reader.eval()
    order = texts.inputs["attention_mask"].sum(-1).argsort(stable=True)  # little padding in a batch
    back = order.argsort()

    def one() -> Tensor:
        batches = order.split(PREDICTED_AT_ONCE)
        found = [reader(texts.take(rows).to(reader.device).inputs).softmax(-1) for rows in batches]
        return torch.cat(found).cpu()[back]

    if method is None:
        return one().unsqueeze(0)
    with method.drawing(draws, seed) as turns:
        return torch.stack([one() for _ in turns])
