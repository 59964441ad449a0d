"""Objectives that are an expected log-likelihood less a KL divergence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.networks.local_reparameterization import is_gaussian_weight, local_reparameterization
from inference.objectives.analytic_kl import analytic_sites, closed_form, is_flat
from inference.objectives.fixed_values import (
    has_auxiliary_sites,
    leave_one_out,
    log_densities_at_fixed_values,
    log_density,
    score_densities,
    score_term,
)
from inference.objectives.independent_plates import (
    PARTICLES,
    TaskAxes,
    check_extra_sites,
    drawn_sites,
    is_point_mass,
    own_scale,
    per_particle,
    reported_axes,
    sample_sites,
    share,
)
from inference.objectives.observations import observed_log_likelihood, output_width
from inference.objectives.task_objective import BoundTerms, TaskObjective
from pp_models.arguments import NOT_NEGATIVE, checked, one_of
from pp_models.contract import as_model

KL_REDUCTIONS = ("sum", "mean")
ESTIMATORS = ("pathwise", "stl", "score")


@dataclass(kw_only=True)
class Branches:
    """The runs that an objective compares.

    Args:
        posterior: the guide's trace that the model is replayed against.
        reference: the trace whose distributions the KL is taken to; None for the model's prior.
        model_args: what the model is called with for the expected log-likelihood.
        guide_args: what the guide was called with.
    """

    posterior: Trace
    reference: Trace | None = None
    model_args: tuple
    guide_args: tuple


@dataclass
class KLDraws:
    """Terms of each particle; tensors are ``[K, *B]`` (or 1 along a dimension in which they do not vary)."""

    axes: TaskAxes
    width: float
    log_likelihood: Tensor
    points: Tensor
    kl: Tensor
    kl_by_site: dict[str, Tensor] = field(default_factory=dict)
    #: log-densities of the sites whose gradient is a score function's, by site
    log_q: dict[str, Tensor] = field(default_factory=dict)
    #: log q(z⁻) less its own value, summed over sites: what sticking the landing adds
    path_only: Tensor | None = None
    log_weights: Tensor | None = None
    #: sites whose KL is in closed form
    analytic: list[str] = field(default_factory=list)


class KLObjective(TaskObjective):
    """E_q[log p(y | W)] - β KL(q ‖ reference) for each task.

    The KL is analytic where ``torch.distributions.kl`` has it and guide and model allow it (:mod:`.analytic_kl`), and
    Monte-Carlo elsewhere; ``terms(...).analytic`` says where. Observed sites of a guide count with their -log q.
    Sites without a reparameterised draw get a score-function gradient with the mean of the other particles as baseline
    (Kool et al. 2019); with one particle there is no baseline.

    Args:
        num_particles: posterior draws per task.
        beta: weight of the KL.
        kl_reduction: ``"sum"`` over the entries of every latent site, as an evidence bound needs; ``"mean"`` over the
            entries of each site and then over sites, as NVDP's released code does (about 60,000 times weaker on a
            128-unit network; with the sum NVDP's rates stop depending on the task).
        normalize: report and maximise per scored value (the mean over points and output dimensions) instead of nats
            per task; by default with ``kl_reduction="mean"`` only, which is the released code's loss.
        estimator: ``"pathwise"``, or ``"score"`` for score-function gradients of every site.
        **options: see :class:`TaskObjective`.

    Raises:
        ValueError: an argument out of range.
    """

    weighs_kl = True
    estimators: tuple[str, ...] = ("pathwise", "score")
    local_reparameterization = False
    #: whether the draws are of functions, whose importance weights mean something
    coherent_draws = True

    @checked(beta=NOT_NEGATIVE, kl_reduction=one_of(*KL_REDUCTIONS))
    def __init__(
        self,
        num_particles: int = 1,
        *,
        beta: float = 1.0,
        kl_reduction: str = "sum",
        normalize: bool | None = None,
        estimator: str = "pathwise",
        **options: Any,
    ) -> None:
        if estimator not in self.estimators:
            raise ValueError(f"estimator: got {estimator!r}; it must be one of {', '.join(self.estimators)}")
        super().__init__(num_particles, normalize=kl_reduction == "mean" if normalize is None else normalize, **options)
        self.beta = beta
        self.kl_reduction = kl_reduction
        self.estimator = estimator
        self.fixed_particles = estimator == "score"
        if self.kl_schedule is not None and self.kl_schedule.free_bits and kl_reduction == "mean":
            raise ValueError(
                f"kl_schedule: got free_bits = {self.kl_schedule.free_bits} with kl_reduction='mean'; nats are those "
                "of 'sum'"
            )

    @property
    def scores_guide(self) -> bool:
        return self.estimator in ("score", "stl")

    def run_branches(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Branches:
        """Runs the guide on the data that the objective shows it."""
        raise NotImplementedError

    @contextmanager
    def _handlers(self, model: Any, particles: AbstractContextManager, args: tuple) -> Iterator[None]:
        with ExitStack() as stack:
            if self.local_reparameterization:
                # a prior that depends on the weights of other layers needs some value, used or not
                stack.enter_context(local_reparameterization(lazy=as_model(model).independent_layers))
            # the particle plate is inside, so that the handler sees sites that it has expanded
            stack.enter_context(particles)
            yield

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> KLDraws:
        with self._handlers(model, particles, args):
            runs = self.run_branches(model, guide, args, kwargs)
            if self.local_reparameterization and runs.reference is None and not as_model(model).independent_layers:
                raise ValueError(
                    "local_reparameterization: got True, but the prior of a layer depends on the weights of those "
                    "below, which are not drawn; set it to False"
                )
            scored = self.run_model(model, runs.posterior, runs.model_args, kwargs)
        traces = runs.posterior, scored
        ties = self.ties(model, guide, traces, runs.model_args, runs.guide_args, kwargs, particles)
        scores = self.estimator == "score" or any(not s["fn"].has_rsample for _, s in drawn_sites(runs.posterior))
        axes = reported_axes(scored, runs.posterior, ties=ties, particles=PARTICLES, every=scores)
        fixed = None
        if self.estimator == "stl":
            with particles:
                fixed = log_densities_at_fixed_values(guide, runs.posterior, axes, runs.guide_args, kwargs)
        draws = self.measure(runs, scored, axes)
        if fixed is not None:
            path = [share(v - v.detach(), axes.shape) for name, v in fixed.items() if name not in draws.log_q]
            draws.path_only = sum(path[1:], path[0]) if path else None
        if diagnostics and self.coherent_draws and not self.local_reparameterization:
            with torch.no_grad():
                draws.log_weights = self._log_weights(draws, runs, scored)
        return draws

    def measure(self, runs: Branches, scored: Trace, axes: TaskAxes) -> KLDraws:
        """Likelihood, divergences and scores of the draws.

        Args:
            runs: the runs.
            scored: the model's trace on the points whose expected log-likelihood counts.
            axes: the task dimensions.
        """
        log_likelihood, points = observed_log_likelihood(scored, axes, needed=self._pair.trusted)
        draws = KLDraws(axes, output_width(scored), log_likelihood, points, torch.zeros_like(log_likelihood))
        self._divergences(draws, runs, scored)
        draws.log_q = score_densities(runs.posterior, axes, self.estimator == "score")
        return draws

    def _divergences(self, draws: KLDraws, runs: Branches, scored: Trace) -> None:
        """Fills in the KL of every site and their reduction."""
        axes, reference = draws.axes, runs.reference
        other_trace = scored if reference is None else reference
        if reference is None:
            check_extra_sites(runs.posterior, scored, "the model")
        monte_carlo = self.estimator == "stl" or has_auxiliary_sites(runs.posterior)
        allowed = set() if monte_carlo else analytic_sites(runs.posterior, other_trace)
        sizes: list[int] = []
        for name, site in sample_sites(runs.posterior):
            other: Any = other_trace.nodes.get(name)
            if reference is not None and is_point_mass(site["fn"]):
                continue  # a deterministic path: both branches hold a point mass, which no divergence can tie
            if is_point_mass(site["fn"]) and other is not None and (is_flat(other) or self._free(site)):
                continue
            if other is not None and is_point_mass(other["fn"]) and is_point_mass(site["fn"]):
                continue
            found = closed_form(site, other) if name in allowed else None
            if found is not None:
                draws.analytic.append(name)
                value = per_particle(scale_and_mask(found, own_scale(site, axes), site["mask"]), axes, site)
            elif self.local_reparameterization and is_gaussian_weight(site["fn"]):
                raise ValueError(
                    f"local_reparameterization: got True, but the KL of site {name!r} "
                    f"({type(site['fn']).__name__} to {type(other['fn']).__name__}) has no closed form; set it to False"
                )
            else:
                value = log_density(site, axes)
                if other is not None and (reference is not None or not other["is_observed"]):
                    value = value - log_density({**other, "value": site["value"]}, axes)
            draws.kl_by_site[name] = share(value, axes.shape)
            sizes.append(max(site["fn"].event_shape.numel(), 1))
        zero = torch.zeros_like(draws.log_likelihood)
        kls = list(draws.kl_by_site.values())
        if self.kl_schedule is not None:
            kls = [self.kl_schedule.counted(kl) for kl in kls]
        if not kls:
            draws.kl = zero
        elif self.kl_reduction == "sum":
            draws.kl = sum(kls, zero)
        else:
            draws.kl = sum((kl / size for kl, size in zip(kls, sizes, strict=True)), zero) / len(kls)

    def _free(self, site: Any) -> bool:
        """Whether one of the library's guides says that a point mass of its own is at no cost, by masking it."""
        return self._pair.trusted and site["mask"] is False

    def _log_weights(self, draws: KLDraws, runs: Branches, scored: Trace) -> Tensor:
        """log p(y | z) + log reference(z) - log q(z) of each particle."""
        total = draws.log_likelihood
        trace = scored if runs.reference is None else runs.reference
        for name, site in sample_sites(runs.posterior):
            other = trace.nodes.get(name)
            if runs.reference is not None and is_point_mass(site["fn"]):
                continue
            total = total - share(log_density(site, draws.axes), draws.axes.shape)
            if other is not None and (runs.reference is not None or not other["is_observed"]):
                at = {**other, "value": site["value"]}
                total = total + share(log_density(at, draws.axes), draws.axes.shape)
        return total

    def combine(self, draws: KLDraws) -> BoundTerms:
        points = draws.points[0]
        each, kl = draws.log_likelihood, draws.kl
        if draws.path_only is not None:
            kl = kl - draws.path_only
        if self.kl_schedule is not None:
            kl = self.kl_schedule.beta() * kl
        if self.normalize:
            per_value = points.clamp_min(1.0)
            # NVDP's released code, whose KL is a mean, divides it by the number of points and not by their outputs
            width = draws.width if self.kl_reduction == "mean" else 1
            each = each / per_value - self.beta * kl * width / per_value
        else:
            each = each - self.beta * kl
        bound = each.mean(0)
        if draws.log_q:
            signal = mean_signal(each)
            for log_q in draws.log_q.values():
                bound = bound + score_term(signal, log_q, draws.axes.shape)
        return BoundTerms(
            bound,
            draws.log_likelihood.mean(0),
            draws.kl.mean(0),
            points,
            {name: value.mean(0) for name, value in draws.kl_by_site.items()},
            draws.log_weights,
            draws.axes.scale,
            draws.axes.independent,
            tuple(dict.fromkeys(draws.analytic)),
        )


class LocallyReparameterized(KLObjective):
    """Base of the KL objectives that may draw pre-activations instead of Gaussian weights.

    Args:
        num_particles: posterior draws per task.
        local_reparameterization: draw pre-activations instead of Gaussian weights; needs analytic KLs.
        **options: see :class:`KLObjective`.

    Raises:
        ValueError: with an estimator that needs densities of the weights.
    """

    @checked()
    def __init__(self, num_particles: int = 1, *, local_reparameterization: bool = False, **options: Any) -> None:
        super().__init__(num_particles, **options)
        if local_reparameterization and self.estimator != "pathwise":
            raise ValueError(
                f"estimator: got {self.estimator!r} with local_reparameterization, which draws no weight whose density "
                "could be taken; it must be 'pathwise'"
            )
        if local_reparameterization and self.kl_schedule is not None and self.kl_schedule.noise != "always":
            raise ValueError(
                f"kl_schedule: got noise = {self.kl_schedule.noise!r} with local_reparameterization, which draws no "
                "weight; set that to False"
            )
        self.local_reparameterization = local_reparameterization


def mean_signal(values: Tensor) -> Tensor:
    """The learning signal ``[K, *B]`` of a mean over particles, less the mean of the others."""
    return (values - leave_one_out(values)) / values.shape[0]
