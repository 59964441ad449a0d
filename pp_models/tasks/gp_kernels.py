"""Covariance functions of the one-dimensional GP tasks, and the ranges their hyper-parameters are drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pp_models.arguments import POSITIVE, TEXT, each, interval, shown

#: Names by kernel index (``TaskBatch.truth["kernel"]``).
KERNELS = ("rbf", "matern52", "periodic", "weakly-periodic")
#: The heterogeneous mix: one of these, uniformly, for each task.
MIX = ("rbf", "weakly-periodic", "matern52")

Range = tuple[float, float]


@dataclass(frozen=True)
class HyperParameters:
    """Uniform ranges ``(low, high)``; equal ends give a constant. Units are those of x (lengths, period) and y (scale).

    Args:
        lengthscale: of rbf, matern52 and periodic.
        scale: the prior standard deviation, all kernels.
        period: of the periodic kernel.
        decay_lengthscale: of the weakly periodic kernel's squared-exponential factor.
        decay_period: of the weakly periodic kernel.

    Raises:
        ValueError: an end is not positive, or low exceeds high.
    """

    lengthscale: Range = (0.1, 0.6)
    scale: Range = (0.1, 1.0)
    period: Range = (0.1, 0.5)
    decay_lengthscale: Range = (0.5, 1.0)
    decay_period: Range = (0.25, 0.5)

    def __post_init__(self) -> None:
        for name, ends in vars(self).items():
            object.__setattr__(self, name, interval(POSITIVE, strict=False).check(name, ends))


#: ``random``: NVDP's variable kernel, which is the TNP sampler's. ``fixed``: NVDP's fixed kernel (lengthscale 0.6,
#: scale 1); it has none but rbf, so period, decay_lengthscale and decay_period are the middles of the random ranges.
#: ``convcnp``: ConvCNP's EQ, Matérn-5/2 and weakly periodic kernels; its periodic kernel is the weakly periodic one's
#: factor, at the same lengthscale as the others. ``dnp``: DNP's ranges; the weakly periodic lengthscale is ours.
HYPERPARAMETERS = {
    "random": HyperParameters(),
    "fixed": HyperParameters((0.6, 0.6), (1.0, 1.0), (0.3, 0.3), (0.75, 0.75), (0.375, 0.375)),
    "convcnp": HyperParameters((0.25, 0.25), (1.0, 1.0), (0.25, 0.25), (0.5, 0.5), (0.25, 0.25)),
    "dnp": HyperParameters((0.6, 1.0), (0.1, 1.0), (0.5, 1.5), (0.5, 1.0), (0.5, 1.5)),
}


def kernel_names(kernel: str | Sequence[str]) -> tuple[str, ...]:
    """Reads a kernel, ``"mix"``, a ``+``-joined string or a sequence of names.

    Raises:
        ValueError: a name is unknown, or none is given.
    """
    names = (
        kernel.split("+") if isinstance(kernel, str) else each(TEXT, must="be a name or names").check("kernel", kernel)
    )
    names = [name.strip() for name in names]
    expanded = [part for name in names for part in (MIX if name == "mix" else (name,))]
    unknown = [name for name in expanded if name not in KERNELS]
    if unknown or not expanded:
        got = repr(unknown[0]) if unknown else "no name"
        raise ValueError(f"kernel: got {got}; it must be one of {', '.join(KERNELS)}, mix, or names joined by +")
    return tuple(expanded)


def hyperparameter_ranges(hyperparameters: str | HyperParameters) -> HyperParameters:
    """The preset of that name, or the given ranges.

    Raises:
        ValueError: the preset is unknown.
    """
    if isinstance(hyperparameters, HyperParameters):
        return hyperparameters
    if not isinstance(hyperparameters, str) or hyperparameters not in HYPERPARAMETERS:
        raise ValueError(
            f"hyperparameters: got {shown(hyperparameters)}; it must be one of {', '.join(HYPERPARAMETERS)} "
            "or a HyperParameters"
        )
    return HYPERPARAMETERS[hyperparameters]


def _correlation(name: str, distance: Tensor, lengthscale: Tensor, period: Tensor) -> Tensor:
    if name == "rbf":
        return torch.exp(-0.5 * (distance / lengthscale) ** 2)
    if name == "matern52":
        q = math.sqrt(5.0) * distance / lengthscale
        return (1 + q + q**2 / 3) * torch.exp(-q)
    wave = 2 * torch.sin(math.pi * distance / period) ** 2
    if name == "periodic":
        return torch.exp(-wave / lengthscale**2)
    return torch.exp(-0.5 * (distance / lengthscale) ** 2 - wave)


def covariance(kernel: Tensor, lengthscale: Tensor, scale: Tensor, period: Tensor, x1: Tensor, x2: Tensor) -> Tensor:
    """Prior covariance of the latent function (no observation noise), each task with its own kernel.

    With r = |x - x'|, lengthscale l, scale s, period p: rbf ``s² exp(-r²/2l²)``; matern52
    ``s² (1 + √5 r/l + 5r²/3l²) exp(-√5 r/l)``; periodic ``s² exp(-2 sin²(πr/p) / l²)``; weakly-periodic
    ``s² exp(-r²/2l²) exp(-2 sin²(πr/p))``.

    Args:
        kernel: indices into ``KERNELS``, ``[*B]`` long.
        lengthscale, scale, period: ``[*B]``.
        x1, x2: inputs ``[*B, N, 1]`` and ``[*B, M, 1]``.

    Returns:
        ``[*B, N, M]``.
    """
    distance = (x1 - x2.transpose(-1, -2)).abs()
    kernel, lengthscale, scale, period = (t[..., None, None] for t in (kernel, lengthscale, scale, period))
    result = torch.zeros_like(distance)
    for index in kernel.unique().tolist():
        result = torch.where(kernel == index, _correlation(KERNELS[index], distance, lengthscale, period), result)
    return scale**2 * result


def noise_variance(noise: Tensor, scale: Tensor) -> Tensor:
    """Observation variance ``[*B]``, at least 1e-8 of the prior's, so that Cholesky factors exist without noise."""
    return torch.maximum(noise**2, 1e-8 * scale**2)
