"""SWAG: a Gaussian posterior from the path of stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from guides.networks.module_gaussian import ModuleSWAGGuide
from guides.networks.swag import SWAGGuide
from inference.data_dtype import as_computed
from inference.objectives.independent_plates import sample_sites
from inference.random_state import seeded
from inference.skipped_steps import TrainingDiverged
from pp_models.arguments import MOST_WIDTH, POSITIVE, SEED, checked, instance, integer
from pp_models.data import DataError, Dataset
from pp_models.networks.bayesian_module import BayesianModule
from pp_models.networks.bayesian_network import BayesianNetwork


@checked(
    model=instance(BayesianNetwork, BayesianModule),
    steps=integer(1),
    warmup=integer(0),
    every=integer(1),
    rank=integer(2, MOST_WIDTH),
    learning_rate=POSITIVE,
    path_learning_rate=POSITIVE,
    seed=SEED,
)
def swag(
    model: BayesianNetwork | BayesianModule,
    data: Dataset,
    steps: int = 2000,
    *,
    warmup: int = 2000,
    every: int = 20,
    rank: int = 20,
    learning_rate: float = 1e-2,
    path_learning_rate: float = 1e-4,
    batch_size: int | None = None,
    seed: int = 0,
) -> SWAGGuide | ModuleSWAGGuide:
    """Fits SWAG (Maddox et al. 2019) to the weights' log-joint: a network's for each task on its own, a module's once.

    Adam finds a mode; stochastic gradient descent with a constant rate then walks around it, and every few steps its
    position enters the mean, the variance and the last deviations. The walk's spread depends on the rate and on the
    minibatch, not on the posterior alone: this is a rival, not a reference.

    Args:
        model: the network, or a BayesianModule, which starts from the module's own values; its parameters stay.
        data: observed points ``[*B, N]``.
        steps: steps of the walk.
        warmup: steps of Adam before it.
        every: steps between positions taken.
        rank: deviations kept, K (at least 2).
        learning_rate: of Adam.
        path_learning_rate: of the walk, on the log-joint divided by the number of points.
        batch_size: points of a minibatch of the walk, drawn anew at each step; None for all (then there is no noise,
            and hardly any spread).
        seed: seed of the start and of the minibatches.

    Raises:
        ValueError: an argument out of range.
        DataError: the data has no y or no points.
        TrainingDiverged: the walk leaves the finite numbers.
    """
    if steps < 2 * every:
        raise ValueError(f"steps: got {steps}; with every={every} it must be at least {2 * every}, two positions")
    if batch_size is not None and not 1 <= batch_size <= data.num_points:
        raise ValueError(f"batch_size: got {batch_size}; it must lie in 1..{data.num_points}, the number of points")
    model.check(data)
    if data.y is None or not data.num_points:
        raise DataError("data: it has no observed points")
    data = as_computed(data, model)
    with seeded(seed, data.x.device):
        return _swag(model, data, steps, warmup, every, rank, learning_rate, path_learning_rate, batch_size)


def _swag(
    model: BayesianNetwork | BayesianModule,
    data: Dataset,
    steps: int,
    warmup: int,
    every: int,
    rank: int,
    learning_rate: float,
    path_learning_rate: float,
    batch_size: int | None,
) -> SWAGGuide | ModuleSWAGGuide:
    weights: dict[str, Tensor]
    if isinstance(model, BayesianModule):
        weights = {name: nn.Parameter(value.detach().clone()) for name, value in model.values().items()}
    else:
        with torch.no_grad():
            start = poutine.trace(model).get_trace(data)
        sites = sample_sites(start)
        weights = {name: nn.Parameter(site["value"].clone()) for name, site in sites if name != "y"}

    def flat(value: Tensor) -> Tensor:
        """A site's weights in one row, a row for each task of a network."""
        return value.detach().flatten() if isinstance(model, BayesianModule) else value.detach().flatten(-2)

    count = data.num_points

    def loss(part: Dataset) -> Tensor:
        nodes: dict[str, Any] = dict(poutine.trace(poutine.condition(model, data=weights)).get_trace(part).nodes)
        log_prior = sum(nodes[n]["fn"].log_prob(w).sum() for n, w in weights.items())
        y = nodes["y"]
        return -(log_prior + y["fn"].log_prob(y["value"]).sum() * (count / part.num_points)) / count

    def step(optimizer: torch.optim.Optimizer, part: Dataset) -> None:
        for p, gradient in zip(weights.values(), torch.autograd.grad(loss(part), list(weights.values())), strict=True):
            p.grad = gradient
        optimizer.step()

    adam = torch.optim.Adam(weights.values(), lr=learning_rate)
    walk = torch.optim.SGD(weights.values(), lr=path_learning_rate)
    mean = square = torch.zeros(())
    deviations: list[Tensor] = []
    taken = 0
    loss(data)  # what is wrong with the model itself is said here
    try:
        for _ in range(warmup):
            step(adam, data)
        for i in range(steps):
            part = data
            if batch_size is not None:
                part = data.points(torch.randperm(count, device=data.x.device)[:batch_size])
            step(walk, part)
            if (i + 1) % every == 0:
                at = torch.cat([flat(w) for w in weights.values()], -1)
                mean, square = (taken * mean + at) / (taken + 1), (taken * square + at**2) / (taken + 1)
                taken += 1
                deviations = [*deviations, at - mean][-rank:]
    except ValueError:  # of a distribution whose parameters are not finite
        mean = torch.full((), torch.nan)
    if not bool(torch.isfinite(mean).all() & torch.isfinite(square).all()):
        raise TrainingDiverged(
            f"learning_rate, path_learning_rate: the walk is not finite with {learning_rate:g} and "
            f"{path_learning_rate:g}; they must be smaller"
        )
    found = mean, (square - mean**2).clamp_min(0), torch.stack(deviations, -1)
    return ModuleSWAGGuide(model, *found) if isinstance(model, BayesianModule) else SWAGGuide(model, *found)
