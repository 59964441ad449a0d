"""The parts of gradient estimators: densities at values without gradient, values whose gradient is weighted."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.independent_plates import (
    TaskAxes,
    drawn_sites,
    is_point_mass,
    own_scale,
    per_particle,
    sample_sites,
    share,
)
from pp_models.contract import as_guide


class fixed_values(Messenger):
    """Cuts the gradient from every drawn value to the parameters it was drawn with (enter it *outside* a trace).

    What is computed from the value downstream, another site's distribution included, then sees a constant. Point
    masses keep their gradient: they are functions of the data, not draws.
    """

    def _pyro_post_sample(self, msg) -> None:
        if not msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample" and not is_point_mass(msg["fn"]):
            msg["value"] = msg["value"].detach()


def has_auxiliary_sites(guide_trace: Trace) -> bool:
    """Whether the guide draws values that the model does not have (Pyro's AutoGuides do)."""
    return any(site["infer"].get("is_auxiliary", False) for _, site in sample_sites(guide_trace))


def with_values(trace: Trace, change: Callable[[str, Any], Tensor]) -> Trace:
    """A copy of a trace to replay, with the values of its unobserved sites changed; plates stay."""
    copied = trace.copy()
    for name, site in sample_sites(trace):
        if not site["is_observed"]:
            copied.nodes[name] = {**site, "value": change(name, site)}  # type: ignore[assignment]
    return copied


def only_drawn(trace: Trace) -> Trace:
    """A trace to replay that sets drawn sites alone, so that point masses are computed anew."""
    drawn = {name for name, _ in drawn_sites(trace)}
    copied = trace.copy()
    for name, _ in list(sample_sites(trace)):
        if name not in drawn:
            del copied.nodes[name]
    return copied


def log_density(site: Any, axes: TaskAxes, value: Tensor | None = None, scaled: bool = True) -> Tensor:
    """``[K, *B]`` log-density of one site (at another value, where given), without the task plates' scale.

    ``scaled=False`` leaves out every scale, as a score function needs.
    """
    at = site["value"] if value is None else value
    scale = own_scale(site, axes) if scaled else 1.0
    return per_particle(scale_and_mask(site["fn"].log_prob(at), scale, site["mask"]), axes, site)


def at_fixed_values(guide: Callable, guide_trace: Trace, args: tuple, kwargs: dict) -> Trace:
    """The guide once more at the values drawn, without their gradient: a function of its parameters alone."""
    constant = with_values(only_drawn(guide_trace), lambda _, site: site["value"].detach())
    return poutine.trace(poutine.replay(guide, trace=constant)).get_trace(*args, **kwargs)


def log_densities_at_fixed_values(
    guide: Callable,
    guide_trace: Trace,
    axes: TaskAxes,
    args: tuple,
    kwargs: dict,
    scaled: bool = True,
    again: Trace | None = None,
) -> dict[str, Tensor]:
    """log q(z⁻) of every drawn site, ``[K, *B]``: a function of the guide's parameters at the values drawn.

    Where one site's distribution may depend on another's value the guide is run once more at the fixed values (or
    was: ``again``); for one site, or a guide that says ``independent_sites = True``, its distributions are already
    what is needed.
    """
    drawn = drawn_sites(guide_trace)
    if len(drawn) <= 1 or as_guide(guide).independent_sites:
        return {name: log_density(site, axes, site["value"].detach(), scaled) for name, site in drawn}
    if again is None:
        again = at_fixed_values(guide, guide_trace, args, kwargs)
    return {name: log_density(site, axes, scaled=scaled) for name, site in drawn_sites(again)}


def has_point_masses(guide_trace: Trace) -> bool:
    """Whether some latents of a guide are not drawn: functions of draws, or parameters."""
    return any(not site["is_observed"] and is_point_mass(site["fn"]) for _, site in sample_sites(guide_trace))


def explicit_density(explicit: Trace, axes: TaskAxes) -> Tensor:
    """The log-density of point masses at fixed draws, less its value: zero with its gradient, ``[K, *B]``."""
    masses = [site for _, site in sample_sites(explicit) if not site["is_observed"] and is_point_mass(site["fn"])]
    found = [share(log_density(site, axes, scaled=False), axes.shape) for site in masses]
    summed = sum(found[1:], found[0])
    return summed - summed.detach()


def score_densities(guide_trace: Trace, axes: TaskAxes, every: bool = False) -> dict[str, Tensor]:
    """log q ``[K, *B]`` of the sites whose gradient is a score function's: those that have no reparameterised draw.

    Args:
        guide_trace: the guide's trace.
        axes: the task dimensions.
        every: take all drawn sites.
    """
    return {
        name: log_density(site, axes, scaled=False)
        for name, site in drawn_sites(guide_trace)
        if every or not site["fn"].has_rsample
    }


class GradientWeight:
    """A factor ``[K, *B]`` on the gradient of values, known (with its axes) only after they were used.

    Without a factor the gradient is cut. Point masses are weighted where they turn out to be derived from draws, or in
    so far as they are.
    """

    def __init__(self) -> None:
        self.axes: TaskAxes | None = None
        self.factor: Tensor | None = None
        self.derived: Container[str] = ()

    def at_reads(self, guide_trace: Trace, explicit: Trace | None = None) -> Trace:
        """A trace to replay: what the model computes from draws, and from what is derived from them, is weighted.

        Args:
            guide_trace: the guide's.
            explicit: the guide once more at fixed draws. Given it, what reaches a point mass other than through a draw
                is not weighted.
        """

        def change(name: str, site: Any) -> Tensor:
            mass = is_point_mass(site["fn"])
            if explicit is None:
                return self._passed(site, lambda: not mass or name in self.derived)
            passed = self._passed(site, lambda: True)
            again: Any = explicit.nodes[name]
            if mass and again["value"].requires_grad:
                apart = self._passed(again, lambda: True, complement=True)
                passed = passed + (apart - apart.detach())
            return passed

        return with_values(guide_trace, change)

    def _passed(self, site: Any, applies: Callable[[], bool], complement: bool = False) -> Tensor:
        """A site's value, which passes its gradient back times the factor (or times what it lacks to 1)."""
        value = site["value"]
        if not value.requires_grad:
            return value
        passed = value.view_as(value)
        event_dims = len(site["fn"].event_shape)

        def back(grad: Tensor) -> Tensor:
            if not applies():
                return grad
            if self.factor is None:
                return torch.zeros_like(grad)
            factor = self._aligned(event_dims)
            if torch.broadcast_shapes(factor.shape, grad.shape) != grad.shape:  # all particles share it: no draw
                return torch.zeros_like(grad) if complement else grad
            return grad * (1 - factor if complement else factor)

        passed.register_hook(back)
        return passed

    def _aligned(self, event_dims: int) -> Tensor:
        """The factor, broadcast against a site's value."""
        assert self.factor is not None and self.axes is not None
        particle = self.axes.particle_dim
        factor = self.factor.squeeze(0) if particle is None else self.factor
        dims = [*([] if particle is None else [particle]), *self.axes.dims]
        shape = [1] * max((-d for d in dims), default=0)
        for size, dim in zip(factor.shape, dims, strict=True):
            shape[dim] = size
        return factor.reshape(shape + [1] * event_dims)


def leave_one_out(value: Tensor) -> Tensor:
    """The mean of the other particles' values, ``[K, *B]``; zero for a single particle."""
    k = value.shape[0]
    return torch.zeros_like(value) if k == 1 else (value.sum(0, keepdim=True) - value) / (k - 1)


def score_term(signal: Tensor, log_q: Tensor, shape: torch.Size) -> Tensor:
    """Σ_k signal_k ∇ log q(z_k) as a term of value zero ``[*B]``.

    Args:
        signal: learning signal of each particle ``[K, *B]``, taken as constant.
        log_q: log-density of a site ``[K, *B]``; a site that tasks share (size 1) gets the sum of their signals.
        shape: ``*B``.
    """
    shared = [d for d in range(1, signal.dim()) if log_q.shape[d] == 1 and signal.shape[d] > 1]
    signal = signal.detach()
    if shared:
        signal = signal.sum(shared, keepdim=True)
    term = (signal * (log_q - log_q.detach())).sum(0)
    return term if term.shape == shape else term.expand(shape) * (term.numel() / max(shape.numel(), 1))
