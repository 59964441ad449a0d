"""The log-variance loss of each task, for guides of discrete latents, through whose draws no gradient goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.exploration import Explored
from inference.objectives.fixed_values import score_term
from inference.objectives.importance_weights import ImportanceWeighted, WeightedDraws
from inference.objectives.task_objective import BoundTerms
from pp_models.arguments import POSITIVE, SHARE, checked


@dataclass
class ExploredDraws(WeightedDraws):
    """Draws with log q - log r of each particle ``[K, *B]``, where r drew them; None where the guide did."""

    log_ratio: Tensor | None = None


class LogVariance(ImportanceWeighted):
    """½ Var_k [log p(y, z_k) - log q(z_k | D)] for the guide of each task, E_q log p(y, z) for the model.

    The variance of log-weights is zero if and only if q is the posterior, whose log-weights are all the log evidence:
    the trajectory-balance loss of GFlowNets with its constant estimated from the batch (VarGrad, Richter et al. 2020;
    GFlowOut, Liu et al. 2023). Its gradient for draws of q itself is that of KL(q ‖ p), as a score-function estimator
    with the other particles' mean as baseline, which ``elbo`` has as ``estimator="score"``; here every site is scored,
    the KL is never taken in closed form, and the loss of the guide stays zero, draw by draw, at the posterior.

    The bound that is reported is the mean of the log-weights, an ELBO.

    The loss is zero at the posterior, and there alone, whatever drew the particles, so that they need not be the
    guide's: ``exploration`` and ``temperature`` draw discrete sites from r(z) = (1 - ε) q_T(z) + ε uniform, site by
    site and entry by entry, q_T with logits over T, as GFlowNets explore. The model's gradient and the reported bound
    are then means under q by the weights q / r, self-normalised; ``terms(...).log_weights`` are those of p / r.

    Args:
        num_particles: draws of each task K, at least two.
        exploration: ε, between 0 (the guide's own draws) and 1.
        temperature: T; above 1 draws are flatter than the guide.
        **options: see :class:`ImportanceWeighted`.

    Raises:
        ValueError: fewer than two particles; when used, exploration of a guide without discrete sites.
    """

    name = "log-variance"
    description = "variance of the log-weights, for discrete latents (VarGrad, GFlowOut)"
    reference = "Richter et al. 2020; Liu et al. 2023"
    fixed_particles = True

    @checked(exploration=SHARE, temperature=POSITIVE)
    def __init__(
        self, num_particles: int = 8, *, exploration: float = 0.0, temperature: float = 1.0, **options: Any
    ) -> None:
        super().__init__(num_particles, **options)
        if num_particles < 2:
            raise ValueError(f"num_particles: got {num_particles}; a variance needs at least 2")
        self.exploration, self.temperature = exploration, temperature
        self._explored: Explored | None = None

    def run_guide(self, guide: Callable, args: tuple, kwargs: dict) -> Trace:
        with self._explored or nullcontext():
            return super().run_guide(guide, args, kwargs)

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> ExploredDraws:
        if not self.exploration and self.temperature == 1:
            return ExploredDraws(**vars(super().draw(model, guide, args, kwargs, particles, diagnostics)))
        explored = self._explored = Explored(self.temperature, self.exploration)
        try:
            draws = super().draw(model, guide, args, kwargs, particles, diagnostics)
        finally:
            self._explored = None
        if not explored.proposals:
            raise ValueError(
                f"exploration, temperature: got {self.exploration}, {self.temperature}, and the guide draws no "
                "Bernoulli or Categorical site to explore; they must be 0 and 1"
            )
        return ExploredDraws(**vars(draws), log_ratio=explored.log_ratio(draws.axes, draws.scale))

    def combine(self, draws: ExploredDraws) -> BoundTerms:
        log_weights = draws.log_p - draws.log_q.detach()
        if draws.log_ratio is None:
            bound = log_weights.mean(0)  # its gradient is the model's alone
        else:
            share = torch.softmax(draws.log_ratio, 0)
            bound = (share * log_weights).sum(0)
        fixed = log_weights.detach()
        signal = (fixed - fixed.mean(0)) / (fixed.shape[0] - 1)
        bound = bound + score_term(signal, draws.log_q, draws.axes.shape)
        if draws.log_ratio is None:
            return self.weighted_terms(draws, bound)
        each = share * len(share)  # so that means over draws are those under the guide
        terms = self.weighted_terms(
            replace(
                draws,
                log_likelihood=draws.log_likelihood * each,
                kl_by_site={name: value * each for name, value in draws.kl_by_site.items()},
            ),
            bound,
        )
        return replace(terms, log_weights=fixed + draws.log_ratio)
