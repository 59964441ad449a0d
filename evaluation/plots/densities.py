"""Predictive densities over the plane: what bands of quantiles hide when there are two modes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from evaluation.plots.style import INK, WIDTH, look, new_figure
from pp_models import TaskBatch


def density_plot(densities: Mapping[str, Tensor], batch: TaskBatch, x: Tensor, y: Tensor) -> Figure:
    """One row a task, one column a model: p(y | x, context) as shades, the context as dots.

    Shades are of the square root of the density, each panel to its own largest, so that a mode of little mass is seen.

    Args:
        densities: by model name, ``[T, Ny, N]``: at every y of the grid and every input.
        batch: tasks ``[T]`` with inputs and outputs of width 1; their contexts are shown.
        x: inputs ``[N]``, increasing.
        y: grid ``[Ny]``, increasing.

    Raises:
        ValueError: no densities, or densities of another shape.
    """
    if not densities:
        raise ValueError("densities: got none; at least one is needed")
    expected = (len(batch), len(y), len(x))
    for name, density in densities.items():
        if density.shape != expected:
            raise ValueError(f"densities: got shape {list(density.shape)} for {name!r}; it must be {list(expected)}")
    columns = min(3, len(densities))
    lines = -(-len(densities) // columns)
    extent = (float(x[0]), float(x[-1]), float(y[0]), float(y[-1]))
    with look():
        rows = lines * len(batch)
        figure, grid = new_figure(rows, columns, WIDTH, 0.6 + 1.7 * rows, sharex=True, sharey=True)
        for axes in grid.flat:
            axes.set_axis_off()
        for i, (name, density) in enumerate(densities.items()):
            for task in range(len(batch)):
                axes = grid[(i // columns) * len(batch) + task, i % columns]
                axes.set_axis_on()
                shade = density[task].double().clamp_min(0).sqrt().cpu().numpy()
                top = max(float(np.quantile(shade, 0.995)), 1e-12)
                axes.imshow(shade, origin="lower", aspect="auto", extent=extent, cmap="Greys", vmin=0, vmax=top)
                known = batch.context[task]
                assert known.y is not None
                there = known.output_mask()[:, 0]
                axes.scatter(known.x[there, 0].cpu(), known.y[there, 0].cpu(), s=14, color="#d55e00", zorder=3)
                axes.grid(False)
                axes.set(xlim=extent[:2], ylim=extent[2:])
                if task == 0:
                    axes.set_title(name, color=INK)
        for axes in grid[-1]:
            axes.set_xlabel("x")
    return figure
