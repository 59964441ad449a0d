"""Objectives made of importance weights: one set of K weights for each task."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.fixed_values import (
    GradientWeight,
    at_fixed_values,
    explicit_density,
    has_point_masses,
    leave_one_out,
    log_densities_at_fixed_values,
    log_density,
    score_term,
)
from inference.objectives.independent_plates import (
    PARTICLES,
    TaskAxes,
    Ties,
    check_extra_sites,
    common_scale,
    drawn_sites,
    independent_axes,
    reported_axes,
    sample_sites,
    share,
)
from inference.objectives.observations import observed_log_likelihood
from inference.objectives.pushforward import moved_after_the_draw, run_at_leaves, score_at_fixed_values
from inference.objectives.task_objective import BoundTerms, TaskObjective, data_set, log_mean_exp
from pp_models.arguments import checked, one_of
from pp_models.task_plates import PARTICLE_PLATE


@dataclass
class WeightedDraws:
    """Log-densities of each particle ``[K, *B]``.

    Args:
        axes: the task dimensions.
        scale: what every site is scaled by (``poutine.scale``).
        log_p: joint log-density under the model.
        log_q: log-density under the guide, or under the proposal that drew the particles.
        log_likelihood: the observed part of ``log_p``.
        points: number of scored values.
        kl_by_site: log q - log p of each site, detached.
        log_q_fixed: log q(z⁻) by drawn site, a function of the guide's parameters alone.
        log_q_score: log q of the sites that cannot be reparameterised, by site.
        log_q_explicit: log q of the point masses at fixed draws (their Jacobians), where parameters act on it.
        gradient_weights: factors on the gradients of the values that the model read, one for each pass.
    """

    axes: TaskAxes
    scale: float | Tensor
    log_p: Tensor
    log_q: Tensor
    log_likelihood: Tensor
    points: Tensor
    kl_by_site: dict[str, Tensor] = field(default_factory=dict)
    log_q_fixed: dict[str, Tensor] = field(default_factory=dict)
    log_q_score: dict[str, Tensor] = field(default_factory=dict)
    log_q_explicit: Tensor | None = None
    gradient_weights: list[GradientWeight] = field(default_factory=list)

    @property
    def log_weights(self) -> Tensor:
        """log w = log p(y, z) - log q(z)."""
        return self.log_p - self.log_q


class WeightedObjective(TaskObjective):
    """Base of the objectives whose draws have a weight each; subclasses say where particles and weights come from."""

    def weighted_terms(self, draws: WeightedDraws, bound: Tensor, score: Tensor | None = None) -> BoundTerms:
        """The terms of a bound ``[*B]``.

        Args:
            draws: the draws.
            bound: the bound of each task, with its gradient.
            score: learning signal ``[K, *B]`` of the sites that cannot be reparameterised.
        """
        if score is not None:
            for log_q in draws.log_q_score.values():
                bound = bound + score_term(score, log_q, draws.axes.shape)
        points = draws.points[0]
        if self.normalize:
            bound = bound / points.clamp_min(1.0)
        by_site = {name: value.mean(0) for name, value in draws.kl_by_site.items()}
        kl = sum(by_site.values(), torch.zeros_like(bound.detach()))
        return BoundTerms(
            draws.scale * bound,
            draws.log_likelihood.detach().mean(0),
            kl,
            points,
            by_site,
            draws.log_weights.detach(),
            draws.axes.scale,
            draws.axes.independent,
        )


class ImportanceWeighted(WeightedObjective):
    """Base of the objectives that weigh particles by w = p(y, z) / q(z | D), normalised within each task.

    Tasks are the elements of the plates that hold every latent and every observation; without such a plate there is
    one set of weights for everything. Where such a plate is subsampled, each task in the subsample has its own
    (unscaled) bound and their sum is scaled. A latent outside the subsampled plate is refused: its scale would stand
    inside the logarithm.

    Args:
        num_particles: particles of each task, K.
        on: which points of a TaskBatch are the data set: ``"full"`` or ``"context"``.
        **options: see :class:`TaskObjective`.
    """

    weighs_particles = True
    #: log q at fixed values is needed
    needs_score = False
    #: the gradient of the values that the model reads is weighted
    weighs_gradients = False

    @checked(on=one_of("full", "context"))
    def __init__(self, num_particles: int = 8, *, on: str = "full", **options: Any) -> None:
        super().__init__(num_particles, **options)
        self.on = on

    @property
    def scores_guide(self) -> bool:
        return self.fixed_particles or self.needs_score

    def check_guide(self, guide_trace: Trace) -> None:
        """Refuses a guide for which the estimator is not defined."""

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> WeightedDraws:
        args = data_set(args, self.on)
        pair = self._pair
        weight = GradientWeight() if self.weighs_gradients or (self.fixed_particles and not pair.trusted) else None
        explicit = None
        with particles:
            guide_trace = self.run_guide(guide, args, kwargs)
            self.check_guide(guide_trace)
            if self.needs_score and not pair.trusted and has_point_masses(guide_trace) and torch.is_grad_enabled():
                explicit = at_fixed_values(guide, guide_trace, args, kwargs)
            read = guide_trace if weight is None else weight.at_reads(guide_trace, explicit)
            model_trace = self.run_model(model, read, args, kwargs)
        ties = self.ties(model, guide, (guide_trace, model_trace), args, args, kwargs, particles)
        draws = weigh(model_trace, guide_trace, ties, PARTICLES)
        if self.needs_score:
            with particles:
                draws.log_q_fixed = log_densities_at_fixed_values(
                    guide, guide_trace, draws.axes, args, kwargs, scaled=False, again=explicit
                )
            if explicit is not None:
                draws.log_q_explicit = explicit_density(explicit, draws.axes)
        if weight is not None:
            weight.axes, weight.derived = draws.axes, frozenset() if ties is None else ties.derived
            draws.gradient_weights = [weight]
        if self.fixed_particles and ties is not None and moved_after_the_draw(guide_trace, ties):
            with particles:
                again = run_at_leaves(guide, guide_trace, args, kwargs)
            draws.log_q = score_at_fixed_values(again, draws.axes, draws.log_q, draws.scale)
        return draws


def weigh(
    model_trace: Trace,
    guide_trace: Trace,
    ties: Ties | None = None,
    particles: str = PARTICLE_PLATE,
    additive: bool = False,
) -> WeightedDraws:
    """Log-densities of model and guide by particle and task.

    Args:
        model_trace: the model's trace at the guide's values.
        guide_trace: the guide's.
        ties: what ties the elements of plates; None for the library's own programs.
        particles: name of the plate of the particles.
        additive: only sums of the densities are wanted, so that tasks may share latents, whose terms are divided among
            them, and sites may be scaled apart.

    Raises:
        ValueError: some sites are scaled and others are not.
    """
    check_extra_sites(guide_trace, model_trace, "the model")
    if additive:
        axes = reported_axes(model_trace, guide_trace, ties=ties, particles=particles, every=True)
        scale: float | Tensor = 1.0
    else:
        axes = independent_axes(model_trace, guide_trace, ties=ties, particles=particles)
        scale = common_scale((model_trace, guide_trace), axes, ties)

    def by_site(trace: Trace) -> dict[str, Tensor]:
        return {name: share(log_density(unscaled(site, scale), axes), axes.shape) for name, site in sample_sites(trace)}

    by_model, by_guide = by_site(model_trace), by_site(guide_trace)
    log_likelihood, points = observed_log_likelihood(model_trace, axes, needed=ties is None)
    log_p, log_q = total(by_model.values(), log_likelihood), total(by_guide.values(), log_likelihood)
    kl_by_site = {}
    for name, site in sample_sites(guide_trace):
        if not site["is_observed"]:
            other = by_model.get(name)
            value = by_guide[name] if other is None else by_guide[name] - other
            kl_by_site[name] = value.detach().expand(log_likelihood.shape)
    scores = {name: by_guide[name] for name, site in drawn_sites(guide_trace) if not site["fn"].has_rsample}
    return WeightedDraws(axes, scale, log_p, log_q, log_likelihood / scale, points, kl_by_site, {}, scores)


def unscaled(site: Any, scale: float | Tensor) -> Any:
    """A site without the scale that all sites share."""
    return site if isinstance(scale, float) and scale == 1.0 else {**site, "scale": site["scale"] / scale}


def total(values: Iterable[Tensor], like: Tensor) -> Tensor:
    """The sum of densities ``[K, *B]``."""
    return sum(values, torch.zeros_like(like))


def renyi_bound(log_weights: Tensor, alpha: float) -> Tensor:
    """1 / (1 - α) log mean w^(1 - α) over the particles ``[K, *B]``; for α = 1 its limit, the mean of log w."""
    if alpha == 1.0:
        return log_weights.mean(0)
    return log_mean_exp((1 - alpha) * log_weights) / (1 - alpha)


def vimco_signal(log_weights: Tensor, alpha: float = 0.0) -> Tensor:
    """L - L_(-k) ``[K, *B]``: the bound less the one in which particle k has the others' mean log-weight.

    Subtracting L_(-k), which does not depend on particle k, leaves the score-function gradient unbiased
    (VIMCO: Mnih and Rezende 2016, eq. 7 to 9). A single particle has no others: its signal is the bound itself.
    """
    log_weights = log_weights.detach()
    k = log_weights.shape[0]
    bound = renyi_bound(log_weights, alpha)
    if k == 1:
        return bound.expand(log_weights.shape)
    others = leave_one_out(log_weights)
    if alpha == 1.0:
        return bound - others
    powered = (1 - alpha) * log_weights
    none = torch.full_like(powered[:1], -torch.inf)
    # the sum over the others from both sides: subtracting one weight from the sum would lose it to rounding
    before = torch.cat([none, torch.logcumsumexp(powered, 0)[:-1]])
    after = torch.cat([torch.logcumsumexp(powered.flip(0), 0).flip(0)[1:], none])
    replaced = torch.logaddexp(torch.logaddexp(before, after), (1 - alpha) * others)
    return bound - (replaced - math.log(k)) / (1 - alpha)


def fixed_sum(draws: WeightedDraws) -> Tensor:
    """log q(z⁻) summed over drawn sites, less its value: zero with the gradient of a score, ``[K, *B]``."""
    return sum((v - v.detach() for v in draws.log_q_fixed.values()), torch.zeros_like(draws.log_q))
