"""Objectives and guides side by side: likelihood against time, gradient noise, effective sample sizes."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evaluation.plots.style import INK, WIDTH, colours, look

MARKERS = "osD^vPX*"


def swap_matrix_plot(table: pd.DataFrame, noise: pd.DataFrame | None = None) -> Figure:
    """Held-out likelihood against training time; gradient noise against the number of particles; ESS.

    Colours are objectives, markers are guides (of each model, where there are several).

    Args:
        table: what ``evaluation.compare`` returns; failed rows are left out.
        noise: its ``attrs["gradient_noise"]``: columns ``objective``, ``num_particles``, ``snr_guide``, ``ess``. The
            panels it is for are left out without it.

    Raises:
        ValueError: no run has succeeded.
    """
    good = table[table["status"] == "ok"]
    if good.empty:
        raise ValueError(f"table: none of its {len(table)} runs has status 'ok'; there is nothing to show")
    several = good["model"].nunique() > 1
    pair = good["model"] + " · " + good["guide"] if several else good["guide"]
    objectives, pairs = list(dict.fromkeys(good["objective"])), list(dict.fromkeys(pair))
    palette = dict(zip(objectives, colours(len(objectives)), strict=True))
    shapes = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(pairs)}
    dashes: dict[str, Any] = {name: ("-", "--", ":", "-.")[i // 10 % 4] for i, name in enumerate(objectives)}
    with_noise = noise is not None and len(noise) > 0 and (noise["status"] == "ok").any()
    rows = 3 if with_noise else 1
    with look():
        figure = Figure(figsize=(WIDTH, 1.2 + 2.7 * rows), layout="constrained")
        panels = figure.subplots(rows, 1, squeeze=False)[:, 0]
        quarter, most_of = good["pll"].quantile([0.25, 0.75])
        lowest = quarter - 3 * (most_of - quarter)  # runs far below the rest would hide all differences
        below = int((good["pll"] < lowest).sum())
        good = good.assign(pll=good["pll"].clip(lower=lowest))
        for (name, which), rows_of in good.groupby([good["objective"], pair], sort=False):
            panels[0].scatter(
                rows_of["seconds"], rows_of["pll"], s=42, color=palette[name], marker=shapes[which], alpha=0.85,
                edgecolor="white" if dashes[name] == "-" else INK, linewidth=0.5 if dashes[name] == "-" else 1.0,
            )  # fmt: skip
        if below:
            note = f"{below} run{'s' if below > 1 else ''} at or below this line"
            panels[0].axhline(lowest, color=INK, linewidth=0.9, linestyle=":")
            panels[0].annotate(note, (1, lowest), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                               textcoords="offset points", xytext=(-4, 3), fontsize=9)  # fmt: skip
        panels[0].set(
            title="Held-out likelihood and cost", xlabel="training time (s)", ylabel="target points (nats per point)"
        )
        if with_noise:
            assert noise is not None
            shown = noise[(noise["status"] == "ok") & noise["objective"].isin(objectives)]
            _lines(panels[1], shown, "snr_guide", palette, dashes)
            panels[1].set(title="Noise of the guide's gradient", ylabel="signal-to-noise ratio", yscale="log")
            _lines(panels[2], shown, "ess", palette, dashes)
            panels[2].set(title="Weights", ylabel="effective sample size", yscale="log", xlabel="particles K")
            most = shown["num_particles"].max()
            panels[2].plot([1, most], [1, most], color=INK, linewidth=0.9, linestyle=":", zorder=1)
            panels[2].annotate("all K", (most, most), textcoords="offset points", xytext=(-2, -18), ha="right")
            for axes in panels[1:]:
                axes.set_xscale("log", base=2)
                ticks = sorted(shown["num_particles"].unique())
                axes.set_xticks(ticks, [str(k) for k in ticks])
                axes.minorticks_off()
            sns.despine(figure)
        handles = [Line2D([], [], color=palette[n], linestyle=dashes[n], linewidth=2.5, label=n) for n in objectives]
        handles += [Line2D([], [], color=INK, marker=shapes[n], linestyle="", markersize=6, label=n) for n in pairs]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _lines(axes: Axes, noise: pd.DataFrame, column: str, palette: dict, dashes: dict) -> None:
    """The geometric mean over runs against K, one line an objective."""
    for name, rows in noise.groupby("objective", sort=False):
        values = rows[rows[column].apply(lambda v: isinstance(v, float) and math.isfinite(v) and v > 0)]
        if values.empty:
            continue
        curve = values.groupby("num_particles")[column].apply(lambda v: math.exp(sum(map(math.log, v)) / len(v)))
        axes.plot(
            curve.index, curve.to_numpy(), color=palette[name], linestyle=dashes[name], marker="o", markersize=3.5
        )
