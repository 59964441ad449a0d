"""Pareto-smoothed importance sampling for many sets of weights at once (Vehtari et al. 2024, JMLR 25:72)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pp_models.arguments import POSITIVE, checked, either, integer, one_of, shown

#: numbers that one chunk of work may hold: what stays in a processor's cache, and what fills a GPU
CPU_CHUNK, GPU_CHUNK = 2**19, 2**25


def rows_at_once(numbers: int, device: torch.device) -> int:
    """How many rows of so many numbers make one chunk of work on a device; at least 1."""
    return max(1, (CPU_CHUNK if device.type == "cpu" else GPU_CHUNK) // max(numbers, 1))


@checked(num_draws=integer(1))
def khat_threshold(num_draws: int) -> float:
    """The k-hat up to which weights of this many draws are reliable: min(1 - 1 / log10 S, 0.7).

    Raises:
        ValueError: fewer than one draw.
    """
    return min(1 - 1 / math.log10(max(num_draws, 2)), 0.7)


@checked(reff=either(Tensor, other=POSITIVE), rounding=one_of("up", "down"))
def psis(log_weights: Tensor, reff: float | Tensor = 1.0, *, rounding: str = "up") -> Tensor:
    """Pareto k-hat of importance weights.

    Args:
        log_weights: ``[chain, draw, *batch]``, unnormalised.
        reff: relative efficiency of the draws, a number or ``[*batch]``; 1 for independent ones.
        rounding: see :func:`psis_weights`.

    Returns:
        k-hat ``[*batch]`` in the dtype of the weights; infinite where fewer than five weights make a tail.

    Raises:
        ValueError: fewer than two dimensions, no draws, weights that are NaN or all -inf, or an efficiency that is not
            positive.
    """
    return _by_tails(log_weights, reff, rounding, smooth=False)[1]


@checked(reff=either(Tensor, other=POSITIVE), rounding=one_of("up", "down"))
def psis_weights(log_weights: Tensor, reff: float | Tensor = 1.0, *, rounding: str = "up") -> tuple[Tensor, Tensor]:
    """Smoothed, normalised log-weights and their k-hat; in float64 ArviZ's numbers.

    The largest weights are replaced by quantiles of a generalised Pareto distribution fitted to them, and none exceeds
    the largest raw one.

    Args:
        log_weights: ``[chain, draw, *batch]``, unnormalised.
        reff: relative efficiency of the draws, a number or ``[*batch]``.
        rounding: of the number of weights in the tail, min(S / 5, 3 √(S / reff)): "up" as ArviZ 0.23 and the R package
            have it, "down" as ArviZ 1.x (arviz-stats) has.

    Returns:
        Log-weights of the same shape, whose exponentials sum to one over chains and draws, and k-hat ``[*batch]``.

    Raises:
        ValueError: fewer than two dimensions, weights that are NaN, an efficiency that is not positive, or an unknown
            rounding.
    """
    return _by_tails(log_weights, reff, rounding, smooth=True)


def _by_tails(log_weights: Tensor, reff: float | Tensor, rounding: str, smooth: bool) -> tuple[Tensor, Tensor]:
    """k-hat, and the smoothed weights; where those are not asked for, the weights as they are."""
    if log_weights.dim() < 2:
        raise ValueError(f"log_weights: got shape {list(log_weights.shape)}; it must be [chain, draw, *batch]")
    if 0 in log_weights.shape[:2]:
        raise ValueError(
            f"log_weights: got shape {list(log_weights.shape)}; it must hold at least one chain and one draw"
        )
    if bool(torch.isnan(log_weights).any()):
        raise ValueError("log_weights: some are NaN")
    dead = ~(torch.isfinite(log_weights.flatten(0, 1).amax(0)))
    if bool(dead.any()):
        raise ValueError(
            f"log_weights: {int(dead.sum())} of {dead.numel()} sets hold no finite weight, or an infinite one; in each "
            "set some draw must have a density under the model, and all under the guide"
        )
    chains, draws, *batch = log_weights.shape
    count = chains * draws
    flat = log_weights.reshape(count, math.prod(batch)).transpose(0, 1)  # one row a set
    rate = torch.as_tensor(reff, dtype=torch.float64)
    if not bool((torch.isfinite(rate) & (rate > 0)).all()):
        raise ValueError(
            f"reff: got {shown(reff)}; a relative efficiency is positive and finite (1 for independent draws)"
        )
    if rate.dim() and rate.shape != log_weights.shape[2:]:
        raise ValueError(f"reff: got shape {list(rate.shape)}; it must be a number, or {list(log_weights.shape[2:])}")
    rate = rate.expand(batch).reshape(-1)
    smoothed, khat = torch.empty_like(flat) if smooth else flat, flat.new_empty(len(flat))
    for value in rate.unique().tolist():
        rows = (rate == value).nonzero().squeeze(-1).to(flat.device)
        share = min(count / 5, 3 * math.sqrt(count / value))
        tail = math.ceil(share) if rounding == "up" else max(math.floor(share), 1)
        step = rows_at_once(max((30 + math.isqrt(tail)) * tail, count), flat.device)
        for part in rows.split(step):
            fitted = _fit_tail(flat[part], tail)
            khat[part] = fitted.k.squeeze(-1)
            if smooth:
                smoothed[part] = _smooth(fitted)
    return smoothed.transpose(0, 1).reshape(log_weights.shape), khat.reshape(batch)


class _Tail(NamedTuple):
    """Rows ``[R, S]`` less their largest, and of each the tail's weights, where they are, which count, and its law."""

    x: Tensor
    candidates: Tensor
    order: Tensor
    inside: Tensor
    length: Tensor
    cutoff: Tensor
    k: Tensor
    sigma: Tensor


def _fit_tail(log_weights: Tensor, tail: int) -> _Tail:
    """Fits the tails, of at most ``tail`` weights, of rows ``[R, S]``."""
    x = log_weights - log_weights.amax(-1, keepdim=True)
    largest, order = (part.flip(-1) for part in x.topk(min(tail + 1, x.shape[-1])))  # ascending
    tiny = math.log(torch.finfo(x.dtype).tiny)
    cutoff = largest[:, :1].clamp_min(tiny) if tail < x.shape[-1] else torch.full_like(x[:, :1], tiny)
    candidates, order = largest[:, -tail:], order[:, -tail:]
    inside = candidates > cutoff  # ties with the cutoff are not in the tail
    length = inside.sum(-1, keepdim=True)
    excess = (candidates.exp() - cutoff.exp()).clamp_min(0)
    k, sigma = _fit(excess, inside, length)
    k = torch.where(length > 4, k, torch.full_like(k, torch.inf))
    return _Tail(x, candidates, order, inside, length, cutoff, k, sigma)


def _smooth(tails: _Tail) -> Tensor:
    """Rows with their tails replaced, normalised."""
    x, candidates, order, inside, length, cutoff, k, sigma = tails
    tail, enough = candidates.shape[-1], length > 4
    # expected order statistics of the fitted tail, in place of the weights
    rank = torch.arange(tail, device=x.device, dtype=x.dtype) - (tail - length)
    p = ((rank + 0.5) / length.clamp_min(1)).clamp(0, 1)
    finite = torch.where(torch.isfinite(k), k, torch.ones_like(k))
    small = finite.abs() < torch.finfo(x.dtype).eps
    safe = torch.where(small, torch.ones_like(finite), finite)
    quantile = sigma * torch.where(small, -torch.log1p(-p), torch.expm1(-safe * torch.log1p(-p)) / safe)
    quantile = torch.where(sigma > 0, quantile, torch.full_like(quantile, torch.nan))
    replaced = (quantile + cutoff.exp()).log()
    replace = inside & enough & torch.isfinite(k)
    x = x.scatter(-1, order, torch.where(replace, replaced, candidates))
    x = torch.where((x > 0) & enough & torch.isfinite(k), torch.zeros_like(x), x)
    return x - torch.logsumexp(x, -1, keepdim=True)


def _fit(excess: Tensor, inside: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale of a generalised Pareto distribution by Zhang and Stephens (2009), with a weak prior on k.

    Args:
        excess: ascending ``[R, C]``; the last ``length`` of a row count, and those before are zero.
        inside: which count.
        length: ``[R, 1]``.

    Returns:
        k and σ ``[R, 1]``.
    """
    dtype, device = excess.dtype, excess.device
    n = length.to(dtype).clamp_min(1)
    width = excess.shape[-1]
    quarter = width - length + (n / 4 + 0.5).floor().long() - 1
    scale = excess.gather(-1, quarter.clamp(0, width - 1))
    largest = excess[:, -1:]
    grid = 30 + n.sqrt().floor()  # points of the profile, by row
    most = 30 + math.isqrt(width)
    index = torch.arange(1, most + 1, dtype=dtype, device=device)
    b = (1 - (grid / (index - 0.5)).sqrt()) / (3 * scale) + 1 / largest
    k = _sum_log1p(-b, excess) / n
    profile = n * ((-(b / k)).log() - k - 1)
    used = index <= grid
    profile = torch.where(used, profile, torch.full_like(profile, -torch.inf))
    weights = torch.softmax(profile, -1)
    weights = torch.where(weights >= 10 * torch.finfo(dtype).eps, weights, torch.zeros_like(weights))
    weights = weights / weights.sum(-1, keepdim=True)
    mean = torch.where(used, b * weights, torch.zeros_like(b)).sum(-1, keepdim=True)
    last = torch.log1p(-mean * excess)
    shape = torch.where(inside, last, torch.zeros_like(last)).sum(-1, keepdim=True) / n
    sigma = -shape / mean
    return (n * shape + 5) / (n + 10), sigma


def _sum_log1p(b: Tensor, excess: Tensor) -> Tensor:
    """Σ_c log(1 + b_m x_c), ``[R, M]`` of ``[R, M]`` and ``[R, C]``.

    On a CPU the logarithms take most of the time: one is taken of the product of eight, and of every number by itself
    in rows where such a product is not finite, or 0.
    """
    if b.device.type != "cpu":
        return torch.log1p(b.unsqueeze(-1) * excess.unsqueeze(-2)).sum(-1)
    padded = torch.nn.functional.pad(excess, (0, -excess.shape[-1] % 8))  # of zeros, whose factor is 1
    factors = torch.addcmul(b.new_ones(()), b.unsqueeze(-1), padded.unsqueeze(-2)).unflatten(-1, (8, -1))
    for half in (4, 2, 1):
        factors = factors[..., :half, :] * factors[..., half:, :]
    found = factors.squeeze(-2).log().sum(-1)
    odd = ~torch.isfinite(found).all(-1)
    if bool(odd.any()):
        found[odd] = torch.log1p(b[odd].unsqueeze(-1) * excess[odd].unsqueeze(-2)).sum(-1)
    return found
