"""BNNP's objective: the log posterior predictive of the targets plus the ELBO of the context."""

from __future__ import annotations

from typing import Any

from inference.objectives.kl_objective import Branches, KLObjective
from inference.objectives.task_objective import context_and_full, scored_points


class PPAVI(KLObjective):
    """log (1/S) Σ_s Π_t p(y_t | x_t, W_s) + (1/S) Σ_s log p(y_c | x_c, W_s) - KL(q(W | D_c) ‖ p(W)), W_s ~ q(W | D_c).

    Posterior-predictive amortised variational inference (BNNP; docs/papers/bnnp.md, eq. 17): the same weight samples in
    both brackets, the targets' likelihoods multiplied *inside* the mean (joint, not per point), the guide on the
    context alone. With an exact guide the brackets are log p(y_t | D_c) + log p(y_c) = log p(y): type-II maximum
    likelihood of the whole task. Otherwise it is not a bound on the evidence, and the first bracket is low by O(1/S).
    One released version scored the context as the targets; here the targets are the batch's.

    A Dataset is context and target at once.

    Args:
        num_particles: weight samples of each task, S (16 to 32 in the released configurations).
        beta: weighs the first bracket and the KL, not the context's likelihood, as in the released code.
        **options: see :class:`KLObjective`.
    """

    def __init__(self, num_particles: int = 8, *, beta: float = 1.0, **options: Any) -> None:
        super().__init__(num_particles, beta=beta, **options)
        if self.local_reparameterization:
            raise ValueError(
                "local_reparameterization: got True; the joint predictive of the targets needs one coherent draw of "
                "the weights for all points"
            )

    @property
    def predictive_weight(self) -> float:  # type: ignore[override]
        return self.beta

    def run_branches(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Branches:
        context, _ = context_and_full(args[0])
        given = (context, *args[1:])
        predicted = (scored_points(args[0]), *args[1:])
        return Branches(self.run_guide(guide, given, kwargs), None, given, given, predicted)
