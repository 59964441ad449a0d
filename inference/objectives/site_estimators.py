"""How the gradient of an expectation reaches what a site's draw depends on, chosen site by site."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.independent_plates import (
    TaskAxes,
    drawn_sites,
    is_point_mass,
    per_particle,
    sample_sites,
)

ESTIMATORS = ("pathwise", "score", "enumerate", "measure-valued", "fixed")
#: joint states of the enumerated sites, and values of a measure-valued site, that one run of a program is repeated for
MOST_STATES = 4096
#: name of the plate of rows, which their number follows
ROWS = "alternatives of the objective"


class SiteEstimators(Messenger):
    """Finds the estimator of every drawn site, and cuts the gradient of the draws that carry none.

    Enter it outside a trace. A site's estimator is what ``given`` says of its name, else ``infer={"estimator": …}`` at
    its sample statement, else ``"pathwise"`` where it has a reparameterised draw and ``"score"`` where it has none.

    Args:
        given: an estimator for all sites, estimators by name, or None.
    """

    def __init__(self, given: str | Mapping[str, str] | None) -> None:
        super().__init__()
        self.given = given
        self.chosen: dict[str, str] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        fn, name = msg["fn"], msg["name"]
        if msg["is_observed"] or type(fn).__name__ == "_Subsample" or is_point_mass(fn):
            return
        said = self.given.get(name) if isinstance(self.given, Mapping) else self.given
        said = said or msg["infer"].get("estimator")
        if said is not None and said not in ESTIMATORS:
            raise ValueError(f"site {name!r}: got estimator {said!r}; it must be one of {', '.join(ESTIMATORS)}")
        if said == "pathwise" and not fn.has_rsample:
            raise ValueError(
                f"site {name!r}: got estimator 'pathwise', and {type(fn).__name__} cannot be reparameterised; it must "
                "be one of score, enumerate, measure-valued, fixed"
            )
        self.chosen[name] = said or ("pathwise" if fn.has_rsample else "score")
        if self.chosen[name] != "pathwise":
            msg["value"] = msg["value"].detach()

    def of(self, estimator: str) -> list[str]:
        """The sites that have an estimator, in the guide's order."""
        return [name for name, chosen in self.chosen.items() if chosen == estimator]

    def check(self) -> None:
        """Refuses names that the guide does not draw.

        Raises:
            ValueError: there are.
        """
        unknown = sorted(set(self.given) - set(self.chosen)) if isinstance(self.given, Mapping) else []
        if unknown:
            raise ValueError(
                f"estimators: got site {unknown[0]!r}; the guide draws {', '.join(map(repr, self.chosen)) or 'nothing'}"
            )


def base_of(fn: Any) -> Any:
    """A distribution without what declares dimensions as its event or masks it."""
    while isinstance(fn, torch.distributions.Independent | pyro.distributions.MaskedDistribution):
        fn = fn.base_dist
    return fn


def declared(fn: Any) -> int:
    """Dimensions that a distribution declares as its event and its base draws independently."""
    return len(fn.event_shape) - len(base_of(fn).event_shape)


def summed(value: Tensor, fn: Any) -> Tensor:
    """A value of the base distribution's batch shape, summed over the declared dimensions."""
    return value.sum(tuple(range(-declared(fn), 0))) if declared(fn) else value


def local_shape(site: Any, axes: TaskAxes) -> list[int]:
    """Batch shape of a site's base distribution, with 1 for particles and tasks: what is drawn within one task."""
    base, outer = base_of(site["fn"]), site["fn"].batch_shape
    names = {f.name for f in site["cond_indep_stack"]}
    kept = {dim for name, dim in zip(axes.names, axes.dims, strict=True) if name in names} | {axes.particle_dim}
    own = [1 if d in kept else outer[d] for d in range(-len(outer), 0)]
    return [*own, *base.batch_shape[len(base.batch_shape) - declared(site["fn"]) :]]


def check_states(name: str, count: int, estimator: str) -> None:
    """Refuses more states than a program can be run for.

    Raises:
        ValueError: there are.
    """
    if count > MOST_STATES:
        raise ValueError(
            f"site {name!r}: got estimator {estimator!r} for {count:.3g} states in each task; they must be at most "
            f"{MOST_STATES}: take 'score'"
        )


def states_of(name: str, site: Any, axes: TaskAxes) -> Tensor:
    """All values that a site can take within a task, ``[S, *local shape, *event]``.

    Raises:
        ValueError: it is not discrete and finite, or there are too many.
    """
    base = base_of(site["fn"])
    try:
        support = base.enumerate_support(expand=False)
    except NotImplementedError:
        raise ValueError(
            f"site {name!r}: got estimator 'enumerate', and {type(base).__name__} has no finite support here; it must "
            "be one of score, measure-valued, pathwise, fixed"
        ) from None
    support = support.reshape(support.shape[0], *base.event_shape)
    shape = local_shape(site, axes)
    elements, each = math.prod(shape), support.shape[0]
    check_states(name, each**elements, "enumerate")
    digits = torch.arange(each**elements, device=support.device).unsqueeze(-1)
    digits = digits // each ** torch.arange(elements, device=support.device) % each
    return support[digits].reshape(-1, *shape, *base.event_shape)


def joint_states(trace: Trace, names: list[str], axes: TaskAxes) -> dict[str, Tensor]:
    """Joint states of several sites: values by site, with as many rows as there are combinations."""
    states = {name: states_of(name, trace.nodes[name], axes) for name in names}
    total = math.prod(len(each) for each in states.values())
    check_states(names[-1], total, "enumerate")
    found, stride = {}, 1
    for name, each in states.items():
        found[name] = each[torch.arange(total, device=each.device) // stride % len(each)]
        stride *= len(each)
    return found


def log_probability(site: Any, axes: TaskAxes) -> Tensor:
    """log q of a site's value whatever masks it, ``[K, *B]``: over all states the probabilities sum to 1."""
    fn = site["fn"]
    return per_particle(summed(base_of(fn).log_prob(site["value"]), fn), axes, site)


def measures_of(name: str, site: Any, axes: TaskAxes) -> tuple[Tensor, Tensor]:
    """A site's weak derivative: values ``[R, *batch, *event]``, one element moved in each, and factors ``[K, R, *B]``.

    The gradient of E[f] to the site's parameters is the mean of Σ_r f(value_r) ∇ factor_r (Pflug 1989; Mohamed et al.
    2020, table 1). For a normal's mean the two measures are Weibull on either side and share their noise; for its scale
    a double-sided Maxwell and, coupled with it, the normal itself.

    Raises:
        ValueError: a distribution whose derivative is not here, or too many elements.
    """
    base, drawn = base_of(site["fn"]), site["value"].detach()
    batch = base.batch_shape
    if isinstance(base, torch.distributions.Normal):
        loc, scale = base.loc.expand(batch), base.scale.expand(batch)
        at, fixed = loc.detach(), scale.detach()
        weibull = (-2 * torch.rand_like(fixed).clamp_min(torch.finfo(fixed.dtype).tiny).log()).sqrt() * fixed
        maxwell = torch.randn(3, *fixed.shape, dtype=fixed.dtype, device=fixed.device).norm(dim=0) * fixed
        maxwell = torch.where(torch.rand_like(fixed) < 0.5, maxwell, -maxwell)
        by_mean, by_scale = loc / (fixed * math.sqrt(2 * math.pi)), scale / fixed
        pieces = [(at + weibull, by_mean), (at - weibull, -by_mean)]
        pieces += [(at + maxwell, by_scale), (at + maxwell * torch.rand_like(fixed), -by_scale)]
    elif isinstance(base, torch.distributions.Bernoulli):
        probs = base.probs.expand(batch)
        pieces = [(torch.ones_like(drawn), probs), (torch.zeros_like(drawn), -probs)]
    elif isinstance(base, torch.distributions.Poisson):
        rate = base.rate.expand(batch)
        pieces = [(drawn + 1, rate), (drawn, -rate)]
    else:
        raise ValueError(
            f"site {name!r}: got estimator 'measure-valued', and {type(base).__name__} is none of Normal, Bernoulli, "
            "Poisson; it must be one of score, pathwise, enumerate, fixed"
        )
    shape = local_shape(site, axes)
    elements = math.prod(shape)
    check_states(name, elements * len(pieces), "measure-valued")
    which = torch.eye(elements, dtype=torch.bool, device=drawn.device).reshape(elements, *shape)
    values, factors = [], []
    for moved, factor in pieces:
        values.append(torch.where(which, moved, drawn))
        each = [torch.where(one, factor, torch.zeros_like(factor)) for one in which]
        factors.append(torch.stack([per_particle(summed(value, site["fn"]), axes, site) for value in each], 1))
    return torch.cat(values), torch.cat(factors, 1)


def run_rows(
    run: Callable[[Trace, AbstractContextManager], Any],
    trace: Trace,
    values: Mapping[str, Tensor],
    particles: AbstractContextManager,
    dim: int | None,
) -> list[Any]:
    """Runs a program with some sites set, for every row of their values: at once as more particles, or row by row.

    What the guide draws before the first of these sites stays as it was; what it draws after them is drawn anew.

    Args:
        run: from a trace to replay and a plate of particles to anything.
        trace: the guide's trace of the particles.
        values: by site ``[R, *batch, *event]``, 1 where they do not vary.
        particles: the plate of the trace's particles, or nothing.
        dim: where a plate of particles may be; None for row by row.

    Returns:
        One result with rows and particles in one dimension, rows first; or one for every row.
    """
    drawn = dict(drawn_sites(trace))
    before = list(itertools.takewhile(lambda name: name not in values, drawn))
    rows = len(next(iter(values.values())))
    if dim is None:

        def shape(name: str) -> torch.Size:
            return drawn[name]["fn"].batch_shape + drawn[name]["fn"].event_shape

        kept = {name: drawn[name]["value"] for name in before}
        return [
            run(_to_replay(trace, kept | {name: v[row].expand(shape(name)) for name, v in values.items()}), particles)
            for row in range(rows)
        ]
    count = particles.size if isinstance(particles, pyro.plate) else 1
    kept = {name: drawn[name]["value"].expand(rows, *drawn[name]["value"].shape) for name in before}
    laid = {name: _laid_out(drawn[name]["fn"], value, count, dim) for name, value in (kept | dict(values)).items()}
    # a name of its own, for the subsample of a plate is drawn once a step
    return [run(_to_replay(trace, laid), pyro.plate(f"{ROWS} ({rows * count})", rows * count, dim=dim))]


def by_row(results: list[dict[str, Tensor]], rows: int) -> dict[str, Tensor]:
    """Tensors ``[K, R, *B]`` from those of :func:`run_rows`."""
    found = {}
    for name, first in results[0].items():
        if len(results) == rows and rows > 1:
            found[name] = torch.stack([one[name] for one in results], 1)
        else:
            found[name] = first.reshape(rows, -1, *first.shape[1:]).transpose(0, 1)
    return found


def _to_replay(trace: Trace, values: Mapping[str, Tensor]) -> Trace:
    """A trace that sets the values of some sites, and of no others."""
    copied = trace.copy()
    for name, site in list(sample_sites(trace)):
        if name in values:
            copied.nodes[name] = {**site, "value": values[name]}  # type: ignore[assignment]
        else:
            del copied.nodes[name]
    return copied


def _laid_out(fn: Any, values: Tensor, particles: int, dim: int) -> Tensor:
    """Rows ``[R, *batch, *event]`` of values along the dimension of the particles, rows first."""
    batch = torch.Size([1] * max(-dim - len(fn.batch_shape), 0)) + fn.batch_shape
    at = len(batch) + dim
    whole = [*batch[:at], particles, *batch[at + 1 :], *fn.event_shape]
    values = values.reshape(values.shape[0], *[1] * (len(whole) - values.dim() + 1), *values.shape[1:])
    values = values.expand(values.shape[0], *whole).movedim(0, at)
    return values.reshape(*whole[:at], -1, *whole[at + 1 :])
