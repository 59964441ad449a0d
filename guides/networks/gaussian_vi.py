"""Gaussian variational inference without amortisation: what mean-field and fully correlated VI are."""

from __future__ import annotations

import math

import pyro
import torch
from torch import Tensor, nn

from guides.networks.weight_guide import WeightGuide
from guides.networks.whitened_gaussian import Unwhitened, WhitenedGaussian
from pp_models.arguments import SCALE, TASKS, checked, each, one_of
from pp_models.data import DataError, Dataset
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.networks.priors import GRANULARITIES, GaussianPrior, GivenGaussianPrior
from pp_models.task_plates import task_plates


class GaussianVIGuide(WeightGuide):
    """q(W) = N(m, S) with its own parameters for each task: no network reads the data.

    Args:
        model: the network.
        correlation: what is correlated under q: ``"weight"`` (nothing: mean-field VI), ``"unit"`` (the incoming weights
            of a unit, UCVI), ``"layer"`` (LCVI) or ``"network"`` (everything, FCVI).
        batch_shape: task dimensions of the data that it will be fitted to; each task has its own posterior.
        initial_scale: standard deviation at the start, times 1/√k; means start at a draw from the prior.

    Raises:
        ValueError: unknown correlation, a scale that is not positive, or a model with a representation.
    """

    independent_sites = False
    of_given_tasks = True

    @checked(
        correlation=one_of(*GRANULARITIES),
        batch_shape=each(TASKS, must="hold numbers of tasks"),
        initial_scale=SCALE,
    )
    def __init__(
        self,
        model: BayesianNetwork,
        correlation: str = "weight",
        batch_shape: tuple[int, ...] = (),
        initial_scale: float = 0.1,
    ) -> None:
        super().__init__(model)
        if self.representation_encoder is not None or self.memory_encoder is not None:
            raise ValueError("model: it has a representation or path, which this guide cannot supply: it reads no data")
        self.batch_shape = tuple(batch_shape)
        self.posterior = _TaskGaussian(model, correlation, self.batch_shape, initial_scale)
        self.independent_sites = correlation != "network"

    def as_prior(self) -> GivenGaussianPrior:
        """The posterior as it is now, as the prior of a model of further data (variational continual learning).

        Nguyen et al. 2018. Where the posterior is exact, data in parts are data at once.

        Raises:
            ValueError: it holds posteriors of several tasks.

        Example:
            >>> fit(model, guide, first, "elbo")
            >>> later = BayesianNetwork([1, 20, 1], prior=guide.as_prior())
        """
        if self.batch_shape:
            raise ValueError(f"batch_shape: got {self.batch_shape}; it must be (): a prior is one task's posterior")
        return self.posterior.as_given()

    def _check_tasks(self, data: Dataset) -> None:
        if data.batch_shape != self.batch_shape:
            raise DataError(
                f"data: got task dimensions {list(data.batch_shape)}; this guide holds posteriors of tasks "
                f"{list(self.batch_shape)} (batch_shape)"
            )

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples every weight matrix; of the data only the task dimensions are looked at."""
        self._check_tasks(data)
        values: dict[str, Tensor] = {}
        with task_plates(data.batch_shape, data.x.device):
            for i, site in enumerate(self.sites):
                found = self.posterior.gaussian(i, list(values.values()))
                blocks, shape, dtype = found.single(), self.shapes[i], found.loc.dtype
                whitened = Unwhitened(blocks.loc)
                q = WhitenedGaussian(blocks.loc, blocks.factor, whitened, shape, blocks.diagonal, dtype=dtype)
                values[site] = pyro.sample(site, q)
        return values


class _TaskGaussian(GaussianPrior):
    """The parameters of q, with task dimensions to the left."""

    def __init__(self, model: BayesianNetwork, correlation: str, batch: tuple[int, ...], scale: float) -> None:
        super().__init__()
        self.granularity = correlation
        self.build(model.weight_shapes)
        with torch.no_grad():
            drawn: list[Tensor] = []
            for i in range(len(self.shapes)):
                drawn.append(model.prior.layer(i, drawn).expand(batch).sample())
        spread = [
            torch.full_like(w, math.log(scale / math.sqrt(k))) for w, (_, k) in zip(drawn, self.shapes, strict=True)
        ]
        if correlation in ("layer", "network"):
            drawn, spread = ([t.flatten(-2) for t in ts] for ts in (drawn, spread))
        if correlation == "network":
            drawn, spread = ([torch.cat(ts, -1)] for ts in (drawn, spread))
        self.loc = nn.ParameterList([nn.Parameter(t) for t in drawn])
        self.log_diagonal = nn.ParameterList([nn.Parameter(t) for t in spread])
        full = [] if correlation == "weight" else drawn
        self.lower = nn.ParameterList([nn.Parameter(t.new_zeros(*t.shape, t.shape[-1])) for t in full])

    def moments(self, index: int) -> tuple[Tensor, Tensor]:
        diagonal = self.log_diagonal[index].exp()
        if self.granularity == "weight":
            return self.loc[index], diagonal
        # in units of the diagonal, so that one step size suits every entry
        lower = diagonal.unsqueeze(-1) * self.lower[index].tril(-1)
        return self.loc[index], lower + torch.diag_embed(diagonal)
