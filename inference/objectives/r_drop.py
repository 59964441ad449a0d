"""The bound with a penalty on how much two draws' predictions differ: R-Drop."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from inference.objectives.independent_plates import (
    TaskAxes,
    drawn_sites,
    own_scale,
    per_particle,
    sample_sites,
    share,
)
from inference.objectives.kl_objective import Branches
from inference.objectives.penalised_elbo import PenalisedELBO
from pp_models.arguments import checked
from pp_models.mixtures.simplex_distributions import ExpertMixture


class RDrop(PenalisedELBO):
    """ELBO(D) - λ mean_k ½ [KL(p_k ‖ p_{k+1}) + KL(p_{k+1} ‖ p_k)] for each task (R-Drop, Liang et al. 2021).

    p_k is the distribution of the data that draw k predicts, at all points; draws are in a ring, so that with two of
    them each pair counts in both directions, as in the paper, whose draws are dropout's. Without a KL to a prior
    (``beta=0``) under dropout it is R-Drop itself: cross-entropy, and λ times the disagreement. It needs a likelihood
    whose KL has a closed form, as Gaussian, Bernoulli and categorical ones have, and two particles at least.

    Args:
        num_particles: draws per task, at least 2.
        penalty_weight: λ; at 0 the objective is ``elbo``.
        **options: see :class:`TaskELBO`.

    Raises:
        ValueError: an argument out of range, a likelihood without such a KL, or particles that are run one by one.

    Example:
        >>> objective = make("r-drop", num_particles=2, penalty_weight=0.5, beta=0.0)
    """

    name = "r-drop"
    description = "the bound, and draws held to predict alike"
    reference = "Liang et al. 2021"

    @checked()
    def __init__(self, num_particles: int = 2, *, penalty_weight: float = 1.0, **options: Any) -> None:
        super().__init__(num_particles, penalty_weight=penalty_weight, **options)
        if num_particles < 2:
            raise ValueError(f"num_particles: got {num_particles}; it must be at least 2: r-drop compares predictions")

    def penalise(self, runs: Branches, scored: Trace, axes: TaskAxes) -> Tensor | None:
        for name, site in drawn_sites(runs.posterior):
            if not site["fn"].has_rsample:
                raise ValueError(
                    f"penalty: site {name!r} ({type(site['fn']).__name__}) has no reparameterised draw, by which "
                    "r-drop could move it; use 'elbo'"
                )
        total: Tensor | None = None
        for name, site in sample_sites(scored):
            if not site["is_observed"]:
                continue
            value = self._disagreement(name, site["fn"], axes.particle_dim)
            if axes.particle_dim is None:
                raise ValueError(
                    "vectorize_particles: the particles of this model and guide are run one by one, and r-drop "
                    "compares them; write both for leading dimensions, or use 'elbo'"
                )
            if value is None:
                continue
            value = scale_and_mask(value, own_scale(site, axes), site["mask"])
            found = share(per_particle(value, axes, site), axes.shape)
            total = found if total is None else total + found
        return total

    def _disagreement(self, name: str, fn: Any, dim: int | None) -> Tensor | None:
        """Of each particle and the next, of a distribution's batch shape; None where all particles predict the same."""
        try:
            if dim is None or len(fn.batch_shape) < -dim or fn.batch_shape[dim] == 1:
                divergence(fn, fn)  # there is one
                return None
            other = rolled(fn, dim)
            return 0.5 * (divergence(fn, other) + divergence(other, fn))
        except NotImplementedError:
            kind = type(fn).__name__
            while hasattr(fn, "base_dist"):
                fn = fn.base_dist
                kind = type(fn).__name__
            raise ValueError(
                f"model: the KL between two predictions of site {name!r} ({kind}) has no closed form; r-drop needs a "
                "Gaussian, Bernoulli or categorical likelihood"
            ) from None


def divergence(p: Any, q: Any) -> Tensor:
    """KL(p ‖ q) of a batch, as ``torch.distributions.kl`` has it, through masks."""
    if isinstance(p, dist.MaskedDistribution):
        return scale_and_mask(divergence(p.base_dist, q.base_dist), mask=p._mask)
    if isinstance(p, torch.distributions.Independent):
        found = divergence(p.base_dist, q.base_dist)
        return found.sum(list(range(-p.reinterpreted_batch_ndims, 0))) if p.reinterpreted_batch_ndims else found
    return kl_divergence(p, q)


def rolled(fn: Any, dim: int) -> Any:
    """The same distributions, each in its neighbour's place along a (negative) batch dimension.

    Raises:
        NotImplementedError: a distribution that is not of its parameters alone.
    """
    if isinstance(fn, torch.distributions.Independent):
        return rolled(fn.base_dist, dim - fn.reinterpreted_batch_ndims).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        mask = fn._mask
        if isinstance(mask, Tensor) and mask.dim() >= -dim and mask.shape[dim] > 1:
            mask = mask.roll(1, dim)
        return rolled(fn.base_dist, dim).mask(mask)
    names = [name for name in fn.arg_constraints if name in fn.__dict__]
    if {"probs", "logits"} <= set(names):  # one was derived from the other when it was first asked for
        names.remove("probs")
    if not names or isinstance(fn, ExpertMixture) or any(not isinstance(getattr(fn, name), Tensor) for name in names):
        raise NotImplementedError
    full = fn.expand(fn.batch_shape)
    events = {name: fn.arg_constraints[name].event_dim for name in names}
    values = {name: getattr(full, name).roll(1, dim - events[name]) for name in names}
    return type(fn)(**values, validate_args=False)
