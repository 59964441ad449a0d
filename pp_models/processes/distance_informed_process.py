"""A neural process with a global latent and local ones that are read by distance, after DNP."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from pp_models.arguments import FEATURES, FLAG, LAYERS, POSITIVE, WIDTH, checked, interval
from pp_models.data import Dataset
from pp_models.likelihoods import Likelihood, make_likelihood
from pp_models.observation_model import ObservationModel, decode_jointly, observe
from pp_models.parameter_module import mlp
from pp_models.processes.conditional_process import flat_memory
from pp_models.single_precision import single
from pp_models.task_plates import task_plates, without_repeats

#: slope of the activation on the negative side; above 0, so that no distance collapses
SLOPE = 0.5


class DistanceInformedProcess(ObservationModel):
    """p(y | x, z, local): a global latent, and local latents at the context's points read by distance (after DNP,
    Venkataramanan and Denzler 2025).

    Inputs are embedded by layers whose singular values lie between two bounds, so that the embedding keeps distances up
    to a factor both ways (bi-Lipschitz). An input asked reads the local latents with weights that fall with its squared
    distance to their points, there against a learned value for "nothing near", to which predictions return far from
    the context.

    Two things differ from the paper. It *penalises* singular values outside the bounds; here the layers are
    parametrised by their singular value decomposition and cannot leave them, so that the bounds hold at every step,
    there is no weight to tune, and the training loss is a log-likelihood and nothing else. And its local latents are
    drawn at the inputs asked, which a guide of ours does not see; here they are drawn at the context's points.

    Sites: ``z`` ``[*B, latent_dim]`` and ``local`` ``[*B, N_context, local_dim]``, both standard normal; ``memory``
    ``[*B, N_context, Dx + 1]`` (input, 1 where the point exists) with a flat prior; ``y``. Local latents belong to
    points, so that objectives which compare the guide on context and whole task (``npvi``, ``conditional-prior``)
    cannot be used; ``npml`` is meant, and ``elbo`` works on a data set.

    Args:
        dim_x: input width.
        dim_y: output width (number of classes for a categorical likelihood).
        latent_dim: width of z.
        local_dim: width of a local latent.
        width: of the embedding and of the decoder.
        embedding_depth: layers of the embedding.
        depth: linear layers of the decoder.
        num_heads: attention heads; each has its own length scale.
        singular_values: bounds of the embedding's singular values (0.1 and 1 in the paper).
        likelihood: as for BayesianNetwork; the per-point Gaussian head (floor 0.1) by default.
        missing_outputs: as for BayesianNetwork.

    Raises:
        ValueError: a size below 1, a width that the heads cannot divide, or bounds that are not 0 < low < high.
    """

    @checked(
        dim_x=FEATURES,
        dim_y=FEATURES,
        latent_dim=WIDTH,
        local_dim=WIDTH,
        width=WIDTH,
        embedding_depth=LAYERS,
        depth=LAYERS,
        num_heads=LAYERS,
        singular_values=interval(POSITIVE),
        missing_outputs=FLAG,
    )
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        latent_dim: int = 64,
        local_dim: int = 64,
        width: int = 64,
        embedding_depth: int = 3,
        depth: int = 5,
        num_heads: int = 4,
        singular_values: tuple[float, float] = (0.1, 1.0),
        likelihood: str | Likelihood = "gaussian-head",
        *,
        missing_outputs: bool = False,
    ) -> None:
        super().__init__()
        self.missing_outputs = missing_outputs
        if local_dim % num_heads:
            raise ValueError(f"local_dim: got {local_dim}; attention needs a multiple of num_heads, {num_heads}")
        if width < dim_x:
            raise ValueError(f"width: got {width}; an embedding that keeps distances needs at least dim_x, {dim_x}")
        self.dim_x, self.dim_y, self.latent_dim, self.local_dim = dim_x, dim_y, latent_dim, local_dim
        self.num_heads = num_heads
        self.likelihood = make_likelihood(likelihood)
        self.outputs = self.likelihood.num_outputs(dim_y)
        widths = [dim_x, *[width] * embedding_depth]
        self.embedding = nn.ModuleList(
            [BoundedLinear(widths[i], widths[i + 1], singular_values) for i in range(embedding_depth)]
        )
        self.decoder = mlp([dim_x + latent_dim + local_dim, *[width] * (depth - 1), self.outputs])
        # precisions from wide to narrow, in units of the embedding, and where "nothing near" stands
        self.log_precision = nn.Parameter(torch.linspace(0.0, 5.0, num_heads))
        self.null_logit = nn.Parameter(torch.full((num_heads,), -4.0))
        self.null_value = nn.Parameter(torch.zeros(local_dim))

    def embed(self, x: Tensor) -> Tensor:
        """The embedding ``[*B, N, width]`` of inputs ``[*B, N, Dx]``."""
        hidden = x
        for i, layer in enumerate(self.embedding):
            hidden = layer(leaky_relu(hidden, SLOPE) if i else hidden)
        return hidden

    def read(self, x: Tensor, memory: Tensor, local: Tensor) -> Tensor:
        """Local latents ``[*B, M, local_dim]`` read at inputs ``[*B, N, Dx]`` by distance: ``[*B, N, local_dim]``."""
        inputs, exists = memory.split([self.dim_x, 1], -1)
        a, b = self.embed(x), self.embed(inputs)
        squares = a.square().sum(-1, keepdim=True) + b.square().sum(-1).unsqueeze(-2) - 2 * a @ b.mT
        logits = -self.log_precision.exp()[:, None, None] * squares.clamp_min(0.0).unsqueeze(-3)
        logits = logits.masked_fill(exists.mT.unsqueeze(-3) < 0.5, -torch.inf)
        null = self.null_logit[:, None, None].expand(*logits.shape[:-1], 1)
        weights = torch.softmax(torch.cat([logits, null], -1), -1)
        values = torch.cat([local, self.null_value.expand(*local.shape[:-2], 1, -1)], -2)
        values = values.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)
        return (weights @ values).transpose(-2, -3).flatten(-2)

    def forward(self, data: Dataset) -> Tensor:
        """Returns the decoder's outputs ``[*B, N, outputs]``.

        Raises:
            ValueError: local latents of other points than the memory's, as ``npvi`` would compare.
        """
        self.check(data)
        with task_plates(data.batch_shape, data.x.device):
            like = data.x.new_zeros(self.latent_dim)
            z = pyro.sample("z", dist.Normal(like, torch.ones_like(like)).to_event(1))
            memory = without_repeats(pyro.sample("memory", flat_memory(data, self.dim_x + 1)), 2)
            like = data.x.new_zeros(*data.x.shape[:-1], self.local_dim)
            local = pyro.sample("local", of_points(dist.Normal(like, torch.ones_like(like)), data))
            if local.shape[-2] != memory.shape[-2]:
                raise ValueError(
                    f"local: got {local.shape[-2]} points, but the context has {memory.shape[-2]}; an objective that "
                    "compares context and whole task cannot be used, train with npml"
                )
            found = self.read(data.x, memory, local)
            shape = torch.broadcast_shapes(found.shape[:-2], z.shape[:-1], data.batch_shape)
            hidden = torch.cat([data.x.expand(*shape, -1, -1), found.expand(*shape, -1, -1)], -1)
            outputs = decode_jointly(self.decoder, hidden, [z])
            observe(self.likelihood(outputs), data)
        return outputs


def of_points(distribution: dist.TorchDistribution, data: Dataset) -> dist.TorchDistribution:
    """A latent of each existing point as one event: batch ``[*B, N, R]`` to batch ``*B``."""
    if data.mask is not None and data.num_points:
        distribution = distribution.mask(data.mask.unsqueeze(-1))
    return distribution.to_event(2)


class BoundedLinear(nn.Module):
    """x ↦ U diag(s) Vᵀ x + b with orthonormal columns U, V and singular values s inside given bounds.

    Args:
        k_in, k_out: widths, ``k_in <= k_out``.
        singular_values: the bounds.
    """

    def __init__(self, k_in: int, k_out: int, singular_values: tuple[float, float]) -> None:
        super().__init__()
        self.low, self.high = singular_values
        self.left = nn.Parameter(torch.randn(k_out, k_in))
        self.right = nn.Parameter(torch.randn(k_in, k_in))
        self.raw = nn.Parameter(torch.full((k_in,), 2.0))  # near the upper bound: distances survive several layers
        self.bias = nn.Parameter(0.1 * torch.randn(k_out))

    @property
    def singular_values(self) -> Tensor:
        """``[k_in]``."""
        return self.low + (self.high - self.low) * self.raw.sigmoid()

    @property
    def weight(self) -> Tensor:
        """``[k_out, k_in]``."""
        left, right = (torch.linalg.qr(single(t))[0].to(t.dtype) for t in (self.left, self.right))
        return left * self.singular_values @ right.mT

    def forward(self, x: Tensor) -> Tensor:
        """``[..., k_in]`` to ``[..., k_out]``."""
        return torch.nn.functional.linear(x, self.weight, self.bias)
