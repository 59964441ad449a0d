"""Selective prediction: how wrong one is on what one answers, by how much one leaves unanswered."""

from __future__ import annotations

import torch
from torch import Tensor

from pp_models.arguments import checked, instance


@checked(doubt=instance(Tensor), loss=instance(Tensor))
def risk_coverage(doubt: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """The risk of answering only the items of least doubt, for every number of them (El-Yaniv & Wiener 2010).

    Items of equal doubt are answered together in expectation: each counts their mean loss.

    Args:
        doubt: ``[n]``, larger for items that are left out sooner, such as the predictive entropy.
        loss: ``[n]``, such as 1 where the answer is wrong.

    Returns:
        coverages ``[n]``, from 1/n to 1, and the mean loss of what is answered at each, in float64.

    Raises:
        ValueError: shapes that differ, no items, or a doubt that is NaN.
    """
    if doubt.shape != loss.shape or doubt.dim() != 1 or not len(doubt):
        raise ValueError(f"loss: got shape {list(loss.shape)}; it must be [n] as doubt is, {list(doubt.shape)}, n > 0")
    if bool(doubt.isnan().any()):
        raise ValueError("doubt: it has NaNs, which cannot be sorted")
    _, group = doubt.unique(return_inverse=True)
    size = torch.zeros(int(group.max()) + 1, dtype=torch.float64, device=loss.device)
    total = size.clone().index_add_(0, group, loss.double())
    size.index_add_(0, group, torch.ones_like(loss, dtype=torch.float64))
    shared = (total / size)[group][group.argsort(stable=True)]
    answered = torch.arange(1, len(doubt) + 1, dtype=torch.float64, device=loss.device)
    return answered / len(doubt), shared.cumsum(0) / answered


def area_under_risk_coverage(doubt: Tensor, loss: Tensor) -> float:
    """The mean over coverages of :func:`risk_coverage` (AURC, Geifman et al. 2019): the lower, the better."""
    return float(risk_coverage(doubt, loss)[1].mean())
