"""A regression whose update has a known rank, fitted by rank-wise dropout for many seeds at once.

y = ΔW x + noise with ΔW = U diag(s) Vᵀ, U and V random orthogonal, x ~ N(0, I). The adapter has more ranks than ΔW; the
posterior must find how many are needed. All seeds are one batch of matrix products, so ten cost a few seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from guides.lrvd_families import LOG_ALPHA_RANGE, LOG_VARIANCE_RANGE
from pp_models.log_uniform_kl import log_uniform_kl

FAMILIES = ("rank", "shared_sigma")


@dataclass(frozen=True)
class PlantedTask:
    """What is planted and how it is fitted.

    Args:
        family: ``"rank"`` (z_k ~ N(1, α_k)) or ``"shared_sigma"`` (one σ_k² for row k of A and column k of B).
        singular_values: of ΔW.
        dim: width of x and of y.
        rank: ranks of the adapter.
        num_data: N.
        noise: standard deviation of each output's noise, known to the likelihood.
        temperature: T; the KL is weighted T / N a data point.
        count: ``"weights"`` (a component's KL counts 2 dim times) or ``"rank"`` (once); ``shared_sigma`` sums over its
            weights in any case.
        sample: False switches the noise off in training, so that the likelihood tells the variances nothing.
        steps: Adam steps; learning rates rise over 50 steps and then fall linearly to 2 %.
        learning_rate, scale_learning_rate: of the factors, and of log α (or log σ²).
        initial: of log α (or log σ²).
        batch_size: rows a step.
    """

    family: str = "rank"
    singular_values: tuple[float, ...] = (4.0, 3.0, 2.0, 1.5)
    dim: int = 32
    rank: int = 16
    num_data: int = 1000
    noise: float = 0.5
    temperature: float = 5.0
    count: str = "weights"
    sample: bool = True
    steps: int = 3000
    learning_rate: float = 2e-2
    scale_learning_rate: float = 4e-2
    initial: float = -4.0
    batch_size: int = 100

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family: got {self.family!r}; it must be one of {', '.join(FAMILIES)}")
        if self.count not in ("weights", "rank"):
            raise ValueError(f"count: got {self.count!r}; it must be weights or rank")
        if not 1 <= len(self.singular_values) <= self.rank <= self.dim:
            raise ValueError(
                f"rank: got {self.rank}; it must be between the planted rank {len(self.singular_values)} and dim "
                f"{self.dim}"
            )


class PlantedFit(NamedTuple):
    """A fit for S seeds.

    Args:
        b, a: posterior means ``[S, dim, r]`` and ``[S, r, dim]``.
        log_alpha: noise-to-signal ratio of each component ``[S, r]``; for ``shared_sigma`` the mean of the medians over
            a column of B and a row of A.
        truth: ΔW ``[S, dim, dim]``.
    """

    b: Tensor
    a: Tensor
    log_alpha: Tensor
    truth: Tensor

    def kept(self, threshold: float = 1.0) -> Tensor:
        """Components with log α below the threshold, ``[S]``."""
        return (self.log_alpha < threshold).sum(-1)

    def error(self, threshold: float = 1.0) -> Tensor:
        """|B A - ΔW| / |ΔW| of the pruned update, ``[S]``."""
        keep = (self.log_alpha < threshold).to(self.b.dtype)
        found = (self.b * keep.unsqueeze(-2)) @ self.a
        return (found - self.truth).flatten(1).norm(dim=-1) / self.truth.flatten(1).norm(dim=-1)


class PlantedData(NamedTuple):
    """x, y ``[S, N, dim]`` and the update ΔW ``[S, dim, dim]``."""

    x: Tensor
    y: Tensor
    update: Tensor


def planted_data(task: PlantedTask, seeds: int, seed: int = 0) -> PlantedData:
    """Draws updates with Haar-random singular vectors, inputs and noisy outputs."""
    generator = torch.Generator().manual_seed(seed)

    def orthogonal() -> Tensor:
        q, r = torch.linalg.qr(torch.randn(seeds, task.dim, task.dim, generator=generator))
        return q * r.diagonal(dim1=-1, dim2=-2).sign().unsqueeze(-2)

    rank = len(task.singular_values)
    left, right = orthogonal()[..., :rank], orthogonal()[..., :rank]
    update = (left * torch.tensor(task.singular_values)) @ right.mT
    x = torch.randn(seeds, task.num_data, task.dim, generator=generator)
    noise = torch.randn(seeds, task.num_data, task.dim, generator=generator)
    return PlantedData(x, x @ update.mT + task.noise * noise, update)


def fit_planted(task: PlantedTask, seeds: int = 10, seed: int = 0) -> PlantedFit:
    """Fits the adapter by the tempered bound for S seeds at once (torch's own generator is left alone).

    The loss is the mean NLL of a batch plus β(t) T / N Σ_k c_k KL(α_k), with β rising linearly over the first fifth.

    Args:
        task: what to fit.
        seeds: S.
        seed: of data, start and noise.
    """
    data = planted_data(task, seeds, seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def uniform(bound: float, *shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator) - 1).mul_(bound).requires_grad_()

    b = uniform(1e-3, seeds, task.dim, task.rank)
    a = uniform(task.dim**-0.5, seeds, task.rank, task.dim)
    scale = torch.full((seeds, task.rank), task.initial, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": [b, a], "lr": task.learning_rate}, {"params": [scale], "lr": task.scale_learning_rate}]
    )
    warm_up = min(50, task.steps // 4 + 1)

    def rate(step: int) -> float:
        left = (step - warm_up) / max(1, task.steps - warm_up)
        return (step + 1) / warm_up if step < warm_up else max(0.02, 1 - 0.98 * left)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step in range(task.steps):
        rows = torch.randint(task.num_data, (task.batch_size,), generator=generator)
        x, y = data.x[:, rows], data.y[:, rows]
        if task.family == "rank":
            mean, kl = _rank_step(task, b, a, scale, x, generator)
        else:
            mean, kl = _shared_step(task, b, a, scale, x, generator)
        nll = (y - mean).square().sum() / (2 * task.noise**2 * task.batch_size)  # summed over the independent seeds
        beta = min(1.0, (step + 1) / max(1.0, 0.2 * task.steps))
        optimizer.zero_grad()
        (nll + beta * task.temperature / task.num_data * kl).backward()
        optimizer.step()
        schedule.step()
    b, a, scale = b.detach(), a.detach(), scale.detach()
    if task.family == "shared_sigma":
        log_alpha_a = (scale.unsqueeze(-1) - (a.square() + 1e-8).log()).median(-1).values
        log_alpha_b = (scale.unsqueeze(-2) - (b.square() + 1e-8).log()).median(-2).values
        scale = 0.5 * (log_alpha_a + log_alpha_b)
    return PlantedFit(b, a, scale, data.update)


def _noise(like: Tensor, task: PlantedTask, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator) if task.sample else torch.zeros_like(like)


# The two steps are those of guides.lrvd_families written for a batch of problems: under torch.func.vmap the functions
# there give the same numbers (a test holds them to it) but make a step half as slow again, 2.8 against 1.8 ms for ten
# problems.
def _rank_step(
    task: PlantedTask, b: Tensor, a: Tensor, scale: Tensor, x: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Outputs with one draw of the multipliers a row, and the summed KL."""
    log_alpha = scale.clamp(*LOG_ALPHA_RANGE)
    hidden = x @ a.mT
    hidden = hidden * (1 + (0.5 * log_alpha).exp().unsqueeze(-2) * _noise(hidden, task, generator))
    weight = 2 * task.dim if task.count == "weights" else 1
    return hidden @ b.mT, weight * log_uniform_kl(log_alpha, approximate=True).sum()


def _shared_step(
    task: PlantedTask, b: Tensor, a: Tensor, scale: Tensor, x: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Outputs with one draw of the weights, and the KL summed over all weights."""
    log_variance = scale.clamp(*LOG_VARIANCE_RANGE)
    deviation = (0.5 * log_variance).exp()
    drawn_a = a + deviation.unsqueeze(-1) * _noise(a, task, generator)
    drawn_b = b + deviation.unsqueeze(-2) * _noise(b, task, generator)
    variance = log_variance.exp()
    kl = log_uniform_kl((variance.unsqueeze(-1) / (a.square() + 1e-8) + 1e-8).log(), approximate=True).sum()
    kl = kl + log_uniform_kl((variance.unsqueeze(-2) / (b.square() + 1e-8) + 1e-8).log(), approximate=True).sum()
    return x @ drawn_a.mT @ drawn_b.mT, kl
