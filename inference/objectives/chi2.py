"""Forward χ² variational importance sampling, and the χ upper bound CUBO, per task."""

from __future__ import annotations

from typing import Any

import torch

from inference.objectives.fixed_values import score_term
from inference.objectives.importance_weights import ImportanceWeighted, WeightedDraws, renyi_bound, vimco_signal
from inference.objectives.renyi import set_factors
from inference.objectives.task_objective import BoundTerms, log_mean_exp
from pp_models.arguments import checked, number, one_of

BOUNDS = ("forward", "cubo")


class Chi2(ImportanceWeighted):
    """The guide minimises the forward χ² divergence to the posterior; the model maximises log (1/K) Σ_k w_k.

    χ²(p(z | y) ‖ q) + 1 = E_q[w²] / p(y)² is, up to a constant, the variance of the importance-sampled evidence: the
    guide becomes the proposal with the least variance.

    ``bound="forward"`` (variational importance sampling: Li et al. 2024): particles carry no gradient and

        φ:  Σ_k ŵ⁽²⁾_k ∇_φ log q(z_k),  ŵ⁽²⁾ ∝ w²          θ:  Σ_k ŵ_k ∇_θ log p(y, z_k)

    the reported bound is log (1/K) Σ_k w_k, a lower bound on the evidence in expectation.

    ``bound="cubo"`` (Dieng et al. 2017): the guide minimises CUBO_n = (1/n) log (1/K) Σ_k w_k^n, pathwise or, where a
    site cannot be reparameterised, by its score with VIMCO's baselines. CUBO_n is reported, and the loss is CUBO_n: an
    upper bound on the evidence for K → ∞, biased *towards the evidence* at finite K. The model still ascends
    log (1/K) Σ_k w_k, for lowering an upper bound on the evidence would not train it.

    Args:
        num_particles: particles of each task, K.
        bound: ``"forward"`` or ``"cubo"``.
        order: n > 1, the power of the weights in CUBO and, with ``"forward"``, in ŵ⁽ⁿ⁾.
        **options: see :class:`ImportanceWeighted`.

    Raises:
        ValueError: an argument out of range.
    """

    name = "chi2"
    description = "forward χ² importance sampling, or the χ upper bound (CUBO)"
    reference = "Li et al. 2024; Dieng et al. 2017"

    @checked(bound=one_of(*BOUNDS), order=number(1, ends="()"))
    def __init__(self, num_particles: int = 8, *, bound: str = "forward", order: float = 2.0, **options: Any) -> None:
        super().__init__(num_particles, **options)
        self.bound = bound
        self.order = float(order)
        self.fixed_particles = bound == "forward"
        self.weighs_gradients = bound == "cubo"
        self.sign = 1.0 if bound == "forward" else -1.0

    def combine(self, draws: WeightedDraws) -> BoundTerms:
        n = self.order
        log_weights = draws.log_weights.detach()
        normalised, by_power = torch.softmax(log_weights, 0), torch.softmax(n * log_weights, 0)
        if self.bound == "forward":
            evidence = log_mean_exp(draws.log_p - draws.log_q.detach())
            return self.weighted_terms(draws, evidence + score_term(by_power, draws.log_q, draws.axes.shape))
        # the loss is the reported CUBO: the values that the model read get its gradient, ŵ⁽ⁿ⁾, and the model's own
        # parameters minus the evidence's, ŵ; the ratio is finite where both weights vanish
        value = renyi_bound(log_weights, 1 - n)
        ratio = (n - 1) * log_weights - torch.logsumexp(n * log_weights, 0) + torch.logsumexp(log_weights, 0)
        set_factors(draws, -ratio.exp())
        surrogate = -normalised * draws.log_p - by_power * draws.log_q
        signal = vimco_signal(log_weights, 1 - n) if draws.log_q_score else None
        return self.weighted_terms(draws, value + (surrogate - surrogate.detach()).sum(0), signal)
