"""Calibration over tasks as pictures: ranks of simulated truths, as ECDFs and histograms, and PITs by context size."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom
from torch import Tensor

from evaluation.plots.style import INK, WIDTH, colours, look
from evaluation.simulation_calibration import CalibrationRanks, ecdf_distance, ecdf_envelope


def rank_ecdf_plot(ranks: CalibrationRanks, level: float = 0.95, most: int = 8) -> Figure:
    """ECDF of the truth's ranks less the uniform one, one line a quantity, inside the band of an exact posterior.

    A line below the band at first and above it later is a guide too wide; above and then below, too narrow; off to one
    side, biased.

    Args:
        ranks: from :func:`evaluation.simulation_calibration.simulation_ranks`.
        level: probability that all of one line stays inside.
        most: quantities shown, the farthest out.
    """
    count = len(next(iter(ranks.ranks.values())))
    place = torch.arange(1, ranks.num_draws + 2) / (ranks.num_draws + 1)
    width = float(ecdf_envelope(count, ranks.num_draws, level))
    lines = {}
    for name, found in ranks.ranks.items():
        counts = torch.bincount(found.cpu(), minlength=ranks.num_draws + 1)
        lines[name] = counts.cumsum(0) / count - place
    shown = _farthest(ranks, most)
    with look():
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(place, -width, width, color="0.85", label=f"{level:.0%} band")
        for name, colour in zip(shown, colours(len(shown)), strict=True):
            axes.step(place, lines[name], where="post", color=colour, label=name, lw=1.4)
        axes.set(xlabel="rank of the truth among the guide's draws (share)", ylabel="ECDF less uniform")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def rank_histogram_plot(ranks: CalibrationRanks, bins: int = 20, level: float = 0.95, most: int = 6) -> Figure:
    """Histograms of the truth's ranks, one panel a quantity: flat for an exact posterior (Talts et al. 2018).

    A ∪ is a guide too narrow, a ∩ one too wide, a slope a biased one. The band holds each bar with the probability
    ``level``, so one bar in twenty stands outside by chance.

    Args:
        ranks: from :func:`evaluation.simulation_calibration.simulation_ranks`.
        bins: bars, at most the number of different ranks.
        level: of the band.
        most: quantities shown, the farthest from uniform.

    Raises:
        ValueError: fewer than two bins.
    """
    values = {name: (ranks.ranks[name].double() + 0.5) / (ranks.num_draws + 1) for name in _farthest(ranks, most)}
    return _histograms(
        values, min(bins, ranks.num_draws + 1), level, "rank of the truth among the guide's draws (share)"
    )


def pit_plot(values: Mapping[int, Tensor], bins: int = 20, level: float = 0.95) -> Figure:
    """Histograms of probability integral transforms, one panel a size of the context: flat where calibrated.

    Args:
        values: by number of context points, from :func:`evaluation.simulation_calibration.pit_by_context_size`.
        bins: bars.
        level: of the band, for independent points; points of one task are not quite that.

    Raises:
        ValueError: no values, or fewer than two bins.
    """
    if not values:
        raise ValueError("values: got none; at least one size of context is needed")
    named = {f"{size} context points": values[size].flatten() for size in sorted(values)}
    return _histograms(named, bins, level, "probability integral transform")


def _farthest(ranks: CalibrationRanks, most: int) -> list[str]:
    distance = {name: float(ecdf_distance(found.cpu(), ranks.num_draws)) for name, found in ranks.ranks.items()}
    return sorted(distance, key=lambda name: -distance[name])[:most]


def _histograms(values: Mapping[str, Tensor], bins: int, level: float, label: str) -> Figure:
    """Densities of values in (0, 1), three panels a row, with the band of uniform ones."""
    if bins < 2:
        raise ValueError(f"bins: got {bins}; at least 2 are needed")
    columns = min(3, len(values))
    rows = math.ceil(len(values) / columns)
    with look():
        figure = Figure(figsize=(WIDTH, 0.6 + 1.7 * rows), layout="constrained")
        panels: list[Axes] = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
        for axes, (name, found), colour in zip(panels, values.items(), colours(len(values)), strict=False):
            count = found.numel()
            low, high = (
                float(binom.ppf(p, count, 1 / bins)) * bins / count for p in ((1 - level) / 2, (1 + level) / 2)
            )
            axes.axhspan(low, high, color="0.88", linewidth=0)
            axes.axhline(1, color=INK, linewidth=1, linestyle="--")
            axes.hist(found.cpu().numpy(), bins=bins, range=(0, 1), density=True, color=colour, alpha=0.7)
            axes.set(xlim=(0, 1), title=name)
        for axes in panels[len(values) :]:
            axes.set_axis_off()
        figure.supxlabel(label, fontsize=10)
    return figure
