"""The log predictive likelihood: importance weights whose log q is 0, for what was drawn is what predicts."""

from __future__ import annotations

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives import importance_weights
from inference.objectives.fixed_values import score_densities
from inference.objectives.importance_weights import WeightedDraws
from inference.objectives.independent_plates import TaskAxes
from inference.objectives.observations import observed_log_likelihood

#: how draws are averaged -> the α of the Rényi bound that it is
AVERAGES = {"logmeanexp": 0.0, "mean": 1.0}


def predictive_draws(model_trace: Trace, guide_trace: Trace, axes: TaskAxes, every_score: bool) -> WeightedDraws:
    """The likelihood of each draw as its weight.

    Args:
        model_trace: the model on the points that are predicted, replayed against the guide's draws.
        guide_trace: where the draws come from.
        axes: the task dimensions.
        every_score: score-function gradients of every site, not only of those that cannot be reparameterised.
    """
    log_likelihood, points = observed_log_likelihood(model_trace, axes)
    nothing = torch.zeros_like(log_likelihood)
    scores = score_densities(guide_trace, axes, every_score)
    return WeightedDraws(axes, 1.0, log_likelihood, nothing, log_likelihood, points, log_q_score=scores)


def log_predictive(draws: WeightedDraws, average: str = "logmeanexp") -> tuple[Tensor, Tensor | None]:
    """log (1/K) Σ_k p(y | z_k) of each task ``[*B]``, and the learning signal of the draws ``[K, *B]``, if any need it.

    Args:
        draws: what was predicted.
        average: ``"logmeanexp"``, or ``"mean"`` for the mean log-likelihood.
    """
    alpha = AVERAGES[average]
    value = importance_weights.renyi_bound(draws.log_weights, alpha)
    return value, importance_weights.vimco_signal(draws.log_weights, alpha) if draws.log_q_score else None
