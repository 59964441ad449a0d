"""The evidence lower bound, per task."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from inference.objectives.closed_form_terms import closed_form_draws
from inference.objectives.kl_objective import Branches, KLDraws, LocallyReparameterized
from inference.objectives.sigma_points import SigmaPoints, check_sigma_points
from inference.objectives.task_objective import data_set
from pp_models.arguments import checked, one_of


class TaskELBO(LocallyReparameterized):
    """ELBO(D) = E_q(W | D)[log p(y | x, W)] - β KL(q(W | D) ‖ p(W)) for each task, on its whole data set D.

    The KL is analytic where ``torch.distributions.kl`` has it and Monte-Carlo elsewhere. Arguments other than a
    TaskBatch or Dataset are passed to model and guide unchanged, so any Pyro pair can be used.

    Gradients (``estimator``):

    * ``"pathwise"``: reparameterised, with score functions for the sites that cannot be;
    * ``"stl"``, sticking the landing (Roeder et al. 2017): the KL by Monte-Carlo without the score of q, so that the
      gradient is exactly zero where the guide is the posterior;
    * ``"score"``: score functions everywhere. The baseline of a particle is the mean of the others (Kool et al. 2019),
      so take at least two;
    * ``"analytic"``: no draw at all, where the guide knows its expected log-likelihood in closed form
      (``Guide.closed_form``), as of a last layer: no noise (VBLL; zero-variance gradients);
    * ``"sigma-points"``: in place of draws the 2 n points μ ± √n L e_i of Gaussian latents in n dimensions, whose mean
      and covariance are exact, so that the expectation of a quadratic is (the unscented transform; Janjoš et al. 2023).
      ``num_particles`` is 2 n.

    Args:
        on: which points of a TaskBatch are the data set: ``"full"`` or ``"context"``.
        estimator: ``"pathwise"``, ``"stl"``, ``"score"``, ``"analytic"`` or ``"sigma-points"``.
        **options: see :class:`LocallyReparameterized`.

    Example:
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TaskELBO(num_particles=4))
        >>> svi.step(batch)
    """

    name = "elbo"
    description = "evidence lower bound of each task, analytic KL where there is one"
    reference = "Jordan et al. 1999"
    estimators: tuple[str, ...] = ("pathwise", "stl", "score", "analytic", "sigma-points")

    @checked(on=one_of("full", "context"))
    def __init__(self, num_particles: int = 1, *, on: str = "full", **options: Any) -> None:
        super().__init__(num_particles, **options)
        self.on = on

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> KLDraws:
        if self.estimator == "analytic":
            return closed_form_draws(model, guide, data_set(args, self.on))
        if self.estimator != "sigma-points":
            return super().draw(model, guide, args, kwargs, particles, diagnostics)
        with SigmaPoints(self.num_particles):
            return super().draw(model, guide, args, kwargs, particles, diagnostics)

    def run_branches(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Branches:
        args = data_set(args, self.on)
        posterior = self.run_guide(guide, args, kwargs)
        if self.estimator == "sigma-points":
            check_sigma_points(posterior, self.num_particles)
        return Branches(posterior=posterior, model_args=args, guide_args=args)
