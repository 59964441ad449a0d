"""Gaussians fitted by geometry instead of a learning rate: Bures-Wasserstein gradient flow, and batch and match."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from guides.any_model.normal_guides import LEAST_SCALE, AmortisedMultivariateNormalGuide
from inference.random_state import seeded
from pp_models.arguments import CALLABLE, DRAWS, POSITIVE, SEED, checked, integer, one_of

METHODS = ("bures-wasserstein", "batch-and-match")


@checked(
    model=CALLABLE, method=one_of(*METHODS), steps=integer(1), step_size=POSITIVE, num_points=DRAWS, seed=SEED,
)  # fmt: skip
def gaussian_vi(
    model: Callable,
    *args: Any,
    method: str = "bures-wasserstein",
    steps: int = 50,
    step_size: float | None = None,
    num_points: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> AmortisedMultivariateNormalGuide:
    """The Gaussian of full covariance over the unconstrained latents of any Pyro model, without an optimizer.

    With V = -log p(y, z), expectations E under the Gaussian N(m, Σ) of the step:

    * ``"bures-wasserstein"`` descends KL(q ‖ p) along its gradient flow on Gaussians by forward-backward steps (Diao et
      al. 2023): m ← m - η E∇V; M = I - η E∇²V, S = M Σ M, Σ ← ½ (S + 2 η I + (S (S + 4 η I))^½). η is ``step_size``
      (at most 1, the default) over the largest eigenvalue of E∇²V, which is taken from gradients (Stein's identity).
    * ``"batch-and-match"`` matches scores (Cai et al. 2024): Σ solves Σ U Σ + Σ = V of the points' and their scores'
      covariances. ``step_size`` is its λ, 10 n by default: the larger, the less of the last step is kept; on a
      Gaussian target one step with a large λ is exact.

    Args:
        model: any Pyro model without discrete latents.
        *args: what it is called with.
        method: as above.
        steps: steps.
        step_size: as above.
        num_points: points of an expectation; None takes the 2 n sigma points m ± √n L e_i, exact on Gaussian targets;
            else so many draws, half of them the others' mirror images.
        seed: of the draws.
        **kwargs: what it is called with by name.

    Returns:
        A guide with the Gaussian, which any objective, ``verdict`` and ``from_pyro_svi`` take.

    Raises:
        ValueError: a number out of range, or a density that is not finite at the Gaussian's points.

    Example:
        >>> guide = gaussian_vi(schools, y)
        >>> verdict(schools, guide, y)
    """
    most = 1.0 if method == "bures-wasserstein" else math.inf
    if step_size is not None and step_size > most:
        raise ValueError(f"step_size: got {step_size}; that of 'bures-wasserstein' must be at most 1")
    with seeded(seed):
        guide = AmortisedMultivariateNormalGuide(model, encoder=None, example=None if kwargs else args)
        if guide.layout is None:
            guide.set_up(*args, **kwargs)
        target = _Target(model, guide, args, kwargs)
        mean, covariance = guide.centre.double(), torch.diag(guide.spread.double().square())
        size = len(mean)
        for step in range(steps):
            points = _points(mean, covariance, num_points)
            scores = target.scores(points, step)
            if method == "bures-wasserstein":
                mean, covariance = _bures_wasserstein(mean, covariance, points, scores, step_size or 1.0)
            else:
                mean, covariance = _match(mean, covariance, points, scores, step_size or 10.0 * size)
    _put(guide, mean, covariance)
    return guide


class _Target:
    """Gradients of a model's log-density over its unconstrained latents."""

    def __init__(self, model: Callable, guide: Any, args: tuple, kwargs: Mapping[str, Any]) -> None:
        self.model, self.layout, self.args, self.kwargs = model, guide.layout, args, kwargs
        self.dtype = guide.centre.dtype

    def log_density(self, z: Tensor) -> Tensor:
        """log p(y, x(z)) + log |dx / dz|."""
        values = self.layout.unpacked(z.to(self.dtype))
        data = {name: value for name, (value, _) in values.items()}
        trace = poutine.trace(poutine.condition(self.model, data=data)).get_trace(*self.args, **self.kwargs)
        return torch.as_tensor(trace.log_prob_sum()) - sum(extra.sum() for _, extra in values.values())

    def scores(self, points: Tensor, step: int) -> Tensor:
        """Gradients ``[S, n]`` at points ``[S, n]``.

        Raises:
            ValueError: one is not finite.
        """
        found = []
        for point in points:
            z = point.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.log_density(z), z)
            found.append(gradient.double())
        scores = torch.stack(found)
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(
                f"model: its density is not finite at the points of step {step}; it must be (or a smaller step_size)"
            )
        return scores


def _points(mean: Tensor, covariance: Tensor, count: int | None) -> Tensor:
    """Points ``[S, n]`` whose mean, and for sigma points covariance, is the Gaussian's."""
    lower, n = torch.linalg.cholesky(covariance), len(mean)
    unit = math.sqrt(n) * torch.eye(n, dtype=mean.dtype)
    if count is not None:
        unit = torch.randn(max(count // 2, 1), n, dtype=mean.dtype)
    moved = unit @ lower.mT
    return torch.cat([mean + moved, mean - moved])


def _bures_wasserstein(m: Tensor, cov: Tensor, points: Tensor, scores: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """A forward-backward step (Diao et al. 2023, algorithm 1)."""
    gradient = -scores.mean(0)
    # Stein: E[∇²V] = Σ⁻¹ E[(z - m) ∇Vᵀ]
    hessian = -torch.linalg.solve(cov, (points - m).mT @ scores / len(points))
    hessian = 0.5 * (hessian + hessian.mT)
    eta = share / float(torch.linalg.eigvalsh(hessian).abs().max().clamp_min(1e-12))
    eye = torch.eye(len(m), dtype=m.dtype)
    forward = eye - eta * hessian
    half = forward @ cov @ forward
    values, vectors = torch.linalg.eigh(0.5 * (half + half.mT))
    values = values.clamp_min(0)
    values = 0.5 * (values + 2 * eta + (values * (values + 4 * eta)).sqrt())
    return m - eta * gradient, (vectors * values) @ vectors.mT


def _match(m: Tensor, cov: Tensor, points: Tensor, scores: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """A step of batch and match (Cai et al. 2024, equations 8 to 11)."""
    z, g = points.mean(0), scores.mean(0)
    weight = lam / (1 + lam)
    spread = (points - z).mT @ (points - z) / len(points)
    of_scores = (scores - g).mT @ (scores - g) / len(points)
    u = lam * of_scores + weight * torch.outer(g, g)
    v = cov + lam * spread + weight * torch.outer(m - z, m - z)
    lower = torch.linalg.cholesky(v)
    values, vectors = torch.linalg.eigh(4 * lower.mT @ u @ lower)
    inner = (vectors / (1 + (1 + values.clamp_min(0)).sqrt())) @ vectors.mT
    found = 2 * lower @ inner @ lower.mT
    found = 0.5 * (found + found.mT)
    return m / (1 + lam) + weight * (found @ g + z), found


@torch.no_grad()
def _put(guide: AmortisedMultivariateNormalGuide, mean: Tensor, covariance: Tensor) -> None:
    """Sets the guide's numbers to a mean and a covariance."""
    centre, spread = guide.centre.double(), guide.spread.double()
    lower = torch.linalg.cholesky(covariance) / spread.unsqueeze(-1)
    diagonal = (lower.diagonal() - LEAST_SCALE).clamp_min(1e-12)
    raw = diagonal + torch.log(-torch.expm1(-diagonal))  # softplus's inverse
    rest = lower[guide.below[0], guide.below[1]]  # type: ignore[index]
    guide.numbers.copy_(torch.cat([(mean - centre) / spread, raw, rest]))
