"""The latents of any Pyro model as one unconstrained vector for each data set, read off a trace."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample
from torch import Tensor
from torch.distributions import biject_to

from guides.any_model.outside_handlers import outside_handlers, own_randomness
from pp_models.task_plates import task_plate_name

#: runs of the model by which its prior is known roughly
PRIOR_RUNS = 32


@dataclass(frozen=True)
class Plate:
    """A plate of the model.

    Args:
        name: its name.
        dim: its (negative) dim.
        size: its size; None where every element is a data set of its own, of which there may be any number.
    """

    name: str
    dim: int
    size: int | None


@dataclass(frozen=True)
class Latent:
    """A latent site.

    Args:
        name: its name.
        support: of one value.
        batch: its batch dimensions, right-aligned to the model's plates; 1 along a plate of data sets.
        own_dims: how many batch dimensions it has itself.
        event: its unconstrained event shape.
        event_dims: event dimensions of its (constrained) value.
        plates: the plates that it is in.
        wide: drawn in float64 in a model of float32, as weights on a simplex are.
    """

    name: str
    support: Any
    batch: tuple[int, ...]
    own_dims: int
    event: tuple[int, ...]
    event_dims: int
    plates: tuple[Plate, ...]
    wide: bool = False

    @property
    def size(self) -> int:
        """Numbers of one data set."""
        return math.prod(self.batch) * math.prod(self.event)


@dataclass(frozen=True)
class Layout:
    """Where each latent is in the vector.

    Args:
        latents: the sites, in the model's order.
        nesting: plates of the model, observations among them.
        plates: those whose elements are data sets, leftmost first.
        centre: median of each number under the prior, ``[D]``.
        spread: half the range that holds two thirds of its prior, ``[D]``.
    """

    latents: tuple[Latent, ...]
    nesting: int
    plates: tuple[Plate, ...]
    centre: Tensor
    spread: Tensor

    @property
    def size(self) -> int:
        """D, numbers of one data set."""
        return sum(latent.size for latent in self.latents)

    def aligned(self, features: Tensor) -> Tensor:
        """``[*lead, *plates, R]`` with a 1 for each dim of the model that is no plate of data sets."""
        lead = features.shape[: features.dim() - 1 - len(self.plates)]
        sizes = dict(zip([p.dim for p in self.plates], features.shape[len(lead) : -1], strict=True))
        batch = [sizes.get(dim, 1) for dim in range(-self.nesting, 0)]
        return features.reshape(*lead, *batch, features.shape[-1]) if lead or sizes else features

    def made_plates(self, batch: torch.Size, device: torch.device) -> dict[str, Any]:
        """The plates of one run of a guide, by name; those of data sets to the left of the model's are ``tasks``.

        Args:
            batch: batch shape ``[*lead, *nesting]`` of the vector, from :meth:`aligned`; or empty.
            device: of the latents.
        """
        found: dict[str, Any] = {}
        for position in range(max(len(batch) - self.nesting, 0)):
            dim = -self.nesting - 1 - position
            name = task_plate_name(position)
            found[name] = pyro.plate(name, batch[dim], dim=dim, device=device)  # type: ignore[arg-type]
        for plate in dict.fromkeys(p for latent in self.latents for p in latent.plates):
            size = batch[plate.dim] if plate.size is None else plate.size
            found[plate.name] = pyro.plate(plate.name, size, dim=plate.dim, device=device)  # type: ignore[arg-type]
        return found

    @contextmanager
    def entered(self, made: Mapping[str, Any], latent: Latent | None = None) -> Iterator[None]:
        """Enters the plates of data sets, and those of one latent."""
        known = self.plates if latent is None else latent.plates
        inner = {plate.name for each in self.latents for plate in each.plates}
        with ExitStack() as stack:
            for name in [*(made.keys() - inner), *(plate.name for plate in known)]:
                stack.enter_context(made[name])
            yield

    def unpacked(self, vector: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Values of the sites, and the log-density that their change of variables adds.

        Args:
            vector: ``[*batch, D]``, batch right-aligned to the model's plates.
        """
        found, at = {}, 0
        for latent in self.latents:
            part = vector[..., at : at + latent.size]
            at += latent.size
            outer = [1] * max(self.nesting - (part.dim() - 1), 0) + list(part.shape[:-1])
            lead, batch = outer[: len(outer) - self.nesting], outer[len(outer) - self.nesting :]
            part = part.reshape(
                (
                    *lead,
                    *batch,
                    *latent.batch,
                    *latent.event,
                )
            )
            first, n = len(lead), self.nesting
            order = [*range(first), *(i for k in range(n) for i in (first + k, first + n + k))]
            part = part.permute((*order, *range(len(order), part.dim())))
            merged = [b * inner for b, inner in zip(batch, latent.batch, strict=True)]
            own = merged if lead else merged[n - self._own_dims(latent, batch) :]
            part = part.reshape(
                (
                    *lead,
                    *own,
                    *latent.event,
                )
            )
            if latent.wide:
                part = part.double()
            transform = biject_to(latent.support)
            value = transform(part)
            density = transform.inv.log_abs_det_jacobian(value, part)
            extra = density.dim() - (value.dim() - latent.event_dims)
            density = density.sum(list(range(-extra, 0))) if extra else density
            found[latent.name] = value, density.to(vector.dtype)
        return found

    def packed(self, values: Mapping[str, Tensor]) -> Tensor:
        """The vector ``[*batch, D]`` of values of the sites: what :meth:`unpacked` undoes."""
        parts = []
        for latent in self.latents:
            value = biject_to(latent.support).inv(values[latent.name])
            outer = list(value.shape[: value.dim() - len(latent.event)])
            outer = [1] * max(self.nesting - len(outer), 0) + outer
            lead, own = outer[: len(outer) - self.nesting], outer[len(outer) - self.nesting :]
            batch = [size if inner == 1 else 1 for size, inner in zip(own, latent.batch, strict=True)]
            split = [s for pair in zip(batch, latent.batch, strict=True) for s in pair]
            value = value.reshape(
                (
                    *lead,
                    *split,
                    *latent.event,
                )
            )
            first, n = len(lead), self.nesting
            order = [*range(first), *(first + 2 * k for k in range(n)), *(first + 2 * k + 1 for k in range(n))]
            value = value.permute((*order, *range(len(order), value.dim())))
            parts.append(
                value.reshape(
                    (*lead, *batch, latent.size),
                )
            )
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        vector = torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)
        while vector.dim() > 1 and vector.dim() - 1 <= self.nesting and not self.plates and vector.shape[0] == 1:
            vector = vector.squeeze(0)
        return vector

    def _own_dims(self, latent: Latent, batch: Sequence[int]) -> int:
        """Batch dimensions of a value without any to the left of the model's."""
        return max([latent.own_dims, *(len(batch) - i for i, size in enumerate(batch) if size > 1)])


def find_layout(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    plates: Sequence[str],
    dtype: torch.dtype | None = None,
    runs: int = PRIOR_RUNS,
) -> Layout:
    """Runs a model a few times, drawn from its prior, and reads its latents off.

    Args:
        model: any Pyro callable.
        args: what it is called with.
        kwargs: what it is called with by name.
        plates: names of the plates whose elements are data sets of their own.
        dtype: of the model; None for that of its first latent.
        runs: of the model.

    Raises:
        ValueError: it has no latents, or one that no unconstrained vector can stand for.
    """
    with outside_handlers(), torch.no_grad(), own_randomness(0):
        traces = [_prior_run(model, args, kwargs) for _ in range(runs)]
    first = _latent_sites(traces[0])
    if not first:
        raise ValueError("model: got one without a latent site with these arguments; it must have something to infer")
    every = [s for s in traces[0].nodes.values() if s["type"] == "sample" and type(s["fn"]).__name__ != "_Subsample"]
    nesting = max(max(_batch_dims(site), *(-f.dim for f in _frames(site)), 0) for site in every)
    dtype = dtype or next(iter(first.values()))["value"].dtype
    found = tuple(_latent(name, site, nesting, plates, dtype) for name, site in first.items())
    for name, other in itertools.product(plates, found):
        if name not in {plate.name for plate in other.plates}:
            raise ValueError(
                f"plates: got {name!r}, but site {other.name!r} is outside of it, so that its elements share a "
                "latent; it must name plates that hold every latent"
            )
    chosen = tuple(sorted((p for p in found[0].plates if p.size is None), key=lambda p: p.dim))
    draws = []
    layout = Layout(found, nesting, chosen, torch.zeros(()), torch.ones(()))
    for trace in traces:
        sites = _latent_sites(trace)
        _check_alike(first, sites)
        draws.append(layout.packed({n: s["value"] for n, s in sites.items()}).reshape(-1, layout.size))
    stacked = torch.cat(draws).double()
    low, centre, high = (torch.nanquantile(stacked, q, 0) for q in (1 / 6, 0.5, 5 / 6))
    spread = (high - low) / 2
    known = torch.isfinite(spread) & torch.isfinite(centre) & (spread > 1e-6)
    return Layout(
        found,
        nesting,
        chosen,
        torch.where(known, centre, 0.0).to(dtype),
        torch.where(known, spread, 1.0).to(dtype),
    )


def _prior_run(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> poutine.Trace:
    with InitMessenger(init_to_sample):
        return poutine.trace(model).get_trace(*args, **kwargs)


def _latent_sites(trace: poutine.Trace) -> dict[str, Any]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and type(site["fn"]).__name__ != "_Subsample"
    }


def _frames(site: Any) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _batch_dims(site: Any) -> int:
    return site["value"].dim() - site["fn"].event_dim if isinstance(site["value"], Tensor) else 0


def _latent(name: str, site: Any, nesting: int, plates: Sequence[str], dtype: torch.dtype) -> Latent:
    fn, value = site["fn"], site["value"]
    if site["mask"] is not None and site["mask"] is not True:
        raise ValueError(f"model: site {name!r} is masked, so that its prior is flat in part; sample it without a mask")
    base = fn
    while hasattr(base, "base_dist") and not isinstance(base, torch.distributions.TransformedDistribution):
        base = base.base_dist
    if isinstance(base, dist.Unit | dist.Delta):
        raise ValueError(
            f"model: site {name!r} has no prior density and is for a guide of the model's own to supply; a guide of "
            "any model needs a proper latent"
        )
    if not value.dtype.is_floating_point or fn.support.is_discrete:
        raise ValueError(
            f"model: site {name!r} is discrete; a guide of real numbers cannot draw it: sum it out, or give the "
            f"model as poutine.block(model, hide=[{name!r}]) and train by pyro.infer.TraceEnum_ELBO"
        )
    found = []
    for frame in _frames(site):
        full = getattr(frame, "full_size", None)
        if full is not None and full != frame.size:
            raise ValueError(
                f"model: plate {frame.name!r} of site {name!r} is subsampled ({frame.size} of {full}); call the model "
                "with the mini-batch itself, in a plate of its size, and poutine.scale"
            )
        found.append(Plate(frame.name, frame.dim, None if frame.name in plates else int(frame.size)))
    free = {plate.dim for plate in found if plate.size is None}
    own = list(value.shape[: value.dim() - fn.event_dim])
    padded = [1] * (nesting - len(own)) + own
    batch = tuple(1 if dim in free else size for dim, size in zip(range(-nesting, 0), padded, strict=True))
    raw = biject_to(fn.support).inv(value)
    event = tuple(raw.shape[len(own) :])
    wide = value.dtype == torch.float64 != dtype
    return Latent(name, fn.support, batch, len(own), event, fn.event_dim, tuple(found), wide)


def _check_alike(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Two runs have the same sites, with supports that no draw moves."""
    for name in first.keys() ^ other.keys():
        raise ValueError(f"model: site {name!r} is in some of its runs alone; its latents must be the same in each")
    for name, site in first.items():
        again = other[name]
        if site["value"].shape != again["value"].shape:
            raise ValueError(f"model: site {name!r} changes its shape from run to run")
        raw = biject_to(site["fn"].support).inv(site["value"])
        ours, theirs = (biject_to(s["fn"].support)(torch.zeros_like(raw)) for s in (site, again))
        if not torch.equal(ours, theirs):
            raise ValueError(
                f"model: the support of site {name!r} depends on other draws; write it as a draw of a fixed support "
                "that is moved and scaled"
            )
