"""The exact posterior of one linear layer with Gaussian observations, in the coordinates of its prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from guides.networks.whitened_gaussian import Dual, Primal, WhitenedGaussian, block_product
from pp_models.networks.priors import GaussianBlocks
from pp_models.single_precision import single

SOLVERS = ("auto", "primal", "dual")
#: below so many units a Gram matrix each is less work than the products of all pairs of features
FEW_UNITS = 4


def layer_posterior(
    features: Tensor,
    target: Tensor,
    precision: Tensor,
    blocks: GaussianBlocks,
    shape: tuple[int, int],
    prior: Any,
    solver: str = "auto",
) -> WhitenedGaussian:
    """p(W | v) ∝ p(W) Π_nd N(v_nd; φ_nᵀ w_d, 1/λ_nd) (docs/papers/bnnp.md, eq. 5 and 6).

    Args:
        features: what enters the layer ``[..., N, k_in]``.
        target: v ``[..., N, k_out]``.
        precision: λ ``[..., N, k_out]``; 0 where there is no observation.
        blocks: the prior.
        shape: ``(k_out, k_in + 1)``.
        prior: names the prior (see :class:`WhitenedGaussian`).
        solver: ``"primal"`` factors matrices of the layer's width, ``"dual"`` of the number of points; ``"auto"`` takes
            the smaller.
    """
    phi, dtype, blocks = with_bias(features), blocks.loc.dtype, blocks.single()
    # a whole layer has k_out times the rows and the columns of a unit: the same form is the smaller
    if solver == "dual" or (solver == "auto" and phi.shape[-2] < phi.shape[-1]):
        dual = dual_of_layer if blocks.whole(shape[0]) else dual_of_units
        whitened: Primal | Dual = dual(phi, target, precision, blocks)
        return WhitenedGaussian(blocks.loc, blocks.factor, whitened, shape, blocks.diagonal, prior, dtype)
    gram, moment = statistics(phi, target, precision, blocks)
    perturb = perturbation(phi, precision, blocks, shape)
    return posterior_of_statistics(gram, moment, blocks, shape, prior, dtype, perturb)


def posterior_of_statistics(
    gram: Tensor,
    moment: Tensor,
    blocks: GaussianBlocks,
    shape: tuple[int, int],
    prior: Any,
    dtype: torch.dtype | None = None,
    perturb: Callable[[torch.Size], Tensor] | None = None,
) -> WhitenedGaussian:
    """The same from natural statistics G ``[..., blocks, k, k]`` and h ``[..., blocks, k]`` of :func:`statistics`.

    Args:
        gram: G.
        moment: h.
        blocks: the prior.
        shape: ``(k_out, k_in + 1)``.
        prior: names the prior.
        dtype: of the draws.
        perturb: see :func:`perturbation`; statistics alone do not give it.
    """
    dtype, blocks = dtype or blocks.loc.dtype, blocks.single()
    whitened = Primal(*whiten(single(gram), single(moment), blocks), perturb)
    return WhitenedGaussian(blocks.loc, blocks.factor, whitened, shape, blocks.diagonal, prior, dtype)


def with_bias(features: Tensor) -> Tensor:
    """Features with a column of ones, in float32 at least."""
    return torch.cat([single(features), single(features.new_ones(*features.shape[:-1], 1))], -1)


def statistics(phi: Tensor, target: Tensor, precision: Tensor, blocks: GaussianBlocks) -> tuple[Tensor, Tensor]:
    """Natural statistics of the blocks' weights, sums over points: Σ λ φ φᵀ ``[..., blocks, k, k]`` and Σ λ φ r.

    Args:
        phi: features with bias ``[..., N, k]``.
        target: v ``[..., N, k_out]``; r is what is left of it after the prior's mean.
        precision: λ ``[..., N, k_out]``.
        blocks: the prior; one block for the whole matrix gives block-diagonal statistics, units outermost.
    """
    k_out, k = target.shape[-1], phi.shape[-1]
    blocks, target, precision = blocks.single(), single(target), single(precision)
    whole = blocks.whole(k_out)
    loc = blocks.loc.unflatten(-1, (k_out, k)).squeeze(-3) if whole else blocks.loc
    residual = target - phi @ loc.mT
    moment = (phi.mT @ (precision * residual)).mT
    if k_out < FEW_UNITS:
        weighed = precision.mT.unsqueeze(-1) * phi.unsqueeze(-3)  # [..., k_out, N, k]
        gram = phi.mT.unsqueeze(-3) @ weighed
    else:  # the units share their features: one product for all of them
        pairs = (phi.unsqueeze(-1) * phi.unsqueeze(-2)).flatten(-2)  # [..., N, k k]
        gram = (precision.mT @ pairs).unflatten(-1, (k, k))
    if not whole:
        return gram, moment
    eye = torch.eye(k_out, dtype=phi.dtype, device=phi.device)
    dense = torch.einsum("...dkl,de->...dkel", gram, eye).flatten(-2).flatten(-3, -2)
    return dense.unsqueeze(-3), moment.flatten(-2).unsqueeze(-2)


def perturbation(
    phi: Tensor, precision: Tensor, blocks: GaussianBlocks, shape: tuple[int, int]
) -> Callable[[torch.Size], Tensor]:
    """Draws Cᵀ Σ_n √λ_n φ_n ε_n of N(0, Cᵀ G C), whitened statistics' own noise, of shapes ``[..., blocks, k]``."""
    root, blocks = square_root(single(precision)), blocks.single()
    whole = blocks.whole(shape[0])

    def draw(size: torch.Size) -> Tensor:
        batch = size[:-2]
        noise = torch.randn((*batch, *root.shape[-2:]), dtype=root.dtype, device=root.device)
        found = (phi.mT @ (root * noise)).mT  # [..., k_out, k]
        if whole:
            found = found.flatten(-2).unsqueeze(-2)
        if blocks.diagonal:
            return blocks.factor * found
        return block_product(blocks.factor.mT, found)

    return draw


def dual_of_units(phi: Tensor, target: Tensor, precision: Tensor, blocks: GaussianBlocks) -> Dual:
    """Posterior of each unit's whitened weights from its points, batch ``[..., k_out]``."""
    residual = single(target) - phi @ blocks.loc.mT
    root = square_root(precision).mT.unsqueeze(-1)
    spread = phi.unsqueeze(-3)
    design = spread * blocks.factor.unsqueeze(-2) if blocks.diagonal else spread @ blocks.factor
    return Dual(root * design, root.squeeze(-1) * residual.mT)


def dual_of_layer(phi: Tensor, target: Tensor, precision: Tensor, blocks: GaussianBlocks) -> Dual:
    """Posterior of all whitened weights of a layer as one block, batch ``[..., 1]``; rows are (unit, point)."""
    k_out, k = target.shape[-1], phi.shape[-1]
    residual = single(target) - phi @ blocks.loc.unflatten(-1, (k_out, k)).squeeze(-3).mT
    eye = torch.eye(k_out, dtype=phi.dtype, device=phi.device)
    wide = torch.einsum("...nk,de->...dnek", phi, eye).flatten(-2).flatten(-3, -2)
    root = square_root(precision).mT.flatten(-2).unsqueeze(-1)
    values = root.squeeze(-1) * residual.mT.flatten(-2)
    return Dual((root * (wide @ blocks.factor.squeeze(-3))).unsqueeze(-3), values.unsqueeze(-2))


def square_root(precision: Tensor) -> Tensor:
    """√λ, with derivative 0 where λ is: there is no observation, and the root's own slope is infinite."""
    exists = precision > 0
    root = torch.where(exists, precision, torch.ones_like(precision)).sqrt()
    return torch.where(exists, root, torch.zeros_like(root))


def whiten(gram: Tensor, moment: Tensor, blocks: GaussianBlocks) -> tuple[Tensor, Tensor]:
    """Cᵀ G C and Cᵀ h of natural statistics G ``[..., blocks, k, k]`` and h ``[..., blocks, k]``."""
    c = blocks.factor
    if blocks.diagonal:
        return c.unsqueeze(-1) * gram * c.unsqueeze(-2), c * moment
    return between(gram, c), block_product(c.mT, moment)


def between(gram: Tensor, factor: Tensor) -> Tensor:
    """Cᵀ G C for symmetric G ``[..., blocks, k, k]`` and C ``[blocks, k, k]``: a product a block for all tasks."""
    lead, k = gram.shape[:-3], gram.shape[-1]
    if not lead or factor.dim() > 3:
        return factor.mT @ gram @ factor
    count = lead.numel()
    rows = gram.reshape(count, *gram.shape[-3:]).transpose(0, 1).reshape(-1, count * k, k)
    right = (rows @ factor).unflatten(1, (count, k)).mT  # [blocks, tasks, k, k]: (G C)ᵀ = Cᵀ G
    both = (right.reshape(-1, count * k, k) @ factor).unflatten(1, (count, k))
    return both.transpose(0, 1).reshape(*lead, *both.shape[:1], k, k)
