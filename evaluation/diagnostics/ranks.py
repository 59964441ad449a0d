"""Ranks of many rows at once as normal scores: by sorted integers on the CPU, whose low bits say where each came from.

Sorting values and fetching their places is what rank statistics cost. A float's bits, seen as an integer, are ordered
as the numbers are (the negative ones turned round); with the place in its lowest bits one sort gives both. Rows in
which two numbers agree in all bits but those are ranked by values, so that ties get their mean rank.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def normal_scores(x: Tensor) -> Tensor:
    """Ranks within each row (ties averaged) as standard normal quantiles.

    Args:
        x: ``[B, *S]``, no NaN; a row is all of ``*S``.

    Returns:
        (rank - 3/8) / (S + 1/4) as a quantile, of the same shape.
    """
    return scores_and_median(x)[0]


def scores_and_median(x: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`normal_scores`, and the median of each row ``[B]`` from the same order."""
    flat = x.reshape(len(x), -1)
    if flat.device.type != "cpu" or flat.dtype not in (torch.float32, torch.float64) or not flat.numel():
        return _by_value(flat, x.shape)
    scores, order, tied = _by_key(flat)
    middle = order[:, [(flat.shape[-1] - 1) // 2, flat.shape[-1] // 2]]
    median = flat.gather(-1, middle).sum(-1) / 2
    if bool(tied.any()):
        scores[tied], median[tied] = _by_value(flat[tied], flat[tied].shape)
    return scores.reshape(x.shape), median


def in_order(flat: Tensor) -> Tensor:
    """Rows ``[B, S]`` sorted, ascending; NumPy's sort is several times faster than torch's on the CPU."""
    if flat.device.type != "cpu":
        return flat.sort(-1).values
    return torch.from_numpy(np.sort(flat.detach().numpy(), -1))


def _quantiles(rank: Tensor, count: int) -> Tensor:
    return torch.special.ndtri((rank - 0.375) / (count + 0.25))


def _by_key(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores ``[B, S]``, places in ascending order ``[B, S]``, and rows ``[B]`` that are to be ranked by value."""
    count = flat.shape[-1]
    bits = max((count - 1).bit_length(), 1)
    values = np.add(flat.detach().numpy(), 0.0, dtype=np.float64)  # -0 is 0
    whole = values.view(np.int64)
    key = whole >> 63
    key &= np.int64(2**63 - 1)
    key ^= whole
    low = np.int64((1 << bits) - 1)
    key &= ~low
    key |= np.arange(count, dtype=np.int64)
    key.sort(-1)
    order = key & low
    key >>= np.int64(bits)
    alike = key[:, 1:] == key[:, :-1]
    ranks = _quantiles(torch.arange(2, 2 * count + 1).to(flat.dtype) / 2, count).numpy()  # 1, 1.5, ... S
    scores = np.empty(values.shape, dtype=ranks.dtype)
    np.put_along_axis(scores, order, np.broadcast_to(ranks[::2], scores.shape), -1)
    return torch.from_numpy(scores), torch.from_numpy(order), _pairs(values, order, alike, ranks, scores)


def _pairs(values: np.ndarray, order: np.ndarray, alike: np.ndarray, ranks: np.ndarray, scores: np.ndarray) -> Tensor:
    """Gives pairs of equal numbers their mean rank (distances from a median have one); returns which rows hold more."""
    left = np.zeros(len(values), dtype=bool)
    row, place = np.nonzero(alike)
    if not len(row):
        return torch.from_numpy(left)
    first, second = order[row, place], order[row, place + 1]
    equal = values[row, first] == values[row, second]
    left[row[~equal]] = True  # equal but for their last bits
    longer = (row[1:] == row[:-1]) & (place[1:] == place[:-1] + 1)
    left[row[1:][longer]] = True
    scores[row, first] = scores[row, second] = ranks[2 * place + 1]
    return torch.from_numpy(left)


def _by_value(flat: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    ordered, order = flat.sort(-1)
    count = flat.shape[-1]
    place = torch.arange(1, count + 1, device=flat.device).expand_as(flat)
    same = ordered[:, 1:] == ordered[:, :-1]
    edge = torch.zeros_like(same[:, :1])
    # of a run of equal draws, the first place and the last
    first = torch.where(torch.cat([edge, same], -1), 0, place).cummax(-1).values
    last = torch.where(torch.cat([same, edge], -1), place[:, -1:], place).flip(-1).cummin(-1).values.flip(-1)
    rank = torch.empty_like(flat).scatter(-1, order, (first + last).to(flat.dtype) / 2)
    median = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
    return _quantiles(rank, count).reshape(shape), median
