"""How far two sets of draws are from one another."""

from __future__ import annotations

from torch import Tensor

from evaluation import diagnostics


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'|, which is 0 only for equal distributions (Székely and Rizzo 2013).

    Distances are root mean squares over the entries of a draw, so that functions on grids of any fineness compare;
    draws are not paired with themselves, so that the estimate is unbiased (and may fall below 0).

    Args:
        a: draws ``[n, *shape]``.
        b: draws ``[m, *shape]``.

    Raises:
        ValueError: fewer than two draws, or shapes that differ.
    """
    if a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"a, b: got shapes {list(a.shape)} and {list(b.shape)}; it must be two draws or more each, of one shape"
        )
    width = max(a[0].numel(), 1) ** 0.5
    return float(diagnostics.energy_distance(a.flatten(1).double(), b.flatten(1).double()) / width)
