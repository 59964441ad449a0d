"""Objectives: which data the guide sees, which data the likelihood scores, and what divergence ties them."""

from __future__ import annotations

import inspect
from typing import Any

from inference.objectives.conditional_prior import ConditionalPrior
from inference.objectives.elbo import TaskELBO
from inference.objectives.npvi import NPVI
from inference.objectives.task_objective import BoundTerms, TaskObjective

#: name -> (class, one line, reference)
REGISTRY: dict[str, tuple[type[TaskObjective], str, str]] = {
    "elbo": (TaskELBO, "evidence lower bound of each task, analytic KL where there is one", "Jordan et al. 1999"),
    "conditional-prior": (
        ConditionalPrior,
        "guide on the context against the same guide on the whole task",
        "NVDP, Jeon et al. 2022",
    ),
    "npvi": (NPVI, "guide on the whole task against the same guide on the context", "Garnelo et al. 2018"),
}


def make(name: str, **options: Any) -> TaskObjective:
    """The objective of that name.

    Args:
        name: a name of ``REGISTRY``.
        **options: keyword arguments of its class.

    Raises:
        ValueError: unknown name or unknown option.
    """
    if name not in REGISTRY:
        raise ValueError(f"objective: got {name!r}; it must be one of {', '.join(sorted(REGISTRY))}")
    cls = REGISTRY[name][0]
    known = set()
    for owner in cls.__mro__:
        if "__init__" in vars(owner) and issubclass(owner, TaskObjective):
            known |= set(inspect.signature(owner.__init__).parameters)
    unknown = set(options) - (known - {"self", "options"})
    if unknown:
        raise ValueError(
            f"{sorted(unknown)[0]}: objective {name!r} has no such option; it has "
            f"{', '.join(sorted(known - {'self', 'options'}))}"
        )
    return cls(**options)


__all__ = ["NPVI", "REGISTRY", "BoundTerms", "ConditionalPrior", "TaskELBO", "TaskObjective", "make"]
