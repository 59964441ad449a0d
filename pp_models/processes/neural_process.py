"""The neural-process family: a shared decoder conditioned on one global latent and/or a deterministic path."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pp_models.arguments import FEATURES, FLAG, LAYERS, MOST_WIDTH, WIDTH, checked, integer
from pp_models.context_path import make_path
from pp_models.data import Dataset
from pp_models.likelihoods import Likelihood, make_likelihood
from pp_models.observation_model import (
    ObservationModel,
    decode_jointly,
    flat_representation,
    join,
    observe,
)
from pp_models.parameter_module import mlp
from pp_models.task_plates import task_plates, without_repeats


class NeuralProcess(ObservationModel):
    """p(y | x, z, r): a decoder on the input, a latent z ~ N(0, I) of each task and a deterministic representation.

    CNP: ``latent_dim=0``. NP: ``representation_dim=0``. NP+CNP: both. ANP: ``attention=True``, where the decoder
    attends from each target input over the embedded context points ("memory") instead of reading their mean. With
    ``path="regression"`` it reads closed-form regressions of the context at each target input.

    Sites: ``z`` ``[*B, latent_dim]``; ``representation`` ``[*B, R]``, or with a path ``memory``
    ``[*B, N_context, Dx + E + 1]`` (input, embedding or y, 1 if it exists); ``y``. The deterministic sites have a
    flat prior, and :class:`guides.NeuralProcessGuide` puts a point mass on them.

    Args:
        dim_x: input width.
        dim_y: output width (number of classes for a categorical likelihood).
        latent_dim: width of z; 0 for none.
        representation_dim: width of the deterministic representation; 0 for none.
        attention: deterministic path by cross-attention; short for ``path="attention"``.
        width: hidden width of the decoder.
        depth: linear layers of the decoder.
        likelihood: as for BayesianNetwork; the per-point Gaussian head (floor 0.1) by default.
        num_heads: attention heads.
        path: ``"attention"``, ``"regression"``, ``"learned-regression"`` or ``"kernels"``; see
            :mod:`pp_models.context_path`.
        missing_outputs: as for BayesianNetwork.

    Raises:
        ValueError: neither path, an unknown one, or attention without a representation that its heads can divide.
    """

    @checked(
        dim_x=FEATURES,
        dim_y=FEATURES,
        latent_dim=integer(0, MOST_WIDTH),
        representation_dim=integer(0, MOST_WIDTH),
        width=WIDTH,
        depth=LAYERS,
        num_heads=LAYERS,
        missing_outputs=FLAG,
    )
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        latent_dim: int = 128,
        representation_dim: int = 0,
        attention: bool = False,
        width: int = 128,
        depth: int = 5,
        likelihood: str | Likelihood = "gaussian-head",
        num_heads: int = 8,
        path: str | None = None,
        *,
        missing_outputs: bool = False,
    ) -> None:
        super().__init__()
        self.missing_outputs = missing_outputs
        if attention and path not in (None, "attention"):
            raise ValueError(f"path: got {path!r} beside attention=True; take one of them")
        path = "attention" if attention else path
        if latent_dim < 1 and representation_dim < 1:
            raise ValueError("latent_dim, representation_dim: both are 0; the decoder would never see the context")
        if path is not None and representation_dim < 1:
            raise ValueError(f"representation_dim: got 0; path={path!r} needs a deterministic representation")
        self.dim_x, self.dim_y = dim_x, dim_y
        self.latent_dim, self.representation_dim, self.reads_memory = latent_dim, representation_dim, path is not None
        self.likelihood = make_likelihood(likelihood)
        self.outputs = self.likelihood.num_outputs(dim_y)
        self.decoder: Any = mlp([dim_x + latent_dim + representation_dim, *[width] * (depth - 1), self.outputs])
        if path is not None:
            self.attend: Any = make_path(path, dim_x, dim_y, width, representation_dim, num_heads)

    def decode(self, x: Tensor, vectors: list[Tensor]) -> Tensor:
        """Outputs ``[*B, N, outputs]`` at ``x`` given the latent, the representation or both, ``[*B, R]`` each."""
        return decode_jointly(self.decoder, x, vectors)

    def forward(self, data: Dataset) -> Tensor:
        """Returns the decoder's outputs ``[*B, N, outputs]``."""
        self.check(data)
        vectors = []
        with task_plates(data.batch_shape, data.x.device):
            if self.latent_dim:
                prior = dist.Normal(data.x.new_zeros(self.latent_dim), data.x.new_ones(self.latent_dim)).to_event(1)
                vectors.append(pyro.sample("z", prior))
            if self.reads_memory:
                # one entry a point, so that Pyro finds model and guide to agree when both see the same data set
                memory = pyro.sample("memory", self.attend.flat_prior(data.num_points, data.x))
                found = self.attend(data.x, without_repeats(memory, 2))
                hidden = join(data.x, vectors[0]) if vectors else data.x
                shape = torch.broadcast_shapes(hidden.shape[:-1], found.shape[:-1])
                outputs = self.decoder(torch.cat([hidden.expand(*shape, -1), found.expand(*shape, -1)], -1))
            else:
                if self.representation_dim:
                    flat = flat_representation(self.representation_dim, data.x)
                    vectors.append(pyro.sample("representation", flat))
                outputs = self.decode(data.x, vectors)
            observe(self.likelihood(outputs), data)
        return outputs
