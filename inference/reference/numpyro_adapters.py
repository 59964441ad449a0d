"""A low-rank adapted network in NumPyro: the reference that guides over the multipliers of its ranks are graded by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from inference.reference.numpyro_twin import (
    activation_twins,
    as_array,
    likelihood_twin,
    observe_twin,
    precision_of,
    twin_plates,
)
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.adapters.low_rank_layer import LowRankLinear
from pp_models.data import Dataset

Apply = Callable[[Any, dict[str, Any]], Any]


def adapter_twin(model: LowRankAdapted) -> Callable[[Dataset], None]:
    """A NumPyro model with the sites, the parameters (as constants) and the log-joint of an adapted network.

    Latent are the multipliers of the ranks, under a proper prior; A and B are constants. What multiplies the KL in the
    bound (temperature, count, warm-up) multiplies the log prior here, and ``num_data`` the log-likelihood, as in the
    model.

    Args:
        model: the adapted network; its parameters are read when this is called.

    Raises:
        ValueError: the improper log-uniform prior, a backbone other than linear layers and elementwise activations in
            sequence, or a likelihood without a twin.
    """
    import numpyro
    import numpyro.distributions as dist

    if model.rank_prior == "log-uniform":
        raise ValueError(
            "model: its rank_prior 'log-uniform' is improper, so that there is no posterior to sample; make the model "
            "with rank_prior='half-cauchy' or 'ard'"
        )
    if model.call is not None:
        raise ValueError("model: its backbone is applied by a call of one's own, which has no NumPyro twin")
    likelihood = likelihood_twin(model.likelihood)
    with torch.no_grad(), precision_of(model):
        network = _twin_of(model.backbone, "")
        priors: dict[str, tuple[Any, float]] = {}
        for path, module in model.rank_modules().items():
            factors = module.factors()
            if factors is None:
                continue
            site = f"{path}.rank_scale"
            zero = as_array(torch.zeros_like(factors[0][:, 0]))
            scale = model.ard_scale(site)
            prior = dist.Cauchy(zero, 1.0) if scale is None else dist.Normal(zero, as_array(scale))
            priors[site] = prior.to_event(1), float(model.kl_scale(path))

    def twin(data: Dataset) -> None:
        drawn = {}
        for site, (prior, scale) in priors.items():
            with numpyro.handlers.scale(scale=scale):
                drawn[site] = numpyro.sample(site, prior)
        each = likelihood(network(as_array(data.x), drawn))
        y = None if data.y is None else as_array(data.y)
        weight = float(model.data_scale(data))
        with twin_plates(data.batch_shape), numpyro.handlers.scale(scale=weight):
            observe_twin(each, data, y)

    return twin


def _twin_of(module: nn.Module, path: str) -> Apply:
    """A module of the backbone as a function of inputs ``[*B, N, k_in]`` and the drawn multipliers by site."""
    import jax

    if isinstance(module, nn.Sequential):
        parts = [_twin_of(child, f"{path}.{name}" if path else name) for name, child in module.named_children()]

        def chain(x: Any, drawn: dict[str, Any]) -> Any:
            for part in parts:
                x = part(x, drawn)
            return x

        return chain
    if isinstance(module, LowRankLinear):
        base = _twin_of(module.base_layer, path)
        if module.factors() is None:
            return base
        a, b, site = as_array(module.lora_A), as_array(module.lora_B) * module.scaling, f"{path}.rank_scale"
        return lambda x, drawn: base(x, drawn) + ((x @ a.T) * drawn[site]) @ b.T
    if type(module) is nn.Linear:
        weight = as_array(module.weight)
        bias = 0.0 if module.bias is None else as_array(module.bias)
        return lambda x, drawn: x @ weight.T + bias
    twins = activation_twins()
    activations: dict[type[nn.Module], Callable] = {
        nn.Identity: lambda v: v,
        nn.Dropout: lambda v: v,  # off in evaluation, and the backbone's own noise is no part of the model
        nn.ReLU: twins["relu"],
        nn.Tanh: twins["tanh"],
        nn.Sigmoid: jax.nn.sigmoid,
        nn.SiLU: twins["silu"],
        nn.GELU: twins["gelu"] if getattr(module, "approximate", "none") == "none" else jax.nn.gelu,
    }
    if type(module) not in activations:
        raise ValueError(
            f"model: its backbone has a {type(module).__name__}{f' at {path!r}' if path else ''}, which has no NumPyro "
            "twin; NUTS takes linear layers and elementwise activations in sequence, not transformers"
        )
    function = activations[type(module)]
    return lambda x, drawn: function(x)
