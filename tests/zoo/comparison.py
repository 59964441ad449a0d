"""An objective on a case against its reference: value and gradient of every parameter, in standard errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch

from inference.objectives import make
from tests.zoo.programs import CASES, Case
from tests.zoo.reference import Moments, estimate, moments

#: name in the zoo -> name in the registry, options
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "elbo": ("elbo", {}),
    "elbo-stl": ("elbo", {"estimator": "stl"}),
    "elbo-score": ("elbo", {"estimator": "score"}),
    "iwae": ("iwae", {}),
    "dreg": ("dreg", {}),
    "renyi": ("renyi", {"alpha": 0.4}),
    "renyi-doubly": ("renyi", {"alpha": 0.4, "doubly_reparameterized": True}),
    "rws": ("rws", {}),
    "chi2": ("chi2", {}),
    "chi2-cubo": ("chi2", {"bound": "cubo"}),
}
#: what has the same expected value and gradient
SAME_AS = {"elbo-stl": "elbo", "elbo-score": "elbo", "dreg": "iwae", "renyi-doubly": "renyi"}
PARTICLES = 4
STANDARD_ERRORS = 5.0


def fresh(case_name: str) -> Case:
    """A case with parameters as they start."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return CASES[case_name]()


def ours(case: Case, name: str, vectorize: bool) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """One evaluation of an objective: loss, and what to differentiate."""
    registered, options = OBJECTIVES[name]
    objective = make(registered, num_particles=PARTICLES, vectorize_particles=vectorize, **options)

    def once() -> tuple[torch.Tensor, torch.Tensor]:
        loss = objective.differentiable_loss(case.model, case.guide, *case.args)
        return loss.detach(), loss

    return once


def of_reference(case_name: str, name: str, repeats: int, known: dict[tuple[str, str], Moments]) -> Moments:
    """The reference's moments; once for the objectives that agree in expectation."""
    name = SAME_AS.get(name, name)
    if (case_name, name) not in known:
        case = fresh(case_name)
        torch.manual_seed(1)
        known[case_name, name] = moments(lambda: estimate(case, name, PARTICLES), repeats)
    return known[case_name, name]


def applicable(case: Case) -> list[str]:
    """Objectives with a reference on a case."""
    return [name for name in OBJECTIVES if name not in case.refused and name not in case.left_out]


def worst(found: Moments, wanted: Moments, only_value: bool = False) -> tuple[float, str]:
    """The largest deviation in standard errors, and what it is of."""
    deviations = []
    for name, (mean, error) in wanted.items():
        if only_value and name != "loss":
            continue
        own, own_error = found[name]
        scale = (error.square() + own_error.square()).sqrt() + 2e-5 * (1 + mean.abs())
        deviations.append((float(((own - mean).abs() / scale).max()), name))
    return max(deviations)


def check(
    case_name: str,
    name: str,
    vectorize: bool,
    repeats: int,
    known: dict[tuple[str, str], Moments],
    limit: float = STANDARD_ERRORS,
) -> str:
    """What is wrong with an objective on a case; nothing where all is well."""
    case = fresh(case_name)
    if name in case.refused:
        try:
            ours(case, name, vectorize)()
        except ValueError as error:
            wanted = case.refused[name]
            return "" if str(error).startswith(wanted) else f"refused with {str(error)!r} and not with {wanted!r}"
        return "not refused"
    torch.manual_seed(2)
    found = moments(ours(case, name, vectorize), repeats)
    wanted_moments = of_reference(case_name, name, repeats, known)
    # what CUBO descends is not the gradient of what it reports in the model's parameters
    deviation, what = worst(found, wanted_moments, only_value=name == "chi2-cubo")
    if deviation < limit:
        return ""
    own, reference = (m[what][0].tolist()[:3] for m in (found, wanted_moments))
    return f"{what}: {own} for {reference}, {deviation:.1f} standard errors"


def evidence_error(case_name: str, particles: int, vectorize: bool = True) -> float:
    """The importance-weighted bound of many particles less the exact evidence."""
    case = fresh(case_name)
    assert case.evidence is not None
    torch.manual_seed(3)
    objective = make("iwae", num_particles=particles, vectorize_particles=vectorize)
    return sum(-objective.loss(case.model, case.guide, *case.args) for _ in range(4)) / 4 - case.evidence


def splits(case_name: str, name: str = "iwae") -> tuple[set[str], dict[str, str]]:
    """The plates along which a bound is split, and what ties the others."""
    case = fresh(case_name)
    registered, options = OBJECTIVES[name]
    terms = make(registered, num_particles=2, **options).terms(case.model, case.guide, *case.args)
    return set(terms.independent.plates), dict(terms.independent.ties)


def notice(mutation: Any, repeats: int, limit: float = STANDARD_ERRORS) -> str:
    """What shows that a fault was put back: a wrong number, another split of plates, or an error; else nothing.

    Args:
        mutation: the fault, already put back.
        repeats: evaluations.
        limit: standard errors.
    """
    try:
        found = check(mutation.case, mutation.objective, mutation.vectorize, repeats, {}, limit)
        if not found and splits(mutation.case)[0] != set(fresh(mutation.case).split):
            return "another split"
        return found
    except Exception as error:
        return f"{type(error).__name__}: {error}"
