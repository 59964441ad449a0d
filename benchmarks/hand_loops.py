"""Training losses written by hand: plain torch, no Pyro, as a good research script would have them."""

import math

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu, softplus

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


class HandWrittenNMDP(nn.Module):
    """NMDP as a research script would have it: experts that attend to the context, importance-weighted EM."""

    heads = 4

    def __init__(self, width: int, experts: int = 8, particles: int = 16) -> None:
        super().__init__()
        self.particles, self.experts = particles, experts
        self.encoder = mlp([2, *[2 * width] * 4])
        self.concentration = mlp([2 * width + 1, 2 * width, experts])
        self.points = mlp([2, 2 * width, 2 * width, width])
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mixed, self.mlp = nn.Linear(width, 3 * width), nn.Linear(width, width), mlp([width] * 3)
        self.inputs, self.found = mlp([1, width, width]), nn.Linear(width, width)
        self.no_key, self.no_value = (nn.Parameter(torch.randn(width) * 0.1) for _ in range(2))
        shapes = [(1 + width, width), (width, width), (width, 2)]
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(experts, *s) * (2 / s[0]) ** 0.5) for s in shapes])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(experts, 1, k)) for _, k in shapes])

    def _attend(self, q, k, v):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for t in (q, k, v))
        return scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)

    def forward(self, batch):
        c, full = batch.context, batch.full
        tasks, count = full.x.shape[:2]
        xy = torch.cat([c.x, c.y], -1)
        pooled = self.encoder(xy).mean(-2)
        pooled = torch.cat([pooled, pooled.new_full((tasks, 1), math.log1p(c.x.shape[1]))], -1)
        alpha = (0.05 + softplus(self.concentration(pooled) + 1)).clamp_max(1e3).double()
        with torch.no_grad():  # gamma variates in logarithms, by one of a shape above 1
            wide = alpha.expand(self.particles, *alpha.shape)
            log_gamma = torch._standard_gamma(wide + 1).log() - torch.empty_like(wide).exponential_() / wide
            log_z = torch.log_softmax(log_gamma, -1)
        prior = ((alpha - 1) * log_z - torch.lgamma(alpha)).sum(-1) + torch.lgamma(alpha.sum(-1))
        e = self.points(xy)
        e = e + self.mixed(self._attend(*self.qkv(self.before_attention(e)).chunk(3, -1)))
        e = e + self.mlp(self.before_mlp(e))
        keys = torch.cat([self.inputs(c.x), self.no_key.expand(tasks, 1, -1)], -2)
        values = torch.cat([e, self.no_value.expand(tasks, 1, -1)], -2)
        path = self.found(self._attend(self.inputs(full.x), keys, values))
        h = torch.cat([full.x, path], -1).reshape(1, tasks * count, -1).expand(self.experts, -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, torch.relu(h) if i else h, weight)
        mu, raw = h.transpose(0, 1).reshape(tasks, count, self.experts, 2).chunk(2, -1)
        scale = 0.1 + 0.9 * softplus(raw)
        log_p = torch.distributions.Normal(mu, scale, validate_args=False).log_prob(full.y.unsqueeze(-2)).sum(-1)
        log_p = torch.logsumexp(log_z.float().unsqueeze(-2) + log_p, -1).sum(-1)
        prior = prior.float()
        bound = torch.logsumexp(log_p + prior - prior.detach(), 0) - math.log(self.particles)
        return -(bound / count).mean()


HAND_WRITTEN = {"nvdp": HandWrittenNVDP, "cnp": HandWrittenCNP, "bnnp": HandWrittenBNNP, "nmdp": HandWrittenNMDP}
