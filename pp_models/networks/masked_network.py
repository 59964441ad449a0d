"""A network whose weights all tasks share, and whose hidden units each task switches on or off."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pp_models.arguments import FEATURES, FLAG, MOST_LAYERS, OPEN_SHARE, SCALE, checked, each, one_of
from pp_models.data import Dataset
from pp_models.likelihoods import Likelihood, make_likelihood
from pp_models.observation_model import ACTIVATIONS, ObservationModel, observe
from pp_models.parameter_module import mlp
from pp_models.task_plates import task_plates


class MaskedNetwork(ObservationModel):
    """y | x, m: a perceptron whose hidden units are kept where m is 1, m ~ Bernoulli(keep) for each unit and task.

    The model behind structured dropout with a learned posterior of the masks (GFlowOut, Liu et al. 2023), one mask a
    task. Sites: ``mask_{i}`` ``[*B, width_i]`` for each hidden layer; ``y``.

    Args:
        layer_sizes: widths from the input to the network's output, at least one hidden one.
        likelihood: as for BayesianNetwork.
        noise_scale: of ``"gaussian"``.
        keep: prior probability that a unit is on; what is on is divided by it.
        activation: ``"relu"``, ``"tanh"``, ``"silu"`` or ``"gelu"``.
        missing_outputs: as for BayesianNetwork.
    """

    @checked(
        layer_sizes=each(FEATURES, 3, MOST_LAYERS, "hold input, hidden and output widths"),
        noise_scale=SCALE,
        keep=OPEN_SHARE,
        activation=one_of(*ACTIVATIONS),
        missing_outputs=FLAG,
    )
    def __init__(
        self,
        layer_sizes: list[int] | tuple[int, ...],
        likelihood: str | Likelihood = "gaussian",
        noise_scale: float = 0.1,
        keep: float = 0.5,
        activation: str = "relu",
        *,
        missing_outputs: bool = False,
    ) -> None:
        super().__init__()
        sizes = list(layer_sizes)
        self.layer_sizes, self.dim_x, self.outputs = sizes, sizes[0], sizes[-1]
        self.likelihood = make_likelihood(likelihood, noise_scale)
        self.dim_y = self.likelihood.dim_y(sizes[-1])
        self.keep, self.activation, self.missing_outputs = keep, activation, missing_outputs
        self.layers = nn.ModuleList([layer for layer in mlp(sizes) if isinstance(layer, nn.Linear)])

    @property
    def widths(self) -> list[int]:
        """Of the hidden layers, each of which has a mask."""
        return list(self.layer_sizes[1:-1])

    @staticmethod
    def site(index: int) -> str:
        """Name of a hidden layer's mask."""
        return f"mask_{index}"

    def forward(self, data: Dataset) -> Tensor:
        """Returns the network's outputs ``[*B, N, layer_sizes[-1]]``."""
        self.check(data)
        hidden: Any = data.x
        with task_plates(data.batch_shape, data.x.device):
            for i, (layer, width) in enumerate(zip(self.layers, self.widths, strict=False)):
                prior = dist.Bernoulli(probs=data.x.new_full((width,), self.keep))
                mask = pyro.sample(self.site(i), prior.to_event(1))
                hidden = ACTIVATIONS[self.activation](layer(hidden)) * mask.unsqueeze(-2) / self.keep
            outputs = self.layers[-1](hidden)
            observe(self.likelihood(outputs), data)
        return outputs
