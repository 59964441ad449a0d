"""What is independent, read off a program: along which plates a bound splits into one bound for each element.

A plate is known by its name (and must have one dim); its size is that of the tensors, for a plate may have none. Which
plates split is decided here and nowhere else: :mod:`inference.objectives.ties` only says what an experiment found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pp_models.task_plates import PARTICLE_PLATE, TASK_PLATE

#: the plate of an objective's particles; no program has one of this name
PARTICLES = "particles of the objective"


@dataclass(frozen=True)
class Ties:
    """What :func:`inference.objectives.ties.find_ties` found out about a program.

    Args:
        outside: by plate the first site outside it whose density varies with what is drawn.
        between: by plate the first site through which one element's draws reach another's density, or that of a site
            outside the plate.
        constant: sites whose density no draw changes: deterministic ones, factors of parameters.
        derived: point masses of the guide that are functions of its draws.
    """

    outside: Mapping[str, str] = field(default_factory=dict)
    between: Mapping[str, str] = field(default_factory=dict)
    constant: frozenset[str] = frozenset()
    derived: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Independence:
    """Which plates were split into bounds of their own, and what ties the elements of the others.

    Args:
        plates: names of the plates that were split, leftmost first.
        ties: by plate that was not split, the site that ties its elements together.
    """

    plates: tuple[str, ...] = ()
    ties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskAxes:
    """The plates whose elements are tasks.

    Args:
        names: their names, leftmost first.
        dims: their (negative) dims.
        shape: their sizes, ``*B``.
        scale: full size over subsample size, multiplied over subsampled plates: what a sum over tasks is scaled by.
        particle_dim: dim of the vectorised particles, None without.
        independent: which plates were split, and why the others were not.
    """

    names: tuple[str, ...]
    dims: tuple[int, ...]
    shape: torch.Size
    scale: float
    particle_dim: int | None
    independent: Independence = field(default_factory=Independence)


@dataclass(frozen=True)
class _Plate:
    name: str
    dim: int
    size: int
    thinning: float


def sample_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    """Name and content of the sample sites of a trace, plates left out."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
            yield name, site


def is_point_mass(fn: Any) -> bool:
    """Whether a distribution is a Delta, whatever dimensions it declares as its event."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return isinstance(fn, pyro.distributions.Delta)


def drawn_sites(guide_trace: Trace) -> list[tuple[str, Any]]:
    """The sites of a guide that are drawn: neither observed nor point masses."""
    return [
        (name, site)
        for name, site in sample_sites(guide_trace)
        if not site["is_observed"] and not is_point_mass(site["fn"])
    ]


def check_extra_sites(guide_trace: Trace, other: Trace, name_of: str) -> None:
    """Refuses a guide with a latent that the other side lacks: its log q would be subtracted, and nothing added.

    Raises:
        ValueError: there is one, and the guide does not say ``infer={"is_auxiliary": True}``.
    """
    for name, site in sample_sites(guide_trace):
        if not site["is_observed"] and name not in other and not site["infer"].get("is_auxiliary", False):
            raise ValueError(f"guide: it samples site {name!r}, and {name_of} does not")


def density_shape(site: Any) -> torch.Size:
    """Shape of a site's log-density, without computing it."""
    fn, value = site["fn"], site["value"]
    given = value.shape[: value.dim() - len(fn.event_shape)] if isinstance(value, Tensor) else torch.Size()
    return torch.broadcast_shapes(fn.batch_shape, given)


def _frames(site: Any, particles: str) -> dict[str, Any]:
    return {f.name: f for f in site["cond_indep_stack"] if f.vectorized and f.name != particles}


def _extent(site: Any, dim: int) -> int:
    shape = density_shape(site)
    return shape[dim] if len(shape) >= -dim else 1


def plates_of(sites: Iterable[Any], particles: str = PARTICLES) -> dict[str, _Plate]:
    """The vectorised plates of a program by name; one that has two dims is left out."""
    found: dict[str, _Plate] = {}
    twice = set()
    for site in sites:
        for name, frame in _frames(site, particles).items():
            size = frame.size if frame.size >= 0 else _extent(site, frame.dim)
            known = found.get(name)
            if known is not None and (known.dim != frame.dim or (frame.size >= 0 and known.size != size)):
                twice.add(name)
            if known is None or size > known.size:
                found[name] = _Plate(name, frame.dim, size, _thinning(frame))
    return {name: plate for name, plate in found.items() if name not in twice}


def holds(plate: _Plate, site: Any, particles: str = PARTICLES) -> bool:
    """Whether a site has a value of its own for every element of a plate."""
    frame = _frames(site, particles).get(plate.name)
    return frame is not None and (frame.size >= 0 or _extent(site, plate.dim) == plate.size)


def _axes(plates: Iterable[_Plate], scale: float, sites: list[Any], particles: str, why: Independence) -> TaskAxes:
    ordered = sorted(plates, key=lambda plate: plate.dim)
    at = {f.dim for s in sites for f in s["cond_indep_stack"] if f.name == particles}
    return TaskAxes(
        tuple(plate.name for plate in ordered),
        tuple(plate.dim for plate in ordered),
        torch.Size(plate.size for plate in ordered),
        scale,
        next(iter(at), None),
        why,
    )


def _sites(traces: Iterable[Trace]) -> dict[tuple[int, str], Any]:
    return {(i, name): site for i, trace in enumerate(traces) for name, site in sample_sites(trace)}


def independent_axes(*traces: Trace, ties: Ties | None = None, particles: str = PARTICLE_PLATE) -> TaskAxes:
    """The plates whose elements share no random variable: each may have its own importance weights.

    Given the parameters the joint density is then a product over the elements. Without ``ties`` a program is taken by
    its plates: a plate that holds *every* sample site splits. With ties a site outside that no draw reaches
    (deterministic, a factor of parameters) ties nothing, and what was found to mix elements ties them.

    Args:
        *traces: model and guide.
        ties: what was found out about the program; None for the library's own, whose plates are what they say.
        particles: name of the plate of the particles.
    """
    named = _sites(traces)
    sites = list(named.values())
    split: list[_Plate] = []
    tied: dict[str, str] = {}
    for name, plate in plates_of(sites, particles).items():
        if ties is None:
            outside = (site["name"] for site in sites if not holds(plate, site, particles))
            why = next(outside, None)
        else:
            why = ties.outside.get(name) or ties.between.get(name)
        if why is None:
            split.append(plate)
        else:
            tied[name] = why
    of_one_dim = {plate.dim for plate in split if sum(plate.dim == other.dim for other in split) > 1}
    for plate in [plate for plate in split if plate.dim in of_one_dim]:  # they cannot both hold every site
        split.remove(plate)
        tied[plate.name] = "another plate of the same dim"
    scale = math.prod(plate.thinning for plate in split)
    names = tuple(plate.name for plate in sorted(split, key=lambda plate: plate.dim))
    return _axes(split, scale, sites, particles, Independence(names, tied))


def reported_axes(
    *traces: Trace, ties: Ties | None = None, particles: str = PARTICLE_PLATE, every: bool = False
) -> TaskAxes:
    """Task dimensions for reporting a sum of terms: the independent plates, or plates named ``tasks``.

    They differ where tasks share a latent: the bound is then still reported by task, but is one bound. It can be only
    where, given the shared latents, a task's draws reach no other task.

    Args:
        *traces: model and guide.
        ties: what was found out about the program; None for the library's own.
        particles: name of the plate of the particles.
        every: take all such plates, whatever their names: an element's score needs the terms that its draws reach
            alone, and all others are noise to it.
    """
    independent = independent_axes(*traces, ties=ties, particles=particles)
    sites = list(_sites(traces).values())
    named = {
        name: plate
        for name, plate in plates_of(sites, particles).items()
        if (_is_task(name) or (every and ties is not None)) and (ties is None or name not in ties.between)
    }
    if set(named) <= set(independent.names):
        return independent
    chosen: dict[int, _Plate] = {}
    for plate in sorted(named.values(), key=lambda one: sum(holds(one, site, particles) for site in sites)):
        chosen[plate.dim] = plate  # of two plates of one dim, that with more sites
    return _axes(chosen.values(), 1.0, sites, particles, independent.independent)


def _is_task(name: str) -> bool:
    return name == TASK_PLATE or name.startswith(TASK_PLATE + "_")


def _thinning(frame: Any) -> float:
    return float(frame.full_size) / float(frame.size) if frame.full_size is not None else 1.0


def per_particle(value: Tensor, axes: TaskAxes, site: Any) -> Tensor:
    """Sums a site's log-density over every plate but particles and tasks: ``[K, *B]``, 1 where it is in no such plate.

    A dimension counts as a task's only where the site is in the plate of that name.
    """
    names = {f.name for f in site["cond_indep_stack"]}
    kept = {dim for name, dim in zip(axes.names, axes.dims, strict=True) if name in names}
    if axes.particle_dim is not None:
        kept.add(axes.particle_dim)
    summed = [dim for dim in range(-value.dim(), 0) if dim not in kept]
    if summed:
        value = value.sum(summed, keepdim=True)

    def size(dim: int) -> int:
        return value.shape[dim] if dim >= -value.dim() else 1

    particles = 1 if axes.particle_dim is None else size(axes.particle_dim)
    return value.reshape([particles, *(size(dim) for dim in axes.dims)])


def share(value: Tensor, shape: torch.Size) -> Tensor:
    """Expands ``[K, *B]`` to all tasks; a term that several tasks share is divided among them: it counts once."""
    if value.shape[1:] == shape:
        return value
    return value.expand(value.shape[0], *shape) * (value[0].numel() / max(shape.numel(), 1))


def own_scale(site: Any, axes: TaskAxes) -> float | Tensor:
    """A site's scale without that of the subsampled task plates."""
    return site["scale"] if axes.scale == 1.0 else site["scale"] / axes.scale


def common_scale(traces: Iterable[Trace], axes: TaskAxes, ties: Ties | None = None) -> float | Tensor:
    """The scale that every site has besides subsampled task plates (``poutine.scale`` around model and guide).

    It multiplies the bound. A scale on some sites only would stand inside the logarithm of a mean of weights, which is
    then no bound on the evidence; that of a density that no draw changes comes out of it.

    Raises:
        ValueError: sites are scaled differently.
    """
    constant = frozenset() if ties is None else ties.constant
    first: tuple[str, float | Tensor] | None = None
    for trace in traces:
        for name, site in sample_sites(trace):
            if name in constant:
                continue
            scale = own_scale(site, axes)
            if first is None:
                first = name, scale
            elif not same(scale, first[1]):
                frames = [f for f in site["cond_indep_stack"] if _thinning(f) != 1]
                plates = [f.name for f in frames if f.name not in axes.names]
                why = f"plate {plates[0]!r} is subsampled but does not hold every latent" if plates else "poutine.scale"
                raise ValueError(
                    f"site {name!r}: scaled by {_number(scale)} and site {first[0]!r} by {_number(first[1])} ({why}); "
                    "inside the logarithm of a mean of importance weights this would be no bound; use the objective "
                    "'elbo', or subsample only plates that hold every latent"
                )
    return 1.0 if first is None else first[1]


def same(a: float | Tensor, b: float | Tensor) -> bool:
    """Whether two scales are known to be one; a tensor on a device is not looked at, for that would be a host read."""
    if a is b:
        return True
    if (isinstance(a, Tensor) and a.device.type != "cpu") or (isinstance(b, Tensor) and b.device.type != "cpu"):
        return False
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return bool(torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-6))
    return math.isclose(float(a), float(b), rel_tol=1e-6)


def _number(scale: float | Tensor) -> str:
    if not isinstance(scale, Tensor):
        return f"{float(scale):g}"
    return "a tensor" if scale.device.type != "cpu" or scale.numel() != 1 else f"{float(scale):g}"
