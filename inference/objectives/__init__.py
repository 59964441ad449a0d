"""Objectives: which data the guide sees, which data the likelihood scores, and what divergence ties them."""

from __future__ import annotations

import inspect
from typing import Any

from inference.objectives.chi2 import Chi2
from inference.objectives.conditional_prior import ConditionalPrior
from inference.objectives.dreg import DReG
from inference.objectives.elbo import TaskELBO
from inference.objectives.iw_em import IWEM
from inference.objectives.iwae import IWAE
from inference.objectives.npml import NPML
from inference.objectives.npvi import NPVI
from inference.objectives.pp_avi import PPAVI
from inference.objectives.renyi import Renyi
from inference.objectives.rws import ReweightedWakeSleep
from inference.objectives.task_objective import BoundTerms, TaskObjective

#: name -> (class, one line, reference)
REGISTRY: dict[str, tuple[type[TaskObjective], str, str]] = {
    "elbo": (TaskELBO, "evidence lower bound of each task, analytic KL where there is one", "Jordan et al. 1999"),
    "iwae": (
        IWAE,
        "K-particle importance-weighted bound; VIMCO where a site cannot be reparameterised",
        "Burda et al. 2016; Mnih and Rezende 2016",
    ),
    "dreg": (DReG, "the same bound with doubly reparameterised gradients", "Tucker et al. 2019"),
    "renyi": (
        Renyi,
        "variational Rényi bound, from IWAE (α = 0) to the ELBO (α = 1)",
        "Li and Turner 2016; Daudel et al. 2023",
    ),
    "rws": (
        ReweightedWakeSleep,
        "reweighted wake-sleep: wake-θ, wake-φ and sleep-φ",
        "Bornschein and Bengio 2015; Le et al. 2019",
    ),
    "iw-em": (IWEM, "importance-weighted EM: the guide on the context as a conditional prior", "NMDP, CVPR 2026"),
    "pp-avi": (PPAVI, "log posterior predictive of the targets plus ELBO of the context", "BNNP"),
    "npml": (NPML, "likelihood of the targets under the guide on the context, no KL", "Foong et al. 2020"),
    "npvi": (NPVI, "guide on the whole task against the same guide on the context", "Garnelo et al. 2018"),
    "conditional-prior": (
        ConditionalPrior,
        "guide on the context against the same guide on the whole task",
        "NVDP, Jeon et al. 2022",
    ),
    "chi2": (Chi2, "forward χ² importance sampling, or the χ upper bound (CUBO)", "Li et al. 2024; Dieng et al. 2017"),
}

for _name, (_class, *_) in REGISTRY.items():
    _class.name = _name


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
    for option in unknown & set(cls.has_no):
        raise ValueError(f"{option}: {cls.has_no[option].format(options[option])}")
    if unknown:
        raise ValueError(
            f"{sorted(unknown)[0]}: objective {name!r} has no such option; it has "
            f"{', '.join(sorted(known - {'self', 'options'}))}"
        )
    return cls(**options)


__all__ = [
    "IWAE",
    "IWEM",
    "NPML",
    "NPVI",
    "PPAVI",
    "REGISTRY",
    "BoundTerms",
    "Chi2",
    "ConditionalPrior",
    "DReG",
    "Renyi",
    "ReweightedWakeSleep",
    "TaskELBO",
    "TaskObjective",
    "make",
]
