"""BNNP's objective: the log posterior predictive of the targets plus the ELBO of the context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from pyro.poutine.trace_struct import Trace

from inference.objectives import fixed_values
from inference.objectives.importance_weights import WeightedDraws
from inference.objectives.kl_objective import Branches, KLDraws, KLObjective
from inference.objectives.log_predictive import log_predictive, predictive_draws
from inference.objectives.task_objective import BoundTerms, context_and_full, scored_points


@dataclass(kw_only=True)
class PredictiveBranches(Branches):
    """The runs on the context, and the model on the targets with the same draws."""

    predicted: Trace


@dataclass
class PredictiveDraws(KLDraws):
    """The terms of the context, and the likelihoods of the targets."""

    predictive: WeightedDraws | None = None


class PPAVI(KLObjective):
    """log (1/S) Σ_s Π_t p(y_t | x_t, W_s) + (1/S) Σ_s log p(y_c | x_c, W_s) - KL(q(W | D_c) ‖ p(W)), W_s ~ q(W | D_c).

    Posterior-predictive amortised variational inference (BNNP; docs/papers/bnnp.md, eq. 17): the same weight samples in
    both brackets, the targets' likelihoods multiplied *inside* the mean (joint, not per point), the guide on the
    context alone. With an exact guide the brackets are log p(y_t | D_c) + log p(y_c) = log p(y): type-II maximum
    likelihood of the whole task. Otherwise it is not a bound on the evidence, and the first bracket is low by O(1/S).
    One released version scored the context as the targets; here the targets are the batch's.

    A Dataset is context and target at once.

    Args:
        num_particles: weight samples of each task, S (16 to 32 in the released configurations).
        beta: weighs the first bracket and the KL, not the context's likelihood, as in the released code.
        **options: see :class:`KLObjective`.
    """

    name = "pp-avi"
    description = "log posterior predictive of the targets plus ELBO of the context"
    reference = "BNNP"
    needs = "data set"
    has_no = MappingProxyType(
        {
            "local_reparameterization": "got {!r}; the joint predictive of the targets needs one coherent draw of the "
            "weights for all points"
        }
    )

    def __init__(self, num_particles: int = 8, **options: Any) -> None:
        super().__init__(num_particles, **options)

    def run_branches(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Branches:
        context, _ = context_and_full(args[0])
        given = (context, *args[1:])
        posterior = self.run_guide(guide, given, kwargs)
        predicted = self.run_model(model, posterior, (scored_points(args[0]), *args[1:]), kwargs)
        return PredictiveBranches(posterior=posterior, model_args=given, guide_args=given, predicted=predicted)

    def measure(self, runs: Branches, *rest: Any) -> KLDraws:
        draws = super().measure(runs, *rest)
        assert isinstance(runs, PredictiveBranches)
        predictive = predictive_draws(runs.predicted, runs.posterior, draws.axes, self.estimator == "score")
        return PredictiveDraws(**vars(draws), predictive=predictive)

    def combine(self, draws: KLDraws) -> BoundTerms:
        assert isinstance(draws, PredictiveDraws) and draws.predictive is not None
        terms, points = super().combine(draws), draws.predictive.points[0]
        value, signal = log_predictive(draws.predictive)
        factor = self.beta / (points.clamp_min(1.0) if self.normalize else 1.0)
        bound = terms.bound + factor * value
        if signal is not None:
            for log_q in draws.predictive.log_q_score.values():
                bound = bound + fixed_values.score_term(factor * signal, log_q, draws.axes.shape)
        return replace(
            terms,
            bound=bound,
            log_likelihood=terms.log_likelihood + value,
            points=terms.points + points,
            log_weights=draws.predictive.log_weights.detach(),
        )
