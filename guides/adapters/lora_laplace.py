"""Laplace's approximation over the factors of any LoRA of peft's (cf. Yang et al. 2024), by its diagonal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from guides.adapters.blob_layers import lora_layers
from guides.adapters.recorded_calls import are_per_example, recorded_calls
from guides.curvature import fisher_roots


def laplace_factors(model: nn.Module) -> list[Any]:
    """The factors that have a curvature."""
    return [m for m in model.modules() if "laplace_curvature" in m._buffers]


def fit_laplace(
    model: nn.Module,
    batches: Iterable[Any],
    outputs_of: Callable[[Any], Tensor],
    likelihood: Callable[[Tensor], Any],
    prior_precision: float,
    adapter: str = "default",
) -> list[Any]:
    """Sums the diagonal of the Gauss-Newton matrix of every factor over batches; see ``gb.adapters.laplace``."""
    factors = [table[adapter] for m in lora_layers(model, adapter).values() for table in (m.lora_A, m.lora_B)]
    if not factors or any(not isinstance(factor, nn.Linear) for factor in factors):
        raise ValueError(f"model: {type(model).__name__} has no LoRA layer with linear factors of adapter {adapter!r}")
    totals = [torch.zeros_like(factor.weight, dtype=torch.float32) for factor in factors]
    before = [(p, p.requires_grad) for factor in factors for p in factor.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(True)  # or the graph would not reach the factors of a frozen adapter
    try:
        with torch.enable_grad(), recorded_calls(factors) as calls:
            for batch in batches:
                outputs = outputs_of(batch)
                seen = calls.take()
                if not are_per_example(seen, len(outputs)):
                    raise ValueError(
                        f"loader: examples share what a factor of {type(model).__name__} is used on; give one example "
                        "a batch"
                    )
                at = [output for each in seen for _, output in each]
                for root in fisher_roots(likelihood(outputs), outputs):
                    found = iter(torch.autograd.grad(outputs, at, root, retain_graph=True))
                    for total, each in zip(totals, seen, strict=True):
                        gradient = sum(_by_example(next(found), x) for x, _ in each)
                        total += gradient.square().sum(0)  # type: ignore[union-attr]
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
    for factor, total in zip(factors, totals, strict=True):
        factor.register_buffer("laplace_curvature", total, persistent=False)
        factor.laplace_precision = prior_precision
    return factors


def _by_example(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradients of each example's output by the weight, ``[n, k_out, k_in]``."""
    flat, inputs = (t.reshape(len(t), -1, t.shape[-1]).float() for t in (gradient, x))
    return torch.einsum("nlo,nli->noi", flat, inputs)


def laplace_scale(factor: Any) -> Tensor:
    """Standard deviations of a factor's weights."""
    return (factor.laplace_curvature + factor.laplace_precision).rsqrt()
