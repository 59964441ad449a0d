"""SWAG's Gaussian over weights, from moments of an optimizer's path."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

from guides.networks.weight_guide import WeightGuide
from pp_models.arguments import checked
from pp_models.data import DataError, Dataset
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.single_precision import single
from pp_models.task_plates import task_plates


def swag_gaussian(mean: Tensor, variance: Tensor, deviations: Tensor) -> dist.LowRankMultivariateNormal:
    """N(mean, diag(variance) / 2 + D Dᵀ / (2 (K - 1))), batch ``*B``, event ``[P]``."""
    factor = single(deviations) / (2 * max(deviations.shape[-1] - 1, 1)) ** 0.5
    # a weight that never moved still needs a density
    return dist.LowRankMultivariateNormal(single(mean), factor, (single(variance) / 2).clamp_min(1e-10))


class SWAGGuide(WeightGuide):
    """All weights jointly N(mean, diag(variance)/2 + D Dᵀ / (2 (K - 1))) (Maddox et al. 2019).

    :func:`inference.swag` makes it. The draw is an auxiliary site ``weights`` ``[*B, P]``, and each layer a point mass
    at its part, as in Pyro's AutoGuides.

    Args:
        model: the network.
        mean: ``[*B, P]``, all weights layer after layer.
        variance: ``[*B, P]``, of the path.
        deviations: D ``[*B, P, K]``, the last K points of the path less the mean at the time.
    """

    mean: Tensor
    variance: Tensor
    deviations: Tensor
    of_given_tasks = True

    @checked()
    def __init__(self, model: BayesianNetwork, mean: Tensor, variance: Tensor, deviations: Tensor) -> None:
        super().__init__(model)
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)
        self.register_buffer("deviations", deviations)

    def distribution(self) -> dist.LowRankMultivariateNormal:
        """The Gaussian, batch ``*B``, event ``[P]``."""
        return swag_gaussian(self.mean, self.variance, self.deviations)

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples all weights; of the data only the task dimensions are looked at."""
        if data.batch_shape != self.mean.shape[:-1]:
            raise DataError(
                f"data: got task dimensions {list(data.batch_shape)}; this guide was made for tasks "
                f"{list(self.mean.shape[:-1])}"
            )
        values = {}
        with task_plates(data.batch_shape, data.x.device):
            drawn = pyro.sample("weights", self.distribution(), infer={"is_auxiliary": True})
            parts = drawn.to(self.mean.dtype).split([a * b for a, b in self.shapes], -1)
            for site, part, shape in zip(self.sites, parts, self.shapes, strict=True):
                values[site] = pyro.sample(site, dist.Delta(part.unflatten(-1, shape), event_dim=2))
        return values
