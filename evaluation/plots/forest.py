"""A guide's posterior beside a reference's, entry by entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from evaluation.plots.style import WIDTH, colours, look

if TYPE_CHECKING:
    from evaluation.grading import Grade


def forest(grade: Grade, most: int = 20) -> Figure:
    """Central 50 and 90 % intervals of guide and reference, for the entries that differ most.

    Args:
        grade: from :func:`evaluation.grade`.
        most: how many entries, those of the largest 1-Wasserstein distance first.
    """
    rows = grade.entries.sort_values("wasserstein", ascending=False).head(most)[::-1]
    with look():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.28 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for shift, name, colour in zip((0.14, -0.14), ("guide", "reference"), colours(2), strict=True):
            places = [i + shift for i in range(len(rows))]
            axes.hlines(places, rows[f"{name}_5"], rows[f"{name}_95"], color=colour, lw=1.2)
            axes.hlines(places, rows[f"{name}_25"], rows[f"{name}_75"], color=colour, lw=3.5)
            axes.plot(rows[f"{name}_50"], places, "o", color=colour, ms=4, label=name)
        axes.set_yticks(range(len(rows)), list(rows["entry"]))
        axes.set_xlabel("value")
        axes.legend(loc="best")
    return figure
