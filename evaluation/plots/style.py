"""The look of every figure: narrow and large-lettered enough for a phone, safe for colour-blind readers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: inches; at this width 10-point letters are still read on a phone
WIDTH = 6.4
INK = "#222222"
SOFT = "#666666"
SEQUENTIAL = "viridis"
SPREAD = "magma"

_STYLE: Any = {
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "figure.dpi": 100,
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same figure on every machine
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a model's name is a dollar sign
    "xtick.color": SOFT,
    "xtick.labelsize": 9,
    "ytick.color": SOFT,
    "ytick.labelsize": 9,
}


@contextmanager
def look() -> Iterator[None]:
    """Draws the block in the house style; matplotlib's settings are as before when it ends."""
    with sns.axes_style("whitegrid"), mpl.rc_context(_STYLE):
        yield


def new_figure(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure that pyplot knows nothing of, and its axes ``[rows, columns]``; inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def colours(number: int) -> list[Any]:
    """As many colours that colour-blind readers can tell apart (Wong 2011), repeated after ten."""
    palette = sns.color_palette("colorblind")
    return [palette[i % len(palette)] for i in range(number)]


def picture_axes(axes: Axes) -> None:
    """Axes for an image: no ticks, no grid, a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)


def symlog_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Ticks at 0 and plus or minus powers of ten, for a symlog scale that is linear up to 1, and their labels."""
    most = max(abs(low), abs(high), 1.0)
    powers = [10.0**i for i in range(math.ceil(math.log10(most)) + 1)]
    ticks = sorted({0.0, *powers, *(-p for p in powers)})
    kept = [t for t in ticks if min(low, 0.0) * 1.05 <= t <= max(high, 0.0) * 1.05] or [0.0]
    return kept, [f"{t:g}".replace("-", "−") for t in kept]
