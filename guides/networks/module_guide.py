"""What every guide over a BayesianModule shares, and those without correlations: point, mean field, dropout."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from guides.raw_scale import raw_scale
from pp_models.arguments import OPEN_SHARE, SCALE, checked
from pp_models.contract import Guide, ObjectiveOffers, refuse_data_ties
from pp_models.data import Dataset
from pp_models.networks.bayesian_module import BayesianModule

#: standard deviation of a weight of 0 under dropout, which would have no density
LEAST_SCALE = 1e-3


class ModuleGuide(Guide):
    """A guide over the chosen weights of a :class:`pp_models.BayesianModule`: one posterior, whatever the data.

    Its means start at the module's own values, so that a pretrained module is where a fit begins.

    Args:
        model: the module with its prior.

    Raises:
        TypeError: another family of model.
    """

    #: no site depends on another
    independent_sites = True
    reads_data = False

    def __init__(self, model: BayesianModule) -> None:
        super().__init__()
        if not isinstance(model, BayesianModule):
            raise TypeError(f"model: got {type(model).__name__}; {type(self).__name__} is a guide for a BayesianModule")
        self.sites = list(model.sites)
        values = [value.detach().clone() for value in model.values().values()]
        self.shapes = [value.shape for value in values]
        self.loc = nn.ParameterList([nn.Parameter(value) for value in values])

    def check_objective(self, objective: ObjectiveOffers) -> None:
        """Refuses an objective whose only divergence is between the guide on the context and on the whole task.

        Raises:
            ValueError: it is one; this guide is the same on both.
        """
        refuse_data_ties(self, objective)

    def distributions(self) -> list[TorchDistribution]:
        """The distribution of each site, its event the parameter."""
        raise NotImplementedError

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples every site; of the data nothing is looked at."""
        return {s: pyro.sample(s, q) for s, q in zip(self.sites, self.distributions(), strict=True)}


class ModulePointGuide(ModuleGuide):
    """A point for every weight: under ``elbo`` the mode of the posterior (MAP)."""

    point_mass = True

    def distributions(self) -> list[TorchDistribution]:
        return [dist.Delta(loc, event_dim=loc.dim()) for loc in self.loc]


class ModuleMeanFieldGuide(ModuleGuide):
    """Independent normals over all weights (Blundell et al. 2015).

    Args:
        model: the module with its prior.
        init_scale: standard deviation of every weight at the start.

    Raises:
        TypeError: another family of model.
        ValueError: ``init_scale`` out of range.
    """

    @checked(init_scale=SCALE)
    def __init__(self, model: BayesianModule, init_scale: float = 1e-2) -> None:
        super().__init__(model)
        start = raw_scale(init_scale)
        self.raw_scale = nn.ParameterList([nn.Parameter(torch.full_like(loc, start)) for loc in self.loc])

    def distributions(self) -> list[TorchDistribution]:
        pairs = zip(self.loc, self.raw_scale, strict=True)
        return [dist.Normal(loc, softplus(raw)).to_event(loc.dim()) for loc, raw in pairs]


class ModuleDropoutGuide(ModuleGuide):
    """Gaussian dropout at one rate P: each weight (1 - P) w with variance P (1 - P) w², a Bernoulli mask's moments.

    Args:
        model: the module with its prior.
        rate: drop probability of every weight, biases too.

    Raises:
        TypeError: another family of model.
        ValueError: the rate is not in (0, 1).
    """

    @checked(rate=OPEN_SHARE)
    def __init__(self, model: BayesianModule, rate: float = 0.1) -> None:
        super().__init__(model)
        self.rate = rate
        with torch.no_grad():  # the mean is the module's own value
            for loc in self.loc:
                loc.div_(1 - rate)

    def distributions(self) -> list[TorchDistribution]:
        spread = (self.rate * (1 - self.rate)) ** 0.5
        return [dist.Normal((1 - self.rate) * w, spread * w.abs() + LEAST_SCALE).to_event(w.dim()) for w in self.loc]
