"""NVDP's objective: the guide on the whole task stands in for the prior."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace

from guides.shared_points import shared_points
from inference.objectives.independent_plates import is_point_mass, sample_sites
from inference.objectives.kl_objective import Branches, LocallyReparameterized
from inference.objectives.task_objective import context_and_full
from pp_models.arguments import checked
from pp_models.contract import as_guide
from pp_models.data import Dataset


class ConditionalPrior(LocallyReparameterized):
    """E_q(W | D_c)[log p(y_D | x_D, W)] - β KL(q(W | D_c) ‖ q(W | D)) for each task (docs/papers/nvdp.md, eq. 6).

    Samples come from the guide on the *context*, as at test time; the prior is the same guide on the whole task (its
    ``conditional_prior`` method where it has one), and gradients flow through both. It is not a bound on the evidence
    under a fixed prior. The latent neural process with "variational prior" is this objective on a
    :class:`guides.NeuralProcessGuide`.

    Args:
        num_particles: draws per task (3 in the paper's code, averaged in log space).
        beta: weight of the KL (1.4 for GP regression, 0.5 for images).
        kl_reduction: ``"mean"`` by default, as the released code does; see :class:`LocallyReparameterized`.
        local_reparameterization: on by default.
        stop_prior_gradient: cut the gradient through the prior branch (an ablation).
        **options: see :class:`LocallyReparameterized`.
    """

    name = "conditional-prior"
    description = "guide on the context against the same guide on the whole task"
    reference = "NVDP, Jeon et al. 2022"
    guide_is = "predictor"
    needs = "data set"

    @checked()
    def __init__(
        self,
        num_particles: int = 1,
        *,
        beta: float = 1.0,
        kl_reduction: str = "mean",
        local_reparameterization: bool = True,
        stop_prior_gradient: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            num_particles,
            beta=beta,
            kl_reduction=kl_reduction,
            local_reparameterization=local_reparameterization,
            **options,
        )
        self.stop_prior_gradient = stop_prior_gradient

    @property
    def scores_guide(self) -> bool:
        return True

    def run_branches(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Branches:
        context, full = context_and_full(args[0])
        # a guide that draws nothing is not run on the whole task
        with nullcontext() if as_guide(guide).point_mass else shared_points(context, full):
            return self._branches(guide, context, full, args[1:], kwargs)

    def _branches(self, guide: Any, context: Dataset, full: Dataset, rest: tuple, kwargs: dict) -> Branches:
        posterior = self.run_guide(guide, (context, *rest), kwargs)
        if all(is_point_mass(site["fn"]) for _, site in sample_sites(posterior)):
            # a CNP: nothing to compare, so one pass is enough
            return Branches(
                posterior=posterior, reference=Trace(), model_args=(full, *rest), guide_args=(context, *rest)
            )
        prior_guide = as_guide(guide).conditional_prior
        # the posterior's draws are replayed: a guide whose layers condition on those below is then evaluated at them
        replayed = poutine.replay(prior_guide, trace=posterior)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_prior_gradient):
            prior = self.run_guide(replayed, (full, *rest), kwargs)
        return Branches(posterior=posterior, reference=prior, model_args=(full, *rest), guide_args=(context, *rest))
