"""Paths from a context to any x that the decoder of a conditional model can read, handed over as a *memory*.

A memory ``[*B, M, Dx + E + 1]`` holds each context point's input, E numbers that the guide puts there (a learned
embedding, or y itself), and 1 where the point exists. Where single outputs are missing, a memory of y itself has Dy
more columns: 1 where an output is known.
"""

from __future__ import annotations

from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pp_models.attention import ContextAttention
from pp_models.context_regression import ContextRegression, RegressionState, relative_evidence
from pp_models.kernel_bank import KernelBank, KernelState
from pp_models.outputs_apart import OutputsApart
from pp_models.parameter_module import mlp
from pp_models.recorded_arguments import Recorded

PATHS = ("attention", "regression", "learned-regression", "kernels")
#: what regressions of a context rest on
FEATURES = ("fourier", "learned", "kernels")
#: learned features adapt, so that few regressions do what eight of fixed kernels do, in less time
LEARNED_HEADS = 2
#: a bank of kernels needs a head for each lengthscale and period that tasks differ by
KERNEL_HEADS = 24
State = RegressionState | KernelState | OutputsApart


class ContextPath(Protocol):
    """What a path offers.

    Args:
        representation_dim: R, width of what an input finds.
        embedding_dim: E, width of what the memory holds of each point.
        embeds: whether that is a learned embedding of (x, y) by the guide; y itself otherwise.
    """

    representation_dim: int
    embedding_dim: int
    embeds: bool

    def flat_prior(self, num_points: int, like: Tensor) -> dist.TorchDistribution:
        """A flat density over memories of ``num_points`` points, for the model's side of the site."""

    def __call__(self, x: Tensor, memory: Tensor) -> Tensor:
        """What inputs ``[*B, N, Dx]`` find in a memory: ``[*B, N, R]``."""


class RegressionPath(Recorded, nn.Module):
    """What closed-form regressions of the context say at x: their means, spreads and evidences, through a network.

    Of a bank of kernels it is the average over models: mean and spread of the mixture of the heads, weighed by their
    evidence.

    Args:
        dim_x: input width.
        dim_y: output width.
        width: hidden width of the network after the regressions (and of learned features).
        representation_dim: R.
        kind: ``"fourier"`` or ``"learned"`` features, the latter with a learned mean function, or ``"kernels"``.
        heads: regressions.
        features: of each regression; kernels have none.
        dropout: probability that a task's path is silent in a training step, so that something else must know too.

    Raises:
        ValueError: an argument out of range.
    """

    embeds = False

    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        width: int,
        representation_dim: int,
        kind: str = "fourier",
        *,
        heads: int = 8,
        features: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: got {dropout}; a probability below 1 is needed")
        self.dim_x, self.embedding_dim, self.representation_dim = dim_x, dim_y, representation_dim
        self.dropout = dropout
        self.regression = make_regression(kind, dim_x, dim_y, heads, features, width)
        self.averages = kind == "kernels"
        told = 2 * dim_y if self.averages else heads * dim_y + 2 * heads
        self.out = mlp([told, width, representation_dim])

    def flat_prior(self, num_points: int, like: Tensor) -> dist.TorchDistribution:
        return flat_memory(num_points, self.dim_x + self.embedding_dim + 1, like)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mean, variance, state = read_regressions(self.regression, x, memory)
        if self.averages:
            variance = variance + self.regression.noise_variance[:, None, None]
            told = torch.cat(averaged(mean, variance, state), -1)
        else:
            told = described(mean, variance, state, x.shape[-2])
        found = self.out(told)
        if not self.training or not self.dropout:
            return found
        kept = torch.rand(*found.shape[:-2], 1, 1, dtype=found.dtype, device=found.device) >= self.dropout
        return torch.where(kept, found, torch.zeros_like(found))


def make_regression(kind: str, dim_x: int, dim_y: int, heads: int, features: int = 32, width: int = 64) -> Any:
    """Regressions of a context by what they rest on: see :class:`ContextRegression` and :class:`KernelBank`.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in FEATURES:
        raise ValueError(f"features: got {kind!r}; it must be one of {', '.join(FEATURES)}")
    if kind == "kernels":
        return KernelBank(dim_x, dim_y, heads)
    return ContextRegression(dim_x, dim_y, heads, features, kind, width=width, mean=kind == "learned")


def read_regressions(
    regression: ContextRegression | KernelBank, x: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor, State]:
    """Means ``[*B, H, N, Dy]`` and variances at x, given a memory of inputs and y, and its state.

    Variances are ``[*B, H, N, 1]``, for outputs share them; ``[*B, H, N, Dy]`` where single outputs are missing.
    """
    state = fit_memory(regression, memory)
    mean, variance = regression.predict(x, state)  # type: ignore[arg-type]
    return mean, variance if isinstance(state, OutputsApart) else variance.unsqueeze(-1), state


def fit_memory(regression: ContextRegression | KernelBank, memory: Tensor) -> State:
    """Regressions of the points of a memory."""
    inputs, y, exists, observed = split_memory(memory, regression.dim_x, regression.dim_y)
    return regression.fit(inputs, y, exists, observed=observed)


def split_memory(memory: Tensor, dim_x: int, dim_y: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """A memory of inputs and y: x ``[*B, M, Dx]``, y, mask of points, and of outputs (None where none is missing)."""
    x, y, exists, known = memory.split([dim_x, dim_y, 1, memory.shape[-1] - dim_x - dim_y - 1], -1)
    return x, y, exists.squeeze(-1) > 0.5, known > 0.5 if known.shape[-1] else None


def described(mean: Tensor, variance: Tensor, state: State, num_points: int) -> Tensor:
    """What regressions say at N inputs as numbers for a network: ``[*B, N, H (Dy + 2)]``."""
    means = mean.movedim(-3, -2).flatten(-2)
    spreads = 0.5 * (variance + 1e-6).log().mean(-1).movedim(-2, -1)
    evidence = relative_evidence(state.log_evidence, mean.dtype)
    shape = torch.broadcast_shapes(means.shape[:-2], evidence.shape[:-1])
    evidence = evidence.unsqueeze(-2).expand(*shape, num_points, evidence.shape[-1])
    return torch.cat(
        [means.expand(*shape, *means.shape[-2:]), spreads.expand(*shape, *spreads.shape[-2:]), evidence], -1
    )


def averaged(mean: Tensor, variance: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation of the regressions' mixture by their evidences, ``[*B, N, Dy]`` each."""
    weights = torch.softmax(state.log_evidence, -1).to(mean.dtype)[..., None, None]
    centre = (weights * mean).sum(-3)
    spread = (weights * (variance + (mean - centre.unsqueeze(-3)).square())).sum(-3)
    return centre, 0.5 * (spread + 1e-6).log()


def flat_memory(num_points: int, width: int, like: Tensor) -> dist.TorchDistribution:
    """A flat density over memories ``[num_points, width]``."""
    zeros = like.new_zeros(num_points, width)
    return dist.Normal(zeros, torch.ones_like(zeros)).to_event(2).mask(False)


def make_path(kind: str, dim_x: int, dim_y: int, width: int, representation_dim: int, num_heads: int = 4) -> nn.Module:
    """A path by name.

    Args:
        kind: ``"attention"``, ``"regression"`` (random Fourier features), ``"learned-regression"`` or ``"kernels"``.
        dim_x: input width.
        dim_y: output width.
        width: hidden width.
        representation_dim: width of what an input finds.
        num_heads: attention heads.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in PATHS:
        raise ValueError(f"path: got {kind!r}; it must be one of {', '.join(PATHS)}")
    if kind == "attention":
        return ContextAttention(dim_x, width, representation_dim, num_heads)
    if kind == "regression":
        return RegressionPath(dim_x, dim_y, width, representation_dim, "fourier")
    if kind == "kernels":
        return RegressionPath(dim_x, dim_y, width, representation_dim, "kernels", heads=KERNEL_HEADS)
    return RegressionPath(dim_x, dim_y, width, representation_dim, "learned", heads=LEARNED_HEADS)
