"""Posterior predictive of a model under a guide, in one or many draws."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.data_dtype import as_computed
from inference.prediction import Prediction, likelihood_of_points, stack_distributions, widen_draws
from inference.random_state import seeded
from pp_models.arguments import CALLABLE, DRAWS, SEED, checked, data_set, instance, one_of
from pp_models.contract import as_model
from pp_models.data import DataError, Dataset, TaskBatch, context_of, require_tasks
from pp_models.task_plates import PARTICLE_PLATE


class mean_sites(Messenger):
    """Sets every latent site to the mean of its distribution instead of a draw (NVDP predicts with mean weights)."""

    def _pyro_sample(self, msg) -> None:
        if msg["done"] or msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample" or msg["name"] == "y":
            return
        fn = msg["fn"]
        try:
            msg["value"] = fn.mean
        except NotImplementedError:
            raise ValueError(f"weights='mean': site {msg['name']!r} ({type(fn).__name__}) has no mean") from None
        msg["done"] = True


def run_chunks(num_samples: int, size_of_one: int, limit: int = 2**24) -> list[int]:
    """Splits ``num_samples`` draws of ``size_of_one`` numbers each into chunks that stay under ``limit`` numbers."""
    most = max(1, min(num_samples, limit // max(size_of_one, 1)))
    return [most] * (num_samples // most) + ([num_samples % most] if num_samples % most else [])


@torch.no_grad()
@checked(
    num_samples=DRAWS,
    weights=one_of("samples", "mean"),
    seed=SEED,
    x=instance(Tensor, Dataset),
    guide=CALLABLE,
    model=CALLABLE,
    context=data_set("Dataset", "TaskBatch", instead="pyro.infer.Predictive(model, guide=guide, num_samples=...)"),
)
def predict(
    model: Any,
    guide: Any,
    context: Dataset | TaskBatch,
    x: Tensor | Dataset,
    num_samples: int = 100,
    *,
    weights: str = "samples",
    seed: int | None = None,
) -> Prediction:
    """Posterior predictive at ``x`` given a context.

    Args:
        model: called with a Dataset without y; its observation site is ``y``.
        guide: called with the context.
        context: observed points ``[*B, N_c]``, or a TaskBatch, whose context is used; may be empty. Like x, in any
            floating-point dtype: it is cast to the model's.
        x: inputs ``[*B, N, Dx]`` (``[N, Dx]`` is used for every task), or a Dataset whose inputs and mask are used.
        num_samples: posterior draws S; each draw is one function per task, coherent over ``x``.
        weights: ``"samples"``, or ``"mean"`` for one pass with the posterior mean of every latent (what NVDP's
            released code evaluates).
        seed: seed of these draws; the global random state when None.

    Raises:
        ValueError: an argument out of range.
        DataError: shapes that do not fit.
    """
    require_tasks(context, "context")
    context = as_computed(context_of(context), model, guide)
    x = as_computed(x, model, guide)
    if isinstance(x, Dataset):
        data = x.without_y()
    else:
        if x.dim() == 2 and context.batch_shape:
            x = x.expand(*context.batch_shape, *x.shape)
        data = Dataset(x)
    if data.batch_shape != context.batch_shape:
        raise DataError(
            f"x: task dimensions {list(data.batch_shape)} differ from the context's {list(context.batch_shape)}"
        )
    as_model(model).check(context)  # here, for Pyro's traces add the shapes of all sites to the message
    as_model(model).check(data)
    likelihoods, samples = [], []
    draws = 1 if weights == "mean" else num_samples
    width = max(as_model(model).layer_sizes, default=128)
    with seeded(seed, data.x.device):
        for size in run_chunks(draws, data.x[..., 0].numel() * width):
            with pyro.plate(PARTICLE_PLATE, size, dim=-1 - len(data.batch_shape)):
                if weights == "mean":
                    with mean_sites():
                        guide_trace = poutine.trace(guide).get_trace(context)
                else:
                    guide_trace = poutine.trace(guide).get_trace(context)
                site: Any = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(data).nodes.get("y")
                if site is None:
                    raise ValueError(f"model: got {type(model).__name__}; it must sample its outputs as the site 'y'")
            likelihoods.append(likelihood_of_points(site))
            samples.append(site["value"])
    shape = torch.Size([draws]) + data.x.shape[:-1]
    return Prediction(
        stack_distributions(likelihoods, shape), torch.cat([widen_draws(s, likelihoods[0], shape) for s in samples])
    )
