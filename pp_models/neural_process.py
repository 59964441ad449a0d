"""The neural-process family: a shared decoder conditioned on one global latent and/or a deterministic path."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pp_models.bayesian_network import flat_representation, join, observe
from pp_models.data import DataError, Dataset
from pp_models.likelihoods import Likelihood, make_likelihood
from pp_models.parameter_module import ParameterModule, mlp
from pp_models.task_plates import task_plates


class NeuralProcess(ParameterModule):
    """p(y | x, z, r): a decoder on the input, a latent z ~ N(0, I) of each task and a deterministic representation.

    CNP: ``latent_dim=0``. NP: ``representation_dim=0``. NP+CNP: both. ANP: ``attention=True``, where the decoder
    attends from each target input over the embedded context points ("memory") instead of reading their mean.

    Sites: ``z`` ``[*B, latent_dim]``; ``representation`` ``[*B, R]``, or with attention ``memory``
    ``[*B, N_context, Dx + R + 1]`` (input, embedding, 1 where the point exists); ``y``. The deterministic sites have a
    flat prior, and :class:`guides.NeuralProcessGuide` puts a point mass on them.

    Args:
        dim_x: input width.
        dim_y: output width (number of classes for a categorical likelihood).
        latent_dim: width of z; 0 for none.
        representation_dim: width of the deterministic representation; 0 for none.
        attention: deterministic path by cross-attention.
        width: hidden width of the decoder.
        depth: linear layers of the decoder.
        likelihood: as for BayesianNetwork; the per-point Gaussian head (floor 0.1) by default.
        num_heads: attention heads.

    Raises:
        ValueError: neither path, or attention without a representation that its heads can divide.
    """

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
    ) -> None:
        super().__init__()
        if latent_dim < 1 and representation_dim < 1:
            raise ValueError("latent_dim, representation_dim: both are 0; the decoder would never see the context")
        if attention and representation_dim < 1:
            raise ValueError("representation_dim: got 0; attention needs a deterministic representation")
        if attention and representation_dim % num_heads:
            raise ValueError(
                f"representation_dim: got {representation_dim}; attention needs a multiple of num_heads, {num_heads}"
            )
        self.dim_x, self.dim_y = dim_x, dim_y
        self.latent_dim, self.representation_dim, self.attention = latent_dim, representation_dim, attention
        self.likelihood = make_likelihood(likelihood)
        outputs = dim_y
        while self.likelihood.dim_y(2 * outputs) == dim_y:  # a head has two outputs a dimension
            outputs *= 2
        self.outputs = outputs
        self.decoder = mlp([dim_x + latent_dim + representation_dim, *[width] * (depth - 1), outputs])
        if attention:
            self.num_heads = num_heads
            self.embed_input = mlp([dim_x, width, representation_dim])
            self.attended = nn.Linear(representation_dim, representation_dim)
            # so that attention over an empty context is defined: one learned point always there
            self.null_key = nn.Parameter(torch.randn(representation_dim) * 0.1)
            self.null_value = nn.Parameter(torch.randn(representation_dim) * 0.1)

    def check(self, data: Dataset) -> None:
        """Refuses data that this model cannot take.

        Raises:
            DataError: input width, or dtype or width of y, does not fit.
        """
        if data.x.shape[-1] != self.dim_x:
            raise DataError(f"x: got input width {data.x.shape[-1]}; this model was built for {self.dim_x}")
        if data.y is not None:
            self.likelihood.check(data.y, self.outputs)

    def _attend(self, x: Tensor, memory: Tensor) -> Tensor:
        """Cross-attention of inputs ``[*B, N, Dx]`` over a memory ``[*B, M, Dx + R + 1]``: ``[*B, N, R]``."""
        inputs, values, exists = memory.split([self.dim_x, self.representation_dim, 1], -1)
        shape = torch.broadcast_shapes(x.shape[:-2], memory.shape[:-2])
        keys = torch.cat([self.embed_input(inputs), self.null_key.expand(*inputs.shape[:-2], 1, -1)], -2)
        values = torch.cat([values, self.null_value.expand(*inputs.shape[:-2], 1, -1)], -2)
        ones = exists.new_ones(*exists.shape[:-2], 1, 1)
        mask = torch.cat([exists, ones], -2).squeeze(-1) > 0.5

        def heads(t: Tensor) -> Tensor:
            return t.expand(*shape, *t.shape[-2:]).unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)

        mask = mask[..., None, None, :].expand(*shape, 1, 1, mask.shape[-1])
        mixed = scaled_dot_product_attention(heads(self.embed_input(x)), heads(keys), heads(values), attn_mask=mask)
        return self.attended(mixed.transpose(-2, -3).flatten(-2))

    def forward(self, data: Dataset) -> Tensor:
        """Returns the decoder's outputs ``[*B, N, outputs]``."""
        self.check(data)
        hidden = data.x
        with task_plates(data.batch_shape, data.x.device):
            if self.latent_dim:
                prior = dist.Normal(data.x.new_zeros(self.latent_dim), data.x.new_ones(self.latent_dim)).to_event(1)
                hidden = join(hidden, pyro.sample("z", prior))
            if self.representation_dim and self.attention:
                # one entry a point, so that Pyro finds model and guide to agree when both see the same data set
                like = data.x.new_zeros(data.num_points, self.dim_x + self.representation_dim + 1)
                flat = dist.Normal(like, torch.ones_like(like)).to_event(2).mask(False)
                found = self._attend(data.x, pyro.sample("memory", flat))
                shape = torch.broadcast_shapes(hidden.shape[:-1], found.shape[:-1])
                hidden = torch.cat([hidden.expand(*shape, -1), found.expand(*shape, -1)], -1)
            elif self.representation_dim:
                hidden = join(
                    hidden, pyro.sample("representation", flat_representation(self.representation_dim, data.x))
                )
            outputs = self.decoder(hidden)
            observe(self.likelihood(outputs), data)
        return outputs
