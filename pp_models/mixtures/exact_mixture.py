"""The exact evidence of a mixture of few experts with Dirichlet weights: truth to hold estimators against."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pp_models.arguments import MASK, MOST_WEIGHTS, checked, tensor
from pp_models.mixtures.conjugate_sweeps import check_experts

#: numbers of counts that are held in memory at once, at most
LARGEST_TABLE = 2**24


@checked(expert_log_likelihood=tensor(least=2, finite=False), concentration=tensor(least=1, finite=False), mask=MASK)
def exact_log_evidence(expert_log_likelihood: Tensor, concentration: Tensor, mask: Tensor | None = None) -> Tensor:
    """log ∫ Dir(z; α) Π_i Σ_l z_l p_il dz ``[*B]``, with no approximation (docs/papers/nmdp.md, eq. 13).

    The product is a polynomial in z whose coefficients by counts (k_1 … k_L) follow one point at a time; each monomial
    has a closed-form Dirichlet moment. Costs O(N^L) in time, O(N^(L-1)) in memory, and is differentiable: by Fisher's
    identity its gradient is the exact M-step direction.

    Args:
        expert_log_likelihood: log p_l(y_i | x_i) ``[*B, N, L]``.
        concentration: α ``[*B, L]``.
        mask: ``[*B, N]``, True where a point exists.

    Raises:
        ValueError: shapes that do not agree, or too many points and experts for a table of counts.
    """
    check_experts(concentration, expert_log_likelihood, mask)
    n, experts = expert_log_likelihood.shape[-2:]
    if (n + 1) ** (experts - 1) > LARGEST_TABLE:
        raise ValueError(
            f"expert_log_likelihood: {n} points and {experts} experts need a table of {n + 1}^{experts - 1} counts; "
            f"at most {LARGEST_TABLE} are allowed"
        )
    batch = torch.broadcast_shapes(expert_log_likelihood.shape[:-2], concentration.shape[:-1])
    values = expert_log_likelihood.expand(*batch, n, experts)
    if (n + 1) ** (experts - 1) * max(math.prod(batch), 1) > MOST_WEIGHTS // experts:
        raise ValueError(
            f"expert_log_likelihood: got {n} points of {experts} experts; the sum over their counts would not fit into "
            "memory, so take fewer of either"
        )
    axes = experts - 1  # counts of the experts but the last, whose count is what is left
    table = values.new_full((*batch, *(n + 1,) * axes), -torch.inf)
    nothing: tuple[Any, ...] = (..., *(0,) * axes)
    table[nothing] = 0.0
    for i in range(n):
        point = values[..., i, :].reshape(*batch, experts, *(1,) * axes)
        parts = [table + point.select(len(batch), experts - 1)]
        for axis in range(axes):
            dim = len(batch) + axis
            shifted = torch.cat([torch.full_like(table.narrow(dim, 0, 1), -torch.inf), table.narrow(dim, 0, n)], dim)
            parts.append(shifted + point.select(len(batch), axis))
        updated = _log_sum(parts)
        if mask is not None:
            exists = mask[..., i].expand(batch).reshape((*batch, *(1,) * axes))
            updated = torch.where(exists, updated, table)
        table = updated
    total = values.new_full(batch, float(n)) if mask is None else mask.expand(*batch, n).sum(-1).to(values.dtype)
    total = total.reshape((*batch, *(1,) * axes))
    counts = torch.arange(n + 1, dtype=values.dtype, device=values.device)
    grids = torch.meshgrid(*[counts] * axes, indexing="ij") if axes else ()
    alpha = concentration.expand(*batch, experts).reshape(*batch, experts, *(1,) * axes)
    last = total - (sum(grids) if axes else 0.0)
    moment = torch.lgamma(alpha.sum(len(batch))) - torch.lgamma(alpha.sum(len(batch)) + total)
    for axis in range(experts):
        a = alpha.select(len(batch), axis)
        count = grids[axis] if axis < axes else last.clamp_min(0)
        moment = moment + torch.lgamma(a + count) - torch.lgamma(a)
    return _log_sum([(table + moment).flatten(len(batch))], -1)


def _log_sum(parts: list[Tensor], dim: int | None = None) -> Tensor:
    """log Σ exp, with zero gradient (not NaN) where everything is -∞."""
    values = torch.stack(parts) if dim is None else parts[0]
    along = 0 if dim is None else dim
    peak = values.detach().amax(along, keepdim=True)
    peak = torch.where(torch.isfinite(peak), peak, torch.zeros_like(peak))
    total = (values - peak).exp().sum(along)
    safe = torch.where(total > 0, total, torch.ones_like(total))
    found = safe.log() + peak.squeeze(along)
    return torch.where(total > 0, found, torch.full_like(found, -math.inf))
