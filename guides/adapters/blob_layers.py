"""BLoB's mean-field Gaussian over A in any LoRA layer of peft's, drawn by flipout (Wang et al. 2024)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pp_models.arguments import POSITIVE, SCALE, checked, instance


def lora_layers(model: nn.Module, adapter: str = "default") -> dict[str, Any]:
    """peft's adapted layers that have an adapter, by their paths in the network."""
    found = {}
    for name, module in model.named_modules():
        table = getattr(module, "lora_A", None)
        if isinstance(table, nn.ModuleDict | nn.ParameterDict) and adapter in table:
            found[name.rpartition("base_model.model.")[2]] = module
    return found


def blob_factors(model: nn.Module) -> list[Any]:
    """The factors A that have BLoB's noise."""
    return [m for m in model.modules() if "log_scale" in m._parameters and hasattr(m, "blob_draws")]


@checked(model=instance(nn.Module), scale=SCALE, prior_scale=SCALE)
def blob(model: nn.Module, scale: float = 2e-3, prior_scale: float = 0.2, adapter: str = "default") -> list[Any]:
    """Makes every A of a LoRA adapter random, A ~ N(its value, exp(log_scale)²), in place.

    In training each example has its own draw, by flipout; in evaluation the adapter is its mean, and
    ``gb.adapters.sampling`` draws. peft saves ``log_scale`` beside A.

    Args:
        model: with LoRA layers of peft's.
        scale: standard deviation of every weight at the start.
        prior_scale: of the prior N(0, prior_scale²) in the KL.
        adapter: its name.

    Returns:
        the factors; their ``log_scale`` are new parameters, to be given to the optimizer.

    Raises:
        ValueError: no LoRA layer of that adapter, or one that is random already.
    """
    layers = lora_layers(model, adapter)
    factors = [layer.lora_A[adapter] for layer in layers.values()]
    if not factors or any(not isinstance(factor, nn.Linear) for factor in factors):
        raise ValueError(f"model: {type(model).__name__} has no LoRA layer with linear factors of adapter {adapter!r}")
    if blob_factors(model):
        raise ValueError("model: its factors are random already")
    for factor in factors:
        factor.register_parameter("log_scale", nn.Parameter(torch.full_like(factor.weight, math.log(scale))))
        factor.blob_draws, factor.blob_prior = False, prior_scale
        factor.register_forward_hook(_add_noise)
    return factors


def _add_noise(lora_a: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    if not (lora_a.blob_draws or lora_a.training):
        return output
    x = inputs[0]
    drawn = lora_a.log_scale.exp() * torch.randn_like(lora_a.weight)
    middle = (1,) * (x.dim() - 2)
    signs_in = torch.randint(2, (len(x), *middle, x.shape[-1]), device=x.device).to(x.dtype) * 2 - 1
    signs_out = torch.randint(2, (len(x), *middle, len(drawn)), device=x.device).to(x.dtype) * 2 - 1
    return output + signs_out * ((signs_in * x) @ drawn.mT)


@checked(prior_scale=POSITIVE)
def blob_kl(lora_a: Any, prior_scale: float | None = None) -> Tensor:
    """KL of one factor's Gaussian to N(0, prior_scale²), in nats."""
    return weight_kl(lora_a, lora_a.blob_prior if prior_scale is None else prior_scale).sum()


def weight_kl(lora_a: Any, prior_scale: float) -> Tensor:
    """The same of every weight ``[r, k_in]``."""
    variance = (2 * lora_a.log_scale).exp() + lora_a.weight.square()
    return math.log(prior_scale) - lora_a.log_scale - 0.5 + variance / (2 * prior_scale**2)
