"""Gaussians over all chosen weights of a module together: low rank plus diagonal, and SWAG's."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from guides.networks.module_guide import ModuleGuide
from guides.networks.swag import swag_gaussian
from guides.raw_scale import raw_scale
from pp_models.arguments import SCALE, WIDTH, checked
from pp_models.data import DataError, Dataset
from pp_models.networks.bayesian_module import BayesianModule
from pp_models.single_precision import single


class JointModuleGuide(ModuleGuide):
    """A Gaussian over all chosen weights at once: the auxiliary site ``weights`` ``[P]``, each site a part of it."""

    independent_sites = False

    def distribution(self) -> TorchDistribution:
        """The Gaussian, event ``[P]``."""
        raise NotImplementedError

    def flat_loc(self) -> Tensor:
        """Its means ``[P]``."""
        return torch.cat([loc.flatten() for loc in self.loc])

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        drawn = pyro.sample("weights", self.distribution(), infer={"is_auxiliary": True})
        parts = drawn.to(self.loc[0].dtype).split([shape.numel() for shape in self.shapes], -1)
        values = {}
        for site, part, shape in zip(self.sites, parts, self.shapes, strict=True):
            values[site] = pyro.sample(site, dist.Delta(part.unflatten(-1, shape), event_dim=len(shape)))
        return values


class ModuleLowRankGuide(JointModuleGuide):
    """N(m, diag(s²) + U Uᵀ) over all weights (Ong et al. 2018).

    Args:
        model: the module with its prior.
        rank: columns of U.
        init_scale: standard deviation of every weight at the start.

    Raises:
        TypeError: another family of model.
        ValueError: an argument out of range.
    """

    @checked(rank=WIDTH, init_scale=SCALE)
    def __init__(self, model: BayesianModule, rank: int = 4, init_scale: float = 1e-2) -> None:
        super().__init__(model)
        loc = self.flat_loc().detach()
        self.raw_scale = nn.Parameter(torch.full_like(loc, raw_scale(init_scale)))
        self.factor = nn.Parameter(0.1 * init_scale * torch.randn(len(loc), rank).to(loc))

    def distribution(self) -> TorchDistribution:
        scale = single(softplus(self.raw_scale))
        return dist.LowRankMultivariateNormal(single(self.flat_loc()), single(self.factor), scale.square())


class ModuleSWAGGuide(JointModuleGuide):
    """SWAG's Gaussian N(mean, diag(variance) / 2 + D Dᵀ / (2 (K - 1))) (Maddox et al. 2019); ``gb.swag`` makes it.

    Args:
        model: the module with its prior.
        mean: ``[P]``, all weights site after site.
        variance: ``[P]``, of the path.
        deviations: D ``[P, K]``.
    """

    variance: Tensor
    deviations: Tensor

    @checked()
    def __init__(self, model: BayesianModule, mean: Tensor, variance: Tensor, deviations: Tensor) -> None:
        super().__init__(model)
        with torch.no_grad():
            for loc, part in zip(self.loc, mean.split([shape.numel() for shape in self.shapes]), strict=True):
                loc.copy_(part.view_as(loc))
        self.register_buffer("variance", variance)
        self.register_buffer("deviations", deviations)

    def distribution(self) -> TorchDistribution:
        return swag_gaussian(self.flat_loc(), self.variance, self.deviations)


class FittedLaterGuide(JointModuleGuide):
    """A point while it trains, a Gaussian once its covariance was computed."""

    def __init__(self, model: BayesianModule) -> None:
        super().__init__(model)
        self._model = (model,)  # in a tuple, so that its parameters do not become the guide's as well
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self._is_fitted: bool | None = None  # known on the host, so that no forward pass reads the device

    fitted: Tensor

    @property
    def is_fitted(self) -> bool:
        """Whether the covariance is there."""
        if self._is_fitted is None:
            self._is_fitted = bool(self.fitted)
        return self._is_fitted

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._is_fitted = None

    def _done(self) -> None:
        with torch.no_grad():
            self.fitted.fill_(True)
        self._is_fitted = True

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        if self.is_fitted:
            return super().forward(data)
        return {
            s: pyro.sample(s, dist.Delta(loc, event_dim=loc.dim())) for s, loc in zip(self.sites, self.loc, strict=True)
        }

    def prior_moments(self) -> tuple[Tensor, Tensor]:
        """Means and precisions of the model's prior ``[P]``.

        Raises:
            ValueError: it is not normal.
        """
        return normal_prior(self._model[0], type(self).__name__)


def normal_prior(model: BayesianModule, who: str) -> tuple[Tensor, Tensor]:
    """Means and precisions of a model's prior ``[P]``, site after site.

    Raises:
        ValueError: it is not normal, which ``who`` needs.
    """
    means, precisions = [], []
    for site, prior in model.priors().items():
        base = prior
        while isinstance(base, torch.distributions.Independent):
            base = base.base_dist
        if not isinstance(base, torch.distributions.Normal):
            raise ValueError(f"model: the prior of {site!r} is {type(base).__name__}; {who} needs a normal one")
        means.append(base.loc.expand(prior.event_shape).flatten())
        precisions.append(base.scale.expand(prior.event_shape).flatten() ** -2)
    return torch.cat(means).detach(), torch.cat(precisions).detach()


def rows_of(data: Dataset) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """All points that exist, x ``[rows, Dx]``, y, and which of its outputs are known (None where all are)."""
    x = data.x.reshape(-1, data.x.shape[-1])
    y = None if data.y is None else data.y.reshape(len(x), *data.y.shape[data.x.dim() - 1 :])
    observed = None if data.observed is None else data.observed.reshape(len(x), -1)
    if data.mask is not None:
        keep = data.mask.reshape(-1)
        x, y, observed = x[keep], *(None if t is None else t[keep] for t in (y, observed))
    if not len(x):
        raise DataError("data: it has no points, and a posterior needs some")
    return x, y, observed
