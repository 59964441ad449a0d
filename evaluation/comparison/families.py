"""Models that can be swapped freely, under the names that the comparison uses; guides are in ``guides.GUIDES``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pp_models
from evaluation.methods import (
    TaskShape,
    convolutional,
    distance_informed,
    implicit,
    mixture,
    network,
    neural_process,
    transformer,
)
from pp_models.registry import Registry

if TYPE_CHECKING:
    from torch import nn

#: name -> (what it is, how it is built)
MODELS: Registry[tuple[str, Callable[[TaskShape], nn.Module]]] = Registry(
    "model",
    {
        "network": ("network with latent weights, a Gaussian head at each point", network),
        "network+path": ("the same with a deterministic task representation", lambda t: network(t, t.width)),
        "network-learned-prior": (
            "the same with a learned prior, correlated by unit",
            lambda t: network(t, prior=pp_models.LearnedGaussianPrior("unit")),
        ),
        "network-attention": (
            "transformer with latent weights (BNAM), a Gaussian head at each point",
            lambda t: pp_models.BayesianAttentionNetwork(
                t.dim_x,
                t.dim_y,
                t.width,
                1,
                4,
                likelihood=pp_models.GaussianHeadLikelihood(t.min_scale),
                missing_outputs=t.missing_outputs,
            ),
        ),
        "network-shared-noise": (
            "network with latent weights, noise sd 0.1",
            lambda t: network(t, likelihood="gaussian"),
        ),
        "mixture": ("mixture of experts that read the context, weights latent in every task", mixture),
        "mixture-strict": ("the same, experts see x alone", lambda t: mixture(t, "strict")),
        "np": ("neural process: one global latent", lambda t: neural_process(t, True, False)),
        "np+cnp": ("neural process with a deterministic path", lambda t: neural_process(t, True, True)),
        "cnp": ("deterministic path alone", lambda t: neural_process(t, False, True)),
        "anp": ("attentive neural process", lambda t: neural_process(t, True, True, attention=True)),
        "canp": ("attention alone, no latent", lambda t: neural_process(t, False, True, attention=True)),
        "inr": ("implicit network of x that one global latent modulates", implicit),
        "convcnp": ("convolutional conditional neural process", convolutional),
        "dnp": ("distance-informed process: global and local latents", distance_informed),
        "tnp-d": ("transformer over the context's points and the inputs asked", transformer),
    },
    "guidebook list families",
)
