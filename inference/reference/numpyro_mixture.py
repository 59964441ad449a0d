"""The same mixture of experts in NumPyro: the reference that its guides are graded by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from inference.reference.numpyro_twin import as_array, precision_of, twin_plates
from pp_models.data import Dataset
from pp_models.mixtures.mixture_density import MixtureDensityNetwork


def mixture_twin(model: MixtureDensityNetwork) -> Callable[[Dataset], None]:
    """A NumPyro model with the site, the parameters (as constants) and the log-joint of a mixture of strict experts.

    The experts have no latents, so that what each says of a point is a constant; the weights are Dirichlet.

    Args:
        model: the mixture; its parameters are read when the twin is called.

    Raises:
        ValueError: context experts, whose memory a guide supplies; when called, data without y.
    """
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    if model.experts != "strict":
        raise ValueError("model: its experts read a memory that a guide supplies; only strict experts have a twin")

    def twin(data: Dataset) -> None:
        if data.y is None:
            raise ValueError("data: y is None; the twin of a mixture scores observed points")
        with torch.no_grad(), precision_of(model):
            each: Any = as_array(model.expert_log_likelihood(data))
            exists: Any = as_array(data.full_mask())
        with twin_plates(data.batch_shape):
            concentration = jnp.full((model.num_experts,), model.concentration, dtype=each.dtype)
            weights = numpyro.sample("mixture_weights", dist.Dirichlet(concentration))
            log_z = jnp.log(jnp.clip(weights, jnp.finfo(each.dtype).tiny))
            points = jax.nn.logsumexp(log_z[..., None, :] + each, -1)
            numpyro.factor("y", jnp.sum(jnp.where(exists, points, 0.0), -1))

    return twin
