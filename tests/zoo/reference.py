"""What an objective should give in expectation, from plain traces, one particle at a time, with the plainest formulas.

Nothing of the library is used. A bound splits along the plates that a case names; gradients of draws that cannot be
reparameterised are score functions without a baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from torch import Tensor

from tests.zoo.programs import Case


class SameSubsample(Messenger):
    """All particles see the same rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Any] = {}

    def _pyro_sample(self, msg):
        if type(msg["fn"]).__name__ == "_Subsample" and msg["value"] is None and msg["name"] in self.rows:
            msg["value"], msg["done"] = self.rows[msg["name"]], True

    def _pyro_post_sample(self, msg):
        if type(msg["fn"]).__name__ == "_Subsample":
            self.rows.setdefault(msg["name"], msg["value"])


class Detached(Messenger):
    """Draws are constants."""

    def _pyro_post_sample(self, msg):
        if not msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample" and not _mass(msg["fn"]):
            msg["value"] = msg["value"].detach()


def _mass(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def sites(trace: Any) -> Iterator[Any]:
    for site in trace.nodes.values():
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
            yield site


class Particle:
    """log p, log q and the log q of draws that cannot be reparameterised, by element of the split plates."""

    def __init__(self, case: Case, detached: bool) -> None:
        with Detached() if detached else poutine.block(hide=[]):
            guide_trace = poutine.trace(case.guide).get_trace(*case.args)
        model_trace = poutine.trace(poutine.replay(case.model, guide_trace)).get_trace(*case.args)
        self.case = case
        self.shape: tuple[int, ...] = ()
        self.thinning = 1.0
        for site in sites(model_trace):
            frames = {f.name: f for f in site["cond_indep_stack"]}
            if case.split and set(case.split) <= set(frames):
                chosen = [frames[name] for name in case.split]
                log_prob = site["fn"].log_prob(site["value"])
                self.shape = tuple(log_prob.shape[f.dim] for f in chosen)
                self.thinning = math.prod(f.full_size / f.size if f.size > 0 else 1.0 for f in chosen)
        self.log_p = self.add(sites(model_trace))
        self.log_q = self.add(sites(guide_trace))
        drawn = [s for s in sites(guide_trace) if not s["is_observed"] and not _mass(s["fn"])]
        self.score = sum((s["fn"].log_prob(s["value"].detach()).sum() for s in drawn if not s["fn"].has_rsample),
                         torch.zeros(()))  # fmt: skip

    def add(self, some: Iterator[Any]) -> Tensor:
        """Sum of log-densities by element; what is outside the split plates is shared out among them."""
        total = torch.zeros(self.shape)
        for site in some:
            log_prob = site["fn"].log_prob(site["value"])
            if site["mask"] is not None:
                log_prob = log_prob * torch.as_tensor(site["mask"], dtype=log_prob.dtype)
            log_prob = log_prob * (site["scale"] / self.thinning)
            frames = {f.name: f.dim for f in site["cond_indep_stack"]}
            if self.case.split and set(self.case.split) <= set(frames):
                kept = [frames[name] for name in self.case.split]
                others = [d for d in range(-log_prob.dim(), 0) if d not in kept]
                total = total + (log_prob.sum(others) if others else log_prob)
            else:
                total = total + log_prob.sum() / max(math.prod(self.shape), 1)
        return total


def estimate(case: Case, name: str, particles: int) -> tuple[Tensor, Tensor]:
    """One unbiased estimate of an objective's loss, and a surrogate whose gradient is one of its expected gradient."""
    own_draws = name in ("rws", "chi2")
    scale = case_scale(case)
    with SameSubsample():
        drawn = [Particle(case, detached=own_draws) for _ in range(particles)]
    log_p, log_q = torch.stack([d.log_p for d in drawn]) / scale, torch.stack([d.log_q for d in drawn]) / scale
    thinning = drawn[0].thinning * scale
    log_w = log_p - log_q
    score = sum(d.score for d in drawn)

    def mean_of_powers(power: float) -> Tensor:
        return (torch.logsumexp(power * log_w, 0) - math.log(particles)) / power

    if name in ("elbo", "elbo-stl", "elbo-score"):
        value = log_w.mean(0)
    elif name in ("renyi", "renyi-doubly"):
        value = mean_of_powers(0.6)  # α = 0.4
    elif name == "chi2-cubo":
        value = -mean_of_powers(2.0)
    else:
        value = mean_of_powers(1.0)
    loss = -thinning * value.sum()
    if own_draws:
        weights = torch.softmax(log_w.detach(), 0)
        powered = torch.softmax((2 if name == "chi2" else 1) * log_w.detach(), 0)
        return loss.detach(), -thinning * (weights * log_p + powered * log_q).sum()
    return loss.detach(), loss + loss.detach() * (score - torch.as_tensor(score).detach())


def case_scale(case: Case) -> float:
    """What multiplies every site of the case that is scaled altogether."""
    return case.scale if hasattr(case, "scale") else 1.0


Moments = dict[str, tuple[Tensor, Tensor]]


def moments(once: Callable[[], tuple[Tensor, Tensor]], repeats: int) -> Moments:
    """Mean and standard error of a loss and of the gradient of every parameter, as float64."""
    losses, gradients = [], {}
    for _ in range(repeats):
        with poutine.trace(param_only=True) as captured:
            loss, surrogate = once()
        parameters = {name: site["value"].unconstrained() for name, site in captured.trace.nodes.items()
                      if site["type"] == "param"}  # fmt: skip
        for parameter in parameters.values():
            parameter.grad = None
        if surrogate.requires_grad:
            surrogate.backward()
        for name, parameter in parameters.items():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.setdefault(name, []).append(grad.detach().double().reshape(-1).clone())
            parameter.grad = None
        losses.append(loss.detach().double().reshape(1))
    gradients["loss"] = losses
    found = {}
    for name, values in gradients.items():
        stacked = torch.stack(values)
        found[name] = (stacked.mean(0), stacked.std(0) / math.sqrt(len(stacked)))
    return found
