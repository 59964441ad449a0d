"""Models side by side: final scores over seeds, and how training went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from evaluation.plots.style import INK, SOFT, WIDTH, colours, look, new_figure

#: what a score is called on an axis
SCORES = {
    "ll": ("All points", "log-likelihood\n(nats per point)"),
    "rll": ("Context (RLL)", "log-likelihood\n(nats per point)"),
    "pll": ("Target (PLL)", "log-likelihood\n(nats per point)"),
    "joint_ll": ("All points, joint", "log-likelihood\n(nats per point)"),
    "joint_rll": ("Context, joint", "log-likelihood\n(nats per point)"),
    "joint_pll": ("Target, joint", "log-likelihood\n(nats per point)"),
    "crps": ("CRPS", "units of y\n(lower is better)"),
    "rmse": ("RMSE", "units of y\n(lower is better)"),
}
CURVES = {
    "loss": "loss\n(nats, as trained)",
    "log_likelihood": "log-likelihood\n(nats per value)",
    "kl": "divergence\n(nats, as trained)",
    "grad_norm": "gradient norm",
}


def comparison_plot(
    table: pd.DataFrame, oracle: Mapping[str, float] | None = None, scores: Sequence[str] = ("ll", "rll", "pll")
) -> Figure:
    """One row a model, one panel a score: small dots are seeds, the large one their mean ± 1 standard error.

    Args:
        table: a row for each model and seed, with columns ``model`` and the scores. For a single seed, a column
            ``{score}_se`` gives the error bar, if present.
        oracle: the best attainable score by name, drawn as a line.
        scores: columns to show; those absent from the table are left out.

    Raises:
        ValueError: no column ``model``, no row, or none of the scores.
    """
    shown = [score for score in scores if score in table.columns]
    if "model" not in table.columns or table.empty or not shown:
        raise ValueError(
            f"table: got {len(table)} rows of columns {list(table.columns)}; it needs 'model' and one of {list(scores)}"
        )
    names = list(dict.fromkeys(table["model"]))
    with look():
        figure, grid = new_figure(1, len(shown), WIDTH, 1.5 + 0.42 * len(names), sharey=True)
        for axes, score in zip(grid[0], shown, strict=True):
            for place, (name, colour) in enumerate(zip(names, colours(len(names)), strict=True)):
                _draw_model(axes, table[table["model"] == name], score, place, colour)
            best = None if oracle is None else oracle.get(score)
            if best is not None:
                axes.axvline(best, color=INK, linewidth=1.2, linestyle="--")
            title, unit = SCORES.get(score, (score, ""))
            axes.set(title=title, xlabel=unit, ylim=(len(names) - 0.4, -0.6))
            axes.set_yticks(range(len(names)), names)
            axes.tick_params(axis="y", labelcolor=INK, labelsize=10)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.margins(x=0.12)
        handles: list[Any] = [Line2D([], [], color=SOFT, marker="o", markersize=6.5, label="mean ± standard error")]
        if table["model"].duplicated().any():
            handles.append(Line2D([], [], color=SOFT, marker="o", markersize=3, linestyle="", label="one seed"))
        if oracle:
            handles.append(Line2D([], [], color=INK, linewidth=1.2, linestyle="--", label="exact answer"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _draw_model(axes: Axes, rows: pd.DataFrame, score: str, place: int, colour: object) -> None:
    values = rows[score].astype(float).dropna().to_numpy()
    if not len(values):
        return
    error = None
    if len(values) > 1:
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        axes.scatter(values, np.full(len(values), place + 0.22), s=9, color=SOFT, alpha=0.6, linewidth=0)
    elif f"{score}_se" in rows.columns:
        error = float(rows[f"{score}_se"].iloc[0])
    axes.errorbar(
        values.mean(), place, xerr=error, fmt="o", color=colour, markersize=6.5, elinewidth=1.8, capsize=3, zorder=4
    )


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over a window centred on each value, cut at the ends."""
    if window < 2:
        return values
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    quantities: Sequence[str] = ("loss", "log_likelihood", "kl"),
) -> Figure:
    """Training metrics against steps, one line a run: smoothed over a tenth of the run, the raw values behind.

    Args:
        histories: ``FitResult.history`` by name.
        quantities: what to show, one panel each; those that no run has are left out.

    Raises:
        ValueError: there is nothing to show.
    """
    shown = [quantity for quantity in quantities if any(quantity in row for rows in histories.values() for row in rows)]
    if not shown:
        raise ValueError(f"histories: got {len(histories)} without any of {list(quantities)}; at least one is needed")
    with look():
        figure, grid = new_figure(len(shown), 1, WIDTH, 0.9 + 1.7 * len(shown), sharex=True)
        for axes, quantity in zip(grid[:, 0], shown, strict=True):
            for (name, rows), colour in zip(histories.items(), colours(len(histories)), strict=True):
                pairs = np.array([(row["step"], row[quantity]) for row in rows if quantity in row], float).reshape(
                    -1, 2
                )
                axes.plot(*pairs.T, color=colour, linewidth=0.7, alpha=0.35)
                smooth = _smoothed(pairs[:, 1], len(pairs) // 10)
                axes.plot(pairs[:, 0], smooth, color=colour, linewidth=1.8, label=name)
            axes.set_ylabel(CURVES.get(quantity, quantity))
            axes.yaxis.set_major_locator(MaxNLocator(5))
        figure.align_ylabels()
        grid[-1, 0].set_xlabel("training step")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)))
    return figure


def query_curves(table: pd.DataFrame, score: str = "ll") -> Figure:
    """Active learning: one panel a model, the score against the points queried so far, one line an acquisition.

    Args:
        table: columns ``model``, ``acquisition``, ``points``, ``seed`` and the score.
        score: the column to show.

    Raises:
        ValueError: a column is missing or the table is empty.
    """
    missing = [c for c in ("model", "acquisition", "points", score) if c not in table.columns]
    if missing or not len(table):
        raise ValueError(f"table: {f'column {missing[0]} is missing' if missing else 'it has no row'}")
    names = list(table["model"].unique())
    ways = list(table["acquisition"].unique())
    with look():
        figure = Figure(figsize=(WIDTH, 1.2 + 2.0 * ((len(names) + 1) // 2)), layout="constrained")
        grid = figure.subplots((len(names) + 1) // 2, 2, sharex=True, sharey=True, squeeze=False)
        for axes, name in zip(grid.flat, names, strict=False):
            for way, colour in zip(ways, colours(len(ways)), strict=True):
                rows = table[(table["model"] == name) & (table["acquisition"] == way)]
                curve = rows.groupby("points")[score].agg(["mean", "sem"])
                axes.plot(curve.index, curve["mean"], color=colour, linewidth=1.8, label=way)
                error = curve["sem"].fillna(0.0)
                axes.fill_between(curve.index, curve["mean"] - error, curve["mean"] + error, color=colour, alpha=0.2)
            axes.set_title(name)
        for axes in list(grid.flat)[len(names) :]:
            axes.set_visible(False)
            if len(grid) > 1:  # the panel above it is then the lowest of its column
                grid[-2, 1].set_xlabel("context points")
                grid[-2, 1].tick_params(labelbottom=True)
        for axes in grid[:, 0]:
            axes.set_ylabel("nats per point" if score.startswith(("ll", "pll", "rll")) else score)
        for axes in grid[-1]:
            axes.set_xlabel("context points")
        lines, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside upper center", ncols=len(ways))  # over no line of a panel
    return figure
