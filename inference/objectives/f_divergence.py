"""Guides that minimise an f-divergence to the posterior, by weights of the particles: one class for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from inference.objectives.fixed_values import leave_one_out, score_term
from inference.objectives.importance_weights import ImportanceWeighted, WeightedDraws
from inference.objectives.task_objective import BoundTerms, log_mean_exp
from pp_models.arguments import CALLABLE, FLAG, checked, named

#: by name, w f'(w) - f(w) up to a constant, as a function of log w
WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "forward-kl": lambda log_w: log_w.exp(),  # f = w log w
        "reverse-kl": lambda log_w: log_w,  # f = -log w
        "chi2": lambda log_w: (2 * log_w).exp(),  # f = (w - 1)²
        "hellinger": lambda log_w: (0.5 * log_w).exp(),  # f = (√w - 1)²
        "jensen-shannon": lambda log_w: 0.5 * (torch.nn.functional.softplus(log_w) - math.log(2)),
    }
)


class FDivergence(ImportanceWeighted):
    """The guide minimises D_f(p(z | y) ‖ q) = E_q[f(w)], w = p(z | y) / q(z | D); the model maximises log mean w.

    The gradient of the divergence to the guide is -E_q[(w f'(w) - f(w)) ∇_φ log q], in which a constant may be added to
    the bracket. With particles that carry no gradient, w made to have mean 1 over them, and a(w) the bracket less its
    mean over the other particles,

        φ:  (1/K) Σ_k a(w_k) ∇_φ log q(z_k)          θ:  Σ_k ŵ_k ∇_θ log p(y, z_k)

    so that the gradient is exactly zero where the guide is the posterior. ``"forward-kl"`` without the baseline is
    wake-φ of ``rws``; ``"chi2"`` without it ``chi2``, but for a factor K / ESS; ``"reverse-kl"`` is ``elbo`` with
    ``estimator="score"``; :func:`alpha_divergence` goes from the one KL to the other, as ``renyi`` does.
    Self-normalised weights bias a gradient by O(1/K).

    Args:
        num_particles: particles of each task, K; with one there is no baseline.
        divergence: ``"forward-kl"``, ``"reverse-kl"``, ``"chi2"``, ``"hellinger"``, ``"jensen-shannon"``, or a function
            from log w to w f'(w) - f(w).
        baseline: subtract the mean over the other particles.
        **options: see :class:`ImportanceWeighted`.

    Raises:
        ValueError: an argument out of range.
    """

    name = "f-divergence"
    description = "guide by an f-divergence to the posterior: KL either way, Hellinger, Jensen-Shannon, χ²"
    reference = "Ali and Silvey 1966; Xu et al. 2025"
    fixed_particles = True

    @checked(divergence=named(*WEIGHTS, other=CALLABLE), baseline=FLAG)
    def __init__(
        self,
        num_particles: int = 8,
        *,
        divergence: str | Callable[[Tensor], Tensor] = "hellinger",
        baseline: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(num_particles, **options)
        self.divergence, self.baseline = divergence, baseline

    def combine(self, draws: WeightedDraws) -> BoundTerms:
        log_weights = draws.log_weights.detach()
        relative = log_weights - log_mean_exp(log_weights)
        weights = (WEIGHTS[self.divergence] if isinstance(self.divergence, str) else self.divergence)(relative)
        if self.baseline and len(weights) > 1:
            weights = weights - leave_one_out(weights)
        evidence = log_mean_exp(draws.log_p - draws.log_q.detach())
        guide = score_term(weights / len(weights), draws.log_q, draws.axes.shape)
        return self.weighted_terms(draws, evidence + guide)


def alpha_divergence(alpha: float) -> Callable[[Tensor], Tensor]:
    """Amari's α-divergence for :class:`FDivergence`: forward KL at α = 0, Hellinger at ½, reverse KL at 1.

    Its gradient is that of the Rényi bound with this α, but for the factor α E_q[w^(1 - α)].

    Args:
        alpha: α.
    """
    power = 1.0 - alpha
    return (lambda log_w: (power * log_w).exp() / power) if power else WEIGHTS["reverse-kl"]
