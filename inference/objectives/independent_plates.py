"""Task dimensions read off traces: along which plates a bound splits into one bound per task, and their scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pp_models.task_plates import PARTICLE_PLATE, TASK_PLATE


@dataclass(frozen=True)
class TaskAxes:
    """The plates whose elements are tasks.

    Args:
        dims: their (negative) dims, leftmost first.
        shape: their sizes, ``*B``.
        scale: full size over subsample size, multiplied over subsampled plates: what a sum over tasks is scaled by.
        particle_dim: dim of the vectorised particles, None without.
    """

    dims: tuple[int, ...]
    shape: torch.Size
    scale: float
    particle_dim: int | None


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


def _frames(site: Any) -> dict[int, Any]:
    return {f.dim: f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE}


def _axes(frames: dict[int, Any], scale: float, sites: Iterable[Any]) -> TaskAxes:
    ordered = dict(sorted(frames.items()))
    particle = {f.dim for s in sites for f in s["cond_indep_stack"] if f.name == PARTICLE_PLATE}
    return TaskAxes(
        tuple(ordered),
        torch.Size(int(f.size) for f in ordered.values()),
        scale,
        next(iter(particle), None),
    )


def independent_axes(*traces: Trace) -> TaskAxes:
    """The plates that hold *every* sample site of the traces: their elements share no random variable.

    Given the parameters the joint density is a product over the elements of these plates, so each may have its own
    importance weights. A latent or an observation outside a plate ties the plate's elements together.
    """
    sites = [site for trace in traces for _, site in sample_sites(trace)]
    frames = dict(_frames(sites[0])) if sites else {}
    for site in sites[1:]:
        own = _frames(site)
        frames = {dim: f for dim, f in frames.items() if dim in own and own[dim].size == f.size}
    scale = math.prod(_thinning(f) for f in frames.values())
    return _axes(frames, scale, sites)


def reported_axes(*traces: Trace) -> TaskAxes:
    """Task dimensions for reporting a sum of terms: the independent plates, or plates named ``tasks``.

    They differ where tasks share a latent: the bound is then still reported by task, but is one bound.
    """
    independent = independent_axes(*traces)
    sites = [site for trace in traces for _, site in sample_sites(trace)]
    named = {
        dim: f
        for site in sites
        for dim, f in _frames(site).items()
        if f.name == TASK_PLATE or f.name.startswith(TASK_PLATE + "_")
    }
    if set(named) <= set(independent.dims):
        return independent
    return _axes(named, 1.0, sites)


def _thinning(frame: Any) -> float:
    return float(frame.full_size) / float(frame.size) if frame.full_size is not None else 1.0


def per_particle(value: Tensor, axes: TaskAxes) -> Tensor:
    """Sums a log-density over every plate but particles and tasks: ``[K, *B]``, 1 for a dimension it is not in."""
    kept = set(axes.dims) | ({axes.particle_dim} if axes.particle_dim is not None else set())
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


def common_scale(traces: Iterable[Trace], axes: TaskAxes) -> float | Tensor:
    """The scale that every site has besides subsampled task plates (``poutine.scale`` around model and guide).

    It multiplies the bound. A scale on some sites only would stand inside the logarithm of a mean of weights, which is
    then no bound on the evidence.

    Raises:
        ValueError: sites are scaled differently.
    """
    first: tuple[str, float | Tensor] | None = None
    for trace in traces:
        for name, site in sample_sites(trace):
            scale = own_scale(site, axes)
            if first is None:
                first = name, scale
            elif not _same(scale, first[1]):
                plates = [f.name for f in _frames(site).values() if _thinning(f) != 1 and f.dim not in axes.dims]
                plates += [f.name for f in site["cond_indep_stack"] if not f.vectorized and _thinning(f) != 1]
                why = f"plate {plates[0]!r} is subsampled but does not hold every latent" if plates else "poutine.scale"
                raise ValueError(
                    f"site {name!r}: scaled by {_number(scale)} and site {first[0]!r} by {_number(first[1])} ({why}); "
                    "inside the logarithm of a mean of importance weights this would be no bound; use the objective "
                    "'elbo', or subsample only plates that hold every latent"
                )
    return 1.0 if first is None else first[1]


def _same(a: float | Tensor, b: float | Tensor) -> bool:
    if a is b:
        return True
    if (isinstance(a, Tensor) and a.device.type != "cpu") or (isinstance(b, Tensor) and b.device.type != "cpu"):
        return False  # to look would be a host read
    return math.isclose(float(a), float(b), rel_tol=1e-6)


def _number(scale: float | Tensor) -> str:
    return "a tensor on the device" if isinstance(scale, Tensor) and scale.device.type != "cpu" else f"{float(scale):g}"
