"""Objectives that are an expected log-likelihood less a KL divergence, and the log predictive that PP-AVI adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from guides.networks.local_reparameterization import is_gaussian_weight, local_reparameterization
from inference.objectives.fixed_values import (
    drawn_sites,
    has_auxiliary_sites,
    leave_one_out,
    log_densities_at_fixed_values,
    log_density,
    score_term,
)
from inference.objectives.importance_weights import vimco_signal
from inference.objectives.independent_plates import (
    TaskAxes,
    is_point_mass,
    own_scale,
    per_particle,
    reported_axes,
    sample_sites,
    share,
)
from inference.objectives.observations import observed_log_likelihood, output_width
from inference.objectives.task_objective import BoundTerms, TaskObjective, log_mean_exp

KL_REDUCTIONS = ("sum", "mean")
ESTIMATORS = ("pathwise", "stl", "score")


@dataclass
class Branches:
    """The runs that an objective compares.

    Args:
        posterior: the guide's trace that the model is replayed against.
        reference: the trace whose distributions the KL is taken to; None for the model's prior.
        model_args: what the model is called with for the expected log-likelihood; None for no such term, and no KL.
        predictive_args: what the model is called with for the log predictive likelihood; None for no such term.
        guide_args: what the guide was called with.
    """

    posterior: Trace
    reference: Trace | None
    model_args: tuple | None
    guide_args: tuple
    predictive_args: tuple | None = None


@dataclass
class KLDraws:
    """Terms of each particle; tensors are ``[K, *B]`` (or 1 along a dimension in which they do not vary)."""

    axes: TaskAxes
    width: float
    kl: Tensor
    kl_by_site: dict[str, Tensor] = field(default_factory=dict)
    log_likelihood: Tensor | None = None
    points: Tensor | None = None
    predictive: Tensor | None = None
    predictive_points: Tensor | None = None
    #: log-densities of the sites whose gradient is a score function's, by site
    log_q: dict[str, Tensor] = field(default_factory=dict)
    #: log q(z⁻) less its own value, summed over sites: what sticking the landing adds
    path_only: Tensor | None = None
    log_weights: Tensor | None = None


class KLObjective(TaskObjective):
    """E_q[log p(y | W)] - β KL(q ‖ reference), and where asked for a log predictive likelihood, for each task.

    The KL is analytic where ``torch.distributions.kl`` has it and Monte-Carlo elsewhere. Sites without a
    reparameterised draw get a score-function gradient with the mean of the other particles as baseline (Kool et al.
    2019); with one particle there is no baseline.

    Args:
        num_particles: posterior draws per task.
        beta: weight of the KL.
        kl_reduction: ``"sum"`` over the entries of every latent site, as an evidence bound needs; ``"mean"`` over the
            entries of each site and then over sites, as NVDP's released code does (about 60,000 times weaker on a
            128-unit network; with the sum NVDP's rates stop depending on the task).
        normalize: report and maximise per scored value (the mean over points and output dimensions) instead of nats
            per task; by default with ``kl_reduction="mean"`` only, which is the released code's loss.
        local_reparameterization: draw pre-activations instead of Gaussian weights; needs analytic KLs.
        estimator: ``"pathwise"``, or ``"score"`` for score-function gradients of every site.
        **options: see :class:`TaskObjective`.

    Raises:
        ValueError: an argument out of range.
    """

    estimators: tuple[str, ...] = ("pathwise", "score")

    def __init__(
        self,
        num_particles: int = 1,
        *,
        beta: float = 1.0,
        kl_reduction: str = "sum",
        normalize: bool | None = None,
        local_reparameterization: bool = False,
        estimator: str = "pathwise",
        **options: Any,
    ) -> None:
        if not 0 <= beta < float("inf"):
            raise ValueError(f"beta: got {beta}; it must be finite and not negative")
        if kl_reduction not in KL_REDUCTIONS:
            raise ValueError(f"kl_reduction: got {kl_reduction!r}; it must be one of {', '.join(KL_REDUCTIONS)}")
        if estimator not in self.estimators:
            raise ValueError(f"estimator: got {estimator!r}; it must be one of {', '.join(self.estimators)}")
        if local_reparameterization and estimator != "pathwise":
            raise ValueError(
                f"estimator: got {estimator!r} with local_reparameterization, which draws no weight whose density "
                "could be taken; it must be 'pathwise'"
            )
        super().__init__(num_particles, normalize=kl_reduction == "mean" if normalize is None else normalize, **options)
        self.beta = beta
        self.kl_reduction = kl_reduction
        self.local_reparameterization = local_reparameterization
        self.estimator = estimator
        self.fixed_particles = estimator == "score"

    #: what multiplies the log predictive likelihood
    predictive_weight = 1.0

    def run_branches(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Branches:
        """Runs the guide on the data that the objective shows it."""
        raise NotImplementedError

    @contextmanager
    def _handlers(self, model: Any, particles: AbstractContextManager) -> Iterator[None]:
        with ExitStack() as stack:
            if self.local_reparameterization:
                # a prior that depends on the weights of other layers needs some value, used or not
                stack.enter_context(local_reparameterization(lazy=independent_layers(model)))
            # the particle plate is inside, so that the handler sees sites that it has expanded
            stack.enter_context(particles)
            yield

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> KLDraws:
        with self._handlers(model, particles):
            runs = self.run_branches(model, guide, args, kwargs)
            if self.local_reparameterization and runs.reference is None and not independent_layers(model):
                raise ValueError(
                    "local_reparameterization: got True, but the prior of a layer depends on the weights of those "
                    "below, which are not drawn; set it to False"
                )
            scored = None
            if runs.model_args is not None:
                scored = self.run_model(model, runs.posterior, runs.model_args, kwargs)
            predicted = None
            if runs.predictive_args is not None:
                predicted = self.run_model(model, runs.posterior, runs.predictive_args, kwargs)
            model_trace = scored or predicted
            assert model_trace is not None
            axes = reported_axes(model_trace, runs.posterior)
            fixed = None
            if self.estimator == "stl":
                fixed = log_densities_at_fixed_values(guide, runs.posterior, axes, runs.guide_args, kwargs)
        draws = KLDraws(axes, output_width(model_trace), torch.zeros(()))
        if predicted is not None:
            draws.predictive, draws.predictive_points = observed_log_likelihood(predicted, axes)
            draws.kl = torch.zeros_like(draws.predictive)
        if scored is not None:
            draws.log_likelihood, draws.points = observed_log_likelihood(scored, axes)
            self._divergences(draws, runs, scored)
        scores = {
            name: log_density(site, axes, scaled=False)
            for name, site in drawn_sites(runs.posterior)
            if self.estimator == "score" or not site["fn"].has_rsample
        }
        draws.log_q = scores
        if fixed is not None:
            path = [share(v - v.detach(), axes.shape) for name, v in fixed.items() if name not in scores]
            draws.path_only = sum(path[1:], path[0]) if path else None
        if diagnostics and scored is not None and predicted is None and not self.local_reparameterization:
            with torch.no_grad():
                draws.log_weights = self._log_weights(draws, runs, scored)
        return draws

    def _divergences(self, draws: KLDraws, runs: Branches, scored: Trace) -> None:
        """Fills in the KL of every site and their reduction."""
        axes, reference = draws.axes, runs.reference
        other_trace = scored if reference is None else reference
        name_of = "the model" if reference is None else "the guide run on the other data"
        monte_carlo = self.estimator == "stl" or has_auxiliary_sites(runs.posterior)
        sizes: list[int] = []
        for name, site in sample_sites(runs.posterior):
            auxiliary = site["infer"].get("is_auxiliary", False)
            if site["is_observed"] and not monte_carlo:
                continue
            if reference is not None and is_point_mass(site["fn"]) and not monte_carlo:
                continue  # a deterministic path: both branches hold a point mass, which no divergence can tie
            other = other_trace.nodes.get(name)
            if other is None and not auxiliary and not site["is_observed"]:
                raise ValueError(f"site {name!r}: the guide samples it, but {name_of} does not")
            if monte_carlo:
                if other is not None and is_point_mass(other["fn"]):
                    continue
                value = log_density(site, axes)
                if other is not None:
                    value = value - log_density({**other, "value": site["value"]}, axes)
            else:
                found = self._kl(name, site, other)
                if found is None:
                    continue
                value = per_particle(scale_and_mask(found, own_scale(site, axes), site["mask"]), axes)
            draws.kl_by_site[name] = share(value, axes.shape)
            sizes.append(max(site["fn"].event_shape.numel(), 1))
        assert draws.log_likelihood is not None
        zero = torch.zeros_like(draws.log_likelihood)
        kls = list(draws.kl_by_site.values())
        if not kls:
            draws.kl = zero
        elif self.kl_reduction == "sum":
            draws.kl = sum(kls, zero)
        else:
            draws.kl = sum((kl / size for kl, size in zip(kls, sizes, strict=True)), zero) / len(kls)

    def _kl(self, name: str, site: Any, other: Any) -> Tensor | None:
        """KL of a guide site, ``None`` where it is zero by construction (a point mass under a flat prior)."""
        p, q = site["fn"], other["fn"]
        if isinstance(q, torch.distributions.Distribution) and getattr(q, "_mask", None) is False:
            return None
        try:
            return kl_divergence(p, q)
        except NotImplementedError:
            if self.local_reparameterization and is_gaussian_weight(p):
                raise ValueError(
                    f"local_reparameterization: got True, but the KL of site {name!r} "
                    f"({type(p).__name__} to {type(q).__name__}) has no closed form; set it to False"
                ) from None
            return p.log_prob(site["value"]) - q.log_prob(site["value"])

    def _log_weights(self, draws: KLDraws, runs: Branches, scored: Trace) -> Tensor:
        """log p(y | z) + log reference(z) - log q(z) of each particle."""
        assert draws.log_likelihood is not None
        total = draws.log_likelihood
        trace = scored if runs.reference is None else runs.reference
        for name, site in sample_sites(runs.posterior):
            other = trace.nodes.get(name)
            if runs.reference is not None and is_point_mass(site["fn"]):
                continue
            total = total - share(log_density(site, draws.axes), draws.axes.shape)
            if other is not None:
                at = {**other, "value": site["value"]}
                total = total + share(log_density(at, draws.axes), draws.axes.shape)
        return total

    def average_predictive(self, values: Tensor) -> Tensor:
        """The log predictive likelihood ``[*B]`` from each particle's ``[K, *B]``."""
        return log_mean_exp(values)

    def predictive_signal(self, values: Tensor) -> Tensor:
        """The learning signal of that average ``[K, *B]``."""
        return vimco_signal(values)

    def combine(self, draws: KLDraws) -> BoundTerms:
        shape = draws.axes.shape
        values: list[Tensor] = []
        signals: list[Tensor] = []
        log_likelihoods: list[Tensor] = []
        counts: list[Tensor] = []
        if draws.log_likelihood is not None and draws.points is not None:
            points = draws.points[0]
            each, kl = draws.log_likelihood, draws.kl
            if draws.path_only is not None:
                kl = kl - draws.path_only
            if self.normalize:
                per_value = points.clamp_min(1.0)
                # NVDP's released code, whose KL is a mean, divides it by the number of points and not by their outputs
                width = draws.width if self.kl_reduction == "mean" else 1
                each = each / per_value - self.beta * kl * width / per_value
            else:
                each = each - self.beta * kl
            values.append(each.mean(0))
            if draws.log_q:
                signals.append(mean_signal(each))
            log_likelihoods.append(draws.log_likelihood.mean(0))
            counts.append(points)
        log_weights = draws.log_weights
        if draws.predictive is not None and draws.predictive_points is not None:
            points = draws.predictive_points[0]
            predictive = self.average_predictive(draws.predictive)
            factor = self.predictive_weight / (points.clamp_min(1.0) if self.normalize else 1.0)
            values.append(factor * predictive)
            if draws.log_q:
                signals.append(factor * self.predictive_signal(draws.predictive))
            log_likelihoods.append(predictive)
            counts.append(points)
            log_weights = draws.predictive.detach()
        bound = sum(values[1:], values[0])
        log_likelihood, count = sum(log_likelihoods[1:], log_likelihoods[0]), sum(counts[1:], counts[0])
        for log_q in draws.log_q.values():
            bound = bound + score_term(sum(signals[1:], signals[0]), log_q, shape)
        kl = draws.kl.mean(0)
        kl_by_site = {name: value.mean(0) for name, value in draws.kl_by_site.items()}
        return BoundTerms(
            bound,
            log_likelihood,
            kl,
            count,
            kl_by_site,
            log_weights,
            draws.axes.scale,
        )


def mean_signal(values: Tensor) -> Tensor:
    """The learning signal ``[K, *B]`` of a mean over particles, less the mean of the others."""
    return (values - leave_one_out(values)) / values.shape[0]


def independent_layers(model: Any) -> bool:
    """Whether no layer's prior depends on the weights of another."""
    return getattr(getattr(model, "prior", None), "independent_layers", True)
