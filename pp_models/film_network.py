"""A perceptron whose hidden layers are scaled and shifted from outside, feature by feature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pp_models.arguments import FEATURES, MOST_LAYERS, checked, each, one_of
from pp_models.observation_model import ACTIVATIONS
from pp_models.parameter_module import mlp
from pp_models.recorded_arguments import Recorded

FILM_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {**ACTIVATIONS, "sine": torch.sin}


def modulated(features: Tensor, modulation: Tensor) -> Tensor:
    """(1 + γ) h + β: features ``[..., w]`` scaled and shifted by a modulation ``[..., 2 w]`` (γ, then β)."""
    scale, shift = modulation.chunk(2, -1)
    return features + features * scale + shift


class Modulated(Recorded, nn.Module):
    """Base of networks that read a scale and a shift for each feature of their layers (FiLM, Perez et al. 2018)."""

    #: features of each layer that is modulated
    widths: list[int]
    #: width of what comes out
    dim_out: int

    def forward(self, x: Tensor, modulations: Sequence[Tensor] | None = None) -> Tensor:
        """``[..., N, Dx]`` to ``[..., N, dim_out]``.

        Args:
            x: inputs.
            modulations: of each layer of ``widths`` ``[..., 2 width]``, γ then β, the same for all N; None for none.
        """
        raise NotImplementedError


class FiLMNetwork(Modulated):
    """A perceptron h_l = a((1 + γ_l)(W_l h_{l-1} + b_l) + β_l) (FiLM, Perez et al. 2018); γ = β = 0 is the plain one.

    Args:
        layer_sizes: widths from the input to the output.
        activation: ``"relu"``, ``"tanh"``, ``"silu"``, ``"gelu"`` or ``"sine"``, which starts from SIREN's weights
            (Sitzmann et al. 2020): U(-√(6/n), √(6/n)) where n features are read; the first layer's are the caller's.

    Raises:
        ValueError: fewer than two widths, or an unknown activation.
    """

    @checked(
        layer_sizes=each(FEATURES, 2, MOST_LAYERS, "hold input and output widths"),
        activation=one_of(*FILM_ACTIVATIONS),
    )
    def __init__(self, layer_sizes: list[int] | tuple[int, ...], activation: str = "relu") -> None:
        super().__init__()
        sizes = list(layer_sizes)
        self.activation = activation
        self.widths, self.dim_out = sizes[1:-1], sizes[-1]
        self.layers = nn.ModuleList([layer for layer in mlp(sizes) if isinstance(layer, nn.Linear)])
        if activation == "sine":
            for layer, read in zip(self.layers, sizes[:-1], strict=True):
                nn.init.uniform_(layer.weight, -math.sqrt(6 / read), math.sqrt(6 / read))  # type: ignore[arg-type]

    def forward(self, x: Tensor, modulations: Sequence[Tensor] | None = None) -> Tensor:
        """See :meth:`Modulated.forward`; every hidden layer is modulated."""
        hidden = x
        for layer, found in itertools.zip_longest(self.layers[:-1], modulations or ()):
            hidden = layer(hidden)
            if found is not None:
                hidden = modulated(hidden, found.unsqueeze(-2))
            hidden = FILM_ACTIVATIONS[self.activation](hidden)
        return self.layers[-1](hidden)
