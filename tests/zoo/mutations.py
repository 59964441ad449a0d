"""Faults that objectives have had on other people's programs, put back one at a time.

Each is a table of patches, and a case with an objective on which the zoo must notice it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from inference.objectives import (
    analytic_kl,
    importance_weights,
    independent_plates,
    kl_objective,
    observations,
    particles,
    task_objective,
    ties,
)
from inference.objectives.independent_plates import Ties

ROOMS = (
    analytic_kl,
    importance_weights,
    independent_plates,
    kl_objective,
    observations,
    particles,
    task_objective,
    ties,
)


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Args:
        patches: new functions by name; each replaces the old one wherever it is used.
        case: where it shows.
        objective: with what.
        vectorize: whether particles are run at once.
        repeats: evaluations that show it.
    """

    patches: dict[str, Any]
    case: str
    objective: str
    vectorize: bool = True
    repeats: int = 24

    def apply(self, monkeypatch: Any) -> None:
        """Puts the fault back."""
        for name, new in self.patches.items():
            rooms = [room for room in ROOMS if hasattr(room, name)]
            assert rooms, name
            for room in rooms:
                monkeypatch.setattr(room, name, new)


def _sizes_of_frames(old: Callable) -> Callable:
    def plates_of(sites: Any, *rest: Any) -> Any:
        sites = list(sites)
        sizes = {f.name: f.size for s in sites for f in s["cond_indep_stack"]}
        return {name: replace(plate, size=sizes[name]) for name, plate in old(sites, *rest).items()}

    return plates_of


def _sized(frame: Any) -> str:
    return f"{frame.dim}:{frame.size}"


def _frames_by_size(site: Any, particles: str) -> dict[str, Any]:
    return {_sized(f): f for f in site["cond_indep_stack"] if f.vectorized and f.name != particles}


def _by_dim_alone(old: Callable) -> Callable:
    def per_particle(value: torch.Tensor, axes: Any, site: Any) -> torch.Tensor:
        class Anything:
            def __contains__(self, name: str) -> bool:
                return True

        return old(value, axes, {**site, "cond_indep_stack": [_Frame(name) for name in axes.names]})

    return per_particle


@dataclass
class _Frame:
    name: str


def _named_by_size(old: Callable) -> Callable:
    """Ties that nobody looked for: a plate splits wherever every site has one of its dim and size."""

    def find_ties(program: Any) -> Ties:
        sites = [site for _, _, site in program.sites()]
        names = [set(_frames_by_size(site, independent_plates.PARTICLES)) for site in sites]
        everywhere = set.intersection(*names)
        return Ties(outside={name: "some site" for own in names for name in own if name not in everywhere})

    return find_ties


def _everywhere_ties(old: Callable) -> Callable:
    """A deterministic site or a factor outside a plate ties it."""

    def find_ties(program: Any) -> Ties:
        found = old(program)
        sites = program.sites()
        plates = independent_plates.plates_of([site for *_, site in sites], independent_plates.PARTICLES)
        outside = {
            plate.name: name
            for plate in plates.values()
            for _, name, site in sites
            if not independent_plates.holds(plate, site, independent_plates.PARTICLES)
        }
        return replace(found, constant=frozenset(), outside=outside)

    return find_ties


def _no_observed(old: Callable) -> Callable:
    return lambda trace: ((name, site) for name, site in old(trace) if not site["is_observed"])


def _every_site(posterior: Any, other: Any) -> set[str]:
    return {name for name, _ in independent_plates.sample_sites(posterior)}


class _OwnSubsample(Messenger):
    last = ""


def _unchecked(guide_trace: Any, model_trace: Any, dim: int, *rest: Any) -> Any:
    return guide_trace, model_trace


MUTATIONS: dict[str, Mutation] = {
    "a plate without a size has size -1": Mutation(
        {"plates_of": _sizes_of_frames(independent_plates.plates_of)}, "plate_without_size", "elbo"
    ),
    "the same, with scores": Mutation(
        {"plates_of": _sizes_of_frames(independent_plates.plates_of)}, "labels_without_size", "elbo-score"
    ),
    "a KL is analytic in any order": Mutation({"analytic_sites": _every_site}, "bottom_up", "elbo"),
    "plates are known by dim and size": Mutation(
        {
            "_frames": _frames_by_size,
            "per_particle": _by_dim_alone(independent_plates.per_particle),
            "find_ties": _named_by_size(ties.find_ties),
        },
        "features_and_data",
        "iwae",
    ),
    "every particle has its own subsample": Mutation(
        {"one_subsample": _OwnSubsample}, "subsampled_locals", "iwae", vectorize=False, repeats=200
    ),
    "particles are run at once, come what may": Mutation(
        {
            "check_shapes": lambda *_: None,
            "check_one_alone": _unchecked,
            "find_ties": lambda program: Ties(outside={"steps": "x", "data": "steps_"}),
        },
        "random_walk",
        "elbo",
        repeats=400,
    ),
    "a flat prior takes the entropy with it": Mutation(
        {"log_density": lambda site, *rest, **options: torch.zeros(1)}, "flat_prior", "elbo", repeats=150
    ),
    "a scale on the model alone is ignored": Mutation({"same": lambda a, b: True}, "annealed_prior", "elbo"),
    "a mask on the model alone is ignored": Mutation({"_same_mask": lambda a, b: True}, "masked_prior", "elbo"),
    "observed sites of a guide are dropped": Mutation(
        {"sample_sites": _no_observed(independent_plates.sample_sites)}, "label_in_the_guide", "elbo"
    ),
    "a guide's extra site is subtracted": Mutation({"check_extra_sites": lambda *_: None}, "extra_site", "iwae"),
    "a plate called particles is the particles'": Mutation({"PARTICLES": "particles"}, "own_plate_particles", "elbo"),
    "a plate called tasks is the tasks'": Mutation({"find_ties": lambda program: Ties()}, "own_plate_tasks", "elbo"),
    "elements of a plate are taken to be independent": Mutation(
        {"find_ties": lambda program: Ties()}, "neighbours_in_a_plate", "iwae"
    ),
    "a factor of parameters ties a plate": Mutation(
        {"find_ties": _everywhere_ties(ties.find_ties)}, "ridge_outside", "iwae"
    ),
    "what acts after a draw is weighed as the draw": Mutation(
        {"has_point_masses": lambda trace: False}, "AutoStructured", "dreg", repeats=120
    ),
}
