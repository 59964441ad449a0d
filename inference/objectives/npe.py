"""Neural posterior estimation: a guide trained on latents and data that the model itself draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.dreams import guide_at, repeated, simulate_arguments, simulate_data_set
from inference.objectives.independent_plates import (
    TaskAxes,
    Ties,
    independent_axes,
    is_point_mass,
    per_particle,
    sample_sites,
)
from inference.objectives.particles import NotVectorised, density, picked, without_ones
from inference.objectives.task_objective import BoundTerms, TaskObjective, data_set
from inference.objectives.ties import alike
from inference.random_state import seeded
from pp_models.arguments import CALLABLE, DRAWS, SEED, checked, one_of, optional
from pp_models.contract import Guide, as_guide
from pp_models.data import Dataset


@dataclass
class Simulated:
    """Log-densities of simulated latents given simulated data, ``[K, *B]``."""

    log_q: Tensor


class NPE(TaskObjective):
    """E_p(z, y)[log q(z | y)]: the guide's log-density of latents that were drawn with the data it is shown.

    Neural posterior estimation (Papamakarios and Murray 2016), the sleep phase of wake-sleep (Hinton et al. 1995). It
    needs draws of the model alone, never its density: a simulator will do. Its best guide minimises KL(p(z | y) ‖ q)
    over data of the model's own; the data of the call say only what is simulated (inputs, masks, shapes).

    What is simulated: y at the inputs of a Dataset; for a model of other arguments every observed site, whose draw
    takes the place of the model's argument of that name (``def model(x): ...; pyro.sample("x", ..., obs=x)``).

    Args:
        num_particles: simulations of a step (of each task), K.
        on: which points of a TaskBatch are simulated: ``"full"`` or ``"context"``.
        simulate: how to simulate otherwise: a function of ``(model, args, kwargs)`` that returns the guide's ``(args,
            kwargs)`` with what was drawn, and the trace it came from; simulations are then made one by one.
        **options: see :class:`TaskObjective`.

    The model is not trained. ``bound`` is E[log q], no bound on the evidence of the data given; likelihood and KL are
    NaN.

    Raises:
        ValueError: a model with a flat prior, or an observed site that no argument is called by; a guide that is a
            point mass, or the same whatever the data.

    Example:
        >>> svi = SVI(simulator, FlowGuide(simulator, example=(x,)), pyro.optim.Adam({"lr": 1e-3}), NPE(256))
        >>> svi.step(x)
    """

    name = "npe"
    description = "neural posterior estimation: log q of what the model itself draws"
    reference = "Papamakarios and Murray 2016"
    simulates = True

    @property
    def scores_guide(self) -> bool:
        return True

    @checked(on=one_of("full", "context"), simulate=optional(CALLABLE))
    def __init__(
        self, num_particles: int = 64, *, on: str = "full", simulate: Callable | None = None, **options: Any
    ) -> None:
        super().__init__(num_particles, **options)
        self.on, self.simulate = on, simulate
        if simulate is not None:
            self.vectorize_particles = False

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> Simulated:
        if as_guide(guide).point_mass:
            raise ValueError(_NO_DENSITY)
        args = data_set(args, self.on)
        at_once = isinstance(particles, pyro.plate)
        of_data = self.simulate is None and bool(args) and isinstance(args[0], Dataset)
        with torch.no_grad():
            if of_data:
                args = (repeated(args[0], particles.size if isinstance(particles, pyro.plate) else 1), *args[1:])
                guide_args, guide_kwargs, dream = simulate_data_set(model, args, kwargs)
            else:
                simulate = self.simulate or simulate_arguments
                with particles:
                    guide_args, guide_kwargs, dream = simulate(model, args, kwargs)
                if isinstance(particles, pyro.plate) and not self._pair.ties:
                    assert particles.dim is not None
                    _check_one_alone(model, args, kwargs, dream, particles.dim, particles.size)
                    self._pair.ties["simulated"] = Ties()
        # the library's guides take data sets along any leading dimensions; others see particles in a plate
        with nullcontext() if of_data or isinstance(guide, Guide) else particles:
            trace = guide_at(guide, dream, guide_args, guide_kwargs)
        axes = independent_axes(trace)
        if not of_data:
            dim = particles.dim if isinstance(particles, pyro.plate) else None
            axes = TaskAxes((), (), torch.Size(), 1.0, dim if at_once else None)
        found = [
            per_particle(site["fn"].log_prob(site["value"]), axes, site)
            for _, site in sample_sites(trace)
            if not site["is_observed"]
        ]
        if all(is_point_mass(site["fn"]) for _, site in sample_sites(trace)):
            raise ValueError(_NO_DENSITY)
        total = sum(found[1:], found[0])
        return Simulated(total.squeeze(0) if of_data else total)

    def combine(self, draws: Simulated) -> BoundTerms:
        bound = draws.log_q.mean(0)
        unknown = torch.full_like(bound.detach(), torch.nan)
        return BoundTerms(bound, unknown, unknown, torch.ones_like(unknown))


#: why a guide without spread is refused
_NO_DENSITY = "guide: it draws nothing, and a point mass has no density of what was simulated; take another objective"


class Simulations:
    """Simulations that were made once, for a simulator that is dear: ``NPE(1, simulate=Simulations(...))``.

    Each step takes a batch of them; its loss is the sum over the batch.

    Args:
        latents: values ``[N, *value]`` by site of the model.
        args: what the guide is called with, tensors ``[N, *value]``.
        batch_size: of a step.
        seed: of the batches.

    Example:
        >>> known = Simulations.drawn(simulator, (x,), 10_000)
        >>> objective = NPE(1, simulate=known)
    """

    @checked(batch_size=DRAWS, seed=SEED)
    def __init__(
        self, latents: Mapping[str, Tensor], args: Sequence[Tensor], batch_size: int = 256, seed: int = 0
    ) -> None:
        sizes = {len(value) for value in (*latents.values(), *args)}
        if len(sizes) != 1 or not latents or not args:
            raise ValueError(
                f"latents, args: got {sorted(sizes)} simulations; it must be one number, of one or more sites"
            )
        self.latents, self.args, self.batch_size = dict(latents), tuple(args), batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.args[0])

    def __getitem__(self, index: Any) -> Simulations:
        """Some of them, by a slice or indices, such as those that are held out."""
        latents = {name: value[index] for name, value in self.latents.items()}
        return Simulations(latents, [value[index] for value in self.args], self.batch_size)

    @classmethod
    def drawn(cls, model: Callable, args: tuple, count: int, batch_size: int = 256, seed: int = 0) -> Simulations:
        """Simulates.

        Args:
            model: the simulator; written for leading dimensions.
            args: what it is called with.
            count: simulations.
            batch_size: of a step.
            seed: of simulations and batches.
        """
        with torch.no_grad(), seeded(seed):
            frames = [f for site in _plain_sites(model, args) for f in site["cond_indep_stack"] if f.vectorized]
            nesting = max((-frame.dim for frame in frames), default=0)
            with pyro.plate("simulations", count, dim=-1 - nesting):
                found, _, trace = simulate_arguments(model, args, {})
            _check_one_alone(model, args, {}, trace, -1 - nesting, count)
        latents = {n: s["value"] for n, s in sample_sites(trace) if not is_point_mass(s["fn"])}
        own = {id(value) for value in found}
        latents = {n: v for n, v in latents.items() if id(v) not in own}
        return cls(latents, found, batch_size, seed)

    def __call__(self, model: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict, Trace]:
        """A batch, as :class:`NPE` takes it."""
        size = min(self.batch_size, len(self))
        chosen = torch.randint(len(self), (size,), generator=self._generator)
        trace = Trace()
        for name, value in self.latents.items():
            fn = dist.Unit(torch.zeros(size))
            trace.add_node(name, name=name, type="sample", is_observed=False, infer={}, fn=fn, value=value[chosen])
        return tuple(value[chosen] for value in self.args), {}, trace


def _plain_sites(model: Callable, args: tuple) -> list[Any]:
    trace = poutine.trace(model).get_trace(*args)
    return [site for _, site in sample_sites(trace)]


def _check_one_alone(model: Any, args: tuple, kwargs: dict, dream: Trace, dim: int, count: int) -> None:
    """Runs one simulation by itself at what it drew, and compares its densities with those that it had among all.

    Raises:
        NotVectorised: they differ, or the draws of all have no dimension for them.
    """
    which = count // 2
    sites = dict(sample_sites(dream))
    one = Trace()
    for name, site in sites.items():
        if not site["is_observed"]:
            value = picked(site["value"], dim - len(site["fn"].event_shape), which)
            one.add_node(name, name=name, type="sample", is_observed=False, infer=site["infer"], value=value)
    observed: dict[str, Any] = {n: node["value"] for n, node in one.nodes.items()}
    alone = poutine.trace(poutine.condition(model, data=observed)).get_trace(*args, **kwargs)
    single = dict(sample_sites(alone))
    for name, site in sites.items():
        of_all = picked(density(site), dim, which)
        if name not in single or not alike(without_ones(of_all), without_ones(density(single[name])), loose=20.0):
            raise NotVectorised(name)
        if count > 1 and not site["is_observed"] and density(site).dim() < -dim:
            raise NotVectorised(name)
