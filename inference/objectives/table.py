"""The table of objectives by name: one line each."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pp_models.registry import Registry, load

if TYPE_CHECKING:
    from inference.objectives.task_objective import TaskObjective


@dataclass(frozen=True)
class ObjectiveEntry:
    """An objective by name.

    Args:
        place: ``"file:Class"`` in this folder.
        description: one line.
        reference: where it comes from.
    """

    place: str
    description: str
    reference: str

    def load(self) -> type[TaskObjective]:
        """Its class."""
        return load(f"inference.objectives.{self.place}")


REGISTRY: Registry[ObjectiveEntry] = Registry(
    "objective",
    {
        "elbo": ObjectiveEntry(
            "elbo:TaskELBO", "evidence lower bound of each task, analytic KL where there is one", "Jordan et al. 1999"
        ),
        "iwae": ObjectiveEntry(
            "iwae:IWAE",
            "K-particle importance-weighted bound; VIMCO where a site cannot be reparameterised",
            "Burda et al. 2016; Mnih and Rezende 2016",
        ),
        "dreg": ObjectiveEntry(
            "dreg:DReG", "the same bound with doubly reparameterised gradients", "Tucker et al. 2019"
        ),
        "renyi": ObjectiveEntry(
            "renyi:Renyi",
            "variational Rényi bound, from IWAE (α = 0) to the ELBO (α = 1)",
            "Li and Turner 2016; Daudel et al. 2023",
        ),
        "rws": ObjectiveEntry(
            "rws:ReweightedWakeSleep",
            "reweighted wake-sleep: wake-θ, wake-φ and sleep-φ",
            "Bornschein and Bengio 2015; Le et al. 2019",
        ),
        "iw-em": ObjectiveEntry(
            "iw_em:IWEM", "importance-weighted EM: the guide on the context as a conditional prior", "NMDP, CVPR 2026"
        ),
        "pp-avi": ObjectiveEntry(
            "pp_avi:PPAVI", "log posterior predictive of the targets plus ELBO of the context", "BNNP"
        ),
        "npml": ObjectiveEntry(
            "npml:NPML", "likelihood of the targets under the guide on the context, no KL", "Foong et al. 2020"
        ),
        "npvi": ObjectiveEntry(
            "npvi:NPVI", "guide on the whole task against the same guide on the context", "Garnelo et al. 2018"
        ),
        "conditional-prior": ObjectiveEntry(
            "conditional_prior:ConditionalPrior",
            "guide on the context against the same guide on the whole task",
            "NVDP, Jeon et al. 2022",
        ),
        "chi2": ObjectiveEntry(
            "chi2:Chi2",
            "forward χ² importance sampling, or the χ upper bound (CUBO)",
            "Li et al. 2024; Dieng et al. 2017",
        ),
        "tempered-elbo": ObjectiveEntry(
            "tempered_elbo:TemperedELBO",
            "the bound with a tempered, warmed-up KL and minibatches of the data",
            "LRVD; Wenzel et al. 2020",
        ),
    },
    "guidebook list objectives",
)


def make(name: str, **options: Any) -> TaskObjective:
    """The objective of that name.

    Args:
        name: a name of ``REGISTRY``.
        **options: keyword arguments of its class.

    Raises:
        ValueError: unknown name or unknown option.
    """
    from inference.objectives.task_objective import TaskObjective

    cls = REGISTRY.find(name).load()
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
