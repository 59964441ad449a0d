"""What a Dirichlet over mixture weights says of its own doubt, and how well that tells odd tasks from ordinary ones.

A concentration α ``[*B, L]`` is ambiguous in two ways: its mean may be spread over experts (each point may come from
any), or its mean may itself be unsure (few points were seen). The scores here keep the two apart, all in nats and in
closed form: docs/papers/nmdp.md, eq. 18 to 21.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from inference import predict
from inference.active_context import entropy_of_mean
from inference.data_dtype import as_computed
from pp_models import Dataset
from pp_models.arguments import checked, tensor


def differential_entropy(alpha: Tensor) -> Tensor:
    """Entropy of Dir(α), ``[*B]``: ln B(α) + (α₀ - L) ψ(α₀) - Σ (α_l - 1) ψ(α_l).

    Very negative for a sure and for a sparse α alike, so a poor sign of ambiguity.
    """
    total = alpha.sum(-1)
    log_beta = torch.lgamma(alpha).sum(-1) - torch.lgamma(total)
    inner = ((alpha - 1) * torch.digamma(alpha)).sum(-1)
    return log_beta + (total - alpha.shape[-1]) * torch.digamma(total) - inner


def expected_entropy(alpha: Tensor) -> Tensor:
    """E H[z], ``[*B]``: ψ(α₀ + 1) - Σ ᾱ_l ψ(α_l + 1), what remains when the weights are known."""
    total = alpha.sum(-1, keepdim=True)
    return torch.digamma(total + 1).squeeze(-1) - (alpha / total * torch.digamma(alpha + 1)).sum(-1)


def mutual_information(alpha: Tensor) -> Tensor:
    """H[E z] - E H[z], ``[*B]``: what one point's expert would tell of the weights (epistemic)."""
    return (entropy_of_mean(alpha) - expected_entropy(alpha)).clamp_min(0.0)


@dataclass(frozen=True)
class MixtureUncertainty:
    """Scores of a concentration, one a task ``[*B]``; ``total_concentration`` is α₀, the others are in nats."""

    differential_entropy: Tensor
    entropy_of_mean: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    total_concentration: Tensor

    def as_dict(self) -> dict[str, Tensor]:
        """The five tensors by name."""
        return asdict(self)


@checked(alpha=tensor(least=1))
def mixture_uncertainty(alpha: Tensor) -> MixtureUncertainty:
    """All scores of a concentration.

    Args:
        alpha: ``[*B, L]``, positive.

    Raises:
        ValueError: an entry is not positive.
    """
    if not bool((alpha > 0).all()):
        raise ValueError(f"alpha: got {float(alpha.min()):g} as its least entry; a concentration must be positive")
    alpha = alpha.double()
    return MixtureUncertainty(
        differential_entropy(alpha),
        entropy_of_mean(alpha),
        expected_entropy(alpha),
        mutual_information(alpha),
        alpha.sum(-1),
    )


def concentration_of(guide: Any, data: Dataset) -> Tensor:
    """α(D) ``[*B, L]`` of a guide with Dirichlet weights, a refined one included.

    Raises:
        ValueError: its weights follow another distribution.
    """
    with torch.no_grad():
        found = poutine.trace(guide).get_trace(as_computed(data, guide)).nodes["mixture_weights"]["fn"]
    if not isinstance(found, torch.distributions.Dirichlet):
        raise ValueError(f"guide: its weights are {type(found).__name__}; these scores need a Dirichlet")
    return found.concentration.expand(*data.batch_shape, -1)


@checked()
def context_typicality(model: Any, guide: Any, data: Dataset, *, held_out: bool = False) -> Tensor:
    """How likely a context finds itself, ln p(y_i | x_i, D) averaged over its points and outputs, ``[*B]`` in nats.

    Args:
        model: the model.
        guide: its guide.
        data: contexts ``[*B, N]``; may be masked.
        held_out: score every second point given the others alone, which a model that copies its context cannot
            satisfy by copying.

    Raises:
        ValueError: the points are not observed, or too few to hold half of them out.
    """
    if data.y is None:
        raise ValueError("data: y is None; a context must be observed to be typical or not")
    if data.num_points < 1 + held_out:
        raise ValueError(f"data: got {data.num_points} point(s); at least {1 + held_out} are needed")
    seen = data.points(slice(1, None, 2)) if held_out else data
    scored = data.points(slice(0, None, 2)) if held_out else data
    assert scored.y is not None
    log_prob = predict(model, guide, seen, scored, 1, weights="mean").log_prob(scored.y, scored.known_mask())
    return log_prob.sum(-1) / scored.output_mask().flatten(len(data.batch_shape)).sum(-1).clamp_min(1)


@checked()
def auroc(inside: Tensor, outside: Tensor) -> float:
    """The chance that an odd task scores above an ordinary one (ties count half).

    Args:
        inside: scores of ordinary tasks, any shape.
        outside: scores of odd tasks.

    Raises:
        ValueError: either is empty or not finite.
    """
    from sklearn.metrics import roc_auc_score

    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.numel() == 0 or not bool(torch.isfinite(scores).all()):
            raise ValueError(f"{name}: got {scores.numel()} scores; there must be some, all finite")
    both = torch.cat([inside.flatten(), outside.flatten()]).double().cpu().numpy()
    labels = [0] * inside.numel() + [1] * outside.numel()
    return float(roc_auc_score(labels, both))
