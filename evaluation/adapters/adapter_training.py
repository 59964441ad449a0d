"""Trains one adapter on tokenised text, by a plain loop, and predicts with it: the same for every method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from evaluation.adapters.adapter_methods import ADAPTER_METHODS, AdapterBudget, PlainLora
from evaluation.scores.calibration_metrics import negative_log_likelihood
from inference.random_state import seeded
from pp_models.adapters.half_frozen import half_frozen
from pp_models.adapters.text_networks import TextNetwork, TokenSet, letter_ids

#: texts of a prediction batch
PREDICTED_AT_ONCE = 64
#: batches within which texts are sorted by length
SORTED_BATCHES = 20


class AdaptedReader(nn.Module):
    """An adapted transformer and what is read off it.

    An encoder's hidden states are averaged over tokens and read by a linear head ``[n, C]``; of a decoder either the
    logits of the answer letters behind the last token are taken ``[n, C]``, or all tokens' ``[n, L, V]``.

    Args:
        network: the adapted transformer.
        base: what it was made from.
        num_classes: C.
    """

    letters: Tensor

    def __init__(self, network: nn.Module, base: TextNetwork, num_classes: int) -> None:
        super().__init__()
        self.network, self.kind = network, base.kind
        self.head: nn.Module = nn.Identity()
        if base.kind == "encoder":
            width = base.network.config.hidden_size  # type: ignore[union-attr]
            self.head = nn.Linear(int(width), num_classes)  # type: ignore[arg-type]
        letters = letter_ids(base.tokenizer, num_classes) if base.kind == "letters" else torch.empty(0)
        self.register_buffer("letters", letters, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.letters.device

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        found = self.network(**inputs)
        mask = inputs["attention_mask"]
        if self.kind == "encoder":
            return self.head(mean_pool(found.last_hidden_state, mask))
        if self.kind == "letters":
            return found.logits[torch.arange(len(mask)), mask.sum(-1) - 1][:, self.letters].float()
        return found.logits.float()


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of ``[n, L, D]`` over the tokens that exist, ``[n, D]``."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def mean_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of classes ``[n, C]``, or of next tokens ``[n, L, V]`` (labels shifted once; -100 left out)."""
    if logits.dim() == 3:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(logits, labels, ignore_index=-100)


@dataclass
class TrainedAdapter:
    """An adapter after training.

    Args:
        reader: in evaluation mode; its own forward is the point estimate (the posterior mean).
        method: what trained it.
        losses: mean NLL of each step's batch.
        step_ms: median processor time of a step, in milliseconds.
        scales: pairs of step and log α by module, for methods that have one.
        best_state: trained parameters where the NLL on validation texts was lowest; None without such texts.
        best_step: that step.
    """

    reader: AdaptedReader
    method: PlainLora
    losses: list[float]
    step_ms: float
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
    name: str, base: TextNetwork, num_classes: int, num_data: int, budget: AdapterBudget, seed: int
) -> tuple[AdaptedReader, PlainLora]:
    """A fresh adapter of a method, and its head. The transformer is changed in place.

    Raises:
        ValueError: unknown method.
    """
    if name not in ADAPTER_METHODS:
        raise ValueError(f"method: got {name!r}; it must be one of {', '.join(ADAPTER_METHODS)}")
    method = ADAPTER_METHODS[name](budget, num_data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = AdaptedReader(method.adapt(base), base, num_classes)
    if budget.half_frozen:
        half_frozen(reader.network)
    return reader, method


def grouped_by_length(lengths: Tensor, batch_size: int) -> Tensor:
    """A random order of texts of lengths ``[n]`` in which a batch has texts of about one length: little is padding.

    The order is random, then sorted within stretches of twenty batches, whose batches are shuffled. Where ``n`` is no
    multiple of the batch size, the last texts are of no complete batch.
    """
    batches: list[Tensor] = []
    for stretch in torch.randperm(len(lengths)).split(SORTED_BATCHES * batch_size):
        whole = stretch[lengths[stretch].argsort(stable=True)].split(batch_size)
        batches += [whole[i] for i in torch.randperm(len(whole)).tolist()]
    batches.sort(key=len, reverse=True)  # stable: only an incomplete one moves
    return torch.cat(batches)


class AdapterTraining:
    """A method's adapter in training: every step takes the next texts of a random order, about equally long.

    The order and the noise come from the global random state.

    Args:
        name: of ``ADAPTER_METHODS``.
        base: a transformer of its own, which is changed in place.
        train: N texts; for language modelling N counts their tokens.
        num_classes: C (ignored for language modelling).
        budget: steps, ranks and rates.
        seed: of the start.
        device: where to train.

    Raises:
        ValueError: unknown method.
    """

    def __init__(
        self,
        name: str,
        base: TextNetwork,
        train: TokenSet,
        num_classes: int,
        budget: AdapterBudget,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        scored = len(train) if train.labels.dim() == 1 else int((train.labels[:, 1:] != -100).sum())
        self.reader, self.method = build_reader(name, base, num_classes, scored, budget, seed)
        self.reader.to(device)
        self.train, self.budget = train, budget
        scales = self.method.scale_parameters()
        special = {id(p) for p in scales}
        self.others = [p for p in self.reader.parameters() if p.requires_grad and id(p) not in special]
        self.trained = [*self.others, *scales]
        groups = [{"params": self.others, "lr": budget.learning_rate}]
        if scales:
            groups.append({"params": scales, "lr": self.method.scale_rate()})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda done: 1 - done / budget.steps)
        self.lengths = train.inputs["attention_mask"].sum(-1)
        self.order = grouped_by_length(self.lengths, budget.batch_size)
        self.steps = 0

    def step(self) -> Tensor:
        """One step; the mean NLL of its texts, on the device, NaN where it or a gradient is not finite."""
        if len(self.order) < self.budget.batch_size:
            again = grouped_by_length(self.lengths, self.budget.batch_size)
            self.order = torch.cat([self.order, again]) if len(self.train) < self.budget.batch_size else again
        rows, self.order = self.order[: self.budget.batch_size], self.order[self.budget.batch_size :]
        batch = self.train.take(rows).to(self.reader.device)
        self.reader.train()
        loss = mean_nll(self.reader(batch.inputs), batch.labels)
        self.optimizer.zero_grad()
        (loss + self.method.penalty(self.steps)).backward()
        norms = torch.stack(torch._foreach_norm([p.grad for p in self.trained if p.grad is not None]))
        nn.utils.clip_grad_norm_(self.others, self.budget.max_grad_norm)
        self.optimizer.step()
        self.method.after_step(self.steps, 1 - self.steps / self.budget.steps)
        self.schedule.step()
        self.steps += 1
        # a loss may be finite where its gradient is not: some kernels of attention swallow a NaN
        return torch.where(torch.isfinite(norms).all(), loss.detach(), torch.nan)


def train_adapter(
    name: str,
    base: TextNetwork,
    train: TokenSet,
    num_classes: int,
    budget: AdapterBudget,
    seed: int = 0,
    validation: TokenSet | None = None,
    on_step: Callable[[int], None] | None = None,
    device: str | torch.device = "cpu",
) -> TrainedAdapter:
    """Trains a method on labelled texts; the global random state is left alone.

    Args:
        name, base, train, num_classes, budget: see :class:`AdapterTraining`.
        seed: of the start, the order of texts and the noise.
        validation: texts to choose an early stop by; looked at eight times, at the posterior mean.
        on_step: called after each step.
        device: where to train; the adapter stays there.

    Raises:
        ValueError: unknown method, or a loss or gradient that is not finite.
    """
    times: list[float] = []
    losses: list[Tensor] = []  # on the device; read where the run is looked at anyway
    best = float("inf")
    with seeded(seed, torch.device(device)):
        training = AdapterTraining(name, base, train, num_classes, budget, seed, device)
        reader, method = training.reader, training.method
        result = TrainedAdapter(reader, method, [], 0.0)
        for step in range(1, budget.steps + 1):
            begun = time.process_time()
            losses.append(training.step())
            times.append(time.process_time() - begun)
            looked_at = step == 1 or step % max(1, budget.steps // 20) == 0
            if looked_at or step == budget.steps:
                result.losses += _finite(losses, step, name)
                losses.clear()
            if looked_at:
                found = method.log_alpha()
                if found:
                    result.scales.append((step, {path: value.cpu().clone() for path, value in found.items()}))
            if validation is not None and step % max(1, budget.steps // 8) == 0:
                probs = predict_classes(reader, validation)[0]
                nll = negative_log_likelihood(probs, validation.labels)
                if nll < best:
                    best, result.best_step, result.best_state = nll, step, trained_state(reader)
            if on_step is not None:
                on_step(step)
    reader.eval()
    result.step_ms = 1e3 * median(times)
    return result


def _finite(losses: list[Tensor], last: int, name: str) -> list[float]:
    """The losses of the steps up to the last, on the host.

    Raises:
        ValueError: one of them, or its gradient, is not finite.
    """
    values = torch.stack(losses).tolist()
    for step, value in enumerate(values, last - len(values) + 1):
        if not math.isfinite(value):
            raise ValueError(
                f"loss: it or its gradient is not finite at step {step} of {name}; take a lower learning rate"
            )
    return values


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
