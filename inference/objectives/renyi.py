"""The variational Rényi bound of each task, and its doubly reparameterised gradient."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.importance_weights import (
    ImportanceWeighted,
    WeightedDraws,
    fixed_sum,
    renyi_bound,
    vimco_signal,
)
from inference.objectives.independent_plates import drawn_sites
from inference.objectives.task_objective import BoundTerms
from pp_models.arguments import checked


class RenyiBound(ImportanceWeighted):
    """Base of the bounds 1 / (1 - α) log (1/K) Σ_k w_k^(1 - α), w = p(y, z) / q(z | D)."""

    alpha = 0.0
    doubly_reparameterized = False
    weighs_kl = True

    def __init__(self, num_particles: int = 8, **options: Any) -> None:
        super().__init__(num_particles, **options)
        self.check_schedule()

    def check_guide(self, guide_trace: Trace) -> None:
        if not self.doubly_reparameterized:
            return
        for name, site in drawn_sites(guide_trace):
            if not site["fn"].has_rsample:
                raise ValueError(
                    f"site {name!r}: {type(site['fn']).__name__} cannot be reparameterised, which doubly "
                    "reparameterised gradients need; use 'iwae' (VIMCO) or 'rws'"
                )

    def check_schedule(self) -> None:
        """Refuses what a schedule cannot do to importance weights.

        Raises:
            ValueError: doubly reparameterised gradients, whose derivation needs the guide's own density; or free bits.
        """
        if self.kl_schedule is not None and self.doubly_reparameterized:
            raise ValueError("kl_schedule: got one with doubly reparameterised gradients, which a tempered KL biases")
        if self.kl_schedule is not None and self.kl_schedule.free_bits:
            raise ValueError(
                f"kl_schedule: got free_bits = {self.kl_schedule.free_bits}; importance weights have no KL by site"
            )

    def combine(self, draws: WeightedDraws) -> BoundTerms:
        log_weights = draws.log_weights
        if self.kl_schedule is not None:
            tempered = self.kl_schedule.beta() * (log_weights - draws.log_likelihood)
            log_weights = draws.log_likelihood + tempered
        if not self.doubly_reparameterized:
            signal = vimco_signal(log_weights, self.alpha) if draws.log_q_score else None
            return self.weighted_terms(draws, renyi_bound(log_weights, self.alpha), signal)
        value = renyi_bound(log_weights.detach(), self.alpha)
        normalised = torch.softmax((1 - self.alpha) * log_weights.detach(), 0)
        # parameters of the model, and those that act after a draw, get ŵ; what goes through a draw gets ŵ times this
        factor = self.alpha + (1 - self.alpha) * normalised
        set_factors(draws, factor)
        explicit = 0.0 if draws.log_q_explicit is None else draws.log_q_explicit
        log_q = factor * (draws.log_q - fixed_sum(draws) - explicit) + explicit
        surrogate = normalised * (draws.log_p - log_q)
        return self.weighted_terms(draws, value + (surrogate - surrogate.detach()).sum(0))


class Renyi(RenyiBound):
    """L_α = 1 / (1 - α) log (1/K) Σ_k w_k^(1 - α) for each task, w = p(y, z) / q(z | D).

    In expectation a lower bound on the evidence for 0 <= α < 1, between IWAE (α = 0) and the ELBO (α = 1), increasing
    in K (VR-IWAE: Daudel et al. 2023; Li and Turner 2016). Sites without a reparameterised draw get VIMCO's
    score-function gradient.

    Args:
        num_particles: particles of each task, K.
        alpha: α; 1 is the ELBO. A negative one is an upper bound for K → ∞ only, and biased towards the evidence.
        doubly_reparameterized: the gradient to the guide through the particles alone,
            Σ_k (α ŵ_k + (1 - α) ŵ_k²) ∂ log w_k / ∂z_k dz_k / dφ with ŵ ∝ w^(1 - α), whose signal-to-noise ratio does
            not fall with K (Daudel et al. 2023, section 3; Tucker et al. 2019 for α = 0).
        **options: see :class:`ImportanceWeighted`.

    Raises:
        ValueError: α not finite; with ``doubly_reparameterized``, a site that cannot be reparameterised.
    """

    name = "renyi"
    description = "variational Rényi bound, from IWAE (α = 0) to the ELBO (α = 1)"
    reference = "Li and Turner 2016; Daudel et al. 2023"

    @checked()
    def __init__(
        self, num_particles: int = 8, *, alpha: float = 0.5, doubly_reparameterized: bool = False, **options: Any
    ) -> None:
        super().__init__(num_particles, **options)
        self.alpha = float(alpha)
        self.doubly_reparameterized = self.needs_score = self.weighs_gradients = doubly_reparameterized
        self.check_schedule()  # again, of what was chosen


def set_factors(draws: WeightedDraws, factor: Tensor) -> None:
    """Hands the factors ``[K, *B]`` to the passes that drew the particles."""
    each = factor.chunk(len(draws.gradient_weights)) if draws.gradient_weights else ()
    for weight, own in zip(draws.gradient_weights, each, strict=True):
        weight.factor = own
