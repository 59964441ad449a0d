"""What every guide over the weights of a BayesianNetwork shares."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from guides.set_encoder import POOLINGS, MemoryEncoder, SetEncoder
from pp_models.arguments import WIDTH, checked, one_of
from pp_models.contract import Guide, ObjectiveOffers, refuse_data_ties
from pp_models.data import Dataset
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.task_plates import task_plates


class WeightGuide(Guide):
    """A guide with one independent distribution per weight matrix, given the data.

    Subclasses say which (:meth:`layer_distributions`). Where the model takes a representation, the guide supplies it:
    a set encoder's output as a point mass (the deterministic path).

    Args:
        model: the network whose weights are inferred.
        width: hidden width of the encoder.
        pooling: how the encoder pools points.
    """

    #: no site's distribution depends on another's value: objectives need not run the guide twice for its densities
    independent_sites = True
    #: each task that it was made for has numbers of its own, whatever the data
    of_given_tasks = False

    @checked(width=WIDTH, pooling=one_of(*POOLINGS))
    def __init__(self, model: BayesianNetwork, width: int = 128, *, pooling: str = "mean") -> None:
        super().__init__()
        if not isinstance(model, BayesianNetwork):
            raise TypeError(
                f"model: got {type(model).__name__}; {type(self).__name__} is a guide for a BayesianNetwork"
            )
        self.sites = [model.site(i) for i in range(model.num_layers)]
        self.shapes = model.weight_shapes
        self.dim_x, self.dim_y, self.discrete = model.dim_x, model.dim_y, model.likelihood.discrete
        self.representation_encoder = (
            SetEncoder(
                model.dim_x,
                model.dim_y,
                width,
                model.representation_dim,
                pooling=pooling,
                missing_outputs=model.missing_outputs,
            )
            if model.representation_dim
            else None
        )
        self.memory_encoder = (
            MemoryEncoder(model.path, model.dim_x, model.dim_y, width, missing_outputs=model.missing_outputs)
            if model.path
            else None
        )

    def layer_distributions(self, data: Dataset) -> list[TorchDistribution]:
        """The distribution of each layer's weights, batch ``*B`` (or empty), event ``[k_out, k_in + 1]``."""
        raise NotImplementedError

    def check_objective(self, objective: ObjectiveOffers) -> None:
        """Refuses, where the data are not looked at, what needs a guide that looks.

        Raises:
            ValueError: see :func:`pp_models.contract.refuse_data_ties`.
        """
        if self.of_given_tasks:
            refuse_data_ties(self, objective)

    def representation(self, data: Dataset) -> Tensor | None:
        """The task representation ``[*B, R]`` of the deterministic path, None without one."""
        return None if self.representation_encoder is None else self.representation_encoder(data)

    def sample_context(self, data: Dataset) -> dict[str, Tensor]:
        """Samples, as point masses, what the model reads of the context: its representation, or its path's memory."""
        values = {}
        context = self.representation(data)
        if context is not None:
            values["representation"] = pyro.sample("representation", dist.Delta(context, event_dim=1))
        if self.memory_encoder is not None:
            values["memory"] = pyro.sample("memory", dist.Delta(self.memory_encoder(data), event_dim=2))
        return values

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples every latent site given the data; returns the values by site."""
        return self._sample(data, self.layer_distributions(data))

    def _sample(self, data: Dataset, distributions: list[TorchDistribution]) -> dict[str, Tensor]:
        with task_plates(data.batch_shape, data.x.device):
            values = self.sample_context(data)
            for site, distribution in zip(self.sites, distributions, strict=True):
                values[site] = pyro.sample(site, distribution)
        return values


def initial_weight(shape: tuple[int, int]) -> Tensor:
    """U(-1/√k_in, 1/√k_in) for weights and bias, torch's default for a linear layer; ``[k_out, k_in + 1]``."""
    bound = 1 / math.sqrt(max(shape[1] - 1, 1))
    return torch.empty(shape).uniform_(-bound, bound)
