"""Reweighted wake-sleep with weights per task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from inference.objectives.dreams import guide_at, repeated, simulate_data_set
from inference.objectives.fixed_values import score_term
from inference.objectives.importance_weights import ImportanceWeighted, WeightedDraws
from inference.objectives.independent_plates import TaskAxes, drawn_sites, independent_axes, per_particle
from inference.objectives.task_objective import BoundTerms, data_set, log_mean_exp
from pp_models.arguments import CALLABLE, NOT_NEGATIVE, checked, optional
from pp_models.data import Dataset


@dataclass
class RWSDraws(WeightedDraws):
    """Draws of a wake phase and, where it is mixed in, of a sleep phase."""

    dreamt_log_q: Tensor | None = None


class ReweightedWakeSleep(ImportanceWeighted):
    """Reweighted wake-sleep (Bornschein and Bengio 2015; Le et al. 2019) with one set of weights for each task.

    With particles z_k ~ q(z | D) that carry no gradient and ŵ_k their weights normalised within the task,

        wake-θ:   Σ_k ŵ_k ∇_θ log p(y, z_k)             the gradient of log (1/K) Σ_k w_k, which is the reported bound
        wake-φ:   Σ_k ŵ_k ∇_φ log q(z_k | D)            towards the posterior in KL(p ‖ q)
        sleep-φ:  (1/K) Σ_k ∇_φ log q(z_k | x, y_k)     with (z_k, y_k) drawn from the model at the task's inputs

    No site needs a reparameterised draw. The wake gradients are self-normalised: biased by O(1/K).

    Args:
        num_particles: particles of each task, K.
        wake_theta: weight of the wake-θ gradient; 0 leaves the model as it is.
        wake_phi: weight of the wake-φ gradient.
        sleep_phi: weight of the sleep-φ gradient.
        simulate: how to dream for a model that is not called with a Dataset: a function of ``(model, args, kwargs)``
            that returns the guide's ``(args, kwargs)`` with simulated observations and the trace they came from.
        **options: see :class:`ImportanceWeighted`.

    Raises:
        ValueError: a negative weight, or all zero; when sleeping, a model with an improper prior.
    """

    name = "rws"
    description = "reweighted wake-sleep: wake-θ, wake-φ and sleep-φ"
    reference = "Bornschein and Bengio 2015; Le et al. 2019"
    fixed_particles = True

    @checked(wake_theta=NOT_NEGATIVE, wake_phi=NOT_NEGATIVE, sleep_phi=NOT_NEGATIVE, simulate=optional(CALLABLE))
    def __init__(
        self,
        num_particles: int = 8,
        *,
        wake_theta: float = 1.0,
        wake_phi: float = 1.0,
        sleep_phi: float = 0.0,
        simulate: Callable | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_particles, **options)
        weights = {"wake_theta": wake_theta, "wake_phi": wake_phi, "sleep_phi": sleep_phi}
        if not any(weights.values()):
            raise ValueError("wake_theta, wake_phi, sleep_phi: all are 0; nothing would be trained")
        self.wake_theta, self.wake_phi, self.sleep_phi = wake_theta, wake_phi, sleep_phi
        self.simulate = simulate

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> RWSDraws:
        awake = super().draw(model, guide, args, kwargs, particles, diagnostics)
        draws = RWSDraws(**vars(awake))
        if self.sleep_phi:
            count = 1 if not self.vectorize_particles else self.num_particles
            draws.dreamt_log_q = self._dream(model, guide, data_set(args, self.on), kwargs, count, draws.axes)
        return draws

    def _dream(self, model: Any, guide: Any, args: tuple, kwargs: dict, count: int, axes: TaskAxes) -> Tensor:
        """log q of latents drawn from the model, given observations drawn with them: ``[K, *B]``."""
        simulate = self.simulate or simulate_data_set
        if self.simulate is None and not (args and isinstance(args[0], Dataset)):
            raise ValueError(
                "sleep_phi: the model is not called with a Dataset, so that its observations cannot be replaced by "
                "simulated ones; pass simulate="
            )
        if self.simulate is None:
            args = (repeated(args[0], count), *args[1:])
        with torch.no_grad():
            guide_args, guide_kwargs, dream = simulate(model, args, kwargs)
        guide_trace = guide_at(guide, dream, guide_args, guide_kwargs)
        if self.simulate is None:
            axes = independent_axes(guide_trace)
        else:
            axes = replace(axes, particle_dim=None)
        found = [per_particle(site["fn"].log_prob(site["value"]), axes, site) for _, site in drawn_sites(guide_trace)]
        summed = sum(found[1:], found[0])
        return summed.squeeze(0) if self.simulate is None else summed

    def combine(self, draws: RWSDraws) -> BoundTerms:
        log_weights = draws.log_p - draws.log_q.detach()
        bound = log_mean_exp(log_weights)
        normalised = torch.softmax(log_weights.detach(), 0)
        bound = bound.detach() + self.wake_theta * (bound - bound.detach())
        bound = bound + score_term(self.wake_phi * normalised, draws.log_q, draws.axes.shape)
        if draws.dreamt_log_q is not None:
            dreamt = draws.dreamt_log_q
            each = torch.full_like(dreamt, self.sleep_phi / dreamt.shape[0])
            bound = bound + score_term(each, dreamt, draws.axes.shape)
        return self.weighted_terms(draws, bound)
