"""Functions drawn from a model's prior, at any inputs."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from inference.data_dtype import as_computed
from inference.prediction import Prediction, likelihood_of_points
from inference.random_state import seeded
from pp_models.arguments import DRAWS, SEED, checked
from pp_models.contract import as_model
from pp_models.data import Dataset
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.task_plates import PARTICLE_PLATE


@torch.no_grad()
@checked(num_samples=DRAWS, seed=SEED)
def prior_predictive(
    model: BayesianNetwork, x: Tensor, num_samples: int = 100, *, seed: int | None = None
) -> Prediction:
    """Functions from the prior, learned or not, at any inputs: the generative use of BNNP.

    A prior trained on 28x28 images is sampled at 100x100 by asking for that grid. No guide takes part.

    Args:
        model: the network.
        x: inputs ``[N, Dx]``, or ``[*B, N, Dx]`` for draws that are independent over tasks as well.
        num_samples: draws S.
        seed: seed of these draws; the global random state when None.

    Returns:
        A Prediction whose ``function_samples`` are ``[S, *B, N, Dy]``; its ``samples`` have the noise as well.

    Raises:
        TypeError: another kind of model.
        ValueError: ``num_samples`` below 1, or a model whose guide supplies a representation.
        DataError: inputs of another width.
    """
    if not isinstance(model, BayesianNetwork):
        raise TypeError(
            f"model: got a {type(model).__name__}; it must be a BayesianNetwork. For another Pyro model there is "
            "pyro.infer.Predictive(model, num_samples=...)"
        )
    if as_model(model).representation_dim or as_model(model).reads_memory:
        raise ValueError("model: its representation or path is supplied by a guide, and has no prior to sample from")
    data = Dataset(as_computed(x, model))
    model.check(data)
    with seeded(seed, x.device), pyro.plate(PARTICLE_PLATE, num_samples, dim=-1 - len(data.batch_shape)):
        site: Any = poutine.trace(model).get_trace(data).nodes["y"]
    return Prediction(likelihood_of_points(site), site["value"])
