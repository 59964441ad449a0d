"""The heavy-tailed prior of weights."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pp_models.arguments import FLAG, POSITIVE, SCALE, checked
from pp_models.networks.priors import WeightPrior


class StudentTPrior(WeightPrior):
    """Each weight is Student-t about 0: most are small, and a few may be large (Fortuin et al. 2022).

    Args:
        df: degrees of freedom; 1 is a Cauchy, and the larger, the nearer to a Gaussian.
        scale: of the distribution, its standard deviation times √((df - 2) / df).
        scale_by_fan_in: divide the scale by √(k_in + 1).

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> import guidebook as gb
        >>> model = gb.BayesianNetwork([1, 16, 1], prior=gb.StudentTPrior(df=3.0))
        >>> guide = gb.guides.AmortisedMeanFieldGuide(model)
    """

    df: Tensor

    @checked(df=POSITIVE, scale=SCALE, scale_by_fan_in=FLAG)
    def __init__(self, df: float = 3.0, scale: float = 1.0, *, scale_by_fan_in: bool = True) -> None:
        super().__init__()
        self.scale, self.scale_by_fan_in = scale, scale_by_fan_in
        self.register_buffer("df", torch.tensor(float(df)))

    def layer(self, index: int, previous: list[Tensor]) -> TorchDistribution:
        shape = self.shapes[index]
        factor = self.fan_in_scale(index)
        zero = torch.zeros_like(self.df)
        return dist.StudentT(self.df, zero, self.scale * factor).expand(shape).to_event(2)
