"""The log-variance loss of each task, for guides of discrete latents, through whose draws no gradient goes."""

from __future__ import annotations

from typing import Any

from inference.objectives.fixed_values import score_term
from inference.objectives.importance_weights import ImportanceWeighted, WeightedDraws
from inference.objectives.task_objective import BoundTerms
from pp_models.arguments import checked


class LogVariance(ImportanceWeighted):
    """½ Var_k [log p(y, z_k) - log q(z_k | D)] for the guide of each task, E_q log p(y, z) for the model.

    The variance of log-weights is zero if and only if q is the posterior, whose log-weights are all the log evidence:
    the trajectory-balance loss of GFlowNets with its constant estimated from the batch (VarGrad, Richter et al. 2020;
    GFlowOut, Liu et al. 2023). Its gradient for draws of q itself is that of KL(q ‖ p), as a score-function estimator
    with the other particles' mean as baseline, which ``elbo`` has as ``estimator="score"``; here every site is scored,
    the KL is never taken in closed form, and the loss of the guide stays zero, draw by draw, at the posterior.

    The bound that is reported is the mean of the log-weights, an ELBO.

    Args:
        num_particles: draws of each task K, at least two.
        **options: see :class:`ImportanceWeighted`.

    Raises:
        ValueError: fewer than two particles.
    """

    name = "log-variance"
    description = "variance of the log-weights, for discrete latents (VarGrad, GFlowOut)"
    reference = "Richter et al. 2020; Liu et al. 2023"
    fixed_particles = True

    @checked()
    def __init__(self, num_particles: int = 8, **options: Any) -> None:
        super().__init__(num_particles, **options)
        if num_particles < 2:
            raise ValueError(f"num_particles: got {num_particles}; a variance needs at least 2")

    def combine(self, draws: WeightedDraws) -> BoundTerms:
        log_weights = draws.log_p - draws.log_q.detach()
        bound = log_weights.mean(0)  # its gradient is the model's alone
        fixed = log_weights.detach()
        signal = (fixed - fixed.mean(0)) / (fixed.shape[0] - 1)
        return self.weighted_terms(draws, bound + score_term(signal, draws.log_q, draws.axes.shape))
