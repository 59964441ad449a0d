"""The evidence lower bound, per task."""

from __future__ import annotations

from typing import Any

from inference.objectives.kl_objective import Branches, LocallyReparameterized
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
      so take at least two.

    Args:
        on: which points of a TaskBatch are the data set: ``"full"`` or ``"context"``.
        estimator: ``"pathwise"``, ``"stl"`` or ``"score"``.
        **options: see :class:`LocallyReparameterized`.

    Example:
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TaskELBO(num_particles=4))
        >>> svi.step(batch)
    """

    name = "elbo"
    description = "evidence lower bound of each task, analytic KL where there is one"
    reference = "Jordan et al. 1999"
    estimators = ("pathwise", "stl", "score")

    @checked(on=one_of("full", "context"))
    def __init__(self, num_particles: int = 1, *, on: str = "full", **options: Any) -> None:
        super().__init__(num_particles, **options)
        self.on = on

    def run_branches(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Branches:
        args = data_set(args, self.on)
        return Branches(posterior=self.run_guide(guide, args, kwargs), model_args=args, guide_args=args)
