"""A network whose weights are latent in every task: the model family of NVDP and BNNP."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pyro
from torch import Tensor

from pp_models.arguments import (
    FEATURES,
    MOST_LAYERS,
    MOST_WIDTH,
    POSITIVE,
    check_weights,
    checked,
    each,
    instance,
    integer,
    one_of,
)
from pp_models.data import Dataset
from pp_models.likelihoods import Likelihood, make_likelihood
from pp_models.networks.linear import linear
from pp_models.networks.priors import FixedGaussianPrior, WeightPrior
from pp_models.observation_model import ACTIVATIONS, ObservationModel, flat_representation, join, observe
from pp_models.task_plates import task_plates

#: a layer's index and its input ``[*B, N, k_in]`` to its pre-activations ``[*B, N, k_out]``
Layer = Callable[[int, Tensor], Tensor]


class BayesianNetwork(ObservationModel):
    """A multi-layer perceptron with one latent weight matrix a layer and task.

    Sites: ``layer_{i}.weight`` ``[*B, k_out, k_in + 1]`` (bias in the last column), ``y``, and ``representation``
    ``[*B, representation_dim]`` where that is positive. Called with a Dataset that has y, it observes it; without,
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

    Raises:
        ValueError: fewer than two widths, a width below 1, or an unknown name.
    """

    @checked(
        layer_sizes=each(FEATURES, 2, MOST_LAYERS, "hold at least two positive widths"),
        prior=instance(WeightPrior),
        noise_scale=POSITIVE,
        activation=one_of(*ACTIVATIONS),
        representation_dim=integer(0, MOST_WIDTH),
    )
    def __init__(
        self,
        layer_sizes: list[int] | tuple[int, ...],
        prior: WeightPrior | None = None,
        likelihood: str | Likelihood = "gaussian",
        noise_scale: float = 0.1,
        activation: str = "relu",
        representation_dim: int = 0,
    ) -> None:
        super().__init__()
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
        self.prior.build(weight_shapes([sizes[0] + representation_dim, *sizes[1:]]))

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

    def propagate(self, x: Tensor, layer: Layer, mask: Tensor | None = None) -> Tensor:
        """The network as a function of its layers: whatever multiplies by the weights, this is what is between.

        Args:
            x: inputs ``[*B, N, Dx]``, joined to the task representation where there is one.
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
            x = data.x
            if self.representation_dim:
                x = join(x, pyro.sample("representation", flat_representation(self.representation_dim, x)))
            outputs = self.propagate(x, layer, data.mask)
            observe(self.likelihood(outputs), data)
        return outputs


def weight_shapes(layer_sizes: list[int]) -> list[tuple[int, int]]:
    """``(k_out, k_in + 1)`` of the matrices between consecutive widths."""
    return [(k_out, k_in + 1) for k_in, k_out in pairwise(layer_sizes)]
