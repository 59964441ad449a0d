"""Approximate conjugate posterior of mixture weights under a Dirichlet prior."""

from __future__ import annotations

import torch
from torch import Tensor


def dirichlet_sweeps(
    concentration: Tensor, expert_log_likelihood: Tensor, mask: Tensor | None = None, sweeps: int = 8
) -> Tensor:
    """Concentration of the variational Dirichlet posterior of mixture weights (NMDP, conjugate proposal).

    Given its expert, a point counts for that expert alone, so that responsibilities and concentration are updated in
    turn, as in variational inference for mixtures:

        r_il ∝ p_l(y_i | x_i) exp ψ(a_l),    a_l = α_l + Σ_i r_il

    Args:
        concentration: α ``[*B, L]``, positive.
        expert_log_likelihood: log p_l(y_i | x_i) ``[*B, N, L]``.
        mask: ``[*B, N]``, True where a point exists.
        sweeps: updates of both; 5 to 10 suffice.

    Returns:
        a ``[*B, L]``; α itself where there is no point.
    """
    updated = concentration
    for _ in range(sweeps):
        responsibility = torch.softmax(expert_log_likelihood + torch.digamma(updated).unsqueeze(-2), -1)
        if mask is not None:
            responsibility = responsibility * mask.unsqueeze(-1)
        updated = concentration + responsibility.sum(-2)
    return updated
