"""The planted problem of low-rank variational dropout, many runs at once: a linear map of known rank under noise."""

import math
from dataclasses import dataclass

import torch
from torch.func import vmap

from guides.lrvd_families import family_kl, initial_parameters, noisy_output, rank_statistic
from inference.lrvd_training import warmup
from pp_models.low_rank_priors import rank_prior_kl

D, R, N, NOISE = 32, 16, 1000, 0.5


@dataclass
class Found:
    """By run: log α ``[n, r]``, A ``[n, r, d]``, B ``[n, d, r]``, the true map ``[n, d, d]``."""

    log_alpha: torch.Tensor
    lora_A: torch.Tensor
    lora_B: torch.Tensor
    truth: torch.Tensor

    def __getitem__(self, index):
        return Found(self.log_alpha[index], self.lora_A[index], self.lora_B[index], self.truth[index])

    def kept(self, threshold):
        """Ranks below a threshold, by run."""
        return (self.log_alpha < threshold).sum(-1).tolist()

    def errors(self, threshold):
        """Relative Frobenius error of the map of the ranks below a threshold."""
        pruned = (self.lora_B * (self.log_alpha < threshold).unsqueeze(-2)) @ self.lora_A
        return (pruned - self.truth).norm(dim=(1, 2)) / self.truth.norm(dim=(1, 2))

    def gaps(self, rank):
        """Distance between the rank-th and the next log α."""
        ordered = self.log_alpha.sort(-1).values
        return ordered[:, rank] - ordered[:, rank - 1]

    def curve(self, order):
        """Share of the map's energy in its first m components in an order ``[n, r]``, averaged over m."""
        whole = self.lora_B @ self.lora_A
        a = self.lora_A.gather(1, order.unsqueeze(-1).expand(-1, -1, D))
        b = self.lora_B.gather(2, order.unsqueeze(1).expand(-1, D, -1))
        parts = (b.mT.unsqueeze(-1) * a.unsqueeze(-2)).cumsum(1)
        return (1 - (whole.unsqueeze(1) - parts).square().sum((2, 3)) / whole.square().sum((1, 2)).unsqueeze(1)).mean(1)

    def areas(self):
        """Area under the energy curve, averaged over runs: in the order of log α, in random orders, of the SVD."""
        generator = torch.Generator().manual_seed(0)
        shape = self.log_alpha.shape
        random = [self.curve(torch.rand(shape, generator=generator).argsort(-1)).mean() for _ in range(30)]
        energy = torch.linalg.svdvals(self.lora_B @ self.lora_A)[:, :R].square()
        best = (energy.cumsum(-1) / energy.sum(-1, keepdim=True)).mean()
        return float(self.curve(self.log_alpha.argsort(-1)).mean()), float(torch.stack(random).mean()), float(best)


def problem(runs):
    """True maps ``[n, d, d]`` of singular values 4, 3, 2, 1.5, inputs and outputs ``[n, N, d]``."""
    u, v = (torch.linalg.qr(torch.randn(runs, D, D))[0][..., :4] for _ in range(2))
    truth = u * torch.tensor([4.0, 3.0, 2.0, 1.5]) @ v.mT
    x = torch.randn(runs, N, D)
    return truth, x, x @ truth.mT + NOISE * torch.randn(runs, N, D)


def train(runs, steps, levels, rates, kl_weight, forward, kl, truth, x, y):
    """Adam with a warm-up and linear decay; ``levels`` are the noise levels by group, with a rate for each group."""
    A = torch.empty(runs, R, D).uniform_(-1 / math.sqrt(D), 1 / math.sqrt(D)).requires_grad_()
    B = torch.empty(runs, D, R).uniform_(-1e-3, 1e-3).requires_grad_()
    groups = [{"params": [level.requires_grad_()], "lr": rate} for level, rate in zip(levels, rates, strict=True)]
    optimizer = torch.optim.Adam([{"params": [A, B], "lr": 2e-2}, *groups], fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / 50, 1 - 0.98 * max(t - 50, 0) / (steps - 50))
    )
    at = torch.arange(runs).unsqueeze(1)
    for step in range(steps):
        index = torch.randint(N, (runs, 100))
        outputs = forward(x[at, index], A, B, torch.cat(levels))
        nll = (outputs - y[at, index]).square().sum(-1).mean(-1) / (2 * NOISE**2)
        loss = (nll + warmup(step, steps // 5) * kl_weight / N * kl(A, B, torch.cat(levels))).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return A.detach(), B.detach(), torch.cat(levels).detach()


def planted_rank_runs(variants, steps=3000, seed=0, prior="log-uniform"):
    """The family ``"rank"``: variants are ``(runs, sampled, weight of the KL, learning rate of log α)``."""
    torch.manual_seed(seed)
    counts = [v[0] for v in variants]
    truth, x, y = problem(sum(counts))
    sampled = torch.cat([torch.full((n, 1, 1), float(v[1])) for n, v in zip(counts, variants, strict=True)])
    weight = torch.cat([torch.full((n,), float(v[2])) for n, v in zip(counts, variants, strict=True)])
    levels = [torch.full((n, R), -4.0) for n in counts]

    def forward(points, a, b, log_alpha):
        root = sampled * torch.exp(0.5 * log_alpha.clamp(-10, 8)).unsqueeze(1)
        hidden = points @ a.mT
        return (hidden * (1 + root * torch.randn_like(hidden))) @ b.mT

    A, B, log_alpha = train(
        sum(counts),
        steps,
        levels,
        [v[3] for v in variants],
        weight,
        forward,
        lambda a, b, log_alpha: rank_prior_kl(log_alpha.clamp(-10, 8), prior).sum(-1),
        truth,
        x,
        y,
    )
    found = Found(log_alpha, A, B, truth)
    ends = torch.tensor(counts).cumsum(0).tolist()
    return [found[end - n : end] for n, end in zip(counts, ends, strict=True)]


def planted_family_runs(family, runs=3, sampled=True, steps=3000, seed=0):
    """Another family with one noise level a rank, one draw a step."""
    torch.manual_seed(seed)
    truth, x, y = problem(runs)
    first = initial_parameters(family, torch.zeros(R, D), torch.zeros(D, R))
    ((name, value),) = first.items()
    noise = "call" if sampled else "none"
    forward = vmap(lambda p, a, b, s: noisy_output(family, p, a, b, {name: s}, noise), randomness="different")
    kl = vmap(lambda a, b, s: family_kl(family, a, b, {name: s}, "weights"))
    levels = [value.expand(runs, R).clone()]
    A, B, level = train(runs, steps, levels, [4e-2], 5.0, forward, kl, truth, x, y)
    statistic = vmap(lambda a, b, s: rank_statistic(family, a, b, {name: s}))(A, B, level)
    return Found(statistic, A, B, truth)
