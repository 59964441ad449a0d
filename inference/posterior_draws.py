"""Draws of the latents from a guide, their importance weights, and draws corrected by them."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from inference.data_dtype import as_computed
from inference.objectives.importance_weights import weigh
from inference.objectives.independent_plates import sample_sites
from inference.pareto_smoothing import psis_weights
from inference.random_state import seeded
from pp_models.arguments import CALLABLE, DRAWS, SEED, checked, data_set, one_of
from pp_models.data import DataError, Dataset, TaskBatch, context_of, require_tasks
from pp_models.task_plates import PARTICLE_PLATE

CORRECTIONS = ("psis", "sir")


@torch.no_grad()
@checked(
    num_samples=DRAWS,
    seed=SEED,
    correct=one_of(*CORRECTIONS),
    model=CALLABLE,
    guide=CALLABLE,
    data=data_set("Dataset", "TaskBatch", instead="pyro.infer.Predictive(guide, num_samples=...)"),
)
def sample_posterior(
    model: Any,
    guide: Any,
    data: Dataset | TaskBatch,
    num_samples: int = 1000,
    *,
    seed: int | None = None,
    correct: str | None = None,
) -> dict[str, Tensor]:
    """Draws of every latent site from the guide, or from the posterior that the guide's importance weights point at.

    With ``correct`` each task's draws are drawn again, with replacement, in proportion to p(y, z) / q(z | D): with the
    Pareto-smoothed weights (``"psis"``) or the raw ones (``"sir"``). That mends a guide that is nearly right; where the
    weights' k-hat is above 0.7 (:func:`evaluation.verdict` says so) it does not.

    Args:
        model: run only to weigh; named so that all calls of the library begin alike.
        guide: called with the data (with the context of a TaskBatch).
        data: a Dataset or TaskBatch of task dimensions ``*B``, cast to the model's dtype.
        num_samples: draws S.
        seed: seed of these draws; the global random state when None.
        correct: None, ``"psis"`` or ``"sir"``.

    Returns:
        ``[S, *B, *event]`` by site; ``[S, *event]`` for a site outside every task plate, which tasks share. Corrected
        draws repeat.

    Raises:
        ValueError: ``num_samples`` below 1, or an unknown correction.
        DataError: a correction for data without y.
    """
    require_tasks(data, "data")
    data = as_computed(context_of(data), model, guide)
    with seeded(seed, data.x.device):
        with pyro.plate(PARTICLE_PLATE, num_samples, dim=-1 - len(data.batch_shape)):
            trace = poutine.trace(guide).get_trace(data)
            found = {
                name: _site_draws(site, num_samples, data.batch_shape)
                for name, site in sample_sites(trace)
                if not site["infer"].get("is_auxiliary", False)
            }
        if correct is None:
            return found
        log_weights = posterior_log_weights(model, guide, data, trace, num_samples)
        dead = ~torch.isfinite(log_weights.amax(0))
        if bool(dead.any()):
            raise ValueError(
                f"correct: got {correct!r}, but in {int(dead.sum())} of {dead.numel()} sets no draw has a density "
                "under the model; draw without it, and mend model or guide"
            )
        if correct == "psis":
            log_weights = psis_weights(log_weights.double().unsqueeze(0))[0][0]
        weights = torch.softmax(log_weights, 0).reshape(num_samples, -1).T
        picked = torch.multinomial(weights, num_samples, replacement=True).T.reshape(log_weights.shape)
    for name, value in found.items():
        if picked.dim() == 1:  # one set of weights for everything
            found[name] = value[picked]
            continue
        index = picked.reshape(*picked.shape, *(1,) * (value.dim() - picked.dim())).expand_as(value)
        found[name] = value.gather(0, index)
    return found


def _site_draws(site: Any, num_samples: int, batch_shape: torch.Size) -> Tensor:
    """Draws ``[S, *B, *event]`` of a guide's site; ``[S, *event]`` where it is in no task plate."""
    shared = all(frame.name == PARTICLE_PLATE for frame in site["cond_indep_stack"])
    batch = torch.Size([1] * len(batch_shape)) if shared else batch_shape
    value = site["value"].expand(torch.Size([num_samples]) + batch + site["fn"].event_shape)
    return value.reshape(num_samples, *site["fn"].event_shape) if shared else value


@torch.no_grad()
def posterior_log_weights(
    model: Any, guide: Any, data: Dataset, guide_trace: Any = None, num_samples: int = 1000
) -> Tensor:
    """log p(y, z) - log q(z | D) of draws of the guide ``[S, *B]``, one set of weights for each task.

    Where tasks share a latent there is one set for all of them, ``[S]``.

    Args:
        model: its joint density.
        guide: what the draws come from.
        data: observed points ``[*B, N]``.
        guide_trace: a trace of the guide with S vectorised particles; drawn here where it is None.
        num_samples: S, for new draws.

    Raises:
        DataError: y is unknown.
    """
    if data.y is None:
        raise DataError("data: y is None; importance weights need observed points")
    data = as_computed(data, model, guide)
    with pyro.plate(PARTICLE_PLATE, num_samples, dim=-1 - len(data.batch_shape)):
        if guide_trace is None:
            guide_trace = poutine.trace(guide).get_trace(data)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(data)
    draws = weigh(model_trace, guide_trace)
    return (draws.scale * draws.log_weights).expand(num_samples, *draws.axes.shape)
