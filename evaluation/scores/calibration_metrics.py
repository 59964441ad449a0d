"""How good class probabilities are, and how sure: accuracy, Matthews, NLL, ECE, Brier, entropies, temperature scaling.

A prediction is ``[S, n, C]``: the class probabilities of n items under S draws (S = 1 for a point estimate). Scores
read the mean of probabilities over draws, never the softmax of mean logits. Items of label -100 are left out; other
labels that name no class, and rows that are no probabilities (NaN among them), are refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from evaluation.scores.scored_data import check_classes, check_probabilities
from inference.adapters.temperature import best_temperature
from pp_models.arguments import POINTS, POSITIVE, checked


def average_draws(draws: Tensor) -> Tensor:
    """The predictive probabilities ``[n, C]`` of draws ``[S, n, C]``.

    Raises:
        ValueError: another number of dimensions.
    """
    if draws.dim() != 3 or not len(draws):
        raise ValueError(f"draws: got shape {list(draws.shape)}; it must be [S, n, C] with S at least 1")
    return draws.double().mean(0)


@checked()
def accuracy(probs: Tensor, labels: Tensor) -> float:
    """The share of items whose most probable class is right."""
    probs, labels = check_probabilities(probs, labels)
    return float((probs.argmax(-1) == labels).double().mean())


@checked()
def matthews_correlation(probs: Tensor, labels: Tensor) -> float:
    """Correlation of predicted and true class (Gorodkin's for more than two), 0 where one of them is constant."""
    probs, labels = check_probabilities(probs, labels)
    classes = probs.shape[-1]
    table = torch.zeros(classes, classes, dtype=torch.float64)
    table.index_put_((labels.cpu(), probs.argmax(-1).cpu()), torch.tensor(1.0, dtype=torch.float64), accumulate=True)
    true, predicted, total = table.sum(1), table.sum(0), table.sum()
    spread = (total**2 - true @ true) * (total**2 - predicted @ predicted)
    return float((table.trace() * total - true @ predicted) / spread.sqrt()) if spread > 0 else 0.0


@checked()
def negative_log_likelihood(probs: Tensor, labels: Tensor) -> float:
    """The mean of -ln p(right class), nats an item; probabilities below the smallest normal double count as that."""
    probs, labels = check_probabilities(probs, labels)
    right = probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return float(-right.clamp_min(torch.finfo(torch.float64).tiny).log().mean())


@checked(bins=POINTS)
def expected_calibration_error(probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """ECE: the mean over items of |accuracy - confidence| of the item's bin, bins (lower, upper] of equal width.

    Raises:
        ValueError: fewer than one bin, or shapes that do not match.
    """
    probs, labels = check_probabilities(probs, labels)
    confidence, predicted = probs.max(-1)
    right = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=probs.device).index_add_(0, place, right - confidence)
    return float(gap.abs().sum() / len(labels))


@checked()
def brier_score(probs: Tensor, labels: Tensor) -> float:
    """The mean squared distance of the probabilities from the right class's indicator, between 0 and 2."""
    probs, labels = check_probabilities(probs, labels)
    return float((probs - torch.nn.functional.one_hot(labels, probs.shape[-1])).square().sum(-1).mean())


@checked()
def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats over the last dimension."""
    return -torch.special.xlogy(probs.double(), probs.double()).sum(-1)


@checked()
def mutual_information(draws: Tensor) -> Tensor:
    """What an item's class would tell of the parameters, ``[n]`` in nats: H[mean p] - mean H[p] over draws (BALD)."""
    return (entropy(average_draws(draws)) - entropy(draws).mean(0)).clamp_min(0.0)


@dataclass(frozen=True)
class ClassScores:
    """Scores of a prediction; ``nll`` in nats an item, ``ece`` with 15 bins, ``brier`` between 0 and 2."""

    acc: float
    matthews: float
    nll: float
    ece: float
    brier: float

    def as_dict(self) -> dict[str, float]:
        """The five numbers by name."""
        return asdict(self)


@checked()
def score_classes(draws: Tensor, labels: Tensor) -> ClassScores:
    """All scores of ``[S, n, C]`` probabilities at labels ``[n]``."""
    probs = average_draws(draws)
    return ClassScores(
        accuracy(probs, labels),
        matthews_correlation(probs, labels),
        negative_log_likelihood(probs, labels),
        expected_calibration_error(probs, labels),
        brier_score(probs, labels),
    )


@checked(low=POSITIVE, high=POSITIVE)
def fit_temperature(logits: Tensor, labels: Tensor, low: float = 0.05, high: float = 100.0) -> float:
    """The temperature that logits ``[n, C]`` are best divided by, on items held out of the training (Guo et al. 2017).

    Raises:
        ValueError: shapes that do not match, or no items.
    """
    logits, labels = check_classes(logits, labels, "logits")
    return best_temperature(logits, labels, low, high)
