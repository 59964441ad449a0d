"""What a training step costs against a hand-written torch loop of the same networks, in one run and in pairs.

Run: python -m benchmarks.step_cost [--steps 100]

Each row is a ratio: CPU time of a step through Pyro (our model, guide and objective) over that of the loop below, which
has the same encoder, rate networks, decoder, likelihood and KL, written directly with torch. Steps of both are
interleaved, and the median of the pairwise ratios is printed with its quartiles.
"""

import argparse
import math
import statistics
import time

import pyro
import torch
from torch import nn
from torch.nn.functional import silu, softplus

from evaluation.methods import TaskShape, build
from pp_models import tasks
from pp_models.parameter_module import mlp


class HandWrittenNVDP(nn.Module):
    """NVDP as a research script would have it: no Pyro, per-task weight matrices, everything in one forward pass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [1, width, width, width, width, 2]
        self.encoder = mlp([2, *[width] * 5, width])
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        self.theta = nn.ParameterList([nn.Parameter(torch.randn(k, d + 1) * 0.1) for k, d in shapes])
        self.nets = nn.ModuleList(
            [mlp([width] * 5 + [d + 2 * k + 1], nn.LeakyReLU, negative_slope=0.1) for k, d in shapes]
        )
        self.temperature = nn.Parameter(torch.full((len(shapes),), 1.5))

    def rates(self, x, y, low, high):
        r = self.encoder(torch.cat([x, y], -1)).mean(-2)
        found = []
        for i, (theta, net) in enumerate(zip(self.theta, self.nets, strict=True)):
            k, d = theta.shape[0], theta.shape[1] - 1
            p = torch.sigmoid(net(r).clamp(low, high) / self.temperature[i].clamp(0.5, 5.0))
            row, column, layer, bias = p.split([d, k, 1, k], -1)
            weights = column.unsqueeze(-1) * row.unsqueeze(-2) * layer.unsqueeze(-1)
            found.append(torch.cat([weights, bias.unsqueeze(-1)], -1))
        return found

    def forward(self, batch):
        c, full = batch.context, batch.full
        posterior = self.rates(c.x, c.y, -2.0, 2.5)
        prior = self.rates(full.x, full.y, -4.0, 4.0)
        h, kl = full.x, 0.0
        for i, (theta, p, q) in enumerate(zip(self.theta, posterior, prior, strict=True)):
            mean, variance = (1 - p) * theta, p * (1 - p) * theta**2
            loc = h @ mean[..., :-1].mT + mean[..., None, :, -1]
            scale = ((h**2) @ variance[..., :-1].mT + variance[..., None, :, -1] + 1e-10).sqrt()
            h = loc + scale * torch.randn_like(loc)
            if i < len(self.theta) - 1:
                h = torch.relu(h)
            s, t = p * (1 - p), q * (1 - q)
            kl = kl + 0.5 * ((s + (q - p) ** 2) / t + t.log() - s.log() - 1).mean() / len(self.theta)
        mu, raw = h.chunk(2, -1)
        log_p = torch.distributions.Normal(mu, 0.1 + 0.9 * softplus(raw), validate_args=False).log_prob(full.y)
        return -log_p.mean() + 1.4 * kl / full.x.shape[-2]


class HandWrittenCNP(nn.Module):
    """CNP as a research script would have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = mlp([2, *[width] * 5, width])
        self.decoder = mlp([1 + width, *[width] * 4, 2])

    def forward(self, batch):
        c, full = batch.context, batch.full
        r = self.encoder(torch.cat([c.x, c.y], -1)).mean(-2, keepdim=True)
        mu, raw = self.decoder(torch.cat([full.x, r.expand(*full.x.shape[:-1], -1)], -1)).chunk(2, -1)
        return -torch.distributions.Normal(mu, 0.1 + 0.9 * softplus(raw), validate_args=False).log_prob(full.y).mean()


class HandWrittenBNNP(nn.Module):
    """BNNP as a research script would have it: precisions of every unit's weights, factored one by one."""

    def __init__(self, width: int, particles: int = 8) -> None:
        super().__init__()
        self.particles, sizes = particles, [1, width, width, 1]
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        self.nets = nn.ModuleList([mlp([2, width, width, 2 * k if k > 1 else 1]) for k, _ in shapes])
        with torch.no_grad():
            for net in self.nets:
                net[-1].weight.mul_(0.1)
        self.loc = nn.ParameterList([nn.Parameter(torch.zeros(k, d + 1)) for k, d in shapes])
        self.log_diagonal = nn.ParameterList([nn.Parameter(torch.zeros(k, d + 1)) for k, d in shapes])
        self.lower = nn.ParameterList([nn.Parameter(torch.zeros(k, d + 1, d + 1)) for k, d in shapes])
        self.raw_noise = nn.Parameter(torch.tensor(math.log(0.1 / 0.4)))

    def forward(self, batch):
        c, target = batch.context, batch.target
        context, ahead, kl = c.x, target.x, 0.0
        for i, net in enumerate(self.nets):
            out = net(torch.cat([c.x, c.y], -1))
            value, log_noise = (c.y, out) if i == len(self.nets) - 1 else out.chunk(2, -1)
            precision = (-2 * (log_noise - 2).clamp(-6, 4)).exp()
            phi = torch.cat([context, context.new_ones(*context.shape[:-1], 1)], -1)
            k = phi.shape[-1]
            factor = (self.lower[i].tril(-1) + torch.diag_embed(self.log_diagonal[i].exp())) / math.sqrt(k)
            weighed = precision.mT.unsqueeze(-1) * phi.unsqueeze(-3)
            chol = torch.linalg.cholesky(torch.cholesky_inverse(factor) + phi.mT.unsqueeze(-3) @ weighed)
            moment = weighed.mT @ (value - phi @ self.loc[i].mT).mT.unsqueeze(-1)
            mean = torch.cholesky_solve(moment, chol)
            noise = torch.randn(self.particles, c.x.shape[0], *mean.shape[-3:])
            weights = self.loc[i] + (mean + torch.linalg.solve_triangular(chol.mT, noise, upper=True)).squeeze(-1)
            inverse = torch.linalg.inv(factor)
            trace = (
                torch.linalg.solve_triangular(chol, inverse.mT.expand(chol.shape), upper=False).square().sum((-1, -2))
            )
            log_det = (chol.diagonal(dim1=-2, dim2=-1).log() + factor.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
            kl = kl + (0.5 * (trace + (inverse @ mean).square().sum((-1, -2)) - k) + log_det).sum(-1)
            context, ahead = (h @ weights[..., :-1].mT + weights[..., -1].unsqueeze(-2) for h in (context, ahead))
            if i < len(self.nets) - 1:
                context, ahead = silu(context), silu(ahead)
        scale = 0.5 * self.raw_noise.sigmoid()
        of_context, of_target = (
            torch.distributions.Normal(h, scale, validate_args=False).log_prob(d.y).sum((-1, -2))
            for h, d in ((context, c), (ahead, target))
        )
        return -((of_context - kl).mean(0) + torch.logsumexp(of_target, 0) - math.log(self.particles)).sum()


def step(module: nn.Module, optimizer: torch.optim.Optimizer, batch) -> float:
    """CPU seconds of one training step."""
    started = time.process_time()
    optimizer.zero_grad()
    module(batch).backward()
    optimizer.step()
    return time.process_time() - started


def compare(name: str, hand: nn.Module, width: int, batch_size: int, steps: int) -> None:
    """Prints one row."""
    method = build(name, TaskShape(1, 1, width, recipe="paper"))  # the architectures of the loops above
    ours = method.objective(method.model, method.guide)
    pairs = [(m, torch.optim.Adam(m.parameters(), 1e-3, fused=True)) for m in (ours, hand)]
    stream = tasks.gp("rbf", batch_size, 0, num_context=(50, 50), num_target=(50, 50), max_points=100)
    times: list[list[float]] = [[], []]
    for i in range(steps + 5):
        batch = stream.batch(i)
        for kept, (module, optimizer) in zip(times, pairs, strict=True):
            seconds = step(module, optimizer, batch)
            if i >= 5:
                kept.append(seconds)
    low, middle, high = statistics.quantiles([a / b for a, b in zip(*times, strict=True)], n=4)
    milliseconds = [1e3 * statistics.median(kept) for kept in times]
    print(
        f"{name:6s} width {width:4d}, {batch_size:3d} tasks: {milliseconds[0]:7.1f} ms ours, "
        f"{milliseconds[1]:7.1f} ms by hand, ratio {middle:.2f} (quartiles {low:.2f}-{high:.2f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {steps} steps each, interleaved")
    with pyro.validation_enabled(False):  # as inference.fit runs
        for width, batch_size in ((64, 8), (128, 16)):
            compare("nvdp", HandWrittenNVDP(width), width, batch_size, steps)
            compare("cnp", HandWrittenCNP(width), width, batch_size, steps)
        for width, batch_size in ((32, 16), (64, 4), (128, 2)):
            compare("bnnp", HandWrittenBNNP(width), width, batch_size, max(steps // 10, 5))
