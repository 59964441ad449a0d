"""What a program is written in: the particles' log-densities; and how it is called with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.analytic_kl import analytic_sites, closed_form, is_flat
from inference.objectives.fixed_values import has_auxiliary_sites, log_density
from inference.objectives.importance_weights import WeightedDraws, unscaled
from inference.objectives.independent_plates import is_point_mass, own_scale, per_particle, sample_sites, share

KL = "kl of "
#: entries of the tensors that a program is called with at once, where it is called for many alternatives
ENTRIES = 2**22


@dataclass(frozen=True)
class Particles:
    """What a program is written in: log-densities of the particles of each task, in nats.

    Every tensor is ``[K, …, *B]``: particles first, tasks last. Between them there may be alternatives (the states of
    an enumerated site), so that a program reduces over the first dimension alone, or over none.

    Args:
        values: the tensors by name.
    """

    values: Mapping[str, Tensor]

    @property
    def log_p(self) -> Tensor:
        """Joint log-density log p(y, z)."""
        return self.values["log_p"]

    @property
    def log_q(self) -> Tensor:
        """log q(z | D)."""
        return self.values["log_q"]

    @property
    def log_q_stopped(self) -> Tensor:
        """log q(z | D) whose gradient goes through the draws alone, for ``Program(stopped=True)``."""
        if "log_q_stopped" not in self.values:
            raise ValueError("program: it reads log_q_stopped, which takes one more run of the guide: say stopped=True")
        return self.values["log_q_stopped"]

    @property
    def log_likelihood(self) -> Tensor:
        """log p(y | z)."""
        return self.values["log_likelihood"]

    @property
    def log_weights(self) -> Tensor:
        """log w = log p(y, z) - log q(z | D)."""
        return self.log_p - self.log_q

    @property
    def kl_by_site(self) -> dict[str, Tensor]:
        """KL(q ‖ p) by latent site, in closed form where there is one and log q - log p of the draw elsewhere."""
        return {name.removeprefix(KL): value for name, value in self.values.items() if name.startswith(KL)}

    @property
    def kl(self) -> Tensor:
        """The sum of ``kl_by_site``."""
        return sum(self.kl_by_site.values(), torch.zeros_like(self.log_likelihood))


def evidence_lower_bound(particles: Particles) -> Tensor:
    """log p(y | z) - KL of each particle."""
    return particles.log_likelihood - particles.kl


@dataclass
class ProgramDraws(WeightedDraws):
    """Particles ``[K, *B]``, and alternatives to them ``[K, R, *B]``."""

    values: dict[str, Tensor] = field(default_factory=dict)
    #: log q of the sites whose gradient is a score function's
    scores: dict[str, Tensor] = field(default_factory=dict)
    #: in every joint state of the enumerated sites, later sites drawn anew
    states: dict[str, Tensor] = field(default_factory=dict)
    state_scores: dict[str, Tensor] = field(default_factory=dict)
    #: of the states
    probability: Tensor | None = None
    #: at the two measures of every element of the measure-valued sites
    moved: dict[str, Tensor] = field(default_factory=dict)
    factors: Tensor | None = None


def called(program: Callable[[Particles], Tensor], values: Mapping[str, Tensor]) -> Tensor:
    """A program's value.

    Raises:
        ValueError: it is of another shape than it must be.
    """
    particles = next(iter(values.values()))
    found = program(Particles(values))
    allowed = particles.shape[1:], particles.shape
    if not isinstance(found, Tensor) or found.shape not in allowed:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"program: got {got} from particles and tasks {tuple(particles.shape)}; it must return "
            f"{tuple(allowed[0])}, or {tuple(allowed[1])} for a value of every particle"
        )
    return found


def check_additive(program: Callable[[Particles], Tensor], values: Mapping[str, Tensor], value: Tensor) -> None:
    """Refuses a program that is not a sum of log-densities of each particle.

    Raises:
        ValueError: it is not.
    """
    if value.shape != next(iter(values.values())).shape:
        raise ValueError("additive: got True for a program of all particles; it must return a value of each")
    with torch.no_grad():
        others = {name: 0.5 + 0.1 * i + v.abs() for i, (name, v) in enumerate(values.items())}
        both = called(program, {name: v + others[name] for name, v in values.items()})
        zero = called(program, {name: torch.zeros_like(v) for name, v in values.items()})
        apart = value + called(program, others)
    if not torch.allclose(both + zero, apart, rtol=1e-4, atol=1e-4, equal_nan=True):
        raise ValueError("additive: got True for a program that is no weighted sum of log-densities; it must be False")


def with_one_replaced(
    program: Callable[[Particles], Tensor], values: Mapping[str, Tensor], rows: Mapping[str, Tensor]
) -> Tensor:
    """A program of all particles ``[K, R, *B]`` where one of them is each of its alternatives.

    Args:
        program: the program.
        values: the particles ``[K, *B]``.
        rows: the alternatives to each ``[K, R, *B]``.
    """
    some = next(iter(rows.values()))
    count = some.shape[0]
    which = torch.eye(count, dtype=torch.bool, device=some.device).reshape(count, count, *[1] * (some.dim() - 1))
    chunk = max(1, ENTRIES // max(some.numel(), 1))
    found = []
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        mixed = {
            name: torch.where(which[:, part], rows[name][part].unsqueeze(0), value[:, None, None])
            for name, value in values.items()
        }
        found.append(called(program, mixed))
    return torch.cat(found)


def check_apart(
    program: Callable[[Particles], Tensor], values: Mapping[str, Tensor], value: Tensor, seen: set[tuple[int, int]]
) -> None:
    """Looks whether tasks, and particles that are estimates of their own, enter one another's values.

    Args:
        program: the program.
        values: the particles ``[K, *B]``.
        value: its value of them.
        seen: dimensions that were looked at, which are left out and added to.

    Raises:
        ValueError: they do.
    """
    dims = next(iter(values.values())).dim()
    together = value.dim() < dims
    for dim in range(int(together), dims):
        at = dim - int(together)
        if (dim, dims) in seen or value.shape[at] < 2:
            continue
        with torch.no_grad():
            moved = {}
            for i, (name, one) in enumerate(values.items()):
                first = one.narrow(dim, 0, 1)
                moved[name] = torch.cat(
                    [first + 0.5 + 0.1 * i + first.abs(), one.narrow(dim, 1, one.shape[dim] - 1)], dim
                )
            before, after = (v.narrow(at, 1, v.shape[at] - 1) for v in (value.detach(), called(program, moved)))
        if not torch.allclose(before, after, rtol=1e-5, atol=1e-6, equal_nan=True):
            if dim == 0:
                raise ValueError(
                    f"program: got {tuple(value.shape)}, where a particle's value depends on other particles; it "
                    "must return one value of all of them"
                )
            raise ValueError(
                "program: got a task's value that depends on other tasks; it must reduce over particles alone, the "
                "first dimension"
            )
        seen.add((dim, dims))


def divergences(guide_trace: Trace, model_trace: Trace, draws: WeightedDraws, trusted: bool) -> dict[str, Tensor]:
    """KL by site ``[K, *B]``, in closed form where there is one.

    Args:
        guide_trace: the guide's trace.
        model_trace: the model's.
        draws: what was measured in them.
        trusted: the guide is the library's own, which masks point masses that are at no cost.
    """
    axes = draws.axes
    allowed = set() if has_auxiliary_sites(guide_trace) else analytic_sites(guide_trace, model_trace)
    found = {}
    for name, site in sample_sites(guide_trace):
        other: Any = model_trace.nodes.get(name)
        free = other is not None and (
            is_flat(other) or is_point_mass(other["fn"]) or (trusted and site["mask"] is False)
        )
        if is_point_mass(site["fn"]) and free:
            continue
        exact = closed_form(site, other) if name in allowed else None
        if exact is not None:
            value = per_particle(scale_and_mask(exact, own_scale(site, axes) / draws.scale, site["mask"]), axes, site)
        else:
            value = log_density(unscaled(site, draws.scale), axes)
            if other is not None and not other["is_observed"]:
                value = value - log_density(unscaled({**other, "value": site["value"]}, draws.scale), axes)
        found[name] = share(value, axes.shape).expand(draws.log_p.shape)
    return found
