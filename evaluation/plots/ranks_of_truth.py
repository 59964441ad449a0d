"""Simulation-based calibration as pictures: ECDFs of ranks inside their envelope."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from evaluation.plots.style import WIDTH, colours, look
from evaluation.simulation_calibration import CalibrationRanks, ecdf_envelope


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
    shown = sorted(lines, key=lambda name: -float(lines[name].abs().max()))[:most]
    with look():
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(place, -width, width, color="0.85", label=f"{level:.0%} band")
        for name, colour in zip(shown, colours(len(shown)), strict=True):
            axes.step(place, lines[name], where="post", color=colour, label=name, lw=1.4)
        axes.set(xlabel="rank of the truth among the guide's draws (share)", ylabel="ECDF less uniform")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
