"""Distributions moved by a few numbers that start at zero: what a data set's own steps change."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from guides.mixtures.logistic_normal_mixture import AdditiveLogisticNormal
from pp_models.mixtures.simplex_distributions import LogSpaceDirichlet, StickBreaking

#: concentrations and the like, all positive
POSITIVE: dict[type, tuple[str, ...]] = {
    torch.distributions.Gamma: ("concentration", "rate"),
    torch.distributions.Beta: ("concentration1", "concentration0"),
    torch.distributions.Dirichlet: ("concentration",),
    LogSpaceDirichlet: ("concentration",),
    StickBreaking: ("a", "b"),
}
#: a place and a scale, and what else there is
LOCATED: dict[type, tuple[str, ...]] = {
    torch.distributions.Normal: (),
    torch.distributions.Laplace: (),
    torch.distributions.Cauchy: (),
    torch.distributions.StudentT: ("df",),
    AdditiveLogisticNormal: (),
}


class Movable:
    """A distribution that says itself what it is with another place and scale."""

    loc: Tensor
    scale: Tensor

    def moved(self, loc: Tensor, scale: Tensor) -> Any:
        """The same distribution, with these."""
        raise NotImplementedError

    def from_noise(self, noise: Tensor) -> Tensor:
        """The draw that a standard normal ``[*B, D]`` becomes."""
        raise NotImplementedError


def moves_of(fn: Any, site: str) -> dict[str, Tensor]:
    """The numbers, all zero, that :func:`moved` takes for a distribution.

    Raises:
        ValueError: nothing is known of such a distribution.
    """
    if isinstance(fn, torch.distributions.Independent | torch.distributions.TransformedDistribution):
        return moves_of(fn.base_dist, site)
    if isinstance(fn, Movable) or type(fn) in _known(LOCATED):
        return {"loc": torch.zeros_like(fn.loc), "scale": torch.zeros_like(fn.scale)}
    if isinstance(fn, torch.distributions.MultivariateNormal):
        lower = torch.zeros_like(fn.scale_tril)
        return {"loc": torch.zeros_like(fn.loc), "scale": lower}
    if isinstance(fn, torch.distributions.LowRankMultivariateNormal):
        parts = {"loc": fn.loc, "factor": fn.cov_factor, "diagonal": fn.cov_diag}
        return {name: torch.zeros_like(value) for name, value in parts.items()}
    kind = _kind(fn, POSITIVE)
    if kind is not None:
        return {name: torch.zeros_like(getattr(fn, name)) for name in POSITIVE[kind]}
    raise ValueError(
        f"guide: site {site!r} has a {type(fn).__name__}, which RefinedGuide cannot move; it must be a normal (flow, "
        "low-rank and multivariate too), Student-t, Laplace, Gamma, Beta or Dirichlet, or a transformation of one"
    )


def moved(fn: Any, moves: dict[str, Tensor]) -> Any:
    """A distribution, moved: its place in units of its scale, scales and concentrations by factors of exp.

    Differentiable in the distribution's own parameters and in the moves.
    """
    if isinstance(fn, torch.distributions.Independent):
        return moved(fn.base_dist, moves).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        return dist.TransformedDistribution(moved(fn.base_dist, moves), fn.transforms)
    own = fn.loc if hasattr(fn, "loc") else getattr(fn, next(iter(fn.arg_constraints)))
    moves = {name: value.to(own.dtype) for name, value in moves.items()}
    if isinstance(fn, Movable):
        return fn.moved(fn.loc + fn.scale * moves["loc"], fn.scale * moves["scale"].exp())
    if isinstance(fn, torch.distributions.MultivariateNormal):
        factor = fn.scale_tril @ transform_to(constraints.lower_cholesky)(moves["scale"])
        loc = fn.loc + (fn.scale_tril @ moves["loc"].unsqueeze(-1)).squeeze(-1)
        return dist.MultivariateNormal(loc, scale_tril=factor)
    if isinstance(fn, torch.distributions.LowRankMultivariateNormal):
        scale = fn.stddev
        factor = fn.cov_factor + scale.unsqueeze(-1) * moves["factor"]
        return dist.LowRankMultivariateNormal(
            fn.loc + scale * moves["loc"], factor, fn.cov_diag * moves["diagonal"].exp()
        )
    kind = _kind(fn, LOCATED)
    if kind is not None:
        others = [getattr(fn, name) for name in LOCATED[kind]]
        return _of_pyro(kind)(*others, fn.loc + fn.scale * moves["loc"], fn.scale * moves["scale"].exp())
    kind = _kind(fn, POSITIVE)
    assert kind is not None
    return _of_pyro(kind)(**{name: getattr(fn, name) * moves[name].exp() for name in POSITIVE[kind]})


def common_draw(fn: Any, batch_dims: int) -> Tensor | None:
    """A draw of every element of a batch from the same noise, so that none depends on its place in the batch.

    Args:
        fn: the distribution.
        batch_dims: leading dimensions of its draws that are the batch.

    Returns:
        The draw; None where its noise is not known.
    """
    if isinstance(fn, torch.distributions.Independent):
        return common_draw(fn.base_dist, batch_dims)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        value = common_draw(fn.base_dist, batch_dims)
        for transform in fn.transforms if value is not None else ():
            value = transform(value)
        return value

    def noise(like: Tensor) -> Tensor:
        shape = like.shape[batch_dims:]
        return torch.randn(shape, dtype=like.dtype, device=like.device).expand(like.shape)

    if isinstance(fn, Movable):
        return fn.from_noise(noise(fn.loc))
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return fn.loc + (fn.scale_tril @ noise(fn.loc).unsqueeze(-1)).squeeze(-1)
    if isinstance(fn, torch.distributions.LowRankMultivariateNormal):
        along = noise(fn.cov_factor[..., 0, :]).unsqueeze(-1)
        return fn.loc + (fn.cov_factor @ along).squeeze(-1) + fn.cov_diag.sqrt() * noise(fn.loc)
    return fn.loc + fn.scale * noise(fn.loc) if isinstance(fn, torch.distributions.Normal) else None


def _known(table: dict[type, Any]) -> set[type]:
    return {*table, *map(_of_pyro, table)}


def _kind(fn: Any, table: dict[type, Any]) -> type | None:
    """The entry of a table that a distribution is exactly, as torch's or Pyro's."""
    return next((kind for kind in table if type(fn) in (kind, _of_pyro(kind))), None)


def _of_pyro(kind: type) -> Any:
    return getattr(dist, kind.__name__, kind)
