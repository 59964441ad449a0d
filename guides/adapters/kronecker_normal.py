"""A Gaussian over matrices whose precision is a Kronecker product plus a multiple of the identity."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor


class KroneckerNormal(TorchDistribution):
    """vec(W) ~ N(vec(loc), (L ⊗ R + δ I)⁻¹) for matrices W ``[m, n]``, rows of W one after the other in vec.

    With L = U diag(l) Uᵀ and R = V diag(r) Vᵀ the precision has the eigenvalues l_i r_j + δ in the basis U ⊗ V, so that
    draws, density and log-determinant are exact and nothing larger than the factors is ever made.

    Args:
        loc: ``[*batch, m, n]``.
        left: eigenvalues ``[m]`` and eigenvectors ``[m, m]`` (columns) of L; tiny negative eigenvalues count as 0.
        right: those of R, ``[n]`` and ``[n, n]``.
        damping: δ, positive.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, loc: Tensor, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], damping: float) -> None:
        self.loc, self.left, self.right, self.damping = loc, left, right, damping
        self.precisions = left[0].clamp_min(0.0).unsqueeze(-1) * right[0].clamp_min(0.0) + damping
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        loc = self.loc.expand(*batch_shape, *self.event_shape)
        return KroneckerNormal(loc, self.left, self.right, self.damping)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        found = self.left[1].square() @ self.precisions.reciprocal() @ self.right[1].square().mT
        return found.expand(self.loc.shape)

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device) * self.precisions.rsqrt()
        return self.loc + self.left[1] @ noise @ self.right[1].mT

    def log_prob(self, value):
        rotated = self.left[1].mT @ (value - self.loc) @ self.right[1]
        square = (rotated.square() * self.precisions).sum((-2, -1))
        return -0.5 * (square + self.precisions.numel() * math.log(2 * math.pi) + self.covariance_logdet())

    def covariance_logdet(self) -> Tensor:
        """Logarithm of the covariance's determinant, a scalar."""
        return -self.precisions.log().sum()
