"""Particles: what they share, whether a program may be run for all of them at once, and what is known of a pair."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.independent_plates import Ties, drawn_sites, sample_sites
from inference.objectives.ties import alike
from pp_models.parameter_module import ParameterModule

#: pairs of which an objective remembers what it found out
REMEMBERED = 16
#: and structures of a pair's traces
STRUCTURES = 256


class NotVectorised(Exception):
    """A program gives other densities for all particles at once than for one alone.

    Args:
        site: the first site that differs.
    """

    def __init__(self, site: str) -> None:
        super().__init__(site)
        self.site = site


class one_subsample(Messenger):
    """Draws the subsample of every plate once: all particles, and all runs, see the same data."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[str, Any] = {}
        self.last = ""

    def _pyro_sample(self, msg) -> None:
        if type(msg["fn"]).__name__ != "_Subsample":
            self.last = msg["name"]
        elif msg["value"] is None and msg["name"] in self.drawn:
            msg["value"], msg["done"] = self.drawn[msg["name"]], True

    def _pyro_post_sample(self, msg) -> None:
        if type(msg["fn"]).__name__ == "_Subsample":
            self.drawn.setdefault(msg["name"], msg["value"])


@dataclass
class Pair:
    """What an objective found out about a model and a guide.

    Args:
        trusted: both are the library's own: their plates are what they say, and they broadcast over particles.
        sequential: their particles are run one by one.
        ties: what ties the elements of plates, by structure of the program.
    """

    trusted: bool = False
    sequential: bool = False
    ties: dict[Hashable, Ties] = field(default_factory=dict)


OWN = Pair(trusted=True)


class Pairs:
    """What is known by pair; the oldest are forgotten. Nothing of it is copied or pickled with an objective."""

    def __init__(self) -> None:
        self.known: OrderedDict[Hashable, Pair] = OrderedDict()
        #: what was logged: a pair that is made anew at every step says it once
        self.said: set[str] = set()

    def of(self, model: Any, guide: Any) -> Pair:
        """What is known of a pair."""
        if isinstance(model, ParameterModule) and isinstance(guide, ParameterModule):
            return OWN
        key = (model, guide)
        try:
            found = self.known.setdefault(key, Pair())
        except TypeError:  # a callable that cannot be hashed
            return Pair()
        self.known.move_to_end(key)
        if len(self.known) > REMEMBERED:
            self.known.popitem(last=False)
        return found

    def __reduce__(self):
        return Pairs, ()


@contextmanager
def apart() -> Iterator[None]:
    """Runs that are experiments: without gradients, and leaving the random state as it was."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        yield


def check_one_alone(
    guide_trace: Trace,
    model_trace: Trace,
    dim: int,
    count: int,
    run_guide: Callable[[Trace], Trace],
    run_model: Callable[[Trace], Trace],
) -> tuple[Trace, Trace]:
    """Runs one particle by itself, and compares its densities with those that it had among all.

    Args:
        guide_trace: the guide's trace of all particles.
        model_trace: the model's.
        dim: the particles' dim.
        count: number of particles.
        run_guide: from a trace to replay to the guide's, without the plate of particles.
        run_model: from a guide's trace to the model's, likewise.

    Returns:
        The traces of the one particle.

    Raises:
        NotVectorised: they differ; it names the first site that does.
    """
    which = count // 2  # neither first nor last, where an index such as a[0] would be right by chance
    copied = guide_trace.copy()
    drawn = dict(drawn_sites(guide_trace))
    for name, site in list(sample_sites(guide_trace)):
        if name in drawn:
            value = site["value"].detach()
            of_one = picked(value, dim - len(site["fn"].event_shape), which)
            copied.nodes[name] = {**site, "value": of_one}  # type: ignore[assignment]
        else:
            del copied.nodes[name]
    guide_alone = run_guide(copied)
    model_alone = run_model(guide_alone)
    for together, alone in ((guide_trace, guide_alone), (model_trace, model_alone)):
        sites, single = dict(sample_sites(together)), dict(sample_sites(alone))
        for name, site in sites.items():
            if name not in single:
                raise NotVectorised(name)
            of_all = picked(density(site), dim, which)
            if not alike(without_ones(of_all), without_ones(density(single[name])), loose=20.0):
                raise NotVectorised(name)
        for name in single.keys() - sites.keys():
            raise NotVectorised(name)
    return guide_alone, model_alone


def density(site: Any) -> Tensor:
    """A site's log-density, masked and scaled."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])


def picked(value: Tensor, dim: int, which: int) -> Tensor:
    """One particle's part of a tensor; all of a tensor that the particles share."""
    if value.dim() < -dim:
        return value
    return value.select(dim, which if value.shape[dim] > 1 else 0)


def without_ones(value: Tensor) -> Tensor:
    """A tensor without leading dimensions of 1."""
    while value.dim() and value.shape[0] == 1:
        value = value.squeeze(0)
    return value
