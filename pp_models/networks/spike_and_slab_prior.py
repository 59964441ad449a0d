"""The spike-and-slab prior of weights."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pp_models.arguments import FLAG, OPEN_SHARE, SCALE, checked
from pp_models.networks.priors import WeightPrior


class SpikeAndSlabPrior(WeightPrior):
    """Each weight is from a wide Gaussian, the slab, or one that is all but zero, the spike (George, McCulloch 1993).

    p(w) = π N(w; 0, s²) + (1 - π) N(w; 0, s₀²), s and s₀ over the root of the fan-in where asked for: of p
    weights a mixture of 2^p Gaussians, whose evidence a linear model has in closed form.

    Args:
        inclusion: π, the slab's probability.
        slab: s.
        spike: s₀, below the slab.
        scale_by_fan_in: divide both variances by k_in + 1.

    Raises:
        ValueError: a spike that is not below the slab.
    """

    inclusion: Tensor

    @checked(inclusion=OPEN_SHARE, slab=SCALE, spike=SCALE, scale_by_fan_in=FLAG)
    def __init__(
        self, inclusion: float = 0.2, slab: float = 1.0, spike: float = 0.01, *, scale_by_fan_in: bool = True
    ) -> None:
        super().__init__()
        if not spike < slab:
            raise ValueError(f"spike: got {spike}; it must be below the slab, {slab}")
        self.slab, self.spike, self.scale_by_fan_in = slab, spike, scale_by_fan_in
        self.register_buffer("inclusion", torch.tensor(float(inclusion)))

    def layer(self, index: int, previous: list[Tensor]) -> TorchDistribution:
        shape = self.shapes[index]
        factor = self.fan_in_scale(index)
        share = torch.stack([self.inclusion, 1 - self.inclusion])
        scale = torch.stack([torch.full_like(self.inclusion, factor * s) for s in (self.slab, self.spike)])
        parts = dist.Normal(torch.zeros_like(scale), scale).expand((*shape, 2))
        return dist.MixtureSameFamily(dist.Categorical(probs=share.expand(*shape, 2)), parts).to_event(2)
