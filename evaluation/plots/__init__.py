"""Figures, each a matplotlib ``Figure`` of its own: nothing here opens a window or changes matplotlib's settings.

Save one with ``figure.savefig("name.png", dpi=180)``, or put it into a page with ``evaluation.report``.
"""

from __future__ import annotations

from evaluation.plots.calibration import calibration_plot
from evaluation.plots.comparison import comparison_plot, learning_curves, query_curves
from evaluation.plots.densities import density_plot
from evaluation.plots.draws import function_draws
from evaluation.plots.forest import forest
from evaluation.plots.functions import fan_plot
from evaluation.plots.images import image_completions, picture_rows
from evaluation.plots.mixtures import effective_sizes, weight_maps
from evaluation.plots.ranks import energy_plot, kappa_plot, rank_heatmaps, scale_plot, stability_plot, threshold_plot
from evaluation.plots.ranks_of_truth import pit_plot, rank_ecdf_plot, rank_histogram_plot
from evaluation.plots.rates import rate_maps
from evaluation.plots.swap_matrix import swap_matrix_plot

__all__ = [
    "calibration_plot",
    "comparison_plot",
    "density_plot",
    "effective_sizes",
    "energy_plot",
    "fan_plot",
    "forest",
    "function_draws",
    "image_completions",
    "kappa_plot",
    "learning_curves",
    "picture_rows",
    "pit_plot",
    "query_curves",
    "rank_ecdf_plot",
    "rank_heatmaps",
    "rank_histogram_plot",
    "rate_maps",
    "scale_plot",
    "stability_plot",
    "swap_matrix_plot",
    "threshold_plot",
    "weight_maps",
]
