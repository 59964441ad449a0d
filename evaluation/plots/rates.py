"""Dropout rates as heat maps: what a guide makes of each task, and how much its rates differ between tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from evaluation.plots.style import SEQUENTIAL, SPREAD, WIDTH, look, new_figure, picture_axes
from pp_models.data import Dataset, TaskBatch


def rate_maps(guide: Any, data: Dataset | TaskBatch, tasks: Sequence[int] = (0, 1, 2)) -> Figure:
    """Drop probabilities of every weight: one column a layer, one row a task; below, their spread across all tasks.

    Rows of a map are a layer's outputs, columns its inputs, the last column its biases. A dark last row means that the
    guide gives every task the same rates, whatever its context.

    Args:
        guide: has ``rates(data)``, a dict from site name to drop probabilities ``[T, k_out, k_in + 1]``.
        data: T >= 2 tasks (the context of a TaskBatch); all of them count for the spread.
        tasks: which tasks to show.

    Raises:
        ValueError: fewer than two tasks, or a task out of range.
    """
    context = data.context if isinstance(data, TaskBatch) else data
    if len(context.batch_shape) != 1 or len(context) < 2:
        raise ValueError(
            f"data: got task dimensions {list(context.batch_shape)}; a spread across tasks needs [T], T at least 2"
        )
    if not tasks or not all(0 <= task < len(context) for task in tasks):
        raise ValueError(f"tasks: got {list(tasks)}; it must hold task numbers from 0 to {len(context) - 1}")
    with torch.no_grad():
        rates = {site: value.detach().cpu() for site, value in guide.rates(context).items()}
    spreads = {site: value.std(0) for site, value in rates.items()}
    most = max(float(spread.max()) for spread in spreads.values())
    norms = Normalize(0, 1), Normalize(0, max(most, 0.01))
    rows, columns = len(tasks) + 1, len(rates)
    with look():
        # a thin layer still gets a column wide enough to be seen
        widths = [max(value.shape[-1], 32) for value in rates.values()]
        figure, grid = new_figure(
            rows, columns, max(WIDTH, 1.2 * columns), 0.6 + 1.45 * rows, gridspec_kw={"width_ratios": widths}
        )
        for column, (site, value) in enumerate(rates.items()):
            k_out, k_in = value.shape[-2], value.shape[-1] - 1
            for row, task in enumerate(tasks):
                grid[row, column].imshow(
                    value[task].numpy(), aspect="auto", interpolation="nearest", cmap=SEQUENTIAL, norm=norms[0]
                )
            grid[-1, column].imshow(
                spreads[site].numpy(), aspect="auto", interpolation="nearest", cmap=SPREAD, norm=norms[1]
            )
            grid[0, column].set_title(f"{_layer_name(site)}\n{k_in}+1 → {k_out}", fontsize=9.5)
        for axes in grid.flat:
            picture_axes(axes)
        for row, task in enumerate(tasks):
            grid[row, 0].set_ylabel(f"Task {task}\n{int(context[task].counts)} points")
        grid[-1, 0].set_ylabel("Spread\nacross tasks")
        bar = figure.colorbar(ScalarMappable(norms[0], SEQUENTIAL), ax=grid[:-1], fraction=0.04, pad=0.02)
        bar.set_label("drop probability")
        bar = figure.colorbar(ScalarMappable(norms[1], SPREAD), ax=grid[-1:], fraction=0.04, pad=0.02)
        bar.set_label("standard deviation")
        figure.supxlabel("in each map: inputs as columns (biases last), outputs as rows", fontsize=9.5)
        for each in figure.axes[-2:]:
            each.grid(False)
    return figure


def _layer_name(site: str) -> str:
    """``layer_0.weight`` is "Layer 0"; any other site keeps its name."""
    stem, dot, rest = site.partition(".")
    return stem.replace("layer_", "Layer ") if dot and rest == "weight" and stem.startswith("layer_") else site
