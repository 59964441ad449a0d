"""A predictive density of scaled outputs as one of the outputs themselves: y = mean + scale y', Jacobian included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pp_models.mixtures.simplex_distributions import ExpertMixture


def in_units(
    distribution: Any, mean: Tensor, scale: Tensor, select: Callable[[Tensor], Tensor] = lambda t: t
) -> TorchDistribution:
    """The distribution of ``mean + scale y`` in float64, for y of a location-scale family or a mixture of such.

    Its log-density is that of y less the sum of log ``scale`` over outputs (the Jacobian), its quantiles, mean and
    standard deviation are those of y, scaled.

    Args:
        distribution: of scaled outputs, batch ``[S, *B, N]``, event ``[Dy]``; of class indices, which have no scale.
        mean: ``[Dy]``.
        scale: ``[Dy]``, positive.
        select: from a tensor ``[S, *B, N, ...]`` of parameters to some of its points.

    Raises:
        ValueError: a likelihood that has no scale.
    """
    if isinstance(distribution, torch.distributions.Independent):
        base: Any = in_units(distribution.base_dist, mean, scale, select)
        return base.to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, ExpertMixture):
        whole = torch.Size([*distribution.batch_shape, distribution.num_experts])
        experts = in_units(distribution.experts.expand(whole), mean, scale, select)
        # in float32 they sum to 1 within 1e-7, which a mean far from 0 would multiply
        weights = select(distribution.log_weights.expand(whole)).double().log_softmax(-1)
        return ExpertMixture(weights, experts)
    if isinstance(distribution, torch.distributions.Categorical):
        return dist.Categorical(logits=select(distribution.logits), validate_args=False)
    if isinstance(distribution, torch.distributions.Normal | torch.distributions.StudentT):
        loc = mean + scale * select(distribution.loc).double()
        spread = scale * select(distribution.scale).double()
        if isinstance(distribution, torch.distributions.Normal):
            return dist.Normal(loc, spread, validate_args=False)
        return dist.StudentT(select(distribution.df).double(), loc, spread, validate_args=False)
    raise ValueError(
        f"prediction: its likelihood is {type(distribution).__name__}, whose outputs have no units to "
        "be put into; take a "
        "Gaussian or Student-t likelihood, a mixture of such, or classes"
    )
