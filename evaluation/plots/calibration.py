"""Is a stated 90 % interval right in 90 % of cases? Coverage against its nominal level, and the PIT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from evaluation.plots.style import INK, WIDTH, colours, look
from evaluation.scores.metrics import Prediction, interval_coverage, pit

LEVELS = tuple(i / 20 for i in range(1, 20))


def calibration_plot(
    predictions: Mapping[str, Prediction],
    y: Tensor,
    mask: Tensor | None = None,
    *,
    levels: Sequence[float] = LEVELS,
    pit_histogram: bool = False,
    bins: int = 20,
) -> Figure:
    """How often each model's central interval holds the truth, against how often it should.

    On the diagonal a model is calibrated; below it, it is over-confident. Shading is ± 2 standard errors over tasks,
    since points of one task err together.

    Args:
        predictions: by model name, at the points of y; a few hundred draws or more.
        y: the truth ``[T, N, Dy]``.
        mask: ``[T, N]``, True where the point exists.
        levels: nominal levels, each in (0, 1).
        pit_histogram: adds a panel a model with the histogram of the probability integral transform, flat when
            calibrated, a ∪ when over-confident.
        bins: of the histogram.

    Raises:
        ValueError: no prediction, or a level out of range.
    """
    if not predictions:
        raise ValueError("predictions: got none; at least one is needed")
    number = len(predictions)
    with look():
        figure = Figure(figsize=(WIDTH, 4.8 + 1.6 * number * pit_histogram), layout="constrained")
        parts = figure.add_gridspec(1 + number * pit_histogram, 1, height_ratios=[4.8] + [1.6] * number * pit_histogram)
        axes = figure.add_subplot(parts[0])
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="calibrated")
        nominal = torch.tensor(levels).numpy()
        for (name, prediction), colour in zip(predictions.items(), colours(number), strict=True):
            coverage = interval_coverage(prediction, y, mask, levels).flatten(1).cpu().double()
            coverage = coverage[:, ~coverage.isnan().any(0)]
            mean = coverage.mean(1)
            if coverage.shape[1] > 1:
                error = coverage.std(1) / coverage.shape[1] ** 0.5
                low, high = ((mean + side * error).clamp(0, 1).numpy() for side in (-2, 2))
                axes.fill_between(nominal, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(nominal, mean.numpy(), color=colour, linewidth=1.8, marker="o", markersize=3.5, label=name)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title="Calibration of central intervals")
        axes.set(xlabel="stated probability of the interval", ylabel="share of points inside it")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
        axes.text(0.97, 0.04, "below the line: over-confident", ha="right", transform=axes.transAxes, fontsize=9)
        axes.legend(loc="upper left")
        if pit_histogram:
            for i, ((name, prediction), colour) in enumerate(zip(predictions.items(), colours(number), strict=True)):
                values = pit(prediction, y)
                values = values.flatten() if mask is None else values[mask].flatten()
                below = figure.add_subplot(parts[1 + i])
                below.hist(values.cpu().numpy(), bins=bins, range=(0, 1), density=True, color=colour, alpha=0.6)
                below.axhline(1, color=INK, linewidth=1, linestyle="--")
                below.set(xlim=(0, 1), title=name, ylabel="density")
            below.set_xlabel("probability integral transform (flat: calibrated)")
    return figure
