"""The predictive of whole sequences: what a causal language model with a Bayesian adapter gives texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference.adapters.bayesian_adapters import sampling
from pp_models.arguments import SEED, checked, instance, integer

#: a label that is not predicted, as transformers has it
IGNORED = -100


@dataclass(frozen=True)
class SequencePrediction:
    """How likely sequences are, draw by draw.

    Args:
        log_prob: ``[S, n]``, nats of each whole sequence under each draw.
        num_tokens: ``[n]``, how many of its tokens were predicted.
    """

    log_prob: Tensor
    num_tokens: Tensor

    @property
    def log_predictive(self) -> Tensor:
        """log of the mean over draws of a sequence's probability, ``[n]`` in nats: a draw makes all its tokens."""
        return self.log_prob.logsumexp(0) - math.log(len(self.log_prob))

    @property
    def perplexity(self) -> float:
        """exp of the negative log predictive a token, over all sequences."""
        return math.exp(-float(self.log_predictive.sum()) / int(self.num_tokens.sum()))

    @property
    def spread(self) -> Tensor:
        """Standard deviation over draws of a sequence's log-probability a token, ``[n]``: what the adapter doubts."""
        return (self.log_prob / self.num_tokens.clamp_min(1)).std(0, correction=0)


def _log_prob(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Nats ``[n]`` of a batch's sequences, and how many tokens count."""
    device = next(model.parameters()).device
    inputs = {name: v.to(device) for name, v in batch.items() if name != "labels"}
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    labels = batch["labels"].to(device) if "labels" in batch else ids
    if labels.shape != ids.shape:
        raise ValueError(
            f"loader: got labels of shape {list(labels.shape)}; they must be tokens, as input_ids {list(ids.shape)} are"
        )
    counted = labels[:, 1:] != IGNORED
    if mask is not None:
        if bool((mask[:, 1:] > mask[:, :-1]).any()):  # positions would be counted from the padding
            raise ValueError("loader: got an attention_mask that grows along a sequence; pad sequences on the right")
        counted = counted & (mask[:, 1:] != 0)
    found = model(**inputs)
    logits = getattr(found, "logits", found)
    if logits.dim() != 3 or logits.shape[:2] != ids.shape:
        raise ValueError(
            f"model: it gives outputs of shape {list(logits.shape)}; they must be [n, L, V], a causal language model's"
        )
    low, high = int(labels[:, 1:][counted].min()) if counted.any() else 0, logits.shape[-1]
    if low < 0 or (counted.any() and int(labels[:, 1:][counted].max()) >= high):
        raise ValueError(f"loader: got labels outside of the {high} tokens; those not to be predicted are {IGNORED}")
    wanted = torch.where(counted, labels[:, 1:], 0).unsqueeze(-1)
    values = logits[:, :-1].float().log_softmax(-1).gather(-1, wanted).squeeze(-1)
    return torch.where(counted, values, 0.0).double().sum(-1).cpu(), counted.sum(-1).cpu()


@torch.no_grad()
@checked(model=instance(nn.Module), draws=integer(0), seed=SEED)
def predict_sequences(
    model: nn.Module, loader: Iterable[Mapping[str, Any]], draws: int = 0, *, seed: int | None = 0
) -> SequencePrediction:
    """Scores every sequence of a loader by the posterior mean or by draws.

    Under LRVD and Laplace a draw is one function for all sequences and tokens; BLoB, PVeRA, MonteCLoRA and dropout draw
    anew at each call (or example), as their authors' layers do.

    Args:
        model: a causal language model with adapters of any kind :func:`sampling` knows; put into evaluation mode for
            the time of the call.
        loader: batches: mappings with ``input_ids`` ``[n, L]``, and where there are, ``attention_mask`` and
            ``labels`` ``[n, L]`` at their own tokens, -100 where nothing is predicted, such as a prompt. Padding is
            on the right, and the first token is never predicted.
        draws: S; 0 for the posterior mean.
        seed: of the draws.

    Returns:
        log-probabilities ``[S, n]``, and their predictive.

    Raises:
        ValueError: no batch, one without ``input_ids``, outputs or labels of another shape, or draws of a model in
            which nothing is random.

    Example:
        >>> found = gb.adapters.predict_sequences(model, loader, draws=10)  # doctest: +SKIP
        >>> found.perplexity, found.spread  # doctest: +SKIP
    """
    batches = [loader] if isinstance(loader, Mapping) else list(loader)
    if not batches:
        raise ValueError("loader: got no batch; it must give at least one")
    for batch in batches:
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            raise ValueError(f"loader: got a {type(batch).__name__}; a batch must be a mapping with input_ids")
    training = model.training
    model.eval()
    try:
        if draws == 0:
            passes = [[_log_prob(model, batch) for batch in batches]]
        else:
            with sampling(model, draws, seed) as turns:
                passes = [[_log_prob(model, batch) for batch in batches] for _ in turns]
    finally:
        model.train(training)
    nats = torch.stack([torch.cat([log_prob for log_prob, _ in each]) for each in passes])
    return SequencePrediction(nats, torch.cat([number for _, number in passes[0]]))
