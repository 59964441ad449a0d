"""Ranks: how many are kept while training, at what threshold, how steadily, and how much energy the first carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from evaluation.plots.style import SEQUENTIAL, SOFT, WIDTH, colours, look


def rank_heatmaps(tables: Sequence[pd.DataFrame]) -> Figure:
    """Kept ranks over training steps, summed by layer (left) and by kind of module (right), averaged over seeds.

    Args:
        tables: one ``rank_analysis.rank_table`` a seed, with the same steps and modules.

    Raises:
        ValueError: no table, or an empty one.
    """
    if not tables or any(table.empty for table in tables):
        raise ValueError("tables: at least one table with rows is needed")
    together = pd.concat(tables)
    with look():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        for axes, by in zip(figure.subplots(1, 2), ("layer", "kind"), strict=True):
            sums = together.groupby([by, "step"], sort=True).kept.sum().unstack("step") / len(tables)
            shown = axes.imshow(sums.to_numpy(), aspect="auto", cmap=SEQUENTIAL, vmin=0, interpolation="nearest")
            axes.grid(False)
            axes.set_yticks(range(len(sums)), [str(name) for name in sums.index])
            places = sorted({0, len(sums.columns) // 2, len(sums.columns) - 1})
            axes.set_xticks(places, [str(sums.columns[i]) for i in places])
            axes.set(xlabel="step", ylabel=by)
            figure.colorbar(shown, ax=axes, orientation="horizontal", location="top", pad=0.02).set_label("ranks kept")
            figure.axes[-1].grid(False)
    return figure


def threshold_plot(curves: Sequence[pd.DataFrame], score: str = "accuracy") -> Figure:
    """A score against the total rank that is left, one line a seed, points labelled by threshold on the first.

    Args:
        curves: ``rank_analysis.threshold_curve`` a seed.
        score: what the score is called.
    """
    with look():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        for number, (curve, colour) in enumerate(zip(curves, colours(len(curves)), strict=True)):
            axes.plot(curve["rank"], curve.score, "o-", ms=4, lw=1.2, color=colour, label=f"seed {number}")
        labelled, apart = float("inf"), 0.03 * max(float(curves[0]["rank"].max()), 1.0)
        for row in curves[0].sort_values(["rank", "threshold"], ascending=False).itertuples():
            if labelled - row.rank >= apart:  # of points that (almost) coincide the mildest threshold
                axes.annotate(
                    f"{row.threshold:g}", (row.rank, row.score), (0, 6), textcoords="offset points", fontsize=8,
                    color=SOFT, ha="center",
                )  # fmt: skip
                labelled = row.rank
        axes.margins(y=0.15)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="ranks kept in all (thresholds of log α beside the points)", ylabel=score)
        if len(curves) > 1:
            axes.legend()
    return figure


def energy_plot(curves: Mapping[str, Tensor]) -> Figure:
    """Share of the energy of ΔW in its first m components: means over seeds or modules, and the band of them all.

    Args:
        curves: ``[S, r]`` or ``[r]`` by name, such as the fields of ``rank_analysis.EnergyCurve``.
    """
    with look():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        for (name, value), colour in zip(curves.items(), colours(len(curves)), strict=True):
            rows = value.reshape(-1, value.shape[-1]).clamp_min(-0.2).cpu()
            m = range(1, rows.shape[-1] + 1)
            axes.plot(m, rows.mean(0), "o-", ms=3.5, lw=1.3, color=colour, label=name)
            axes.fill_between(m, rows.amin(0), rows.amax(0), color=colour, alpha=0.15, lw=0)
        axes.set(xlabel="components, in order", ylabel="share of energy", ylim=(-0.22, 1.04))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower right")
    return figure


def stability_plot(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Total rank over training, mean and one standard deviation over seeds.

    Args:
        curves: ``rank_analysis.rank_stability`` by name.
    """
    with look():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        for (name, curve), colour in zip(curves.items(), colours(len(curves)), strict=True):
            spread = curve["std"].fillna(0.0)
            axes.plot(curve.step, curve["mean"], color=colour, label=name)
            axes.fill_between(curve.step, curve["mean"] - spread, curve["mean"] + spread, color=colour, alpha=0.2, lw=0)
        axes.set(xlabel="step", ylabel="total rank")
        axes.set_ylim(bottom=0)
        axes.legend()
    return figure


def scale_plot(log_alpha: Mapping[str, Tensor], threshold: float = 1.0) -> Figure:
    """Every component's log α, sorted, by method or seed; the line is the threshold below which a rank is kept.

    Args:
        log_alpha: any shape, by name.
        threshold: of log α.
    """
    with look():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        for (name, value), colour in zip(log_alpha.items(), colours(len(log_alpha)), strict=True):
            ordered = value.flatten().sort().values.cpu()
            axes.plot(range(1, len(ordered) + 1), ordered, lw=1.4, color=colour, label=name)
        axes.axhline(threshold, color=SOFT, lw=0.9, ls="--")
        axes.set(xlabel="components, sorted", ylabel="log α")
        if len(log_alpha) > 4:
            figure.legend(loc="outside right center")
        else:
            axes.legend()
    return figure


def kappa_plot(planted: pd.DataFrame, text: pd.DataFrame) -> Figure:
    """Ranks kept (left) and NLL on text (right) against κ, the weight of a rank's KL.

    Args:
        planted: one row a problem: ``kappa`` and ``share`` of ranks kept.
        text: one row a run: ``model``, ``kappa`` (none for rivals, which become level lines), ``rank``, ``nll``,
            ``mean_nll_validation``, ``mean_nll_test``.
    """
    swept, rivals = text.dropna(subset="kappa"), text[text.kappa.isna()]
    means = swept.groupby("kappa").mean(numeric_only=True)
    first, second = colours(2)
    with look():
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        share = planted.groupby("kappa").share.mean()
        left.plot(share.index, share, "o-", ms=4, color=first, label="planted rank")
        offered = rivals["rank"].max()
        left.plot(means.index, means["rank"] / offered, "s-", ms=4, color=second, label="sentences")
        left.set(ylabel="share of ranks kept", ylim=(-0.03, 1.05))
        right.plot(means.index, means.nll, "s-", ms=4, color=second, label="LRVD, draws, test")
        for kind, style in (("test", "s--"), ("validation", "s:")):
            right.plot(
                means.index, means[f"mean_nll_{kind}"], style, ms=4, mfc="white", color=second, label=f"mean, {kind}"
            )
        for (name, nll), style in zip(rivals.groupby("model", sort=False).nll.mean().items(), cycle((":", "-."))):
            right.axhline(nll, color="0.35", lw=1.0, ls=style, label=str(name))
        right.set(ylabel="NLL on sentences")
        for axes in (left, right):
            axes.set(xscale="log", xlabel="κ")
        left.legend(fontsize=8)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=8)
    return figure
