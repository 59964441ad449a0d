"""NMDP's objective: importance-weighted expectation maximisation of a conditional prior."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from inference.objectives.fixed_values import log_density, only_drawn, score_term
from inference.objectives.importance_weights import WeightedDraws, WeightedObjective, total
from inference.objectives.independent_plates import PARTICLES, drawn_sites, independent_axes
from inference.objectives.observations import observed_log_likelihood
from inference.objectives.task_objective import (
    BoundTerms,
    context_and_full,
    effective_sample_size,
    log_mean_exp,
    scored_points,
)
from pp_models.arguments import DRAWS, checked, number, one_of, shown
from pp_models.contract import as_model
from pp_models.task_plates import task_plates

PROPOSALS = ("prior", "conjugate")
SCORES = ("full", "target")


@dataclass
class EStep:
    """Particles and weights that several M-steps share.

    Args:
        drawn: the trace of drawn sites.
        log_proposal: log-density of the proposal by site ``[K, *B]``.
        weights: normalised weights ``[K, *B]``.
    """

    drawn: Trace
    log_proposal: dict[str, Tensor]
    weights: Tensor | None = None


class IWEM(WeightedObjective):
    """Importance-weighted EM: the guide on the context is a *conditional prior* g(z | D_c).

    NMDP: the paper's eq. 7 to 9 and Algorithm 1; docs/papers/nmdp.md, eq. 5 to 9.

    E-step: z_k from a proposal r, without gradient; ŵ_k ∝ p(y | z_k) g(z_k | D_c) / r(z_k), normalised in each task.
    M-step: ascend Σ_k ŵ_k [log p(y | z_k) + log g(z_k | D_c)]. By Fisher's identity this is the self-normalised
    estimate of the gradient of log ∫ p(y | z) g(z | D_c) dz, biased by O(1/K); it equals the gradient of

        log (1/K) Σ_k p(y | z_k) g(z_k | D_c) / r(z_k)        (IWAE with a detached proposal)

    which is what is reported: a lower bound on that logarithm in expectation. The model's own prior plays no part.

    One step of the optimizer follows each E-step, as in the paper. With ``inner_steps=k`` :func:`inference.fit` takes k
    steps with the same particles and weights: a fuller M-step, whose monotone improvement holds for exact posterior
    expectations and is not promised with K particles.

    Proposals:

    * ``"prior"``: the guide itself, as in the paper. Few particles keep any weight once there are 20 targets.
    * ``"conjugate"``: what the model's ``conjugate_proposal(guide_trace, data)`` returns, a distribution for every
      drawn site, given the guide's trace on the context and the scored data; for mixture weights an approximate
      Dirichlet posterior (:func:`pp_models.dirichlet_sweeps`).
    * a guide: called with the scored data; trained by wake-φ, Σ_k ŵ_k ∇ log r(z_k), where it has parameters. It is
      then part of the objective: :func:`inference.fit` trains and saves it.

    With ``min_ess`` weights that have collapsed are flattened: ŵ_k ∝ w_k^τ with the largest τ ≤ 1, in each task, at
    which the effective sample size is that share of K. The bias is towards the proposal.

    Released code of the predecessor (SI-NP) draws its particles with a pathwise gradient to the proposal, a term that
    the algorithm does not have; here particles are constants.

    Args:
        num_particles: particles of each task, B in the paper.
        proposal: ``"prior"``, ``"conjugate"`` or a guide.
        score: points whose likelihood weighs: ``"full"`` (contexts too, as in training latent variants) or
            ``"target"``.
        min_ess: least effective sample size as a share of K, in (0, 1]; None to leave the weights as they are.
        inner_steps: optimizer steps for each E-step, in :func:`inference.fit`.
        **options: ``normalize``, ``vectorize_particles``, ``max_plate_nesting``.

    Raises:
        ValueError: an argument out of range; when used, ``"conjugate"`` with a model that has no such proposal.
    """

    name = "iw-em"
    description = "importance-weighted EM: the guide on the context as a conditional prior"
    reference = "NMDP, CVPR 2026"
    fixed_particles = weighs_particles = True
    guide_is = "predictor"
    needs = "data set"
    has_no = MappingProxyType({"on": "iw-em always gives its guide the context; 'score' says which points weigh"})

    @checked(score=one_of(*SCORES), min_ess=number(0, 1, "(]", why=", a share of the particles"), inner_steps=DRAWS)
    def __init__(
        self,
        num_particles: int = 16,
        *,
        proposal: str | Callable = "prior",
        score: str = "full",
        min_ess: float | None = None,
        inner_steps: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(num_particles, **options)
        is_guide = callable(proposal) and not isinstance(proposal, type)
        if not is_guide and (not isinstance(proposal, str) or proposal not in PROPOSALS):
            raise ValueError(f"proposal: got {shown(proposal)}; it must be one of {', '.join(PROPOSALS)}, or a guide")
        if inner_steps > 1 and not self.vectorize_particles:
            raise ValueError(f"inner_steps: got {inner_steps}; particles that are kept must be vectorised")
        self.proposal = proposal
        self.module = proposal if isinstance(proposal, nn.Module) else None
        self.score = score
        self.min_ess = min_ess
        self.inner_steps = inner_steps
        self._keeping = False
        self._kept: EStep | None = None

    @contextmanager
    def one_e_step(self) -> Iterator[None]:
        """Within the block the particles and weights of the first call serve every call, on the same data."""
        self._keeping, self._kept = True, None
        try:
            yield
        finally:
            self._keeping, self._kept = False, None

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> WeightedDraws:
        context, _ = context_and_full(args[0])
        scored = scored_points(args[0], self.score)
        rest = args[1:]
        kept = self._kept
        drawn = (
            self._propose(model, guide, (context, *rest), (scored, *rest), kwargs, particles)
            if kept is None
            else kept.drawn
        )
        with particles:
            prior = guide if drawn is None else poutine.replay(guide, trace=only_drawn(drawn))
            prior_trace = self.run_guide(prior, (context, *rest), kwargs)
            model_trace = self.run_model(model, prior_trace, (scored, *rest), kwargs)
        traces = prior_trace, model_trace
        ties = self.ties(model, guide, traces, (scored, *rest), (context, *rest), kwargs, particles)
        axes = independent_axes(model_trace, prior_trace, ties=ties, particles=PARTICLES)
        log_likelihood, points = observed_log_likelihood(model_trace, axes)
        log_prior = {name: log_density(site, axes) for name, site in drawn_sites(prior_trace)}
        kl_by_site = {}
        if kept is not None:
            log_proposal = kept.log_proposal
        elif drawn is None:
            log_proposal = {name: value.detach() for name, value in log_prior.items()}
        else:
            log_proposal = {name: log_density(site, axes) for name, site in drawn_sites(drawn)}
            missing = sorted(set(log_prior) - set(log_proposal))
            if missing:
                raise ValueError(f"proposal: it does not draw site {missing[0]!r}, which the guide does")
            for name, value in log_prior.items():
                kl_by_site[name] = (log_proposal[name] - value).detach().expand(log_likelihood.shape)
        if self._keeping and kept is None:
            values = {name: value.detach() for name, value in log_proposal.items()}
            self._kept = EStep(only_drawn(prior_trace if drawn is None else drawn), values)
        log_r = total(log_proposal.values(), log_likelihood)
        log_p = log_likelihood + total(log_prior.values(), log_likelihood)
        return WeightedDraws(axes, 1.0, log_p, log_r, log_likelihood, points, kl_by_site)

    def _propose(
        self, model: Any, guide: Any, context: tuple, scored: tuple, kwargs: dict, particles: AbstractContextManager
    ) -> Trace | None:
        """The proposal's trace with values that carry no gradient; None where it is the guide."""
        if self.proposal == "prior":
            return None
        if callable(self.proposal):
            with particles:
                return self.run_guide(self.proposal, scored, kwargs)
        with torch.no_grad():
            proposals = as_model(model).conjugate_proposal(self.run_guide(guide, context, kwargs), scored[0])
            if proposals is None:
                raise ValueError(
                    f"proposal: got 'conjugate', but {type(model).__name__} has no conjugate_proposal; "
                    "use 'prior' or pass a guide"
                )
            with particles, task_plates(scored[0].batch_shape, scored[0].x.device):
                return poutine.trace(lambda: [pyro.sample(name, fn) for name, fn in proposals.items()]).get_trace()

    def combine(self, draws: WeightedDraws) -> BoundTerms:
        log_weights = draws.log_p - draws.log_q.detach()
        kept = self._kept.weights if self._kept is not None else None
        if self.min_ess is None and not self._keeping:
            bound = log_mean_exp(log_weights)
        else:
            normalised = self._weights(log_weights.detach()) if kept is None else kept
            if self._kept is not None:
                self._kept.weights = normalised
            # the value stays the importance-weighted bound; the gradient is the M-step's
            step = (normalised * (draws.log_p - draws.log_p.detach())).sum(0)
            bound = log_mean_exp(log_weights).detach() + step
        if draws.log_q.requires_grad and kept is None:  # a proposal with parameters
            normalised = torch.softmax(log_weights.detach(), 0)
            bound = bound + score_term(normalised, draws.log_q, draws.axes.shape)
        return self.weighted_terms(draws, bound)

    def _weights(self, log_weights: Tensor) -> Tensor:
        """Normalised weights ``[K, *B]``, flattened where a least effective sample size is asked for."""
        if self.min_ess is not None:
            log_weights = temperature(log_weights, self.min_ess * log_weights.shape[0]) * log_weights
        return torch.softmax(log_weights, 0)


def temperature(log_weights: Tensor, least: float, iterations: int = 30) -> Tensor:
    """The largest exponent τ ≤ 1 at which weights w^τ have an effective sample size of at least ``least``.

    Args:
        log_weights: ``[K, *B]``.
        least: between 1 and K.
        iterations: halvings of [0, 1].

    Returns:
        τ ``[*B]``; 1 where the weights need no flattening.
    """
    low, high = torch.zeros_like(log_weights[0]), torch.ones_like(log_weights[0])
    enough = effective_sample_size(log_weights) >= least
    for _ in range(iterations):
        middle = (low + high) / 2
        good = effective_sample_size(middle * log_weights) >= least
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.where(enough, torch.ones_like(low), low)
