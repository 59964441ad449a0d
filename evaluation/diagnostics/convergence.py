"""Effective sample size, R-hat and Monte-Carlo standard errors of draws, for all entries at once (Vehtari et al. 2021).

Draws are ``[chain, draw, *batch]``; results are ``[*batch]``, in the draws' dtype, on their device. In float64 they are
ArviZ's numbers. Where ArviZ answers NaN (a NaN among the draws, fewer than four draws, one chain for R-hat) so do
these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evaluation.diagnostics.ranks import in_order, normal_scores, scores_and_median
from inference.pareto_smoothing import rows_at_once
from pp_models.arguments import OPEN_SHARE, checked, one_of

ESS_METHODS = ("bulk", "tail", "mean", "sd", "quantile")
MCSE_METHODS = ("mean", "sd", "quantile")


def _checked(draws: Tensor) -> Tensor:
    """Draws as ``[batch, chain, draw]``.

    Raises:
        ValueError: fewer than two dimensions, no chain or no draw.
    """
    if draws.dim() < 2:
        raise ValueError(f"draws: got shape {list(draws.shape)}; it must be [chain, draw, *batch]")
    if 0 in draws.shape[:2]:
        raise ValueError(f"draws: got shape {list(draws.shape)}; it must hold at least one chain and one draw")
    if not draws.dtype.is_floating_point:
        draws = draws.double()
    return draws.reshape(*draws.shape[:2], math.prod(draws.shape[2:])).permute(2, 0, 1)


def _by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of ``[B, C, D]`` that gives ``[B]``, some rows at a time."""
    if not len(x):  # a batch of none; the FFT of none is an error
        return x.new_empty(0)
    rows = rows_at_once(x[0].numel(), x.device)
    return torch.cat([function(part.contiguous()) for part in x.split(rows)])


def _split(x: Tensor) -> Tensor:
    """Each chain as two: its first and its last half, ``[B, 2C, D // 2]``."""
    half = x.shape[-1] // 2
    return torch.cat([x[..., :half], x[..., x.shape[-1] - half :]], -2)


def _quantile(x: Tensor, prob: float) -> Tensor:
    """Quantiles of type 7 over chains and draws, ``[B, 1, 1]``."""
    ordered = in_order(x.reshape(len(x), -1))
    n = ordered.shape[-1]
    place = n * prob + 1 - prob
    k = min(max(math.floor(place), 1), n - 1)
    share = min(max(place - k, 0.0), 1.0)
    return ((1 - share) * ordered[:, k - 1] + share * ordered[:, min(k, n - 1)])[:, None, None]


#: lags that are summed directly, one after the other, before all of them are taken by FFT: few draws need more
SHORT_LAGS = (8, 32)


def _autocovariance(x: Tensor, lags: int | None) -> Tensor:
    """Mean over chains ``[B, lags]``, divided by the number of draws; None for every lag."""
    n = x.shape[-1]
    centred = x - x.mean(-1, keepdim=True)
    if lags is not None:
        return torch.stack([(centred[..., : n - i] * centred[..., i:]).sum((-1, -2)) for i in range(lags)], -1) / (
            n * x.shape[-2]
        )
    spectrum = torch.fft.rfft(centred, n=1 << (2 * n - 1).bit_length())
    return torch.fft.irfft(spectrum * spectrum.conj(), n=1 << (2 * n - 1).bit_length())[..., :n].mean(-2) / n


def _effective(x: Tensor) -> Tensor:
    """Effective sample size of ``[B, C, D]`` by Geyer's initial monotone sequence; ``[B]``."""
    found, left = x.new_empty(len(x)), torch.arange(len(x), device=x.device)
    for lags in [lags for lags in SHORT_LAGS if 4 * lags <= x.shape[-1]]:
        found[left], ended = _by_lags(x[left], lags)
        left = left[~ended]
        if not len(left):
            return found
    found[left] = _by_lags(x[left], None)[0]
    return found


def _by_lags(x: Tensor, lags: int | None) -> tuple[Tensor, Tensor]:
    """Effective sample sizes from the first lags (None: from all), and whether the sequence has ended within them."""
    chains, n = x.shape[-2:]
    covariance = _autocovariance(x, lags)
    within = covariance[:, 0] * n / (n - 1.0)
    total = within * (n - 1.0) / n
    if chains > 1:
        total = total + x.mean(-1).var(-1)
    rho = 1 - (within.unsqueeze(-1) - covariance) / total.unsqueeze(-1)
    rho = torch.cat([torch.ones_like(rho[:, :1]), rho[:, 1:]], -1)
    held = rho.shape[-1] - rho.shape[-1] % 2
    pairs = rho[:, :held].reshape(len(rho), -1, 2).sum(-1)
    most = max(math.ceil((n - 2) / 2) - 1, 0)
    positive = (pairs > 0).long().cumprod(-1)
    used = positive.sum(-1)
    ended = used < pairs.shape[-1]
    used = used.clamp_max(most)
    index = torch.arange(pairs.shape[-1], device=x.device)
    monotone = torch.where(index < used.unsqueeze(-1), pairs, torch.full_like(pairs, torch.inf)).cummin(-1).values
    head = torch.where(index < used.unsqueeze(-1), monotone, torch.zeros_like(pairs)).sum(-1)
    last = used.clamp_max(pairs.shape[-1] - 1).unsqueeze(-1)
    even, pair = rho.gather(-1, 2 * last).squeeze(-1), pairs.gather(-1, last).squeeze(-1)
    even = torch.where((pair >= 0) | (even > 0), even, torch.zeros_like(even))
    even = torch.where(used == 0, torch.ones_like(even), even)  # the first lag's correlation is 1
    count = chains * n
    tau = (-1 + 2 * head + even).clamp_min(1 / math.log10(count))
    found = count / tau
    largest = x.flatten(1).amax(-1)
    found = torch.where(torch.isnan(rho).any(-1) | torch.isnan(largest), torch.nan, found)
    spread = largest - x.flatten(1).amin(-1)
    return torch.where(spread < 1e-15, torch.full_like(found, float(count)), found), ended


@checked(method=one_of(*ESS_METHODS), prob=OPEN_SHARE)
def ess(draws: Tensor, method: str = "bulk", prob: float | None = None) -> Tensor:
    """Effective sample size.

    Args:
        draws: ``[chain, draw, *batch]``.
        method: "bulk" (of ranks, split chains), "tail" (the smaller of those of the 5 % and 95 % quantiles), "mean",
            "sd" or "quantile".
        prob: which quantile.

    Returns:
        ``[*batch]``; the number of draws where they are all equal.

    Raises:
        ValueError: an unknown method, a shape without chains and draws, or a quantile outside (0, 1).
    """
    if method == "quantile" and (prob is None or not 0 < prob < 1):
        raise ValueError(f"prob: got {prob}; method 'quantile' needs a number between 0 and 1")
    x, shape = _checked(draws), draws.shape[2:]
    if x.shape[-1] < 4:
        return x.new_full(shape, torch.nan)
    return _by_rows(partial(_ess, method=method, prob=prob), x).reshape(shape)


def _without_nan(x: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows ``[B]`` hold a NaN, and x with zeros in their place."""
    bad = torch.isnan(x.flatten(1).amax(-1))  # a maximum passes it on
    return bad, x.nan_to_num(0.0, torch.inf, -torch.inf) if bool(bad.any()) else x


def _ess(x: Tensor, method: str, prob: float | None) -> Tensor:
    bad, safe = _without_nan(x)
    if method == "bulk":
        found = _effective(normal_scores(_split(safe)))
    elif method == "mean":
        found = _effective(_split(safe))
    elif method == "sd":
        found = _effective(_split((safe - safe.mean((-1, -2), keepdim=True)).square()))
    else:
        probs = (0.05, 0.95) if method == "tail" else (float(prob or 0),)
        each = [_effective(_split((safe <= _quantile(safe, p)).to(safe.dtype))) for p in probs]
        found = torch.stack(each).amin(0)
    return torch.where(bad, torch.nan, found)


def _potential_scale(x: Tensor) -> Tensor:
    n = x.shape[-1]
    mean = x.mean(-1, keepdim=True)
    between = n * mean.squeeze(-1).var(-1)
    within = (x - mean).square_().sum(-1).mean(-1) / (n - 1)  # var of torch takes several times as long
    return ((between / within + n - 1) / n).sqrt()


@checked()
def rhat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat, the larger of bulk and tail.

    Args:
        draws: ``[chain, draw, *batch]``, at least two chains of four draws.

    Returns:
        ``[*batch]``; NaN where it is not defined.

    Raises:
        ValueError: a shape without chains and draws.
    """
    x, shape = _checked(draws), draws.shape[2:]
    if x.shape[-1] < 4 or x.shape[-2] < 2:
        return x.new_full(shape, torch.nan)
    return _by_rows(_rhat, x).reshape(shape)


def _rhat(x: Tensor) -> Tensor:
    bad, safe = _without_nan(x)
    split = _split(safe)
    scores, median = scores_and_median(split)
    bulk = _potential_scale(scores)
    tail = _potential_scale(normal_scores((split - median[:, None, None]).abs()))
    found = torch.where(torch.isnan(tail), bulk, torch.maximum(bulk, tail))
    return torch.where(bad, torch.nan, found)


@checked(method=one_of(*MCSE_METHODS), prob=OPEN_SHARE)
def mcse(draws: Tensor, method: str = "mean", prob: float | None = None) -> Tensor:
    """Monte-Carlo standard error of an estimate from the draws.

    Args:
        draws: ``[chain, draw, *batch]``.
        method: of the "mean", the "sd" or a "quantile".
        prob: which quantile.

    Returns:
        ``[*batch]``; NaN with fewer than four draws of a chain.

    Raises:
        ValueError: an unknown method, a shape without chains and draws, or a quantile outside (0, 1).
    """
    x, shape = _checked(draws), draws.shape[2:]
    if not len(x):
        return x.new_empty(shape)
    if x.shape[-1] < 4:
        return x.new_full(shape, torch.nan)
    if method == "mean":
        return (x.flatten(1).std(-1) / ess(draws, "mean").reshape(-1).sqrt()).reshape(shape)
    if method == "sd":
        squared = (x - x.mean((-1, -2), keepdim=True)).square()
        effective = ess(squared.permute(1, 2, 0), "mean")
        mean = squared.mean((-1, -2))
        variance = (squared.square().mean((-1, -2)) - mean.square()) / effective
        return (variance / mean / 4).sqrt().reshape(shape)
    return _quantile_error(x, ess(draws, "quantile", prob).reshape(-1), float(prob or 0)).reshape(shape)


def _quantile_error(x: Tensor, effective: Tensor, prob: float) -> Tensor:
    """Half the distance between the order statistics one standard error to either side."""
    from scipy.stats import beta  # torch has no inverse of the incomplete beta function

    size = x[0].numel()
    counts = effective.double().cpu().numpy()
    ends: list[Any] = [beta.ppf(p, counts * prob + 1, counts * (1 - prob) + 1) for p in (0.1586553, 0.8413447)]
    low, high = (torch.as_tensor(end * size - 1, device=x.device) for end in ends)
    ordered = in_order(x.reshape(len(x), -1))
    low = low.nan_to_num(0.0).clamp_min(0).floor().long().unsqueeze(-1)
    high = high.nan_to_num(size - 1.0).clamp_max(size - 1).ceil().long().unsqueeze(-1)
    return ((ordered.gather(-1, high) - ordered.gather(-1, low)) / 2).squeeze(-1)
