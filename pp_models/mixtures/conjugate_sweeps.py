"""Approximate conjugate posteriors of mixture weights under a Dirichlet or stick-breaking prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pp_models.arguments import MASK, MOST_DRAWS, checked, integer, tensor


def check_experts(concentration: Tensor, expert_log_likelihood: Tensor, mask: Tensor | None) -> None:
    """Refuses arguments of other numbers of experts, points or tasks.

    Raises:
        ValueError: they do not agree.
    """
    if concentration.shape[-1] != expert_log_likelihood.shape[-1]:
        raise ValueError(
            f"concentration: got shape {list(concentration.shape)} with {expert_log_likelihood.shape[-1]} experts; it "
            "must be [*batch, experts]"
        )
    _check_tasks("concentration", concentration, expert_log_likelihood, mask)


def _broadcasts(a: Sequence[int], b: Sequence[int]) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b), strict=False))


def _check_tasks(name: str, parameter: Tensor, expert_log_likelihood: Tensor, mask: Tensor | None) -> None:
    shape = expert_log_likelihood.shape
    if not _broadcasts(parameter.shape[:-1], shape[:-2]):
        raise ValueError(
            f"{name}: got shape {list(parameter.shape)} with experts' likelihoods of shape {list(shape)}; their task "
            "dimensions must agree"
        )
    if mask is not None and (mask.shape[-1:] != shape[-2:-1] or not _broadcasts(mask.shape[:-1], shape[:-2])):
        raise ValueError(f"mask: got shape {list(mask.shape)}; it must be {list(shape[:-1])}")


@checked(
    concentration=tensor(least=1, finite=False),
    expert_log_likelihood=tensor(least=2, finite=False),
    mask=MASK,
    sweeps=integer(0, MOST_DRAWS),
)
def dirichlet_sweeps(
    concentration: Tensor, expert_log_likelihood: Tensor, mask: Tensor | None = None, sweeps: int = 8
) -> Tensor:
    """Concentration of the variational Dirichlet posterior of mixture weights (docs/papers/nmdp.md, eq. 14).

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
    check_experts(concentration, expert_log_likelihood, mask)
    updated = concentration
    for _ in range(sweeps):
        responsibility = torch.softmax(expert_log_likelihood + torch.digamma(updated).unsqueeze(-2), -1)
        if mask is not None:
            responsibility = responsibility * mask.unsqueeze(-1)
        updated = concentration + responsibility.sum(-2)
    return updated


@checked(
    a=tensor(least=1, finite=False),
    b=tensor(least=1, finite=False),
    expert_log_likelihood=tensor(least=2, finite=False),
    mask=MASK,
    sweeps=integer(0, MOST_DRAWS),
)
def stick_breaking_sweeps(
    a: Tensor, b: Tensor, expert_log_likelihood: Tensor, mask: Tensor | None = None, sweeps: int = 8
) -> tuple[Tensor, Tensor]:
    """The same for a stick v_l ~ Beta(a_l, b_l): a_l += Σ_i r_il, b_l += Σ_i Σ_{j>l} r_ij.

    See docs/papers/nmdp.md, eq. 16.

    Args:
        a: ``[*B, L - 1]``, positive.
        b: ``[*B, L - 1]``, positive.
        expert_log_likelihood: log p_l(y_i | x_i) ``[*B, N, L]``.
        mask: ``[*B, N]``, True where a point exists.
        sweeps: updates.

    Returns:
        The updated a and b ``[*B, L - 1]``.
    """
    if a.shape != b.shape or a.shape[-1] != expert_log_likelihood.shape[-1] - 1:
        raise ValueError(
            f"a, b: got shapes {list(a.shape)} and {list(b.shape)} with {expert_log_likelihood.shape[-1]} experts; "
            "both must be [*batch, experts - 1]"
        )
    _check_tasks("a, b", a, expert_log_likelihood, mask)
    new_a, new_b = a, b
    for _ in range(sweeps):
        both = torch.digamma(new_a + new_b)
        taken, kept = torch.digamma(new_a) - both, torch.digamma(new_b) - both
        zero = torch.zeros_like(both[..., :1])
        expected = torch.cat([taken, zero], -1) + torch.cat([zero, kept.cumsum(-1)], -1)  # E log z
        responsibility = torch.softmax(expert_log_likelihood + expected.unsqueeze(-2), -1)
        if mask is not None:
            responsibility = responsibility * mask.unsqueeze(-1)
        counts = responsibility.sum(-2)
        new_a = a + counts[..., :-1]
        new_b = b + counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return new_a, new_b
