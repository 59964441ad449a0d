"""Solutions, log-determinants and traces of inverses of positive definite matrices, whose gradients factor nothing.

The derivative of a Cholesky factor costs several triangular products of its size; what is wanted of a conjugate layer
(a mean, a draw, a KL) never needs it. With Λ = L Lᵀ and u = Λ⁻¹ b, of a loss with gradient g with respect to u:
∂/∂b = Λ⁻¹ g and ∂/∂Λ = -Λ⁻¹ g uᵀ; of log |Λ|: Λ⁻¹; of tr(Λ⁻¹ G): -Λ⁻¹ G Λ⁻¹.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PositiveMatrix:
    """Λ ``[*B, k, k]``, positive definite, factored once and without a read by the host.

    Gradients are of first order; ``create_graph=True`` is refused.

    Args:
        matrix: Λ.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        with torch.no_grad():
            self._lower = torch.linalg.cholesky_ex(matrix.detach()).L
        self._inverse: Tensor | None = None
        self._differentiable: Tensor | None = None

    @property
    def lower(self) -> Tensor:
        """L, with a gradient of its own: for those who need the factor itself."""
        if not (torch.is_grad_enabled() and self.matrix.requires_grad):
            return self._lower
        if self._differentiable is None:
            self._differentiable = torch.linalg.cholesky_ex(self.matrix).L
        return self._differentiable

    def inverse_value(self) -> Tensor:
        """Λ⁻¹ without a gradient."""
        if self._inverse is None:
            self._inverse = torch.cholesky_inverse(self._lower)
        return self._inverse

    def solve(self, values: Tensor) -> Tensor:
        """Λ⁻¹ b for b ``[*S, *B, k, c]``; dimensions further left than Λ's become columns, not copies of Λ."""
        extra = max(values.dim() - self.matrix.dim(), 0)
        lead, rest = values.shape[:extra], values.shape[extra:]
        count = lead.numel()
        columns = values.reshape(count, *rest).movedim(0, -2).flatten(-2)  # [*B, k, S c]
        batch = torch.broadcast_shapes(self.matrix.shape[:-2], rest[:-2])
        matrix, lower = (t.expand(*batch, *t.shape[-2:]) for t in (self.matrix, self._lower))
        solved: Tensor = _Solve.apply(matrix, lower, columns.expand(*batch, *columns.shape[-2:]))
        return solved.unflatten(-1, (count, rest[-1])).movedim(-2, 0).reshape(*lead, *batch, *rest[-2:])

    def log_det(self) -> Tensor:
        """log |Λ| ``[*B]``."""
        return _LogDeterminant.apply(self.matrix, self._lower, self)

    def divergence(self) -> Tensor:
        """tr(Λ⁻¹) + log |Λ| ``[*B]``, what a KL to the prior needs of a covariance."""
        return _Divergence.apply(self.matrix, self._lower, self.inverse_value())

    def trace_of_inverse(self, weight: Tensor | None = None) -> Tensor:
        """tr(Λ⁻¹ G) for G ``[*B, k, k]``, symmetric; it may lack dimensions of Λ's. None is the identity."""
        return _TraceOfInverse.apply(self.matrix, weight, self.inverse_value())


def _first_order() -> None:
    """Refuses a graph of the gradient itself, in which these functions would be silently missing."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph: got True; gradients of a conjugate layer are of first order, a second derivative cannot pass"
        )


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, lower: Tensor, values: Tensor) -> Tensor:
        found = torch.cholesky_solve(values, lower)
        ctx.save_for_backward(lower, found)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor]:
        _first_order()
        lower, found = ctx.saved_tensors
        solved = torch.cholesky_solve(gradient, lower)
        return (-solved @ found.mT if ctx.needs_input_grad[0] else None), None, solved


class _LogDeterminant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, lower: Tensor, owner: PositiveMatrix) -> Tensor:
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(owner.inverse_value())
        return 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        _first_order()
        return gradient[..., None, None] * ctx.saved_tensors[0], None, None


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, lower: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        trace = inverse.diagonal(dim1=-2, dim2=-1).sum(-1)
        return trace + 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        _first_order()
        (inverse,) = ctx.saved_tensors
        flat = inverse.flatten(0, -3)
        found = torch.baddbmm(flat, flat, flat, alpha=-1)
        return found.view_as(inverse).mul_(gradient[..., None, None]), None, None


class _TraceOfInverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, weight: Tensor | None, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse, weight)
        if weight is None:
            return inverse.diagonal(dim1=-2, dim2=-1).sum(-1)
        return (inverse * weight).sum((-1, -2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        _first_order()
        inverse, weight = ctx.saved_tensors
        scaled = gradient[..., None, None] * inverse
        of_matrix = of_weight = None
        if ctx.needs_input_grad[0]:
            product = scaled if weight is None else scaled @ weight
            of_matrix = -(product @ inverse).sum_to_size(inverse.shape)
        if ctx.needs_input_grad[1]:
            of_weight = scaled.sum_to_size(weight.shape)
        return of_matrix, of_weight, None
