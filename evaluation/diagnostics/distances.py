"""How far two sets of draws are apart, for every task and site at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pp_models.arguments import POSITIVE, SEED, WIDTH, checked, either, integer, shown


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as ``[batch, S, D]``.

    Raises:
        ValueError: shapes that do not fit, or fewer than two draws.
    """
    if a.dim() < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"a, b: got shapes {list(a.shape)} and {list(b.shape)}; they must be [S, *batch, D] and [S', *batch, D]"
        )
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a, b: got {len(a)} and {len(b)} draws; at least 2 of each are needed")
    if not a.shape[-1]:
        raise ValueError(f"a, b: got shapes {list(a.shape)} and {list(b.shape)}; a draw must have at least one number")
    batch = math.prod(a.shape[1:-1])
    return tuple(t.reshape(len(t), batch, t.shape[-1]).transpose(0, 1) for t in (a, b))  # type: ignore[return-value]


@checked()
def wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """1-Wasserstein distance between the marginals of two sets of draws, entry by entry.

    Args:
        a: ``[S, *batch]``.
        b: ``[S', *batch]``.

    Returns:
        ``[*batch]``, in the units of the draws.

    Raises:
        ValueError: shapes that do not fit.
    """
    if a.shape[1:] != b.shape[1:] or not len(a) or not len(b):
        raise ValueError(f"a, b: got shapes {list(a.shape)} and {list(b.shape)}; they must agree but for the draws")
    first, second = a.sort(0).values, b.sort(0).values
    if len(a) == len(b):
        return (first - second).abs().mean(0)
    ends = (
        torch.cat([torch.arange(1, n + 1, device=a.device, dtype=torch.float64) / n for n in (len(a), len(b))])
        .sort()
        .values
    )
    widths = torch.diff(ends, prepend=ends.new_zeros(1)).to(a.dtype)
    middles = ends - torch.diff(ends, prepend=ends.new_zeros(1)) / 2
    places = [(middles * n).floor().long().clamp(0, n - 1) for n in (len(a), len(b))]
    gaps = (first[places[0]] - second[places[1]]).abs()
    return (widths.reshape(-1, *(1,) * (a.dim() - 1)) * gaps).sum(0)


@checked()
def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """2 E|A - B| - E|A - A'| - E|B - B'| (Székely and Rizzo 2013), unbiased; zero for one distribution.

    Args:
        a: ``[S, *batch, D]``.
        b: ``[S', *batch, D]``.

    Returns:
        ``[*batch]``, in the units of the draws.

    Raises:
        ValueError: shapes that do not fit.
    """
    first, second = _pair(a, b)

    def within(x: Tensor) -> Tensor:
        n = x.shape[1]
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sum((-1, -2)) / (n * (n - 1))

    between = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").mean((-1, -2))
    return (2 * between - within(first) - within(second)).reshape(a.shape[1:-1])


@checked(bandwidth=either(Tensor, other=POSITIVE))
def mmd(a: Tensor, b: Tensor, bandwidth: Tensor | float | None = None) -> Tensor:
    """Squared maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012, eq. 3), unbiased.

    Args:
        a: ``[S, *batch, D]``.
        b: ``[S', *batch, D]``.
        bandwidth: standard deviation of the kernel, a number or ``[*batch]``; the median distance between all draws of
            a batch entry by default.

    Returns:
        ``[*batch]``; may be slightly negative, for it is unbiased.

    Raises:
        ValueError: shapes that do not fit, or a bandwidth that is not positive.
    """
    first, second = _pair(a, b)
    if bandwidth is not None:
        given = torch.as_tensor(bandwidth)
        if not bool((torch.isfinite(given) & (given > 0)).all()):
            raise ValueError(f"bandwidth: got {shown(bandwidth)}; it must be positive and finite")
        if given.dim() and given.shape != a.shape[1:-1]:
            raise ValueError(
                f"bandwidth: got shape {list(given.shape)}; it must be a number or of shape {list(a.shape[1:-1])}"
            )
    both = torch.cat([first, second], 1)
    squared = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").square()
    if bandwidth is None:
        n = both.shape[1]
        above = torch.triu_indices(n, n, 1, device=a.device)
        scale = squared[:, above[0], above[1]].median(-1).values.clamp_min(1e-30)
    else:
        scale = torch.as_tensor(bandwidth, dtype=a.dtype, device=a.device).expand(a.shape[1:-1]).reshape(-1).square()
    kernel = torch.exp(-squared / (2 * scale[:, None, None]))
    m, n = first.shape[1], second.shape[1]
    own_a, own_b, cross = kernel[:, :m, :m], kernel[:, m:, m:], kernel[:, :m, m:]
    found = (own_a.sum((-1, -2)) - m) / (m * (m - 1)) + (own_b.sum((-1, -2)) - n) / (n * (n - 1))
    return (found - 2 * cross.mean((-1, -2))).reshape(a.shape[1:-1])


@checked(folds=integer(2), width=WIDTH, steps=integer(1), seed=SEED)
def c2st(a: Tensor, b: Tensor, *, folds: int = 5, width: int = 32, steps: int = 200, seed: int = 0) -> Tensor:
    """Accuracy of a classifier that tells two sets of draws apart (Lopez-Paz and Oquab 2017): 0.5 is best, 1 worst.

    One small network for each batch entry and fold, all trained at once; the accuracy is on the left-out folds.

    Args:
        a: ``[S, *batch, D]``.
        b: ``[S, *batch, D]``, equally many draws.
        folds: of the cross-validation.
        width: hidden width of a network.
        steps: of Adam.
        seed: of the networks and of the split.

    Returns:
        ``[*batch]``; NaN where a draw is NaN or infinite.

    Raises:
        ValueError: shapes that do not fit, or fewer draws than folds.
    """
    first, second = _pair(a, b)
    if len(a) != len(b):
        raise ValueError(f"a, b: got {len(a)} and {len(b)} draws; a classifier's accuracy needs equally many")
    if not 2 <= folds <= len(a):
        raise ValueError(f"folds: got {folds}; it must lie in 2..{len(a)}, the number of draws")
    if not len(first):  # a batch of none
        return a.new_empty(a.shape[1:-1])
    x = torch.cat([first, second], 1)
    finite = torch.isfinite(x).flatten(1).all(-1)
    x = torch.where(finite[:, None, None], x, torch.zeros_like(x))
    # in float64 and first by the largest deviation, so that no spread is too small or too large to be squared
    wide = x.double() - x.double().mean(1, keepdim=True)
    for scale_of in (lambda t: t.abs().amax(1, keepdim=True), lambda t: t.std(1, keepdim=True)):
        scale = scale_of(wide)
        wide = wide / torch.where(scale > 0, scale, torch.ones_like(scale))
    x = wide.to(x.dtype)
    n = len(a)
    label = torch.cat([x.new_zeros(n), x.new_ones(n)])
    generator = torch.Generator().manual_seed(seed)
    fold = (torch.randperm(n, generator=generator) % folds).repeat(2).to(x.device)
    train = torch.stack([(fold != k).to(x.dtype) for k in range(folds)])  # [F, 2n]
    batch, _, dim = x.shape
    shape = (batch, folds)

    def initial(*sizes: int, scale: float) -> Tensor:
        value = torch.randn(folds, *sizes, generator=generator) * scale
        return value.to(x).expand(*shape, *sizes).clone().requires_grad_()

    parameters = [
        initial(dim, width, scale=dim**-0.5),
        initial(1, width, scale=0.1),
        initial(width, 1, scale=width**-0.5),
        initial(1, 1, scale=0.0),
    ]
    inputs = x.unsqueeze(1)
    optimizer = torch.optim.Adam(parameters, lr=2e-2, weight_decay=1e-3)
    target = label.expand(*shape, -1)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            hidden = torch.relu(inputs @ parameters[0] + parameters[1])
            logits = (hidden @ parameters[2] + parameters[3]).squeeze(-1)
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
            (losses * train).sum(-1).div(train.sum(-1)).sum().backward()
            optimizer.step()
    with torch.no_grad():
        hidden = torch.relu(inputs @ parameters[0] + parameters[1])
        logits = (hidden @ parameters[2] + parameters[3]).squeeze(-1)
        right = ((logits > 0).to(x.dtype) == target).to(x.dtype) * (1 - train)
        found = right.sum((-1, -2)) / (2 * n)
        return torch.where(finite, found, torch.nan).reshape(a.shape[1:-1])
