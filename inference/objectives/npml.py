"""Neural-process maximum likelihood: the targets' likelihood under the guide on the context."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from inference.objectives.importance_weights import WeightedDraws, WeightedObjective
from inference.objectives.independent_plates import PARTICLES, reported_axes
from inference.objectives.log_predictive import AVERAGES, log_predictive, predictive_draws
from inference.objectives.task_objective import BoundTerms, context_and_full, scored_points
from pp_models.arguments import checked, one_of


class NPML(WeightedObjective):
    """log (1/K) Σ_k p(y_t | x_t, W_k), W_k ~ q(W | D_c), for each task (Foong et al. 2020, section 3.2).

    The joint likelihood of the targets (docs/papers/bnnp.md, eq. 16); no KL, so that nothing ties the guide to the
    prior: the particles predict, and the latents need not be anyone's posterior.

    Args:
        num_particles: draws per task, K. The log-mean-exp is low by O(1/K), and favours little spread for small K.
        average: ``"logmeanexp"``, or ``"mean"`` for the expected log-likelihood (BNNP's early code), which with a
            flexible guide drives it to a point.
        score: which points are scored: ``"target"`` or ``"full"`` (contexts too).
        estimator: ``"pathwise"``, or ``"score"`` for score-function gradients of every site.
        **options: ``normalize``, ``vectorize_particles``, ``max_plate_nesting``.

    Raises:
        ValueError: an argument out of range.
    """

    name = "npml"
    description = "likelihood of the targets under the guide on the context, no KL"
    reference = "Foong et al. 2020"
    guide_is = "predictor"
    needs = "data set"
    has_no = MappingProxyType(
        {
            "beta": "got {!r}; npml has no KL to weigh",
            "kl_reduction": "got {!r}; npml has no KL to weigh",
            "local_reparameterization": "got {!r}; the joint likelihood of the targets needs one coherent draw of the "
            "weights for all points",
        }
    )

    @checked(average=one_of(*AVERAGES), score=one_of("target", "full"), estimator=one_of("pathwise", "score"))
    def __init__(
        self,
        num_particles: int = 8,
        *,
        average: str = "logmeanexp",
        score: str = "target",
        estimator: str = "pathwise",
        **options: Any,
    ) -> None:
        super().__init__(num_particles, **options)
        self.average = average
        self.score = score
        self.estimator = estimator
        self.fixed_particles = estimator == "score"

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> WeightedDraws:
        given = (context_and_full(args[0])[0], *args[1:])
        scored = (scored_points(args[0], self.score), *args[1:])
        with particles:
            posterior = self.run_guide(guide, given, kwargs)
            predicted = self.run_model(model, posterior, scored, kwargs)
        ties = self.ties(model, guide, (posterior, predicted), scored, given, kwargs, particles)
        axes = reported_axes(predicted, posterior, ties=ties, particles=PARTICLES)
        return predictive_draws(predicted, posterior, axes, self.estimator == "score")

    def combine(self, draws: WeightedDraws) -> BoundTerms:
        value, signal = log_predictive(draws, self.average)
        return replace(self.weighted_terms(draws, value, signal), log_likelihood=value)
