"""The exact predictive of a GP task under its true kernel: what no model can beat on average."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pp_models.arguments import NOT_NEGATIVE, checked, one_of
from pp_models.data import Dataset, TaskBatch
from pp_models.tasks.gp_kernels import covariance, noise_variance

_TRUTH = ("kernel", "lengthscale", "scale", "period", "noise")


def _posterior(batch: TaskBatch, x: Tensor, full_covariance: bool) -> tuple[Tensor, Tensor]:
    """Mean ``[*B, N]`` and (co)variance ``[*B, N]`` or ``[*B, N, N]`` of a new noisy observation, float64."""
    missing = [name for name in _TRUTH if name not in batch.truth]
    if missing:
        raise ValueError(f"batch.truth: it lacks {', '.join(missing)}; the oracle needs a batch of GP tasks")
    if x.shape[-1] != 1:
        raise ValueError(f"x: got width {x.shape[-1]}; GP tasks have one input dimension")
    truth = {k: batch.truth[k].double() if k != "kernel" else batch.truth[k] for k in _TRUTH}
    hyper = (truth["kernel"], truth["lengthscale"], truth["scale"], truth["period"])
    noise = noise_variance(truth["noise"], truth["scale"]).unsqueeze(-1)
    context = batch.context
    assert context.y is not None
    seen = context.full_mask()
    # a padded context point becomes an independent unit-variance variable, observed at 0 and correlated with nothing
    xc = context.x.double().masked_fill(~seen.unsqueeze(-1), 0.0)
    yc = context.y.double().masked_fill(~seen.unsqueeze(-1), 0.0)
    x = x.double().expand(*batch.batch_shape, *x.shape[-2:])
    gram = covariance(*hyper, xc, xc) * (seen.unsqueeze(-1) & seen.unsqueeze(-2))
    gram = gram + torch.diag_embed(torch.where(seen, noise, 1.0))
    cross = covariance(*hyper, xc, x) * seen.unsqueeze(-1)
    factor = torch.linalg.cholesky(gram)
    a = torch.linalg.solve_triangular(factor, cross, upper=False)
    b = torch.linalg.solve_triangular(factor, yc, upper=False)
    mean = (a.transpose(-1, -2) @ b).squeeze(-1)
    if full_covariance:
        prior = covariance(*hyper, x, x)
        posterior = prior - a.transpose(-1, -2) @ a
        return mean, posterior + torch.diag_embed(noise.expand(mean.shape))
    # every kernel here is stationary: the prior variance is scale² at each input
    variance = (truth["scale"] ** 2).unsqueeze(-1) - a.square().sum(-2)
    return mean, variance.clamp_min(0.0) + noise


def _scored(batch: TaskBatch, points: str) -> tuple[Dataset, Tensor]:
    data: Dataset = getattr(batch, points)
    if data.y is None:
        raise ValueError(f"batch.{points}: y is None; points must be observed to be scored")
    seen = data.full_mask()
    return data, seen


def _floor(min_scale: float | None) -> float:
    if min_scale is None:
        return 0.0
    return min_scale**2


@checked()
def oracle_predict(batch: TaskBatch, x: Tensor) -> tuple[Tensor, Tensor]:
    """Exact GP predictive of a new noisy observation at ``x`` given ``batch.context``, under the true kernel.

    Args:
        batch: a batch of ``GPTasks``; its context may be masked or empty.
        x: inputs ``[*B, N, 1]``, or ``[N, 1]`` shared by all tasks.

    Returns:
        Mean and standard deviation (latent posterior variance plus noise variance, then the root), float64
        ``[*B, N, 1]`` in units of y.

    Raises:
        ValueError: the batch carries no GP truth, or x is not of width 1.
    """
    mean, variance = _posterior(batch, x, full_covariance=False)
    return mean.unsqueeze(-1), variance.sqrt().unsqueeze(-1)


@checked(points=one_of("target", "context", "full"), min_scale=NOT_NEGATIVE)
def oracle_log_likelihood(batch: TaskBatch, points: str = "target", min_scale: float | None = None) -> Tensor:
    """Marginal log-density of each point under the exact GP predictive from the context.

    Every point counts as a fresh noisy observation, also the context points: the predictive variance is the latent
    posterior variance plus the noise variance.

    Args:
        batch: a batch of ``GPTasks``.
        points: ``"target"`` (PLL), ``"context"`` (RLL) or ``"full"`` (LL), as in NVDP's metrics.
        min_scale: floor on the predictive standard deviation, ``max(sd, min_scale)``; NVDP's head has 0.1.

    Returns:
        float64 ``[*B, N]`` in nats; 0 at padded points.

    Raises:
        ValueError: ``points`` or ``min_scale`` is out of its range, or the batch carries no GP truth.
    """
    data, seen = _scored(batch, points)
    floor = _floor(min_scale)
    mean, variance = _posterior(batch, data.x.masked_fill(~seen.unsqueeze(-1), 0.0), full_covariance=False)
    variance = variance.clamp_min(floor)
    assert data.y is not None
    error = data.y.double().squeeze(-1) - mean
    log_density = -0.5 * (error.square() / variance + variance.log() + math.log(2 * math.pi))
    return log_density.masked_fill(~seen, 0.0)


@checked(points=one_of("target", "context", "full"), min_scale=NOT_NEGATIVE)
def oracle_joint_log_likelihood(batch: TaskBatch, points: str = "target", min_scale: float | None = None) -> Tensor:
    """Joint log-density of a task's points under the exact GP predictive, divided by their number.

    With ``min_scale`` the covariance keeps its off-diagonal entries while each diagonal entry is raised to at least
    ``min_scale²``; that adds independent noise where a marginal is sharper than the floor, so every marginal standard
    deviation is ``max(sd, min_scale)`` exactly as in :func:`oracle_log_likelihood`.

    Args:
        batch, points, min_scale: as in :func:`oracle_log_likelihood`.

    Returns:
        float64 ``[*B]`` in nats per existing point; 0 for a task without points.

    Raises:
        ValueError: as in :func:`oracle_log_likelihood`.
    """
    data, seen = _scored(batch, points)
    floor = _floor(min_scale)
    mean, cov = _posterior(batch, data.x.masked_fill(~seen.unsqueeze(-1), 0.0), full_covariance=True)
    diagonal = cov.diagonal(dim1=-2, dim2=-1)
    cov = cov + torch.diag_embed((floor - diagonal).clamp_min(0.0))
    # padded points: independent unit-variance variables at their mean, whose log-density is taken out again
    cov = cov * (seen.unsqueeze(-1) & seen.unsqueeze(-2)) + torch.diag_embed((~seen).double())
    assert data.y is not None
    error = (data.y.double().squeeze(-1) - mean).masked_fill(~seen, 0.0)
    factor = torch.linalg.cholesky(cov)
    white = torch.linalg.solve_triangular(factor, error.unsqueeze(-1), upper=False).squeeze(-1)
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    count = seen.sum(-1).double()
    log_density = -0.5 * white.square().sum(-1) - half_log_det - 0.5 * math.log(2 * math.pi) * count
    return log_density / count.clamp_min(1)
