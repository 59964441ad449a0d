"""Values on a grid, such as grey levels, by mixtures of logistic distributions."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

from pp_models.arguments import checked, integer, number
from pp_models.contract import Likelihood
from pp_models.data import DataError
from pp_models.single_precision import single

#: of a component, in units of half the range, as in PixelCNN++
LEAST_LOG_SCALE = -7.0


class DiscretizedLogisticMixture(TorchDistribution):
    """A mixture of logistic distributions, rounded to a grid; its ends hold the tails.

    P(v) = Σ_k π_k [σ((v + w/2 - μ_k) / s_k) - σ((v - w/2 - μ_k) / s_k)], w the grid's width, with σ(·) = 1 in the first
    term at the highest level and 0 in the second at the lowest (Salimans et al. 2017, eq. 2).

    Args:
        logits: of the components ``[*batch, K]``.
        loc: μ ``[*batch, K]``.
        log_scale: of s ``[*batch, K]``.
        grid: lowest level, width and number of levels ``[*batch, 3]``.
    """

    arg_constraints: ClassVar[dict] = {name: constraints.real_vector for name in ("logits", "loc", "log_scale", "grid")}
    support = constraints.real

    def __init__(
        self, logits: Tensor, loc: Tensor, log_scale: Tensor, grid: Tensor, validate_args: bool | None = None
    ) -> None:
        batch = torch.broadcast_shapes(logits.shape[:-1], grid.shape[:-1])
        self.logits, self.loc, self.log_scale = (v.expand(*batch, -1) for v in (logits, loc, log_scale))
        self.grid = grid.expand(*batch, 3)
        super().__init__(batch, torch.Size(), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        logits, loc, log_scale, grid = (
            v.expand(*batch_shape, -1) for v in (self.logits, self.loc, self.log_scale, self.grid)
        )
        return DiscretizedLogisticMixture(logits, loc, log_scale, grid)

    @property
    def _ends(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lowest level, width and highest level, of every entry of the batch."""
        low, width, levels = self.grid.unbind(-1)
        return low, width, low + width * (levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        low, width, high = self._ends
        inverse = torch.exp(-self.log_scale)
        value = torch.as_tensor(value, dtype=self.loc.dtype, device=self.loc.device)
        above = (value + width / 2).unsqueeze(-1).sub(self.loc) * inverse
        below = (value - width / 2).unsqueeze(-1).sub(self.loc) * inverse
        # σ(a) - σ(b) = σ(a) σ(-b) (1 - e^(b - a)), which cancels nothing
        inside = logsigmoid(above) + logsigmoid(-below) + torch.log(-torch.expm1(-width.unsqueeze(-1) * inverse))
        at = value.unsqueeze(-1)
        half = (width / 2).unsqueeze(-1)
        each = torch.where(at < low.unsqueeze(-1) + half, logsigmoid(above), inside)
        each = torch.where(at > high.unsqueeze(-1) - half, logsigmoid(-below), each)
        return torch.logsumexp(torch.log_softmax(self.logits, -1) + each, -1)

    def cdf(self, value: Tensor) -> Tensor:
        """P(V <= value)."""
        low, width, high = self._ends
        place = low + width * torch.floor((value - low) / width + 1e-4)
        each = torch.sigmoid(((place + width / 2).unsqueeze(-1) - self.loc) * torch.exp(-self.log_scale))
        found = (torch.softmax(self.logits, -1) * each).sum(-1)
        found = torch.where(place >= high - width / 2, torch.ones_like(found), found)
        return torch.where(place < low - width / 2, torch.zeros_like(found), found)

    @torch.no_grad()
    def sample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        low, width, high = self._ends
        chosen = torch.distributions.Categorical(logits=self.logits).sample(torch.Size(sample_shape)).unsqueeze(-1)
        loc, log_scale = (v.expand(*shape, -1).gather(-1, chosen).squeeze(-1) for v in (self.loc, self.log_scale))
        uniform = torch.rand_like(loc).clamp(1e-6, 1 - 1e-6)
        drawn = loc + log_scale.exp() * (uniform.log() - torch.log1p(-uniform))
        return torch.minimum(torch.maximum(low + width * torch.round((drawn - low) / width), low), high)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and mean square, by a sum over all levels."""
        low, width, _ = self._ends
        first, second = torch.zeros_like(low), torch.zeros_like(low)
        for i in range(int(self.grid.reshape(-1, 3)[0, 2]) if self.grid.numel() else 0):
            level = low + width * i
            share = self.log_prob(level).exp()
            first, second = first + share * level, second + share * level.square()
        return first, second

    @property
    def mean(self) -> Tensor:
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        first, second = self._moments()
        return (second - first.square()).clamp_min(0)


class DiscretizedLogisticLikelihood(Likelihood):
    """Grey levels of pixels, each by a mixture of discretised logistics (PixelCNN++, Salimans et al. 2017).

    A network has 3 K outputs for each output of y: weights, means and log-scales of K components, in units of half the
    range. Channels are independent given the outputs; PixelCNN++ ties them by regression.

    Args:
        components: K.
        levels: of the grid.
        low: the lowest level.
        high: the highest; pictures here run from -0.5 to 0.5.

    Raises:
        ValueError: an argument out of range, or a range that is empty.
    """

    @checked(components=integer(1, 256), levels=integer(2, 2**16), low=number(-1e6, 1e6), high=number(-1e6, 1e6))
    def __init__(self, components: int = 5, levels: int = 256, low: float = -0.5, high: float = 0.5) -> None:
        super().__init__()
        if not high > low:
            raise ValueError(f"high: got {high}; it must be above low = {low}")
        self.components, self.levels, self.low, self.high = components, levels, float(low), float(high)

    def dim_y(self, outputs: int) -> int:
        if outputs % (3 * self.components):
            raise ValueError(
                f"layer_sizes: the last width is {outputs}; {self.components} logistics need {3 * self.components} Dy "
                "outputs"
            )
        return outputs // (3 * self.components)

    def num_outputs(self, dim_y: int) -> int:
        return 3 * self.components * dim_y

    def check(self, y: Tensor, outputs: int) -> None:
        super().check(y, outputs)
        if y.device.type == "cpu" and y.numel() and not torch.compiler.is_compiling():
            found = y[y != 0].double()  # 0 also stands where nothing was observed
            place = (found - self.low) * (self.levels - 1) / (self.high - self.low)
            off = ((place - place.round()).abs() > 0.01) | (place < -0.5) | (place > self.levels - 0.5)
            if bool(off.any()):
                raise DataError(
                    f"y: got {float(found[off][0]):g}; values must be among the {self.levels} levels from {self.low:g} "
                    f"to {self.high:g}"
                )

    def forward(self, outputs: Tensor) -> TorchDistribution:
        parts = single(outputs).unflatten(-1, (self.dim_y(outputs.shape[-1]), 3 * self.components))
        logits, loc, log_scale = parts.chunk(3, -1)
        centre, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        width = (self.high - self.low) / (self.levels - 1)
        log_scale = log_scale.clamp_min(LEAST_LOG_SCALE) + math.log(half)
        grid = loc.new_tensor([self.low, width, self.levels])
        return DiscretizedLogisticMixture(logits, centre + half * loc, log_scale, grid).to_event(1)
