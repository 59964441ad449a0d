"""A Gaussian over a weight matrix as a conjugate update of a Gaussian prior, in the prior's own coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import register_kl

from guides.networks.positive_solve import PositiveMatrix
from pp_models.log_uniform import LogUniform, normal_log_uniform_kl
from pp_models.single_precision import single


class Primal:
    """u ~ N(m, Λ⁻¹) with Λ = I + G and Λ m = h, by the Cholesky factor of Λ ``[..., k, k]``.

    See docs/papers/bnnp.md, eq. 8 to 10.

    Args:
        gram: G ``[..., k, k]``, positive semi-definite.
        moment: h ``[..., k]``.
        perturb: draws of N(0, G), of a shape ``[..., k]``; with them a draw of u is Λ⁻¹ (h + N(0, I) + N(0, G)), whose
            gradient needs no derivative of a factor. None takes L⁻ᵀ of a normal draw.
    """

    def __init__(self, gram: Tensor, moment: Tensor, perturb: Callable[[torch.Size], Tensor] | None = None) -> None:
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        self.precision, self.perturb = PositiveMatrix(gram + eye), perturb
        self.mean = self.precision.solve(moment.unsqueeze(-1)).squeeze(-1)

    @property
    def lower(self) -> Tensor:
        """The factor of Λ."""
        return self.precision.lower

    @property
    def log_det(self) -> Tensor:
        """log |Λ|."""
        return self.precision.log_det()

    def draw(self, shape: torch.Size) -> Tensor:
        noise = torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device)
        # without gradients the factor is as good, and draws do not depend on the order of the points
        if self.perturb is None or not torch.is_grad_enabled():
            return self.mean + torch.linalg.solve_triangular(self.lower.mT, noise.unsqueeze(-1), upper=True).squeeze(-1)
        return self.mean + self.precision.solve((noise + self.perturb(shape)).unsqueeze(-1)).squeeze(-1)

    def quadratic(self, difference: Tensor) -> Tensor:
        """dᵀ Λ d, as a sum of squares: as a product it would lose in float32 what is small beside Λ."""
        return (difference.unsqueeze(-2) @ self.lower).square().sum((-1, -2))

    def trace(self, matrix: Tensor) -> Tensor:
        """tr(B Λ⁻¹ Bᵀ) for B ``[..., rows, k]``."""
        return self.product_trace(matrix.mT @ matrix)

    def product_trace(self, weight: Tensor | None = None) -> Tensor:
        """tr(G S) for this covariance S and a symmetric G ``[..., k, k]``, the identity if None."""
        return self.precision.trace_of_inverse(weight)

    def divergence(self) -> Tensor:
        """tr(S) + log |Λ| for this covariance S."""
        return self.precision.divergence()

    def weighed_trace(self, other: Whitened) -> Tensor:
        """tr(Λ S) for the covariance S of another posterior."""
        return other.product_trace(self.precision.matrix)


class Dual:
    """The same posterior for Λ = I + AᵀA and h = Aᵀr with few points (A is ``[..., N, k]``, N < k), by I + A Aᵀ.

    Draws by Matheron's rule, a prior draw corrected by its misfit (docs/papers/bnnp.md, eq. 11 and 12).
    """

    def __init__(self, design: Tensor, residual: Tensor) -> None:
        self.design, self.residual = design, residual
        eye = torch.eye(design.shape[-2], dtype=design.dtype, device=design.device)
        self.inner = PositiveMatrix(design @ design.mT + eye)
        self.mean = self._lift(residual)

    @property
    def lower(self) -> Tensor:
        """The factor of I + A Aᵀ."""
        return self.inner.lower

    def _lift(self, values: Tensor) -> Tensor:
        """Aᵀ (I + A Aᵀ)⁻¹ values."""
        return (self.design.mT @ self.inner.solve(values.unsqueeze(-1))).squeeze(-1)

    @property
    def log_det(self) -> Tensor:
        return self.inner.log_det()

    def draw(self, shape: torch.Size) -> Tensor:
        prior = torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device)
        noise = torch.randn((*shape[:-1], self.design.shape[-2]), dtype=prior.dtype, device=prior.device)
        misfit = self.residual - (self.design @ prior.unsqueeze(-1)).squeeze(-1) - noise
        return prior + self._lift(misfit)

    def quadratic(self, difference: Tensor) -> Tensor:
        return difference.square().sum(-1) + (self.design @ difference.unsqueeze(-1)).square().sum((-1, -2))

    def trace(self, matrix: Tensor) -> Tensor:
        crossed = self.design @ matrix.mT
        return matrix.square().sum((-1, -2)) - (crossed * self.inner.solve(crossed)).sum((-1, -2))

    def product_trace(self, weight: Tensor | None = None) -> Tensor:
        if weight is None:
            points, width = self.design.shape[-2:]
            return self.inner.trace_of_inverse() + (width - points)
        crossed = self.design @ weight @ self.design.mT
        return weight.diagonal(dim1=-2, dim2=-1).sum(-1) - self.inner.trace_of_inverse(crossed)

    def divergence(self) -> Tensor:
        points, width = self.design.shape[-2:]
        return self.inner.divergence() + (width - points)

    def weighed_trace(self, other: Whitened) -> Tensor:
        return other.product_trace() + other.trace(self.design)


class Unwhitened:
    """u ~ N(0, I): then W has the mean and factor that it was given.

    Args:
        loc: any tensor ``[..., k]`` of the batch, dtype and device wanted.
    """

    def __init__(self, loc: Tensor) -> None:
        self.mean = torch.zeros_like(loc)

    @property
    def log_det(self) -> Tensor:
        return self.mean.new_zeros(self.mean.shape[:-1])

    def draw(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device)

    def quadratic(self, difference: Tensor) -> Tensor:
        return difference.square().sum(-1)

    def trace(self, matrix: Tensor) -> Tensor:
        return matrix.square().sum((-1, -2))

    def product_trace(self, weight: Tensor | None = None) -> Tensor:
        if weight is None:
            return self.log_det + self.mean.shape[-1]
        return weight.diagonal(dim1=-2, dim2=-1).sum(-1)

    def divergence(self) -> Tensor:
        return self.product_trace()

    def weighed_trace(self, other: Whitened) -> Tensor:
        return other.product_trace()


Whitened = Primal | Dual | Unwhitened


class WhitenedGaussian(TorchDistribution):
    """W = μ + C u block by block, u ~ N(m, Λ⁻¹): the posterior of weights with prior N(μ, C Cᵀ).

    See docs/papers/bnnp.md, eq. 8 to 12.

    A block is the incoming weights of a unit (``k_out`` blocks of ``k_in + 1``), or the whole matrix, row after row.
    In these coordinates Λ has no eigenvalue below one, so that nothing needs jitter.

    Args:
        loc: μ ``[..., blocks, k]``.
        factor: C, lower triangular ``[..., blocks, k, k]``, or its diagonal ``[..., blocks, k]``.
        whitened: the posterior of u, batch ``[..., blocks]``.
        shape: ``(k_out, k_in + 1)`` of the matrix.
        diagonal: whether C is diagonal.
        prior: names the prior, so that two posteriors under the same one are known to share μ and C.
        dtype: of the draws and the moments, where it is not that of μ: factorisations need float32.

    Shapes: batch ``*B``, event ``[k_out, k_in + 1]``.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        factor: Tensor,
        whitened: Whitened,
        shape: tuple[int, int],
        diagonal: bool,
        prior: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = dtype or loc.dtype
        self.loc, self.factor, self.whitened, self.diagonal, self.prior = loc, factor, whitened, diagonal, prior
        batch = torch.broadcast_shapes(loc.shape[:-2], whitened.mean.shape[:-2])
        super().__init__(batch, torch.Size(shape), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        # parameters keep their own shape and broadcast: particles cost nothing until something is drawn
        new = self._get_checked_instance(WhitenedGaussian, _instance)
        for name in ("loc", "factor", "whitened", "diagonal", "prior", "dtype"):
            setattr(new, name, getattr(self, name))
        super(WhitenedGaussian, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    @property
    def block_shape(self) -> torch.Size:
        """``[blocks, k]``."""
        return self.loc.shape[-2:]

    def coloured(self, u: Tensor) -> Tensor:
        """C u ``[..., blocks, k]``."""
        return self.factor * u if self.diagonal else block_product(self.factor, u)

    def _as_matrix(self, blocks: Tensor) -> Tensor:
        return blocks.reshape(blocks.shape[:-2] + self.event_shape).to(self.dtype)

    @property
    def mean(self) -> Tensor:
        found = self.loc + self.coloured(self.whitened.mean)
        return self._as_matrix(found).expand(self.batch_shape + self.event_shape)

    def covariance(self) -> Tensor:
        """Covariance of each block ``[..., blocks, k, k]``; for tests and small networks."""
        k = self.block_shape[-1]
        factor = torch.diag_embed(self.factor) if self.diagonal else self.factor
        if isinstance(self.whitened, Unwhitened):
            return factor @ factor.mT
        if isinstance(self.whitened, Primal):
            eye = torch.eye(k, dtype=factor.dtype, device=factor.device)
            inner = self.whitened.precision.solve(eye)
        else:
            lifted = torch.linalg.solve_triangular(self.whitened.lower, self.whitened.design, upper=False)
            inner = torch.eye(k, dtype=factor.dtype, device=factor.device) - lifted.mT @ lifted
        return factor @ inner @ factor.mT

    @property
    def variance(self) -> Tensor:
        found = self.covariance().diagonal(dim1=-2, dim2=-1)
        return self._as_matrix(found).expand(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape=()):
        shape = torch.Size(sample_shape) + self.batch_shape + self.block_shape
        return self._as_matrix(self.loc + self.coloured(self.whitened.draw(shape)))

    def log_factor_det(self) -> Tensor:
        """log |C| of each block."""
        return (self.factor if self.diagonal else self.factor.diagonal(dim1=-2, dim2=-1)).log().sum(-1)

    def log_prob(self, value):
        difference = value.reshape(value.shape[:-2] + self.block_shape).to(self.loc.dtype) - self.loc
        if self.diagonal:
            u = difference / self.factor
        else:
            u = solve_lower(self.factor, difference)
        quadratic = self.whitened.quadratic(u - self.whitened.mean)
        k = self.block_shape[-1]
        each = -0.5 * (quadratic + k * math.log(2 * math.pi) - self.whitened.log_det) - self.log_factor_det()
        return each.sum(-1)


def block_product(matrix: Tensor, values: Tensor) -> Tensor:
    """A v, block by block: A ``[..., blocks, n, k]``, v ``[..., blocks, k]``; A is not repeated for what v has more."""
    if matrix.dim() > 3:
        return (matrix @ values.unsqueeze(-1)).squeeze(-1)
    return torch.einsum("dnk,...dk->...dn", matrix, values)


def solve_lower(lower: Tensor, values: Tensor) -> Tensor:
    """L⁻¹ v for L ``[..., k, k]`` and v ``[..., k]``, broadcast."""
    shape = torch.broadcast_shapes(lower.shape[:-2], values.shape[:-1])
    return torch.linalg.solve_triangular(
        lower.expand(*shape, *lower.shape[-2:]), values.expand(*shape, values.shape[-1]).unsqueeze(-1), upper=False
    ).squeeze(-1)


def gaussian_blocks(fn: Any, blocks: torch.Size) -> tuple[Tensor, Tensor, bool] | None:
    """Mean ``[..., blocks, k]`` and scale of a Gaussian over a matrix, and whether the scale is diagonal.

    None where it is not a Gaussian with the same blocks.
    """
    base, whole = fn, False
    if isinstance(base, torch.distributions.TransformedDistribution):
        transforms = base.transforms
        if len(transforms) != 1 or not isinstance(transforms[0], torch.distributions.transforms.ReshapeTransform):
            return None
        base, whole = base.base_dist, True
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if isinstance(base, torch.distributions.Normal):
        event = fn.event_shape
        loc, scale = (t.expand(t.shape[:-2] + event) for t in (base.loc, base.scale))
        return loc.reshape(loc.shape[:-2] + blocks), scale.reshape(scale.shape[:-2] + blocks), True
    if isinstance(base, torch.distributions.MultivariateNormal):
        loc, lower = base.loc, base._unbroadcasted_scale_tril
        if whole:
            loc, lower = loc.unsqueeze(-2), lower.unsqueeze(-3)
        if blocks[-2] == 1 and loc.shape[-2:].numel() == blocks[-1]:  # independent units, as one block
            return loc.flatten(-2).unsqueeze(-2), _block_diagonal(lower).unsqueeze(-3), False
        return (loc, lower, False) if loc.shape[-2:] == blocks else None
    return None


def _block_diagonal(blocks: Tensor) -> Tensor:
    """``[..., B, k, k]`` as ``[..., B k, B k]``."""
    eye = torch.eye(blocks.shape[-3], dtype=blocks.dtype, device=blocks.device)
    return torch.einsum("...bij,bc->...bicj", blocks, eye).flatten(-2).flatten(-3, -2)


def prior_of(fn: Any) -> Any:
    """The name of the prior that a distribution is a layer of; None for any other."""
    while not hasattr(fn, "prior") and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return getattr(fn, "prior", None)


@register_kl(WhitenedGaussian, torch.distributions.Distribution)
def _kl_whitened_gaussian(q: WhitenedGaussian, p: torch.distributions.Distribution) -> Tensor:
    """Exact KL to any Gaussian with the same (or finer, diagonal) blocks; of independent entries to a log-uniform."""
    entries = p
    while isinstance(entries, torch.distributions.Independent):
        entries = entries.base_dist
    if isinstance(entries, LogUniform) and q.diagonal and isinstance(q.whitened, Unwhitened):
        return normal_log_uniform_kl(q.loc, q.factor).sum((-1, -2)).expand(q.batch_shape)
    found = gaussian_blocks(p, q.block_shape)
    if found is None:
        raise NotImplementedError
    k = q.block_shape[-1]
    if q.prior is not None and prior_of(p) == q.prior:
        each = q.whitened.divergence() + q.whitened.mean.square().sum(-1) - k
        return 0.5 * each.sum(-1).expand(q.batch_shape)
    loc, scale, diagonal = single(found[0]), single(found[1]), found[2]
    difference = q.loc - loc + q.coloured(q.whitened.mean)
    factor = torch.diag_embed(q.factor) if q.diagonal else q.factor
    if diagonal:
        ratio = factor / scale.unsqueeze(-1)
        moved, log_det = difference / scale, scale.log().sum(-1)
    else:
        shape = torch.broadcast_shapes(scale.shape, factor.shape)
        ratio = torch.linalg.solve_triangular(scale.expand(shape), factor.expand(shape), upper=False)
        moved, log_det = solve_lower(scale, difference), scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    each = q.whitened.trace(ratio) + moved.square().sum(-1) - k
    each = 0.5 * (each + q.whitened.log_det) + log_det - q.log_factor_det()
    return each.sum(-1).expand(q.batch_shape)


@register_kl(WhitenedGaussian, WhitenedGaussian)
def _kl_whitened_whitened(q: WhitenedGaussian, p: WhitenedGaussian) -> Tensor:
    """KL between two posteriors under one prior, in its coordinates (docs/papers/bnnp.md, eq. 13)."""
    if q.prior is None or q.prior != p.prior:
        raise NotImplementedError
    k = q.block_shape[-1]
    difference = q.whitened.mean - p.whitened.mean
    each = p.whitened.weighed_trace(q.whitened) + p.whitened.quadratic(difference) - k
    each = 0.5 * (each + q.whitened.log_det - p.whitened.log_det)
    return each.sum(-1).expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))
