"""NMDP's ablation ladder: how each rung is built and trained (docs/papers/nmdp.md#the-ladder)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from evaluation.experiments.nmdp_parts import Pair, Size
from guides import (
    DeterministicGateGuide,
    DirichletMixtureGuide,
    DirichletPosteriorGuide,
    UniformMixtureGuide,
)
from inference.objectives import make
from pp_models import MixtureDensityNetwork

#: rung -> (what it is, guide, objective and its options); every one scores context and target points in training
RUNGS: dict[str, tuple[str, type, tuple[str, dict[str, Any]]]] = {
    "A1": ("one expert", UniformMixtureGuide, ("npml", {"num_particles": 1, "score": "full"})),
    "A2": ("equal weights", UniformMixtureGuide, ("npml", {"num_particles": 1, "score": "full"})),
    "A3": ("deterministic gate", DeterministicGateGuide, ("npml", {"num_particles": 1, "score": "full"})),
    "A4": ("Dirichlet, ELBO", DirichletPosteriorGuide, ("npvi", {"num_particles": 4})),
    "A5": ("Dirichlet, importance-weighted EM", DirichletMixtureGuide, ("iw-em", {})),
    "A5c": ("the same, conjugate proposal", DirichletMixtureGuide, ("iw-em", {"proposal": "conjugate"})),
}


def rung(name: str, size: Size, experts: str, min_scale: float, num_experts: int = 0) -> Callable[[], Pair]:
    """Builds the model and guide of a rung."""

    def build() -> Pair:
        model = MixtureDensityNetwork(
            1 if name == "A1" else num_experts or size.num_experts,
            1,
            1,
            experts,
            min_scale=min_scale,
            width=size.width,
            representation_dim=size.width,
        )
        return model, RUNGS[name][1](model)

    return build


def rung_objective(name: str, size: Size, **options: Any) -> Any:
    """What trains a rung, normalised by the number of points."""
    objective, own = RUNGS[name][2]
    if objective == "iw-em":
        own = {"num_particles": size.particles, **own}
    return make(objective, **{**own, "normalize": True, **options})


def late_ess(history: list[dict[str, float]]) -> dict[str, float]:
    """Mean effective sample size, and share of tasks below 2, over the last quarter of the logged steps."""
    late = pd.DataFrame(history[-max(1, len(history) // 4) :])
    return {name: float(late[name].mean()) if name in late else float("nan") for name in ("ess", "ess_below_2")}
