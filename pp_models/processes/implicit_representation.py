"""Functions as implicit neural representations: a network of time (or place) that a task's latent modulates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pp_models.arguments import FEATURES, FLAG, LAYERS, MOST_WIDTH, POSITIVE, WIDTH, checked, integer, one_of
from pp_models.context_regression import FourierFeatures
from pp_models.film_network import FiLMNetwork
from pp_models.likelihoods import Likelihood
from pp_models.parameter_module import mlp
from pp_models.processes.neural_process import NeuralProcess

BASES = ("fourier", "siren")


class ModulatedDecoder(nn.Module):
    """An implicit network of x whose hidden layers a vector modulates.

    Args:
        dim_x: input width.
        dim_code: width of the vector.
        outputs: of the network.
        width: of its hidden layers, and of the network that turns the vector into modulations.
        depth: linear layers.
        basis: ``"fourier"`` or ``"siren"``.
        frequencies: of the Fourier features.
        lengthscale: over which a function varies at the start.
    """

    def __init__(
        self, dim_x: int, dim_code: int, outputs: int, width: int, depth: int, basis: str, frequencies: int,
        lengthscale: float,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden = [width] * (depth - 1)
        self.features: nn.Module = nn.Identity()
        if basis == "fourier":
            self.features = FourierFeatures(dim_x, frequencies, lengthscale)
            self.network = FiLMNetwork([dim_x + 2 * frequencies, *hidden, outputs], "silu")
        else:
            self.network = FiLMNetwork([dim_x, *hidden, outputs], "sine")
            with torch.no_grad():
                end = math.sqrt(3) / lengthscale  # the standard deviation of the Fourier features' frequencies
                first = self.network.layers[0]
                first.weight.uniform_(-end, end)  # type: ignore[operator, union-attr]
                first.bias.uniform_(-math.pi, math.pi)  # type: ignore[operator, union-attr]
        self.modulation = mlp([dim_code, width, 2 * sum(self.network.widths)], nn.SiLU)
        with torch.no_grad():  # about a small plain network at the start
            self.modulation[-1].weight.mul_(0.3)  # type: ignore[operator, union-attr]
            self.network.layers[-1].weight.mul_(0.3)  # type: ignore[operator, union-attr]

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Outputs ``[*B, N, outputs]`` at ``x`` ``[*B, N, dim_x]`` for vectors ``[*B, dim_code]``; both broadcast."""
        modulations = self.modulation(code).split([2 * width for width in self.network.widths], -1)
        return self.network(self.features(x), modulations)


class ImplicitRepresentation(NeuralProcess):
    """p(y | x, z): an implicit network of x whose layers a task's latent z ~ N(0, I) scales and shifts.

    The model of temporal variational implicit neural representations (TV-INR, Koyuncu et al. 2025) for irregular time
    series: a task is a series, x its time. Each point is decoded on its own, so that any grid, or none, is read and
    asked, and the bound does not depend on what else is asked. There a hypernetwork writes all weights of the implicit
    network; here, as in functa (Dupont et al. 2022), it writes a scale and a shift for each hidden feature. With
    ``npvi`` the guide on the context is the conditional prior, as there.

    It is a :class:`NeuralProcess` with another decoder: sites, guides and objectives are the same. With a
    representation alone, :class:`guides.CAVIAGuide` meta-learns it by gradient steps, as functa and TimeFlow do.

    Args:
        dim_x: input width, 1 for time.
        dim_y: output width (number of classes for a categorical likelihood).
        latent_dim: width of z; 0 for none.
        representation_dim: width of the deterministic representation; 0 for none.
        width: hidden width.
        depth: linear layers of the implicit network, at least 2.
        likelihood: as for BayesianNetwork; the per-point Gaussian head (floor 0.1) by default.
        basis: ``"fourier"``: learned Fourier features, then SiLU; or ``"siren"``: sines throughout.
        frequencies: of the Fourier features, a sine and a cosine each.
        lengthscale: over which functions vary at the start, in units of x: frequencies start with a standard deviation
            of 1 / lengthscale (radians).
        missing_outputs: as for BayesianNetwork.

    Raises:
        ValueError: an argument out of range, or neither latent nor representation.

    Example:
        >>> model = ImplicitRepresentation(1, 2, latent_dim=16)
        >>> guide = guides.NeuralProcessGuide(model, pooling="attention")
    """

    @checked(
        dim_x=FEATURES,
        dim_y=FEATURES,
        latent_dim=integer(0, MOST_WIDTH),
        representation_dim=integer(0, MOST_WIDTH),
        width=WIDTH,
        depth=LAYERS,
        basis=one_of(*BASES),
        frequencies=WIDTH,
        lengthscale=POSITIVE,
        missing_outputs=FLAG,
    )
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        latent_dim: int = 64,
        representation_dim: int = 0,
        width: int = 128,
        depth: int = 4,
        likelihood: str | Likelihood = "gaussian-head",
        *,
        basis: str = "fourier",
        frequencies: int = 16,
        lengthscale: float = 0.25,
        missing_outputs: bool = False,
    ) -> None:
        if depth < 2:
            raise ValueError(f"depth: got {depth}; it must be at least 2, for a hidden layer is what is modulated")
        super().__init__(
            dim_x, dim_y, latent_dim, representation_dim, False, 1, 1, likelihood, missing_outputs=missing_outputs
        )
        code = latent_dim + representation_dim
        self.decoder = ModulatedDecoder(dim_x, code, self.outputs, width, depth, basis, frequencies, lengthscale)

    def decode(self, x: Tensor, vectors: list[Tensor]) -> Tensor:
        lead = torch.broadcast_shapes(*(vector.shape[:-1] for vector in vectors))
        return self.decoder(x, torch.cat([vector.expand(*lead, -1) for vector in vectors], -1))
