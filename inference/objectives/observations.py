"""What a model observed: its log-likelihood by task, and how many values that scores."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.independent_plates import (
    TaskAxes,
    is_point_mass,
    own_scale,
    per_particle,
    sample_sites,
    share,
)
from pp_models.mixtures.simplex_distributions import ExpertMixture


def observed_log_likelihood(trace: Trace, axes: TaskAxes, needed: bool = True) -> tuple[Tensor, Tensor]:
    """Log-likelihood and number of scored values of each task, ``[K, *B]`` both.

    Args:
        trace: the model's trace.
        axes: the task dimensions.
        needed: whether a model that observes nothing is a mistake.

    Raises:
        ValueError: nothing was observed, and something should be.
    """
    total: Tensor | None = None
    count: Tensor | None = None
    for _, site in sample_sites(trace):
        if not site["is_observed"]:
            continue
        scale = own_scale(site, axes)
        value = scale_and_mask(site["fn"].log_prob(site["value"]), scale, site["mask"])
        found = share(per_particle(value, axes, site), axes.shape)
        counted = scale_and_mask(num_values(site["fn"]).expand(value.shape), 1.0, site["mask"])
        if is_point_mass(site["fn"]):  # pyro.deterministic
            counted = torch.zeros_like(counted)
        values = share(per_particle(counted, axes, site), axes.shape)
        total = found if total is None else total + found
        count = values if count is None else count + values
    if (total is None or count is None) and not needed:
        nothing = torch.zeros(1, *axes.shape)
        return nothing, nothing
    if total is None or count is None:
        raise ValueError("data: the model observed nothing (y is None?); an objective needs an observed site")
    return total, count


def num_values(fn: Any) -> Tensor:
    """Scored values in one draw of an observation: its event's size, less what a mask takes away."""
    if isinstance(fn, pyro.distributions.MaskedDistribution):
        base = num_values(fn.base_dist)
        mask = fn._mask
        return base if mask is True else base * torch.as_tensor(mask, dtype=base.dtype, device=base.device)
    if isinstance(fn, torch.distributions.Independent):
        inner = num_values(fn.base_dist)
        ndims = fn.reinterpreted_batch_ndims
        inner = inner.expand(torch.broadcast_shapes(inner.shape, fn.base_dist.batch_shape[-ndims:] if ndims else ()))
        return inner.sum(dim=tuple(range(-ndims, 0))) if ndims else inner
    if isinstance(fn, ExpertMixture):
        each = num_values(fn.experts).to(fn.log_weights)
        return each[..., 0] if each.dim() else each
    parameter = next((p for p in vars(fn).values() if isinstance(p, Tensor)), torch.zeros(()))
    dtype = parameter.dtype if parameter.dtype.is_floating_point else torch.get_default_dtype()
    return torch.tensor(float(fn.event_shape.numel()), dtype=dtype, device=parameter.device)


def output_width(trace: Trace) -> float:
    """Output dimensions of one point, 1 where the observation has no such dimension."""
    widths = [
        site["fn"].event_shape[-1]
        for _, site in sample_sites(trace)
        if site["is_observed"] and len(site["fn"].event_shape) > 1
    ]
    return float(widths[0]) if widths else 1.0
