"""IVON: an optimizer whose state is a diagonal Gaussian posterior (Shen et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from guides.networks.module_guide import ModuleGuide, ModuleMeanFieldGuide, ModulePointGuide
from pp_models.arguments import NOT_NEGATIVE, POSITIVE, SHARE, checked, instance
from pp_models.networks.bayesian_module import BayesianModule


class IVON(torch.optim.Optimizer):
    """Improved variational online Newton (Shen et al. 2024, Algorithm 1): learns N(m, 1 / (ess (h + weight_decay))).

    Each step takes the gradient g at a draw m + ε; with σ² the draw's variance

        h ← β₂ h + (1 - β₂) ĥ + ½ (1 - β₂)² (h - ĥ)² / (h + δ),    ĥ = ε g / σ²  (of the loss, by the reparameterisation
        trick; in expectation the Hessian's diagonal)
        m ← m - lr (h₀ + δ) (ḡ + δ m) / (h + δ),                   ḡ the debiased momentum of g

    ``fit(optimizer="ivon")`` makes it for a loss in nats that holds the prior (``ess=1``, ``weight_decay=0``); for the
    mean loss of N data, ``ess=N`` and a prior precision of δ N.

    Args:
        params: parameters, or groups.
        lr: learning rate at the start, where the update is that of gradient descent.
        ess: what the loss is to be multiplied by to be in nats.
        hess_init: h₀; draws begin with the standard deviation 1 / √(ess (h₀ + δ)).
        beta1: of the momentum.
        beta2: of the Hessian; the paper has 0.99995, for longer runs.
        weight_decay: δ, precision of the prior over ess.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> optimizer = IVON(network.parameters(), lr=0.1, ess=len(data))
        >>> with optimizer.sampled():
        ...     loss(network).backward()
        >>> optimizer.step()
    """

    @checked(
        lr=POSITIVE, ess=POSITIVE, hess_init=POSITIVE, beta1=SHARE, beta2=SHARE, weight_decay=NOT_NEGATIVE
    )  # fmt: skip
    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        ess: float = 1.0,
        hess_init: float = 1e3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
    ) -> None:
        options = {"ess": ess, "hess_init": hess_init, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **options})
        self._noise: dict[Tensor, Tensor] = {}

    def _held(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float64)
            state["momentum"] = torch.zeros_like(p)
            state["hess"] = torch.full_like(p, group["hess_init"])
        return state

    def _scale(self, group: dict[str, Any], p: Tensor) -> Tensor:
        return (group["ess"] * (self._held(group, p)["hess"] + group["weight_decay"])).rsqrt()

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Parameters at a draw; the step afterwards needs their gradient there."""
        held = {}
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    held[p] = p.detach().clone()
                    self._noise[p] = torch.randn_like(p) * self._scale(group, p)
                    p.add_(self._noise[p])
        try:
            yield
        finally:
            with torch.no_grad():
                for p, mean in held.items():
                    p.copy_(mean)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step from the gradients at the draw.

        Raises:
            ValueError: no draw was made since the last step.
        """
        if not self._noise:
            raise ValueError("optimizer: IVON made no draw; gradients must be taken within `with optimizer.sampled():`")
        for group in self.param_groups:
            decay, beta1, beta2 = group["weight_decay"], group["beta1"], group["beta2"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self._held(group, p)
                state["step"] += 1
                hess, momentum, gradient = state["hess"], state["momentum"], p.grad
                found = self._noise[p] * gradient * group["ess"] * (hess + decay)
                change = (hess - found).square() / (hess + decay)
                hess.mul_(beta2).add_(found, alpha=1 - beta2).add_(change, alpha=0.5 * (1 - beta2) ** 2)
                momentum.lerp_(gradient, 1 - beta1)
                debiased = momentum / (1 - beta1 ** state["step"])
                rate = group["lr"] * (group["hess_init"] + decay)
                p.sub_(rate * (debiased + decay * p) / (hess + decay))
        self._noise.clear()

    @torch.no_grad()
    def standard_deviations(self) -> dict[Tensor, Tensor]:
        """The Gaussian's standard deviation by parameter."""
        return {p: self._scale(group, p) for group in self.param_groups for p in group["params"]}


def drawn_parameters(optimizer: torch.optim.Optimizer) -> AbstractContextManager:
    """Where an optimizer wants its gradients taken: at a draw for IVON, at the parameters for all others."""
    return optimizer.sampled() if isinstance(optimizer, IVON) else nullcontext()


@torch.no_grad()
@checked(model=instance(BayesianModule), guide=instance(ModuleGuide), optimizer=instance(IVON))
def ivon_guide(model: BayesianModule, guide: ModulePointGuide, optimizer: IVON) -> ModuleMeanFieldGuide:
    """The Gaussian that IVON has learned, as a guide.

    Args:
        model: the module with its prior.
        guide: the points that were trained: the means.
        optimizer: what trained them, ``fit(optimizer="ivon").optimizer``.

    Raises:
        ValueError: another guide, or parameters that the optimizer does not hold.

    Example:
        >>> result = fit(model, ModulePointGuide(model), data, "elbo", optimizer="ivon")
        >>> posterior = ivon_guide(model, result.guide, result.optimizer)
    """
    found = optimizer.standard_deviations()
    if not isinstance(guide, ModulePointGuide) or not all(p in found for p in guide.loc):
        raise ValueError(
            f"guide: got {type(guide).__name__}; it must be the ModulePointGuide whose points this optimizer trained"
        )
    gaussian = ModuleMeanFieldGuide(model).to(guide.loc[0])
    for loc, raw, point in zip(gaussian.loc, gaussian.raw_scale, guide.loc, strict=True):
        loc.copy_(point)
        raw.copy_(found[point] + torch.log(-torch.expm1(-found[point])))  # softplus's inverse
    return gaussian


def make_ivon(parameters: list[nn.Parameter], learning_rate: float, objective: Any) -> IVON:
    """IVON for a fit by an objective.

    Raises:
        ValueError: the objective's loss is not in nats.
    """
    if getattr(objective, "normalize", False):
        raise ValueError(
            "optimizer: got 'ivon' with an objective that is normalized, whose loss is not in nats; pass "
            "normalize=False, or optimizer=lambda p: IVON(p, ess=number of scored values)"
        )
    return IVON(parameters, lr=learning_rate)
