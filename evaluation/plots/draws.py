"""Functions drawn from priors, side by side with true ones."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor

from evaluation.plots.style import INK, WIDTH, colours, look, new_figure


def function_draws(draws: Mapping[str, Tensor], x: Tensor, *, number: int = 100, highlighted: int = 3) -> Figure:
    """Many thin lines a panel, a few of them thick: what a prior believes functions look like.

    Args:
        draws: by title, functions ``[S, N, 1]`` at x; the last panel sets the limits of all, so put the truth there.
        x: inputs ``[N, 1]``.
        number: most lines a panel.
        highlighted: how many of them are thick.

    Raises:
        ValueError: no draws, or inputs that are not a line.
    """
    if not draws:
        raise ValueError("draws: got none; at least one set is needed")
    if x.shape[-1] != 1:
        raise ValueError(f"x: got inputs of width {x.shape[-1]}; a plot of functions needs width 1")
    order = x[:, 0].argsort()
    line = x[order, 0].cpu().numpy()
    last = list(draws.values())[-1]
    low, high = float(last.min()), float(last.max())
    margin = 0.15 * max(high - low, 1e-3)
    with look():
        figure, grid = new_figure(1, len(draws), max(WIDTH, 2.4 * len(draws)), 2.9, sharex=True, sharey=True)
        for axes, (title, values), colour in zip(grid[0], draws.items(), colours(len(draws)), strict=True):
            for i, curve in enumerate(values[:number, :, 0].detach().cpu()[:, order].numpy()):
                thick = i < highlighted
                axes.plot(
                    line,
                    curve,
                    color=INK if thick else colour,
                    linewidth=1.4 if thick else 0.6,
                    alpha=0.9 if thick else 0.25,
                    zorder=3 if thick else 2,
                )
            axes.set(title=title, xlabel="x", xlim=(line[0], line[-1]), ylim=(low - margin, high + margin))
        grid[0][0].set_ylabel("f(x)")
    return figure
