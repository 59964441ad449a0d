"""Experts that are closed-form regressions of the context, each on features of its own."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pp_models.context_path import described, fit_memory, flat_memory, make_regression, read_regressions
from pp_models.parameter_module import mlp, part_of

#: how many of its own standard deviations the correction of a mean counts at the start, and bounds of log scale factors
MEAN_SHARE, SCALE_RANGE = 0.3, 3.0


class ConjugateExperts(nn.Module):
    """Expert l: the predictive of a Bayesian linear regression on features of its own, corrected by a network.

    Mean m_l(x) + 0.3 δ s_l(x) and standard deviation floor + s_l(x) e^ε, where m_l, s_l are the regression's (its noise
    included) and δ, ε the outputs of one network that sees x and what all the regressions say there.

    It reads a memory of inputs and y, as :mod:`pp_models.context_path` describes.

    Args:
        num_experts: L.
        dim_x: input width.
        dim_y: output width.
        width: hidden width of the correction, and of learned features.
        floor: least standard deviation.
        kind: what the regressions rest on, ``"fourier"`` or ``"learned"`` features or ``"kernels"``.
        features: of each regression; kernels have none.
    """

    embeds = False

    def __init__(
        self,
        num_experts: int,
        dim_x: int,
        dim_y: int,
        width: int = 64,
        floor: float = 0.01,
        kind: str = "fourier",
        features: int = 32,
    ) -> None:
        super().__init__()
        self.dim_x, self.embedding_dim, self.representation_dim, self.floor = dim_x, dim_y, 0, floor
        self.regression = make_regression(kind, dim_x, dim_y, num_experts, features, width)
        self.correction = mlp([dim_x + num_experts * (dim_y + 2), width, width, num_experts * (dim_y + 1)])
        with torch.no_grad():
            self.correction[-1].weight.mul_(0.05)  # type: ignore[operator, union-attr]

    def flat_prior(self, num_points: int, like: Tensor) -> dist.TorchDistribution:
        """A flat density over memories of ``num_points`` points."""
        return flat_memory(num_points, self.dim_x + self.embedding_dim + 1, like)

    def forward(self, x: Tensor, memory: Tensor) -> dist.TorchDistribution:
        """The experts at inputs ``[*B, N, Dx]``: Gaussians of batch ``[*B, N, L]``, event ``[Dy]``."""
        mean, variance, state = read_regressions(self.regression, x, memory)  # [*B, L, N, Dy], [*B, L, N, 1]
        total = variance + self.regression.noise_variance[:, None, None]
        told = described(mean, total, state, x.shape[-2])
        delta = self.correction(torch.cat([x.expand(*told.shape[:-1], x.shape[-1]), told], -1))
        delta = delta.unflatten(-1, (self.regression.heads, -1))
        own = total.sqrt().movedim(-3, -2)  # [*B, N, L, 1]
        loc = mean.movedim(-3, -2) + MEAN_SHARE * delta[..., :-1] * own
        scale = self.floor + own * delta[..., -1:].clamp(-SCALE_RANGE, SCALE_RANGE).exp()
        return dist.Normal(loc, scale.expand_as(loc)).to_event(1)

    def log_evidence(self, memory: Tensor) -> Tensor:
        """Log-density of the context under each expert's regression ``[*B, L]``, float64, nats."""
        return fit_memory(self.regression, memory).log_evidence

    def keep(self, experts: list[int]) -> None:
        """Drops all experts but these, in place; the others' corrections lose what the dropped ones told them."""
        old, dim_y, dim_x = self.regression.heads, self.embedding_dim, self.dim_x
        self.regression.keep(experts)
        read = [*range(dim_x), *(dim_x + h * dim_y + k for h in experts for k in range(dim_y))]
        read += [dim_x + old * dim_y + block * old + h for block in (0, 1) for h in experts]
        told = [h * (dim_y + 1) + k for h in experts for k in range(dim_y + 1)]
        self.correction[0] = part_of(self.correction[0], columns=read)
        self.correction[-1] = part_of(self.correction[-1], rows=told)
