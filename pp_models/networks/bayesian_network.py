"""A network whose weights are latent in every task: the model family of NVDP and BNNP."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pp_models.arguments import (
    FEATURES,
    FLAG,
    MOST_LAYERS,
    MOST_WIDTH,
    SCALE,
    WIDTH,
    check_weights,
    checked,
    each,
    either,
    instance,
    integer,
    one_of,
)
from pp_models.context_path import ContextPath, make_path
from pp_models.context_regression import FourierFeatures
from pp_models.data import Dataset
from pp_models.likelihoods import Likelihood, make_likelihood
from pp_models.networks.linear import linear
from pp_models.networks.priors import FixedGaussianPrior, WeightPrior
from pp_models.observation_model import ACTIVATIONS, ObservationModel, flat_representation, join, observe
from pp_models.task_plates import task_plates, without_repeats

#: a layer's index and its input ``[*B, N, k_in]`` to its pre-activations ``[*B, N, k_out]``
Layer = Callable[[int, Tensor], Tensor]


class BayesianNetwork(ObservationModel):
    """A multi-layer perceptron with one latent weight matrix a layer and task.

    Sites: ``layer_{i}.weight`` ``[*B, k_out, k_in + 1]`` (bias in the last column), ``y``, and ``representation``
    ``[*B, representation_dim]`` where that is positive, or ``memory`` ``[*B, N_context, Dx + E + 1]`` where there is a
    path. Called with a Dataset that has y, it observes it; without,
    it samples it. Task dimensions are the plates ``tasks`` (and ``tasks_1`` … to its left).

    Args:
        layer_sizes: widths from the input to the network's output (twice Dy for a per-point Gaussian head, the
            number of classes for a categorical likelihood).
        prior: a WeightPrior; N(0, 1 / (k_in + 1)) by default.
        likelihood: ``"gaussian"``, ``"gaussian-head"``, ``"bernoulli"``, ``"categorical"``, or a Likelihood.
        noise_scale: noise standard deviation of the shared-noise Gaussian likelihood.
        activation: ``"relu"``, ``"tanh"``, ``"silu"`` or ``"gelu"``.
        representation_dim: width of a deterministic task representation joined to the input of the first layer;
            the guide supplies it.
        path: what the first layer also reads at each x, a function of the context: ``"attention"``,
            ``"regression"``, ``"learned-regression"``, ``"kernels"``, or a
            :class:`pp_models.context_path.ContextPath`; guides hand the context over. A path is deterministic: with
            one, scores are its work as much as the weights'.
        path_dim: width of what the path finds.
        input_features: a number of sines and cosines of x, at learned frequencies, that the first layer reads beside
            x; or a module ``[*B, N, Dx]`` to ``[*B, N, dim_out]``.
        missing_outputs: for data in which single outputs of a point may be missing (``Dataset.observed``): guides are
            built to be told which. Without it they read a missing output as 0; densities leave it out in either case.

    Raises:
        ValueError: fewer than two widths, a width below 1, an unknown name, or a representation beside a path.
    """

    @checked(
        layer_sizes=each(FEATURES, 2, MOST_LAYERS, "hold at least two positive widths"),
        prior=instance(WeightPrior),
        noise_scale=SCALE,
        activation=one_of(*ACTIVATIONS),
        representation_dim=integer(0, MOST_WIDTH),
        path_dim=WIDTH,
        input_features=either(nn.Module, other=integer(0, MOST_WIDTH)),
        missing_outputs=FLAG,
    )
    def __init__(
        self,
        layer_sizes: list[int] | tuple[int, ...],
        prior: WeightPrior | None = None,
        likelihood: str | Likelihood = "gaussian",
        noise_scale: float = 0.1,
        activation: str = "relu",
        representation_dim: int = 0,
        *,
        path: str | ContextPath | None = None,
        path_dim: int = 64,
        input_features: int | nn.Module = 0,
        missing_outputs: bool = False,
    ) -> None:
        super().__init__()
        self.missing_outputs = missing_outputs
        if path is not None and not isinstance(path, str) and not hasattr(path, "representation_dim"):
            raise ValueError(f"path: got {type(path).__name__}; it must be a name, or a ContextPath")
        sizes = list(layer_sizes)
        check_weights("layer_sizes", sizes)
        self.layer_sizes: list[int] = sizes
        self.representation_dim = representation_dim
        self.likelihood = make_likelihood(likelihood, noise_scale)
        self.dim_x = sizes[0]
        self.outputs = sizes[-1]
        self.dim_y = self.likelihood.dim_y(sizes[-1])
        self.activation = activation
        self.prior = FixedGaussianPrior() if prior is None else prior
        if path is not None and representation_dim:
            raise ValueError(f"path: got {path!r} beside representation_dim {representation_dim}; take one of them")
        width = max(sizes[1:-1], default=path_dim)
        self.path: Any = make_path(path, sizes[0], self.dim_y, width, path_dim) if isinstance(path, str) else path
        self.reads_memory = path is not None
        self.input_features: Any = input_features
        if isinstance(input_features, int):
            self.input_features = FourierFeatures(sizes[0], input_features) if input_features else None
        if self.input_features is not None and not isinstance(getattr(self.input_features, "dim_out", None), int):
            raise ValueError(
                f"input_features: got {type(input_features).__name__}; it must be a number, or a module that says the "
                "width of what it gives as its dim_out"
            )
        read: int = sizes[0] if self.input_features is None else self.input_features.dim_out
        extra: Any = representation_dim if self.path is None else self.path.representation_dim
        self.prior.build(weight_shapes([read + extra, *sizes[1:]]))

    @property
    def num_layers(self) -> int:
        """Weight matrices in the network."""
        return len(self.layer_sizes) - 1

    @property
    def independent_layers(self) -> bool:
        """Whether no layer's prior depends on the weights of another."""
        return self.prior.independent_layers

    @property
    def hidden_sizes(self) -> list[int]:
        """Hidden widths; those of networks that a guide builds beside this one, unless it is told others."""
        return self.layer_sizes[1:-1]

    @property
    def weight_shapes(self) -> list[tuple[int, int]]:
        """``(k_out, k_in + 1)`` layer by layer."""
        return list(self.prior.shapes)

    @staticmethod
    def site(index: int) -> str:
        """Name of a layer's latent site."""
        return f"layer_{index}.weight"

    def network_input(self, x: Tensor, representation: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """What the first layer reads at x ``[*B, N, Dx]``: x or its features, the representation, what the path finds.

        Args:
            x: inputs.
            representation: of the task ``[*B, R]``, where the model has one.
            memory: the context ``[*B, M, Dx + E + 1]``, where the model has a path.
        """
        read = x if self.input_features is None else self.input_features(x)
        if representation is not None:
            read = join(read, representation)
        if memory is not None:
            found = self.path(x, without_repeats(memory, 2))
            shape = torch.broadcast_shapes(read.shape[:-1], found.shape[:-1])
            read = torch.cat([read.expand(*shape, -1), found.expand(*shape, -1)], -1)
        return read

    def propagate(self, x: Tensor, layer: Layer, mask: Tensor | None = None) -> Tensor:
        """The network as a function of its layers: whatever multiplies by the weights, this is what is between.

        Args:
            x: what :meth:`network_input` made of the inputs.
            layer: called once for each layer in order, ``layer(index, inputs)``, for its pre-activations.
            mask: ``[*B, N]``, True where a point exists; for networks whose points see one another.

        Returns:
            ``[*B, N, layer_sizes[-1]]``.
        """
        activation = ACTIVATIONS[self.activation]
        hidden = layer(0, x)
        for i in range(1, self.num_layers):
            hidden = layer(i, activation(hidden))
        return hidden

    def forward(self, data: Dataset) -> Tensor:
        """Returns the network's outputs ``[*B, N, layer_sizes[-1]]``."""
        self.check(data)
        weights: list[Tensor] = []

        def layer(index: int, inputs: Tensor) -> Tensor:
            weights.append(pyro.sample(self.site(index), self.prior.layer(index, weights)))
            return linear(inputs, weights[-1], coherent=not self.independent_points)

        with task_plates(data.batch_shape, data.x.device):
            representation = memory = None
            if self.representation_dim:
                flat = flat_representation(self.representation_dim, data.x)
                representation = pyro.sample("representation", flat)
            if self.path is not None:
                memory = pyro.sample("memory", self.path.flat_prior(data.num_points, data.x))
            outputs = self.propagate(self.network_input(data.x, representation, memory), layer, data.mask)
            observe(self.likelihood(outputs), data)
        return outputs


def weight_shapes(layer_sizes: list[int]) -> list[tuple[int, int]]:
    """``(k_out, k_in + 1)`` of the matrices between consecutive widths."""
    return [(k_out, k_in + 1) for k_in, k_out in pairwise(layer_sizes)]
