"""Which point to ask for next: by what it should tell of the task, by the predictive spread, or at random."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from inference.predict import predict
from pp_models import Dataset, TaskBatch
from pp_models.arguments import DRAWS, SEED, checked, integer, one_of
from pp_models.contract import as_guide

ACQUISITIONS = ("information", "entropy drop", "max sd", "random")


@torch.no_grad()
def information(
    model: Any, guide: Any, context: Dataset, x: Dataset, num_samples: int = 32, seed: int | None = None
) -> Tensor:
    """Mutual information of a task's latent and y at each candidate, I(z; y | x, D), ``[*B, N]`` in nats.

    E_z E_{y | z} [ln p(y | x, z) - ln E_z' p(y | x, z')] over S posterior draws, one y a draw: Houlsby et al. 2011. For
    mixture weights this bounds how far the entropy of the weights falls. It needs nothing but ``predict``, so it works
    for any model and guide, and is 0 for those without a latent.

    Args:
        model: the model.
        guide: its guide.
        context: what is known, ``[*B, M]``.
        x: candidates ``[*B, N]``; y is not read.
        num_samples: S; the estimate is at most ln S.
        seed: of the draws.
    """
    prediction = predict(model, guide, context, x, num_samples, seed=seed)
    y = prediction.samples
    own, others = prediction.likelihood.log_prob(y), []
    for draw in y:  # one at a time: [S, *B, N] at once and not [S, S, *B, N]
        scores = prediction.likelihood.log_prob(draw.unsqueeze(0))
        others.append(torch.logsumexp(scores, 0) - math.log(num_samples))
    return (own - torch.stack(others)).mean(0)


@torch.no_grad()
def entropy_drop(
    model: Any, guide: Any, context: Dataset, x: Dataset, num_samples: int = 4, seed: int | None = None
) -> Tensor:
    """How far H[E z] is expected to fall once y at a candidate is known, ``[*B, N]`` in nats; may be negative.

    For each candidate, draws of y from the predictive join the context and the guide reads it again: what the guide
    would really do, and dearer than :func:`information`.

    Args:
        model: the model.
        guide: a guide of the mixture family, with ``concentration(data)`` ``[*B, L]``.
        context: what is known, ``[*B, M]``.
        x: candidates ``[*B, N]``.
        num_samples: draws of y a candidate.
        seed: of the draws.

    Raises:
        TypeError: the guide has no concentration.
    """
    before = as_guide(guide).concentration(context)
    if before is None:
        raise TypeError(f"guide: got {type(guide).__name__}; 'entropy drop' needs a guide with concentration(data)")
    y = predict(model, guide, context, x, num_samples, seed=seed).samples
    shape = (num_samples, *context.batch_shape, x.num_points)

    def repeated(t: Tensor) -> Tensor:  # [*B, M, ...] to [S, *B, N, M, ...]
        at = len(context.batch_shape)
        return t.unsqueeze(at).expand(*shape, *t.shape[at:])

    assert context.y is not None
    new_x = x.x.unsqueeze(-2).expand(*shape, 1, -1)
    asked = Dataset(
        torch.cat([repeated(context.x), new_x], -2),
        torch.cat([repeated(context.y), y.unsqueeze(len(shape))], len(shape)),
        torch.cat([repeated(context.full_mask()), torch.ones(*shape, 1, dtype=torch.bool, device=y.device)], -1),
        None
        if context.observed is None
        else torch.cat([repeated(context.observed), torch.ones_like(y.unsqueeze(len(shape)), dtype=torch.bool)], -2),
    )
    before, after = entropy_of_mean(before), entropy_of_mean(guide.concentration(asked))
    return before.unsqueeze(-1) - after.mean(0)


def entropy_of_mean(alpha: Tensor) -> Tensor:
    """H[E z] for z ~ Dir(α), ``[*B]`` in nats: from 0 (one expert) to ln L (all alike)."""
    mean = alpha / alpha.sum(-1, keepdim=True)
    return -torch.special.xlogy(mean, mean).sum(-1)


@checked(acquisition=one_of(*ACQUISITIONS), num_samples=DRAWS, seed=SEED)
def acquisition_scores(
    model: Any,
    guide: Any,
    context: Dataset,
    x: Dataset,
    acquisition: str = "information",
    *,
    num_samples: int | None = None,
    seed: int | None = None,
) -> Tensor:
    """The worth of each candidate ``[*B, N]``; the largest is the one to ask for.

    Args:
        model, guide, context, x: as for :func:`information`.
        acquisition: ``"information"``, ``"entropy drop"``, ``"max sd"`` (mean predictive standard deviation over
            outputs) or ``"random"``.
        num_samples: draws, where the acquisition draws any; None for its default.
        seed: of the draws.

    Raises:
        ValueError: unknown acquisition.
    """
    if acquisition == "random":
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return torch.rand(x.x.shape[:-1], generator=generator).to(x.x.device)
    if acquisition == "max sd":
        return predict(model, guide, context, x, 1, weights="mean", seed=seed).std.mean(-1)
    score = information if acquisition == "information" else entropy_drop
    options = {} if num_samples is None else {"num_samples": num_samples}
    return score(model, guide, context, x, seed=seed, **options)


@checked(
    start=integer(0),
    budget=integer(0),
    acquisition=one_of(*ACQUISITIONS),
    num_samples=DRAWS,
    seed=SEED,
)
def acquire(
    model: Any,
    guide: Any,
    pool: Dataset,
    start: int,
    budget: int,
    acquisition: str,
    seed: int,
    num_samples: int | None = None,
) -> list[TaskBatch]:
    """Adds points to the context one at a time, greedily, in every task at once.

    Args:
        model: the model.
        guide: its guide.
        pool: all points of the tasks ``[T, N]``, with y; no mask.
        start: random points in the first context, the same for every acquisition.
        budget: points in the last context.
        acquisition: see :func:`acquisition_scores`.
        seed: seed of the first context and of the acquisition.
        num_samples: see :func:`acquisition_scores`.

    Returns:
        The batches with ``start`` … ``budget`` context points; the points not yet queried are the target.

    Raises:
        ValueError: unknown acquisition, or a budget that leaves no target.
    """
    if acquisition not in ACQUISITIONS:
        raise ValueError(f"acquisition: got {acquisition!r}; it must be one of {', '.join(ACQUISITIONS)}")
    if not 0 <= start <= budget < pool.num_points:
        raise ValueError(
            f"start, budget: got {start} and {budget}; it must be 0 <= start <= budget < {pool.num_points} points"
        )
    generator = torch.Generator().manual_seed(seed)
    tasks_count, total = pool.x.shape[0], pool.num_points
    order = torch.rand(tasks_count, total, generator=generator).argsort(-1)
    chosen = torch.zeros(tasks_count, total, dtype=torch.bool).scatter(1, order[:, :start], True)
    steps = [_split(pool, chosen)]
    for count in range(start, budget):
        if acquisition == "random":
            query = order[:, count : count + 1]
        else:
            scores = acquisition_scores(
                model, guide, steps[-1].context, pool, acquisition, num_samples=num_samples, seed=seed + count
            )
            query = scores.masked_fill(chosen, -math.inf).argmax(-1, keepdim=True)
        chosen = chosen.scatter(1, query, True)
        steps.append(_split(pool, chosen))
    return steps


def _split(pool: Dataset, chosen: Tensor) -> TaskBatch:
    """Context and target from a selection with equally many points in every task."""
    assert pool.y is not None

    def part(where: Tensor) -> Dataset:
        count = int(where[0].sum())
        index = where.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :count].unsqueeze(-1)
        assert pool.y is not None
        return Dataset(
            pool.x.gather(1, index.expand(-1, -1, pool.x.shape[-1])),
            pool.y.gather(1, index.expand(-1, -1, pool.y.shape[-1])),
            observed=None if pool.observed is None else pool.observed.gather(1, index.expand(-1, -1, pool.y.shape[-1])),
        )

    return TaskBatch(part(chosen), part(~chosen))
