"""How often the verdict is right: good and deliberately broken guides of four families whose posterior is exact.

Run: python -m benchmarks.verdict_confusion [--runs 20] [--guides exact,fitted] [--families adapter]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import typer
from torch import Tensor

from evaluation.findings import LEVELS
from evaluation.trust import verdict
from guidebook.results_page import markdown_table
from inference import fit
from inference.objectives import make
from pp_models import Dataset, LogSpaceDirichlet, TaskBatch
from pp_models.parameter_module import ParameterModule
from pp_models.task_plates import task_plates

#: how a guide is broken: a change of the exact posterior
BREAKS = (
    "exact",
    "fitted",
    "biased by 0.5 sd",
    "half the sd",
    "twice the sd",
    "context ignored",
    "collapsed",
    "shuffled labels",
)
NOISE = 0.5


class Family:
    """A model whose posterior is known, with tasks of its own."""

    name = ""
    #: input dimensions
    inputs = 1

    def model(self, data: Dataset) -> None:
        """The model."""
        raise NotImplementedError

    def guide(self, data: Dataset, broken: str) -> None:
        """The exact posterior, or a broken one."""
        raise NotImplementedError

    def tasks(self, count: int) -> TaskBatch:
        """Held-out tasks drawn from the model."""
        x = torch.rand(count, 20, self.inputs) * 4 - 2
        trace = pyro.poutine.trace(self.model).get_trace(Dataset(x))
        return Dataset(x, trace.nodes["y"]["value"]).split(10)


def gaussian(
    loc: Tensor, covariance: Tensor, prior_sd: float, broken: str, prior_mean: float = 0.0
) -> dist.TorchDistribution:
    """A Gaussian posterior, exact or broken; event the last dimension."""
    factor = torch.linalg.cholesky(covariance)
    if broken == "biased by 0.5 sd":
        loc = loc + 0.5 * covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = {"half the sd": 0.5, "twice the sd": 2.0, "collapsed": 1e-3}.get(broken, 1.0)
    if broken == "context ignored":
        prior = torch.full_like(loc, prior_mean)
        return dist.MultivariateNormal(prior, scale_tril=prior_sd * torch.eye(loc.shape[-1]))
    return dist.MultivariateNormal(loc, scale_tril=scale * factor)


def shuffled(data: Dataset, broken: str) -> Dataset:
    """Each task with the outputs of another, for a guide that was trained on such."""
    if broken != "shuffled labels" or data.y is None:
        return data
    return Dataset(data.x, data.y[(torch.arange(len(data)) + 1) % len(data)], data.mask)


class FittedLocation(ParameterModule):
    """A guide of the right form for one latent, trained: N(a Σy / p, 1 / p), p = b + c N."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = torch.nn.Parameter(0.3 * torch.randn(3))

    def forward(self, data: Dataset) -> None:
        assert data.y is not None
        a, b, c = self.logs.exp()
        precision = b + c * data.num_points
        loc = a * data.y.sum(-2) / precision
        with task_plates(data.batch_shape):
            pyro.sample("z", dist.Normal(loc, precision.rsqrt().expand_as(loc)).to_event(1))


class FittedRegression(ParameterModule):
    """A guide of the right form for two latents, trained: a Gaussian with precision A + b XᵀX and mean from c Xᵀy."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = torch.nn.Parameter(0.3 * torch.randn(3))

    def forward(self, data: Dataset) -> None:
        assert data.y is not None
        a, b, c = self.logs.exp()
        design = torch.cat([torch.ones_like(data.x), data.x], -1)
        covariance = torch.linalg.inv(a * torch.eye(2) + b * design.mT @ design)
        loc = (covariance @ (c * design.mT @ data.y)).squeeze(-1)
        with task_plates(data.batch_shape):
            pyro.sample("weight", dist.MultivariateNormal(loc, covariance_matrix=covariance))


class FittedAdapter(ParameterModule):
    """A guide of the right form for rank multipliers, trained: precision a I + b ΦᵀΦ, mean from c + d Φᵀ residual."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = torch.nn.Parameter(0.3 * torch.randn(4))

    def forward(self, data: Dataset) -> None:
        a, b, c, d = self.logs.exp()
        design, residual = Adapter.regression(data)
        covariance = torch.linalg.inv(a * torch.eye(Adapter.rank) + b * design.mT @ design)
        loc = (covariance @ (c + d * design.mT @ residual)).squeeze(-1)
        with task_plates(data.batch_shape):
            pyro.sample("rank_scale", dist.MultivariateNormal(loc, covariance_matrix=covariance))


class FittedMixture(ParameterModule):
    """A guide of the right form for a mixture, trained: Dir(a + b counts)."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = torch.nn.Parameter(0.3 * torch.randn(2))

    def forward(self, data: Dataset) -> None:
        assert data.y is not None
        a, b = self.logs.exp()
        counts = torch.nn.functional.one_hot((data.y - Mixture.means).abs().argmin(-1), 3).sum(-2)
        with task_plates(data.batch_shape):
            pyro.sample("mixture_weights", LogSpaceDirichlet(a + b * counts))


class Regression(Family):
    """y = w₀ + w₁ x + noise: a network of one layer."""

    name = "linear network"

    def model(self, data: Dataset) -> None:
        with task_plates(data.batch_shape):
            w = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = w[..., None, :1] + w[..., None, 1:] * data.x
            pyro.sample("y", dist.Normal(mean, NOISE).to_event(2), obs=data.y)

    def guide(self, data: Dataset, broken: str) -> None:
        data = shuffled(data, broken)
        assert data.y is not None
        design = torch.cat([torch.ones_like(data.x), data.x], -1)
        covariance = torch.linalg.inv(torch.eye(2) + design.mT @ design / NOISE**2)
        loc = (covariance @ (design.mT @ data.y / NOISE**2)).squeeze(-1)
        with task_plates(data.batch_shape):
            pyro.sample("weight", gaussian(loc, covariance, 1.0, broken))


class Location(Family):
    """One latent location, as a neural process with a linear decoder."""

    name = "one latent"

    def model(self, data: Dataset) -> None:
        with task_plates(data.batch_shape):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z[..., None, :].expand(*z.shape[:-1], *data.x.shape[-2:]), NOISE).to_event(2),
                        obs=data.y)  # fmt: skip

    def guide(self, data: Dataset, broken: str) -> None:
        data = shuffled(data, broken)
        assert data.y is not None
        precision = 1 + data.num_points / NOISE**2
        loc = data.y.sum(-2) / NOISE**2 / precision
        covariance = (torch.eye(1) / precision).expand(*loc.shape[:-1], 1, 1)
        with task_plates(data.batch_shape):
            pyro.sample("z", gaussian(loc, covariance, 1.0, broken))


class Mixture(Family):
    """Three experts that never overlap, so that every point tells its own: a Dirichlet posterior."""

    name = "mixture"
    means = torch.tensor([-5.0, 0.0, 5.0])

    def model(self, data: Dataset) -> None:
        with task_plates(data.batch_shape):
            z = pyro.sample("mixture_weights", LogSpaceDirichlet(torch.ones(3)))
            mixing = dist.Categorical(probs=z.float()[..., None, :].expand(*z.shape[:-1], data.num_points, 3))
            components = dist.Normal(self.means[:, None], NOISE).to_event(1).expand([*mixing.batch_shape, 3])
            pyro.sample("y", dist.MixtureSameFamily(mixing, components).to_event(1), obs=data.y)

    def guide(self, data: Dataset, broken: str) -> None:
        data = shuffled(data, broken)
        assert data.y is not None
        counts = torch.nn.functional.one_hot((data.y - self.means).abs().argmin(-1), 3).sum(-2).float()
        alpha = 1 + counts
        total = alpha.sum(-1, keepdim=True)
        mean = alpha / total
        if broken == "biased by 0.5 sd":  # of the first weight, taken from the others
            sd = (mean[..., :1] * (1 - mean[..., :1]) / (total + 1)).sqrt()
            first = (mean[..., :1] + 0.5 * sd).clamp_max(0.99)
            mean = torch.cat([first, mean[..., 1:] / mean[..., 1:].sum(-1, keepdim=True) * (1 - first)], -1)
            alpha = mean * total
        scale = {"half the sd": 4.0, "twice the sd": 0.25, "collapsed": 1e4}.get(broken)
        if scale is not None:  # of a Dirichlet the variance goes with 1 / (total + 1)
            alpha = mean * (scale * (total + 1) - 1).clamp_min(0.2)
        if broken == "context ignored":
            alpha = torch.ones_like(alpha)
        with task_plates(data.batch_shape):
            pyro.sample("mixture_weights", LogSpaceDirichlet(alpha))


class Adapter(Family):
    """A frozen linear map W with an update B diag(z) A of fixed factors, z ~ N(1, 0.5²) by task: a Gaussian posterior.

    (:class:`pp_models.LowRankAdapted` has a log-uniform prior instead, under which no posterior is known.)
    """

    name = "adapter"
    inputs = 3
    rank, prior_sd = 3, 0.5
    W = torch.tensor([[0.5, -0.5, 0.25], [0.0, 0.5, -0.75]])
    A = torch.tensor([[0.8, 0.2, -0.4], [-0.3, 0.7, 0.5], [0.4, -0.6, 0.6]])
    B = torch.tensor([[0.9, -0.4, 0.3], [0.2, 0.8, -0.7]])

    @classmethod
    def regression(cls, data: Dataset) -> tuple[Tensor, Tensor]:
        """Φ ``[T, 2 N, r]`` and what W leaves of y ``[T, 2 N, 1]``: the residual is Φ z plus noise."""
        assert data.y is not None
        design = (data.x @ cls.A.mT).unsqueeze(-2) * cls.B
        return design.flatten(-3, -2), (data.y - data.x @ cls.W.mT).flatten(-2).unsqueeze(-1)

    def model(self, data: Dataset) -> None:
        with task_plates(data.batch_shape):
            z = pyro.sample("rank_scale", dist.Normal(torch.ones(self.rank), self.prior_sd).to_event(1))
            mean = data.x @ self.W.mT + (data.x @ self.A.mT * z.unsqueeze(-2)) @ self.B.mT
            pyro.sample("y", dist.Normal(mean, NOISE).to_event(2), obs=data.y)

    def guide(self, data: Dataset, broken: str) -> None:
        design, residual = self.regression(shuffled(data, broken))
        covariance = torch.linalg.inv(torch.eye(self.rank) / self.prior_sd**2 + design.mT @ design / NOISE**2)
        loc = (covariance @ (1 / self.prior_sd**2 + design.mT @ residual / NOISE**2)).squeeze(-1)
        with task_plates(data.batch_shape):
            pyro.sample("rank_scale", gaussian(loc, covariance, self.prior_sd, broken, 1.0))


FAMILIES: tuple[type[Family], ...] = (Location, Regression, Mixture, Adapter)
FITTED: dict[type[Family], type[ParameterModule]] = {
    Location: FittedLocation,
    Regression: FittedRegression,
    Mixture: FittedMixture,
    Adapter: FittedAdapter,
}


class Tasks:
    """Batches of a family's tasks of 5 to 20 points, for training."""

    def __init__(self, family: Family, seed: int) -> None:
        self.family, self.seed = family, seed

    def __iter__(self) -> Iterator[Dataset]:
        return map(self._batch, itertools.count())

    def _batch(self, index: int) -> Dataset:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1_000_003 * (self.seed + 1) + index)
            return self.family.tasks(32).full.points(slice(0, 5 + index % 16))


def fitted(family: Family, seed: int, steps: int = 300) -> torch.nn.Module:
    """A guide of the right form, trained by the ELBO from a random start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guide = FITTED[type(family)]()
    model = torch.nn.Module()
    model.forward = family.model  # type: ignore[method-assign]
    objective = make("elbo", num_particles=4, max_plate_nesting=1)
    fit(
        model, guide, Tasks(family, seed), objective, steps, seed,
        learning_rate=5e-2, final_learning_rate=1e-4, max_grad_norm=3.0, progress=False,
    )  # fmt: skip
    return guide


def one_verdict(family: Family, broken: str, seed: int) -> str:
    """The level given to one guide on tasks of one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tasks = family.tasks(64)
    if broken == "fitted":
        guide: Callable[[Any], Any] = fitted(family, seed)
    else:
        guide = partial(family.guide, broken=broken)
    return verdict(family.model, guide, tasks, num_samples=500, seed=seed).level


def confusion(
    runs: int, guides: tuple[str, ...] = BREAKS, families: tuple[type[Family], ...] = FAMILIES
) -> pd.DataFrame:
    """How many of ``runs`` seeds gave each level, one row a family and guide."""
    rows = []
    for cls in families:
        family = cls()
        for broken in guides:
            found = [one_verdict(family, broken, seed) for seed in range(runs)]
            rows.append({"family": family.name, "guide": broken, **{level: found.count(level) for level in LEVELS}})
    return pd.DataFrame(rows)


def chosen(option: str, given: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Names between commas.

    Raises:
        BadParameter: a name that is not known.
    """
    names = tuple(given.split(","))
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{option}: got {name!r}; it must be among {', '.join(known)}")
    return names


def main(runs: int = 20, guides: str = ",".join(BREAKS), families: str = ",".join(f.name for f in FAMILIES)) -> None:
    """Prints the confusion table."""
    names = chosen("families", families, tuple(family.name for family in FAMILIES))
    table = confusion(runs, chosen("guides", guides, BREAKS), tuple(f for f in FAMILIES if f.name in names))
    print(markdown_table(table))


if __name__ == "__main__":
    typer.run(main)
