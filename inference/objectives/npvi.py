"""The neural-process objective: the guide on the whole task against the guide on the context."""

from __future__ import annotations

from typing import Any

from pyro import poutine
from pyro.poutine.trace_struct import Trace

from guides.shared_points import shared_points
from inference.objectives.independent_plates import is_point_mass, sample_sites
from inference.objectives.kl_objective import Branches, LocallyReparameterized
from inference.objectives.task_objective import context_and_full
from pp_models.contract import as_guide
from pp_models.data import Dataset


class NPVI(LocallyReparameterized):
    """E_q(z | D)[log p(y_D | x_D, z)] - β KL(q(z | D) ‖ q(z | D_c)) for each task (Garnelo et al. 2018, eq. 9).

    Samples come from the guide on the whole task, which no prediction can do: the train/test mismatch that
    :class:`ConditionalPrior` removes by swapping the two roles.

    Where a site of the guide depends on others, as the layers of a BNN do, both conditionals are taken at draws from
    the whole task; one at draws of its own would not even be zero where the context is the whole task (a mistake of
    BNNP's precursor code; docs/papers/bnnp.md, eq. 18).

    A guide may have a ``posterior_guide`` for the whole task (:class:`guides.DirichletPosteriorGuide`); then the guide
    itself, on the context, is what the divergence is taken to.

    A deterministic path is a point mass, which cannot be sampled from one data set and compared with another; it is
    always computed from the context, as in the papers.

    Args:
        **options: see :class:`LocallyReparameterized`.
    """

    name = "npvi"
    description = "guide on the whole task against the same guide on the context"
    reference = "Garnelo et al. 2018"
    guide_is = "predictor"
    needs = "data set"

    @property
    def scores_guide(self) -> bool:
        return True

    def run_branches(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Branches:
        context, full = context_and_full(args[0])
        with shared_points(context, full):
            return self._branches(guide, context, full, args[1:], kwargs)

    def _branches(self, guide: Any, context: Dataset, full: Dataset, rest: tuple, kwargs: dict) -> Branches:
        on_full = as_guide(guide).posterior_guide

        def from_context() -> tuple[Trace, Trace]:
            """The guide on the context, and the point masses among its sites."""
            trace, path = self.run_guide(guide, (context, *rest), kwargs), Trace()
            for name, site in sample_sites(trace):
                if is_point_mass(site["fn"]):
                    path.add_node(name, **site)
            return trace, path

        if as_guide(guide).independent_sites:
            reference, path = from_context()
            posterior = self.run_guide(poutine.replay(on_full, trace=path), (full, *rest), kwargs)
        else:
            # a site that depends on others is compared at the posterior's draws of those, not at draws of its own
            posterior = self.run_guide(on_full, (full, *rest), kwargs)
            if any(is_point_mass(site["fn"]) for _, site in sample_sites(posterior)):
                posterior = self.run_guide(poutine.replay(on_full, trace=from_context()[1]), (full, *rest), kwargs)
            reference = self.run_guide(poutine.replay(guide, trace=posterior), (context, *rest), kwargs)
        return Branches(posterior=posterior, reference=reference, model_args=(full, *rest), guide_args=(full, *rest))
