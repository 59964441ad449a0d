"""A prior of weights learned from functions: its predictive's draws are moved onto tasks by transport."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from inference.data_dtype import as_computed
from inference.random_state import seeded
from pp_models.arguments import POSITIVE, SEED, checked, instance, integer
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.networks.bayesian_network import BayesianNetwork


@checked(
    model=instance(BayesianNetwork),
    steps=integer(1),
    num_projections=integer(1),
    learning_rate=POSITIVE,
    seed=SEED,
)
def match_prior(
    model: BayesianNetwork,
    tasks: Iterable[Dataset | TaskBatch],
    steps: int = 500,
    *,
    num_projections: int = 64,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> list[float]:
    """Trains what the prior and the likelihood have to train, in place, so that their draws look like the tasks.

    A task is one vector, its inputs and outputs; the prior's draws at the same inputs are others. Their sliced
    Wasserstein distance (of POT) falls until no projection tells the two apart (Tran et al. 2021). No guide takes part:
    fit one afterwards, under the prior as it then is.

    Args:
        model: a network whose prior is learned, such as ``LearnedGaussianPrior()``, with numbers as y.
        tasks: batches of many tasks each, hundreds: the distance of few draws favours too small a spread. Of a
            TaskBatch the whole tasks count.
        steps: of Adam, one batch each.
        num_projections: random directions a step.
        learning_rate: of Adam.
        seed: of draws and directions.

    Returns:
        The distance at every step, in units of the vectors.

    Raises:
        ImportError: POT is missing.
        ValueError: nothing to train, or classes.
        DataError: a batch without tasks or y.

    Example:
        >>> import guidebook as gb
        >>> model = gb.BayesianNetwork([1, 8, 1], prior=gb.LearnedGaussianPrior(), likelihood="gaussian")
        >>> losses = gb.match_prior(model, gb.tasks.gp("rbf", 64), steps=3)
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in its docstrings, when it is first compiled
            import ot
    except ImportError:
        raise ImportError("tasks: the package POT is missing; pip install guidebook[transport]") from None
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained or not any(p.requires_grad for p in model.prior.parameters()):
        raise ValueError(
            f"model: its prior, {type(model.prior).__name__}, has nothing to train; take LearnedGaussianPrior()"
        )
    if model.likelihood.discrete or model.reads_memory or model.representation_dim:
        raise ValueError("model: it must predict numbers from its weights alone, without a representation or path")
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    history: list[Tensor] = []
    batches = iter(tasks)
    with seeded(seed, trained[0].device):
        for step in range(steps):
            batch: Any = next(batches, None)
            if batch is None:
                raise ValueError(f"tasks: the iterable ended at step {step}; it must go on for all steps")
            data = as_computed(batch.full if isinstance(batch, TaskBatch) else batch, model).to(trained[0].device)
            if data.y is None or not data.batch_shape or data.batch_shape.numel() < 2:
                raise DataError("tasks: a batch must hold at least two tasks with y, whose spread is what is matched")
            drawn: Any = poutine.trace(model).get_trace(data.without_y()).nodes["y"]["value"]
            mask = data.output_mask()
            seen, own = (torch.where(mask, y, torch.zeros_like(y)) for y in (data.y, drawn))
            vectors = [torch.cat([data.x, y], -1).flatten(-2).flatten(0, -2) for y in (seen, own)]
            loss = ot.sliced_wasserstein_distance(*vectors, n_projections=num_projections, seed=seed + step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.detach())
    return torch.stack(history).tolist()
