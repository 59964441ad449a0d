"""Gaussian processes of a bank of kernels, each conditioned on a context exactly: what no finite set of features gives.

Random features need as many as a spectrum has lines, and a kernel whose period is a task's own has lines of its own in
each. Here every head has a kernel, and its evidence says which of them a task is drawn from.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pp_models.arguments import FEATURES, POSITIVE, WIDTH, checked
from pp_models.context_regression import LENGTHSCALES
from pp_models.outputs_apart import OutputsApart, apart, state_apart, together
from pp_models.single_precision import single

#: shortest and longest period of the heads at the start, and the lengthscale over which their waves decay, for inputs
#: of unit scale
PERIODS, DECAY = (0.2, 1.0), 0.8
#: share of a kernel's variance that is added to its diagonal beside the noise
JITTER = 1e-6


class KernelState(NamedTuple):
    """What a context says under each kernel, in float64: enough to predict, and to take in further points.

    Args:
        x: inputs ``[*B, N, Dx]``.
        y: outputs ``[*B, N, Dy]``, 0 where a point does not exist.
        exists: ``[*B, N]``.
        cholesky: of the covariance of y ``[*B, H, N, N]``.
        whitened: its inverse times y ``[*B, H, N, Dy]``.
        log_evidence: log-density of the context under each head ``[*B, H]``, nats, all outputs together.
    """

    x: Tensor
    y: Tensor
    exists: Tensor
    cholesky: Tensor
    whitened: Tensor
    log_evidence: Tensor


class KernelBank(nn.Module):
    """H Gaussian processes y = f_h(x) + ε, f_h ~ GP(0, k_h), ε ~ N(0, σ_h²), conditioned on a context exactly.

    A third of the heads, at least one, are stationary without a period: k = s² (w rbf + (1 - w) Matérn-5/2) of one
    lengthscale an input. The others are quasi-periodic (Roberts et al. 2013): k = s² exp(-Σ r_d² / 2 l_d² - 2 Σ sin²(π
    r_d / p_d) / λ²). All of s, w, l, p, λ and σ are learned, a set for each head; with their evidences as weights the
    heads are an average over models. N points cost N³ / 3 a head, in float64 whatever the dtype of the data (the
    entries of a covariance are computed in that of x).

    It offers what :class:`pp_models.context_regression.ContextRegression` does.

    Args:
        dim_x: input width.
        dim_y: output width; outputs share kernel and noise, and are independent given x.
        heads: H.
        noise: σ_h at the start.

    Raises:
        ValueError: an argument out of range.
    """

    @checked(dim_x=FEATURES, dim_y=FEATURES, heads=WIDTH, noise=POSITIVE)
    def __init__(self, dim_x: int, dim_y: int, heads: int = 24, *, noise: float = 0.03) -> None:
        super().__init__()
        self.dim_x, self.dim_y, self.heads = dim_x, dim_y, heads
        plain = max(1, heads // 3)
        periodic = heads - plain
        scales = torch.cat([_logspace(*LENGTHSCALES, plain), torch.full((periodic,), DECAY)])
        self.log_lengthscale = nn.Parameter(scales.log().unsqueeze(-1).repeat(1, dim_x))  # [H, Dx]
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(0.5)))
        self.log_noise = nn.Parameter(torch.full((heads,), math.log(noise)))
        # heads of the first kind alternate between rbf and Matérn
        self.smoothness = nn.Parameter(torch.tensor([3.0, -3.0]).repeat((plain + 1) // 2)[:plain])
        self.log_period = nn.Parameter(_logspace(*PERIODS, periodic).log().unsqueeze(-1).repeat(1, dim_x))
        self.log_wave = nn.Parameter(torch.zeros(periodic))  # of 1 / λ²

    @property
    def noise_variance(self) -> Tensor:
        """σ_h² ``[H]``."""
        return (2 * self.log_noise).exp()

    @property
    def _variance(self) -> Tensor:
        return (2 * self.log_scale.double()).exp()

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """k_h(x1, x2) ``[*B, H, N, M]`` of inputs ``[*B, N, Dx]`` and ``[*B, M, Dx]``, in their dtype or float32."""
        # to 16 bits entries would differ by more than the noise, and the matrix would have no factor
        apart = (single(x1).unsqueeze(-2) - single(x2).unsqueeze(-3)).unsqueeze(-4)  # [*B, 1, N, M, Dx]
        inverse = (-2 * self.log_lengthscale).exp()[:, None, None, :]
        scale = (2 * self.log_scale).exp()[:, None, None]
        plain, found = len(self.smoothness), []
        if plain:
            # the square root of 0 has no gradient
            squared = _summed(apart.square() * inverse[:plain]) + 1e-12
            root = (5 * squared).sqrt()
            share = self.smoothness.sigmoid()[:, None, None]
            smooth, rough = scale[:plain] * share, scale[:plain] * (1 - share)
            found.append(smooth * (-0.5 * squared).exp() + rough * (1 + root + squared * (5 / 3)) * (-root).exp())
        if plain < self.heads:
            squared = _summed(apart.square() * (-0.5 * inverse[plain:]))
            turns = apart * (math.pi * (-self.log_period).exp()[:, None, None, :])
            waves = -2 * self.log_wave.exp()[:, None, None]
            found.append(scale[plain:] * (squared + waves * _summed(turns.sin().square())).exp())
        return torch.cat(found, -3)

    def keep(self, heads: list[int]) -> None:
        """Drops all heads but these, in place."""
        plain = len(self.smoothness)
        first, second = [h for h in heads if h < plain], [h - plain for h in heads if h >= plain]
        for names, kept in (
            (("log_lengthscale", "log_scale", "log_noise"), heads),
            (("smoothness",), first),
            (("log_period", "log_wave"), second),
        ):
            for name in names:
                setattr(self, name, nn.Parameter(getattr(self, name).detach()[kept].clone()))
        self.heads = len(heads)

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        state: KernelState | OutputsApart | None = None,
        observed: Tensor | None = None,
    ) -> KernelState | OutputsApart:
        """Conditions on points, after those of ``state`` if one is given: one by one equals all at once.

        Args:
            x: ``[*B, N, Dx]``.
            y: ``[*B, N, Dy]``; what it holds at points that do not exist is never read.
            mask: ``[*B, N]``, True where a point exists.
            state: of earlier points.
            observed: ``[*B, N, Dy]``, True where an output is known (nowhere at a point that does not exist); None
                where all are. Each output then has a factor of its own.

        Raises:
            ValueError: a state of points with a mask of outputs, and points without one, or the reverse.
        """
        earlier = state_apart(state, observed)
        if observed is None:
            return self._condition(x, y, mask, earlier)
        return OutputsApart(self._condition(x.unsqueeze(-3), *apart(y, observed), earlier))

    def _condition(self, x: Tensor, y: Tensor, mask: Tensor | None, state: KernelState | None) -> KernelState:
        exists = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
        y = y.double()
        if mask is not None:
            there = exists.unsqueeze(-1)
            x, y = torch.where(there, x, torch.zeros_like(x)), torch.where(there, y, torch.zeros_like(y))
        if state is not None:
            x, y = torch.cat([state.x, x], -2), torch.cat([state.y, y], -2)
            exists = torch.cat([state.exists, exists], -1)
        pairs = (exists.unsqueeze(-1) & exists.unsqueeze(-2)).unsqueeze(-3)
        covariance = self.covariance(x, x).double()
        covariance = torch.where(pairs, covariance, torch.zeros_like(covariance))
        own = self.noise_variance.double() + JITTER * self._variance
        diagonal = torch.where(exists.unsqueeze(-2), own.unsqueeze(-1), torch.ones_like(own).unsqueeze(-1))
        cholesky = torch.linalg.cholesky(covariance + torch.diag_embed(diagonal))
        values = y.unsqueeze(-3).expand(*cholesky.shape[:-1], y.shape[-1])
        whitened = torch.linalg.solve_triangular(cholesky, values, upper=False)
        log_det = 2 * cholesky.diagonal(dim1=-1, dim2=-2).log().sum(-1)
        count = exists.sum(-1, keepdim=True)
        normaliser = y.shape[-1] * (count * math.log(2 * math.pi) + log_det)
        return KernelState(x, y, exists, cholesky, whitened, -0.5 * (whitened.square().sum((-1, -2)) + normaliser))

    def predict(self, x: Tensor, state: KernelState | OutputsApart) -> tuple[Tensor, Tensor]:
        """Mean and variance of the noiseless function of each head.

        Args:
            x: ``[*B, N, Dx]``.
            state: of the context.

        Returns:
            Mean ``[*B, H, N, Dy]`` and variance ``[*B, H, N]``, in the dtype of x; outputs share the variance, but
            where single ones are missing: then it is ``[*B, H, N, Dy]``.
        """
        if isinstance(state, OutputsApart):
            mean, variance = self.predict(x.unsqueeze(-3), state.state)
            return together(mean.squeeze(-1), 2), together(variance, 2)
        cross = self.covariance(state.x, x).double()
        cross = torch.where(state.exists[..., None, :, None], cross, torch.zeros_like(cross))
        found = torch.linalg.solve_triangular(state.cholesky, cross, upper=False)  # [*B, H, M, N]
        mean = found.mT @ state.whitened
        variance = self._variance[:, None] - found.square().sum(-2)
        # what rounding leaves below zero is as good as known
        return mean.to(x.dtype), variance.clamp_min(0).to(x.dtype)


def _summed(parts: Tensor) -> Tensor:
    """Σ over the last dimension; one input needs none."""
    return parts.squeeze(-1) if parts.shape[-1] == 1 else parts.sum(-1)


def _logspace(low: float, high: float, count: int) -> Tensor:
    return torch.logspace(math.log10(low), math.log10(high), count)
