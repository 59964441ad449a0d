"""The encoder of a neural process as a guide over its global latent and its deterministic path."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn.functional import softplus

from guides.set_encoder import POOLINGS, MemoryEncoder, PointEncoder, SetEncoder
from pp_models.arguments import WIDTH, checked, one_of
from pp_models.contract import Guide
from pp_models.data import Dataset
from pp_models.parameter_module import mlp
from pp_models.processes.neural_process import NeuralProcess
from pp_models.task_plates import task_plates

#: added to what a point's precision is the softplus of, so that many points are not sure of z at the start
WEAK = -3.0


class NeuralProcessGuide(Guide):
    """q(z | D) = N(μ(D), σ²(D)), σ = 0.1 + 0.9 sigmoid, and a point mass on the deterministic path.

    See docs/papers/nvdp.md, eq. 14.

    Which sites it has follows from the model: CNP, NP, NP+CNP or ANP. Trained with ``npvi`` it is the neural process of
    Garnelo et al. 2018; with ``conditional-prior`` (``kl_reduction="sum"``) the variational-prior variant "+VP".

    Args:
        model: the decoder.
        width: width of the encoders.
        pooling: pooling of the latent path's encoder; or ``"bayesian"``: every point (x_n, y_n) is a Gaussian
            observation of z, r_n(x_n, y_n) of precision λ_n(x_n, y_n), and q is the posterior under N(0, I), of
            precision 1 + Σ λ_n and mean Σ λ_n r_n over it (Bayesian context aggregation, Volpp et al. 2021; a product
            of experts). Of no points it is the prior, and more points never make it wider.
        path_pooling: pooling of the deterministic path's, where the model reads no memory.
    """

    name = "neural-process"
    description = "a Gaussian over the global latent, and the deterministic path"

    #: no site depends on another
    independent_sites = True

    @checked(width=WIDTH, pooling=one_of(*POOLINGS, "bayesian"))
    def __init__(
        self, model: NeuralProcess, width: int = 128, *, pooling: str = "mean", path_pooling: str = "mean"
    ) -> None:
        super().__init__()
        if not isinstance(model, NeuralProcess):
            raise TypeError(f"model: got {type(model).__name__}; NeuralProcessGuide is a guide for a NeuralProcess")
        self.latent_dim, self.representation_dim = model.latent_dim, model.representation_dim
        self.point_mass = not model.latent_dim
        self.bayesian = pooling == "bayesian"
        if model.latent_dim and self.bayesian:
            self.latent_points = PointEncoder(
                model.dim_x, model.dim_y, width, 2 * model.latent_dim, depth=5, missing_outputs=model.missing_outputs
            )
        elif model.latent_dim:
            self.latent_encoder = SetEncoder(
                model.dim_x, model.dim_y, width, width, depth=3, pooling=pooling, missing_outputs=model.missing_outputs
            )
            self.latent_head = mlp([width, width, 2 * model.latent_dim])
        if model.representation_dim:
            if model.reads_memory:  # the decoder reads every point, so nothing is pooled
                self.memory_encoder = MemoryEncoder(
                    model.attend, model.dim_x, model.dim_y, width, 6, 2, missing_outputs=model.missing_outputs
                )
            else:
                self.path_encoder = SetEncoder(
                    model.dim_x,
                    model.dim_y,
                    width,
                    model.representation_dim,
                    pooling=path_pooling,
                    missing_outputs=model.missing_outputs,
                )
        self.reads_memory = model.reads_memory

    def latent(self, data: Dataset) -> TorchDistribution:
        """q(z | D), event ``[latent_dim]``."""
        if not self.bayesian:
            mean, raw = self.latent_head(self.latent_encoder(data)).chunk(2, -1)
            return dist.Normal(mean, 0.1 + 0.9 * torch.sigmoid(raw)).to_event(1)
        value, raw = self.latent_points(data).chunk(2, -1)  # [*B, N, latent_dim]
        precision = softplus(raw + WEAK) * data.full_mask().unsqueeze(-1)
        total = 1 + precision.sum(-2)
        return dist.Normal((precision * value).sum(-2) / total, total.rsqrt()).to_event(1)

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples the latent sites given the data; returns the values by site."""
        values = {}
        with task_plates(data.batch_shape, data.x.device):
            if self.latent_dim:
                values["z"] = pyro.sample("z", self.latent(data))
            if self.reads_memory:
                values["memory"] = pyro.sample("memory", dist.Delta(self.memory_encoder(data), event_dim=2))
            elif self.representation_dim:
                values["representation"] = pyro.sample(
                    "representation", dist.Delta(self.path_encoder(data), event_dim=1)
                )
        return values


def require_representation_alone(model: object, guide: str) -> None:
    """Refuses a model for a guide that sets the mean representation of a neural process and nothing else.

    Args:
        model: the model.
        guide: name of the guide's class.

    Raises:
        TypeError: another kind of model.
        ValueError: a model with a latent or with attention.
    """
    if not isinstance(model, NeuralProcess):
        raise TypeError(f"model: got {type(model).__name__}; {guide} is a guide for a NeuralProcess")
    if model.latent_dim or model.reads_memory:
        raise ValueError(
            f"model: got latent_dim = {model.latent_dim} and a path: {model.reads_memory}; {guide} sets a "
            "representation alone, and they must be 0 and False"
        )
