"""Sigma points in place of draws: 2 n particles whose mean and covariance are a Gaussian's, exactly."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.independent_plates import PARTICLES, drawn_sites, is_point_mass


class SigmaPoints(Messenger):
    """Replaces the draws of Gaussian sites by μ ± √n L e_i, i counting through the sites in their order.

    Args:
        count: particles, 2 n.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.offset = count, 0
        self._given: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"]:  # replayed, as in the model, or data
            self._given.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["name"] in self._given or type(fn).__name__ == "_Subsample" or is_point_mass(fn):
            return
        size = fn.event_shape.numel()
        frame = next((f for f in msg["cond_indep_stack"] if f.name == PARTICLES), None)
        if frame is None:  # which is refused once the run has shown why
            return
        n = self.count // 2
        unit = torch.zeros(self.count, max(self.offset + size, n), dtype=msg["value"].dtype, device=msg["value"].device)
        index = torch.arange(n, device=unit.device)
        unit[index, index] = math.sqrt(n)
        unit[n + index, index] = -math.sqrt(n)
        own = unit[:, self.offset : self.offset + size].reshape(self.count, *(1,) * (-frame.dim - 1), *fn.event_shape)
        msg["value"] = _at(fn, own, msg["name"]).expand(msg["value"].shape)
        self.offset += size


def _at(fn: Any, unit: Tensor, name: str) -> Tensor:
    """A Gaussian's value at a standard normal one."""
    base = fn
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if isinstance(base, torch.distributions.Normal):
        return base.loc + base.scale * unit
    if isinstance(base, torch.distributions.MultivariateNormal):
        return base.loc + (base.scale_tril @ unit.unsqueeze(-1)).squeeze(-1)
    raise ValueError(
        f"estimator: got 'sigma-points', and site {name!r} is {type(base).__name__}; they are of normal latents"
    )


def check_sigma_points(trace: Trace, count: int) -> None:
    """Refuses another number of particles, and sites whose elements are dimensions too.

    Raises:
        ValueError: there are.
    """
    drawn = drawn_sites(trace)
    plates = {frozenset(f.name for f in site["cond_indep_stack"] if f.name != PARTICLES) for _, site in drawn}
    if len(plates) > 1:
        raise ValueError(
            "estimator: got 'sigma-points' for latents in different plates; all must be of every task, their "
            "dimensions in events"
        )
    wanted = 2 * sum(site["fn"].event_shape.numel() for _, site in drawn)
    if count != wanted:
        raise ValueError(
            f"num_particles: got {count}; the sigma points of {wanted // 2} latent dimensions are {wanted}"
        )
    if not all(any(f.name == PARTICLES for f in site["cond_indep_stack"]) for _, site in drawn):
        raise ValueError(
            "estimator: got 'sigma-points' for a program whose particles cannot be run at once; it must be 'pathwise'"
        )
