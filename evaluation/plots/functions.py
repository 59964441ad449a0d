"""Predictions of functions on a line: bands, mean and draws of each model beside the points it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from evaluation.plots.style import INK, SOFT, WIDTH, colours, look, new_figure
from inference.prediction import Prediction, pointwise
from pp_models.data import TaskBatch
from pp_models.mixtures.simplex_distributions import ExpertMixture

#: central probability of each band and how opaque it is drawn, widest first; they lie on top of each other
BANDS = ((0.95, 0.18), (0.8, 0.22), (0.5, 0.28))


def _quantiles(prediction: Prediction, task: int, output: int, q: Tensor) -> Tensor:
    """Quantiles ``[Q, N]`` of one task and output: those of the mixture where it is Gaussian, else of the draws.

    The draws' own quantiles are ragged; the mixture's, found by bisection of its distribution function, are smooth.
    """
    parts = _gaussian_mixture(prediction.likelihood, task, output)
    if parts is None:
        return prediction.quantile(q)[:, task, :, output]
    weights, loc, scale = parts
    level = q.to(loc).unsqueeze(-1)
    low = (loc - 8 * scale).amin(0).expand(len(q), -1)
    high = (loc + 8 * scale).amax(0).expand(len(q), -1)
    for _ in range(40):
        middle = (low + high) / 2
        below = (weights * torch.special.ndtr((middle.unsqueeze(1) - loc) / scale)).sum(1) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _gaussian_mixture(likelihood: Any, task: int, output: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Weights, means and scales ``[C, N]`` of one task and output over draws and experts; None where not Gaussian."""
    if isinstance(likelihood, ExpertMixture):
        parts = likelihood.gaussian_parts()
        if parts is None:
            return None
        log_weights, loc, scale = parts
        each = (log_weights.double().softmax(-1)[:, task], loc[:, task, ..., output], scale[:, task, ..., output])
        weights, loc, scale = (part.double().movedim(-1, 1).flatten(0, 1) for part in each)
        return weights / len(log_weights), loc, scale
    normal = pointwise(likelihood, 0)
    if not isinstance(normal, torch.distributions.Normal):
        return None
    loc, scale = (part[:, task, :, output].double() for part in (normal.loc, normal.scale))
    return torch.full_like(loc, 1 / len(loc)), loc, scale


def _numbers(values: Tensor) -> Any:
    return values.detach().cpu().double().numpy()


def _curve(values: Tensor, order: Tensor) -> Any:
    return _numbers(values.cpu()[order])


def _draw_prediction(
    axes: Axes, prediction: Prediction, task: int, x: Any, order: Tensor, output: int, number: int, colour: Any
) -> None:
    tails = [((1 - level) / 2, (1 + level) / 2) for level, _ in BANDS]
    edges = _quantiles(prediction, task, output, torch.tensor(tails).flatten()).unflatten(0, (-1, 2))
    for (_, alpha), (low, high) in zip(BANDS, edges, strict=True):
        axes.fill_between(x, _curve(low, order), _curve(high, order), color=colour, alpha=alpha, linewidth=0)
    for draw in prediction.function_samples[:number, task, :, output]:
        axes.plot(x, _curve(draw, order), color=colour, linewidth=0.8, alpha=0.9)
    axes.plot(x, _curve(prediction.mean[task, :, output], order), color=colour, linewidth=2)


def _draw_data(axes: Axes, batch: TaskBatch, task: int, output: int, show_target: bool) -> None:
    context, target = batch.context[task], batch.target[task]
    if show_target and target.y is not None:
        seen = target.output_mask()[:, output]
        axes.scatter(
            _numbers(target.x[seen, 0]), _numbers(target.y[seen, output]), s=5, color=SOFT, linewidth=0, alpha=0.5
        )
    assert context.y is not None
    seen = context.output_mask()[:, output]
    axes.scatter(
        _numbers(context.x[seen, 0]),
        _numbers(context.y[seen, output]),
        s=26,
        color=INK,
        edgecolor="white",
        linewidth=0.7,
        zorder=5,
    )


def _legend(number: int, truth: bool, oracle: bool) -> list[Any]:
    """What the marks mean, in grey, since each model has its own colour."""
    handles: list[Any] = []
    see_through = 1.0
    for level, alpha in BANDS:
        see_through *= 1 - alpha
        handles.append(Patch(facecolor=SOFT, alpha=1 - see_through, linewidth=0, label=f"{level:.0%} band"))
    handles.append(Line2D([], [], color=SOFT, linewidth=2, label="mean"))
    if number:
        handles.append(Line2D([], [], color=SOFT, linewidth=0.8, label="function draws"))
    handles.append(Line2D([], [], color=INK, marker="o", markersize=5, linestyle="", label="context"))
    if truth:
        handles.append(Line2D([], [], color=INK, linewidth=1.2, label="truth"))
    else:
        handles.append(Line2D([], [], color=SOFT, marker="o", markersize=2.5, linestyle="", label="target"))
    if oracle:
        handles.append(Line2D([], [], color=INK, linewidth=1, linestyle="--", label="exact mean"))
        handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=":", label="exact ± 2 sd"))
    return handles


def _limits(values: Tensor) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.25 * max(high - low, 1e-3)
    return low - margin, high + margin


def fan_plot(
    predictions: Mapping[str, Prediction],
    batch: TaskBatch,
    x: Tensor,
    tasks: Sequence[int] = (0, 1),
    *,
    truth: Tensor | None = None,
    oracle: tuple[Tensor, Tensor] | None = None,
    num_functions: int = 3,
    output: int = 0,
    titles: Sequence[str] | None = None,
    axis_names: tuple[str, str] = ("x", "y"),
) -> Figure:
    """Central 50, 80 and 95 % bands, mean and a few function draws: one row a model, one column a task.

    The bands are those of a new noisy observation.

    Args:
        predictions: by model name, made from ``batch.context`` at ``x``.
        batch: tasks ``[T]`` with inputs of width 1.
        x: where the predictions were made, ``[N, 1]`` or ``[T, N, 1]``; in any order.
        tasks: which tasks to show.
        truth: the true function ``[T, N, Dy]`` at x; the target points are shown where it is None.
        oracle: mean and standard deviation ``[T, N, Dy]`` at x of the exact answer, as ``oracle_predict`` gives.
        num_functions: function draws a panel.
        output: which output dimension to show.
        titles: of the columns, in place of the task's number and context size.
        axis_names: of the input and of the output.

    Raises:
        ValueError: no prediction or task, a task out of range, or inputs that are not a line.
    """
    if not predictions:
        raise ValueError("predictions: got none; at least one is needed")
    if batch.context.x.shape[-1] != 1:
        raise ValueError(f"batch: got inputs of width {batch.context.x.shape[-1]}; a fan plot needs width 1")
    if not tasks or not all(0 <= task < len(batch) for task in tasks):
        raise ValueError(f"tasks: got {list(tasks)}; it must hold task numbers from 0 to {len(batch) - 1}")
    rows, columns = len(predictions), len(tasks)
    places = x.detach().expand(len(batch), *x.shape[-2:]).cpu()
    with look():
        figure, grid = new_figure(rows, columns, max(WIDTH, 2.4 * columns), 0.9 + 2.3 * rows, sharex=True, sharey="col")
        for row, (name, prediction), colour in zip(grid, predictions.items(), colours(rows), strict=True):
            for axes, task in zip(row, tasks, strict=True):
                order = places[task, :, 0].argsort()
                line = places[task, order, 0].numpy()
                _draw_prediction(axes, prediction, task, line, order, output, num_functions, colour)
                if oracle is not None:
                    mean, std = (part[task, :, output] for part in oracle)
                    axes.plot(line, _curve(mean, order), color=INK, linewidth=1, linestyle="--")
                    for side in (-2, 2):
                        axes.plot(line, _curve(mean + side * std, order), color=INK, linewidth=0.8, linestyle=":")
                if truth is not None:
                    axes.plot(line, _curve(truth[task, :, output], order), color=INK, linewidth=1.2)
                _draw_data(axes, batch, task, output, show_target=truth is None)
                full = batch.full[task]
                shown = full.y[full.output_mask()[:, output], output] if full.y is not None else prediction.mean[task]
                axes.set_ylim(*_limits(shown))
                axes.set_xlim(line[0], line[-1])
            row[0].set_ylabel(f"{name}\n{axis_names[1]}")
        numbered = [f"Task {task}, {int(batch.context[task].counts)} context points" for task in tasks]
        for axes, title in zip(grid[0], numbered if titles is None else titles, strict=True):
            axes.set_title(title)
        for axes in grid[-1]:
            axes.set_xlabel(axis_names[0])
        handles = _legend(num_functions, truth is not None, oracle is not None)
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure
