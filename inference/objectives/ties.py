"""What ties the elements of a program's plates together, found out by changing what is drawn.

A plate promises that its elements are independent, and nothing in Pyro holds a program to it: ``z.cumsum(-1)`` or
``z[neighbour]`` inside of one mixes them. So a program is run again with the draws of half of a plate's elements
replaced, and then of the other half: an element whose own draws stayed must keep every density that it had.

The library's own models and guides are what their plates say, and are not run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.independent_plates import (
    PARTICLES,
    Ties,
    density_shape,
    drawn_sites,
    holds,
    is_point_mass,
    plates_of,
    sample_sites,
)

#: experiments with a program that has discrete draws, where another value may change nothing by chance
DISCRETE_ROUNDS = 4


@dataclass(frozen=True)
class Program:
    """A pair of traces, and how to run its two halves again.

    Args:
        guide_trace: the guide's trace.
        model_trace: the model's, replayed against it.
        run_guide: from a trace to replay to the guide's trace.
        run_model: from a guide's trace to the model's.
    """

    guide_trace: Trace
    model_trace: Trace
    run_guide: Callable[[Trace], Trace]
    run_model: Callable[[Trace], Trace]

    def again(self, values: dict[str, Tensor]) -> Program:
        """The program at other draws, by site; the others stay as they were."""
        copied = self.guide_trace.copy()
        drawn = {name for name, _ in drawn_sites(copied)}
        others = [name for name, _ in sample_sites(copied) if name not in drawn]
        for name in drawn & set(values):
            copied.nodes[name] = {**copied.nodes[name], "value": values[name]}  # type: ignore[assignment]
        alone = len(drawn) == 1 and not others and not is_discrete(copied.nodes[next(iter(drawn))])
        if not alone:  # one draw cannot change what it came from: such a guide need not be run, unless it branches
            for name in others:
                del copied.nodes[name]
            copied = self.run_guide(copied)
        return Program(copied, self.run_model(copied), self.run_guide, self.run_model)

    def densities(self) -> dict[tuple[str, str], Tensor]:
        """Log-densities by side and site, masked and not scaled."""
        return {
            (side, name): scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
            for side, trace in (("guide", self.guide_trace), ("model", self.model_trace))
            for name, site in sample_sites(trace)
        }

    def sites(self) -> list[tuple[str, str, Any]]:
        """Side, name and content of every sample site."""
        pairs = (("guide", self.guide_trace), ("model", self.model_trace))
        return [(side, name, site) for side, trace in pairs for name, site in sample_sites(trace)]


def structure(*traces: Trace) -> Hashable:
    """What two runs of a program must share to be alike: sites, what they are, and their plates."""
    return tuple(
        (
            name,
            site["is_observed"],
            is_point_mass(site["fn"]),
            tuple((f.name, f.dim, f.size == 1) for f in site["cond_indep_stack"] if f.vectorized),
        )
        for trace in traces
        for name, site in sample_sites(trace)
    )


def find_ties(program: Program) -> Ties:
    """Runs a program again at other draws, and says what changed; where it cannot be run so, everything is tied.

    Args:
        program: as it was run, of one particle.
    """
    try:
        return _experiment(program)
    except Exception:  # whatever a program may raise at values that it did not draw
        plates = plates_of((site for *_, site in program.sites()), PARTICLES)
        first = next((name for _, name, _ in program.sites()), "")
        return Ties(outside=dict.fromkeys(plates, first), between=dict.fromkeys(plates, first))


def _experiment(program: Program) -> Ties:
    """Runs a program again at other draws.

    Args:
        program: as it was run.

    Returns:
        For every plate the site that ties its elements together, where one was found.
    """
    drawn = dict(drawn_sites(program.guide_trace))
    sites = program.sites()
    plates = plates_of([site for *_, site in sites], PARTICLES)
    discrete = any(is_discrete(site) for site in drawn.values())
    before = program.densities()
    outside: dict[str, str] = {}
    between: dict[str, str] = {}
    varying: set[str] = set(drawn)
    derived: set[str] = set()
    for _ in range(DISCRETE_ROUNDS if discrete else 1):
        other = {name: another_value(site) for name, site in drawn.items()}
        if drawn:
            swapped = program.again(other)
            after = swapped.densities()
            varying |= {key[1] for key in before if not alike(before[key], after.get(key))}
            derived |= {
                name
                for name, site in sample_sites(program.guide_trace)
                if is_point_mass(site["fn"])
                and not alike(site["value"], swapped.guide_trace.nodes.get(name, {}).get("value"))
            }
        for name, plate in plates.items():
            inside = {key: site for key, site in drawn.items() if holds(plate, site, PARTICLES)}
            if not inside or name in between:
                continue
            halves = torch.randperm(plate.size) * 2 < plate.size
            for kept in (halves, ~halves):
                if kept.all():  # a plate of one element, whose draws are tied to nothing
                    continue
                values = {key: mixed(site, plate.dim, kept, other[key]) for key, site in inside.items()}
                after = program.again(values).densities()
                found = _changed(sites, before, after, plate, kept)
                if found is not None:
                    between[name] = found
                    break
    constant = frozenset(name for _, name, _ in sites if name not in varying)
    for name, plate in plates.items():
        for _, site_name, site in sites:
            if site_name not in constant and not holds(plate, site, PARTICLES):
                outside[name] = site_name
                break
    return Ties(outside, between, constant, frozenset(derived))


def _changed(
    sites: Iterable[tuple[str, str, Any]],
    before: dict[tuple[str, str], Tensor],
    after: dict[tuple[str, str], Tensor],
    plate: Any,
    kept: Tensor,
) -> str | None:
    """The first site that noticed, at an element whose draws stayed, that other elements' draws are others."""
    for side, name, site in sites:
        old, new = before[side, name], after.get((side, name))
        if new is None or new.shape != old.shape:
            return name
        if holds(plate, site, PARTICLES) and old.dim() >= -plate.dim and old.shape[plate.dim] == plate.size:
            index = kept.nonzero().squeeze(-1).to(old.device)
            old, new = old.index_select(plate.dim, index), new.index_select(plate.dim, index)
        if not alike(old, new):
            return name
    return None


def is_discrete(site: Any) -> bool:
    """Whether a site's value may be the same at another draw."""
    try:
        return bool(site["fn"].support.is_discrete)
    except (NotImplementedError, AttributeError):
        return not site["fn"].has_rsample


def alike(a: Any, b: Any, loose: float = 1.0) -> bool:
    """Whether two tensors agree but for rounding; NaN agrees with NaN."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return a is b
    if not a.dtype.is_floating_point:
        return bool((a == b).all())
    tolerance = loose * 100 * torch.finfo(a.dtype).eps
    return bool(torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True).all())


def another_value(site: Any) -> Tensor:
    """Another value of a drawn site: a draw, or any of the support where that can be listed."""
    fn, value = site["fn"], site["value"]
    if fn.has_enumerate_support:
        try:
            support = fn.enumerate_support(expand=False)
        except NotImplementedError:
            support = None
        if support is not None and len(support) > 1:
            flat = support.reshape(len(support), *fn.event_shape)
            return flat[torch.randint(len(flat), density_shape(site), device=flat.device)].to(value.dtype)
    return fn.sample().expand(value.shape)


def mixed(site: Any, dim: int, kept: Tensor, other: Tensor) -> Tensor:
    """A site's value where the plate's elements are kept, and another value elsewhere."""
    at = dim - len(site["fn"].event_shape)
    shape = [1] * site["value"].dim()
    shape[at] = len(kept)
    return torch.where(kept.to(other.device).reshape(shape), site["value"], other)
