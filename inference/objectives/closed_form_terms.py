"""The terms of a bound without any draw, where a guide knows them."""

from __future__ import annotations

from typing import Any

import torch

from inference.objectives.independent_plates import TaskAxes
from inference.objectives.kl_objective import KLDraws
from pp_models.contract import as_guide
from pp_models.data import Dataset


def closed_form_draws(model: Any, guide: Any, args: tuple) -> KLDraws:
    """Expected log-likelihood and KL, as of one particle that has no noise.

    Raises:
        ValueError: nothing observed, or a guide that does not know them.
    """
    data = args[0] if args and isinstance(args[0], Dataset) else None
    if data is not None and data.y is None:
        raise ValueError("data: y is None; a loss needs observed points")
    found = None if data is None else as_guide(guide).closed_form(model, data)
    if found is None or data is None:
        raise ValueError(
            f"estimator: got 'analytic', and {type(guide).__name__} knows no expected log-likelihood of this model and "
            "data in closed form; it must be 'pathwise' (or take VBLLGuide, for a last layer)"
        )
    likelihood, kl = found
    shape = data.batch_shape
    names = tuple(f"tasks_{i}" for i in range(len(shape)))
    axes = TaskAxes(names, tuple(range(-len(shape), 0)), shape, 1.0, None)
    width = 1 if data.y is None or data.y.dtype == torch.long else data.y.shape[-1]
    each = (kl / max(shape.numel(), 1)).expand(1, *shape)  # one posterior of all tasks counts once
    points = (data.counts * width).unsqueeze(0)
    return KLDraws(axes, float(width), likelihood.unsqueeze(0), points, each, {"weights": each}, analytic=["weights"])
