"""Mixture weights by task, and how evenly importance weights are spread by proposal."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor

from evaluation.plots.style import WIDTH, colours, look


def weight_maps(weights: Tensor, order: Tensor | None = None) -> Figure:
    """Mean mixture weights ``[T, L]`` as shades: one column a task, one row an expert.

    Args:
        weights: mean weights of tasks.
        order: the tasks in the order to show them; by the expert they use most by default.

    Raises:
        ValueError: weights of another shape.
    """
    if weights.dim() != 2:
        raise ValueError(f"weights: got shape {list(weights.shape)}; it must be [T, L], one row a task")
    if order is None:
        order = weights.argmax(-1).argsort(stable=True)
    with look():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.22 * weights.shape[1]), layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(weights[order].T.cpu().numpy(), aspect="auto", cmap="Blues", vmin=0, vmax=1)
        axes.grid(False)
        axes.set(xlabel="task", ylabel="expert")
        axes.set_yticks(range(weights.shape[1]), [str(i + 1) for i in range(weights.shape[1])])
        figure.colorbar(shown, ax=axes, label="mean weight", pad=0.01)
    return figure


def effective_sizes(sizes: Mapping[str, Mapping[int, Tensor]], num_particles: int) -> Figure:
    """Effective sample sizes by proposal and number of points: dots are tasks, lines their means.

    Args:
        sizes: by proposal, by number of scored points: ``[T]``.
        num_particles: K, the most that can be reached.
    """
    with look():
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        axes = figure.subplots()
        for number, ((name, by_points), colour) in enumerate(zip(sizes.items(), colours(len(sizes)), strict=True)):
            shift = 0.18 * (number - (len(sizes) - 1) / 2)
            for place, found in enumerate(by_points.values()):
                axes.plot([place + shift] * len(found), found.cpu(), "o", color=colour, alpha=0.15, ms=4, mec="none")
            means = [float(found.mean()) for found in by_points.values()]
            axes.plot([p + shift for p in range(len(means))], means, "-", color=colour, marker="_", ms=14, label=name)
        first = next(iter(sizes.values()))
        axes.set_xticks(range(len(first)), [str(points) for points in first])
        axes.set_ylim(0, num_particles + 0.5)
        axes.set(xlabel="points that weigh", ylabel=f"effective sample size of {num_particles}")
        axes.legend(title="proposal", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
