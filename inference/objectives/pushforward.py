"""log q at fixed values, for guides whose parameters act after their draws (Pyro's AutoStructured, AutoGaussian).

Such a guide draws noise ε and makes z = T_φ(ε) of it, point masses with the Jacobian as their density; it can be run
forwards alone. What wake-sleep needs is ∇_φ log q_φ(z) at fixed z. With ℓ(φ, ε) = log q(T_φ(ε)), at fixed ε,

    ∇_φ log q_φ(z) = ∇_φ ℓ - (∂ log q / ∂z) ∂T_φ / ∂φ,      Jᵀ ∂ log q / ∂z = ∂ℓ / ∂ε,  J = ∂z / ∂ε

which takes one backward pass for each latent dimension. Where z has more coordinates than ε (a simplex), any solution
serves, for z moves along the image of J alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.fixed_values import log_density, only_drawn, with_values
from inference.objectives.independent_plates import TaskAxes, Ties, drawn_sites, per_particle, sample_sites, share


def moved_after_the_draw(guide_trace: Trace, ties: Ties) -> bool:
    """Whether parameters act on what was made of fixed draws: values or their Jacobians then have a gradient."""
    return any(
        site["value"].requires_grad or site["fn"].log_prob(site["value"]).requires_grad
        for name, site in sample_sites(guide_trace)
        if name in ties.derived
    )


def run_at_leaves(guide: Callable, guide_trace: Trace, args: tuple, kwargs: dict) -> Trace:
    """The guide's trace at the same draws, which now ask for a gradient."""
    leaves = with_values(only_drawn(guide_trace), lambda _, site: site["value"].detach().clone().requires_grad_())
    return poutine.trace(poutine.replay(guide, trace=leaves)).get_trace(*args, **kwargs)


def score_at_fixed_values(guide_trace: Trace, axes: TaskAxes, log_q: Tensor, scale: Any) -> Tensor:
    """log q ``[K, *B]`` whose gradient is that at fixed latents.

    Args:
        guide_trace: the guide at draws that are leaves.
        axes: the task dimensions.
        log_q: the value of log q.
        scale: what every site is scaled by.

    Raises:
        ValueError: a draw cannot be differentiated, or latents have fewer dimensions than draws, so that no density
            can be taken at them.
    """
    if not torch.is_grad_enabled():
        return log_q
    draws = [site["value"] for _, site in drawn_sites(guide_trace)]
    latents = [(name, site) for name, site in sample_sites(guide_trace)
               if not site["is_observed"] and not site["infer"].get("is_auxiliary", False)
               and reaches(site["value"], draws)]  # fmt: skip
    densities = [share(log_density(site, axes), axes.shape) for _, site in sample_sites(guide_trace)]
    ell = sum(densities, torch.zeros_like(log_q)) / scale
    particles = log_q.shape[0]
    flat = torch.cat([site["value"].reshape(particles, -1) for _, site in latents], -1)
    wide = sum(value[0].numel() if particles > 1 else value.numel() for value in draws)
    if flat.shape[-1] < wide:
        raise ValueError(
            f"guide: it makes {flat.shape[-1]} latent numbers of {wide} draws, so that no density can be taken at "
            "fixed latents, which this objective needs; use 'iwae' or 'elbo'"
        )

    def to_draws(value: Tensor) -> Tensor:
        found = torch.autograd.grad(value, draws, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(d) if g is None else g for g, d in zip(found, draws, strict=True)]
        return torch.cat([part.reshape(particles, -1) for part in parts], -1)

    jacobian = torch.stack([to_draws(flat[:, i].sum()) for i in range(flat.shape[-1])], 1)  # [K, latents, draws]
    by_draw = to_draws(ell.sum()).unsqueeze(-1)
    slope = (jacobian @ torch.linalg.solve(jacobian.mT @ jacobian, by_draw)).squeeze(-1).detach()
    moved = torch.zeros_like(ell)
    for part, (_, site) in zip(slope.split([site["value"].reshape(particles, -1).shape[-1] for _, site in latents], -1),
                               latents, strict=True):  # fmt: skip
        product = part.reshape(site["value"].shape) * site["value"]
        event = len(site["fn"].event_shape)
        product = product.sum(tuple(range(-event, 0))) if event else product
        moved = moved + share(per_particle(product, axes, site), axes.shape)
    score = ell - moved
    return log_q.detach() + score - score.detach()


def reaches(value: Tensor, draws: list[Tensor]) -> bool:
    """Whether a tensor is one of the draws, or was computed from one."""
    if any(value is draw for draw in draws):
        return True
    wanted = {id(draw) for draw in draws}
    seen, stack = set(), [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted:
            return True
        stack += [following for following, _ in node.next_functions]
    return False
