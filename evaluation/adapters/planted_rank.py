"""A regression whose update has a known rank, fitted by rank-wise dropout for many seeds at once.

y = ΔW x + noise with ΔW = U diag(s) Vᵀ, U and V random orthogonal, x ~ N(0, I). The adapter has more ranks than ΔW; the
posterior must find how many are needed. All seeds are one batch of matrix products, so ten cost a few seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from guides.adapters.lrvd_families import (
    COUNTS,
    LOG_ALPHA_RANGE,
    check_family,
    check_family_prior,
    family_kl,
    initial_parameters,
    noisy_output,
    rank_statistic,
)
from pp_models.adapters.tempering import Tempering


@dataclass(frozen=True)
class PlantedTask:
    """What is planted and how it is fitted.

    Args:
        family: of ``guides.adapters.lrvd_families``.
        prior: of the ranks; see ``pp_models.adapters.low_rank_priors.rank_prior_kl``.
        singular_values: of ΔW.
        dim: width of x and of y.
        rank: ranks of the adapter.
        num_data: N.
        noise: standard deviation of each output's noise, known to the likelihood.
        temperature: T; the KL is weighted T / N a data point.
        count: ``"weights"`` (the KL of a multiplier counts 2 dim times, others are summed over their weights) or
            ``"rank"`` (a rank counts once).
        sample: False switches the noise off in training, so that the likelihood tells the variances nothing.
        steps: Adam steps; learning rates rise over 50 steps and then fall linearly to 2 %.
        learning_rate, scale_learning_rate: of the factors, and of log α (or log σ²).
        initial: of log α (or log σ²); None for the family's own start.
        batch_size: rows a step.
        prune_every: after the warm-up of the KL, components with log α above 1 are removed for good after so many
            steps; 0 removes none while training.
    """

    family: str = "rank"
    prior: str = "log-uniform"
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
    initial: float | None = None
    batch_size: int = 100
    prune_every: int = 0

    def __post_init__(self) -> None:
        check_family(self.family)
        check_family_prior(self.family, self.prior)
        if self.count not in COUNTS:
            raise ValueError(f"count: got {self.count!r}; it must be one of {', '.join(COUNTS)}")
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
    A step draws the multipliers of ``rank`` for every row, and the weights of the other families once.

    Args:
        task: what to fit.
        seeds: S.
        seed: of data, start and noise.
    """
    data = planted_data(task, seeds, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return _fit(task, seeds, data)


def _fit(task: PlantedTask, seeds: int, data: PlantedData) -> PlantedFit:
    family = task.family
    a = torch.empty(seeds, task.rank, task.dim).uniform_(-1, 1).mul_(task.dim**-0.5).requires_grad_()
    b = torch.empty(seeds, task.dim, task.rank).uniform_(-1e-3, 1e-3).requires_grad_()
    levels = {
        name: value.expand(seeds, *value.shape).clone().requires_grad_()
        for name, value in initial_parameters(family, a[0], b[0], task.initial).items()
    }
    noise = ("token" if family == "rank" else "call") if task.sample else "none"
    forward = vmap(lambda x, a, b, levels: noisy_output(family, x, a, b, levels, noise), randomness="different")
    statistic = vmap(lambda a, b, levels: rank_statistic(family, a, b, levels))
    kl = vmap(lambda a, b, levels: family_kl(family, a, b, levels, task.count, approximate=True, prior=task.prior))
    optimizer = torch.optim.Adam(
        [
            {"params": [a, b], "lr": task.learning_rate},
            {"params": list(levels.values()), "lr": task.scale_learning_rate},
        ],
        fused=True,
    )
    warm_up = min(50, task.steps // 4 + 1)

    def rate(step: int) -> float:
        done = (step - warm_up) / max(1, task.steps - warm_up)
        return (step + 1) / warm_up if step < warm_up else max(0.02, 1 - 0.98 * done)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    left = torch.ones(seeds, task.rank)
    warmup = max(1.0, 0.2 * task.steps)
    weighed = Tempering(task.num_data, temperature=task.temperature, warmup_steps=warmup)
    for step in range(task.steps):
        rows = torch.randint(task.num_data, (task.batch_size,))
        residual = data.y[:, rows] - forward(data.x[:, rows], a, b * left.unsqueeze(1), levels)
        nll = residual.square().sum() / (2 * task.noise**2 * task.batch_size)  # summed over the independent seeds
        beta = weighed.beta(step)
        optimizer.zero_grad()
        (nll + beta * weighed.kappa() / task.num_data * kl(a, b, levels).sum()).backward()
        optimizer.step()
        schedule.step()
        if task.prune_every and step >= 0.2 * task.steps and (step + 1) % task.prune_every == 0:
            with torch.no_grad():
                left *= statistic(a, b, levels) < 1.0
    with torch.no_grad():
        log_alpha = statistic(a, b, levels).masked_fill(left == 0, LOG_ALPHA_RANGE[1])
    return PlantedFit(b.detach(), a.detach(), log_alpha, data.update)
