"""A short table out of a posterior with thousands of weights, through whichever ArviZ is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray
from matplotlib.figure import Figure

from evaluation.arviz.pyro_converter import choose_container


def summarise(container: Any, **options: Any) -> pd.DataFrame:
    """ArviZ's own summary: ``arviz.summary`` of an InferenceData, ``arviz_stats.summary`` of a DataTree.

    Args:
        container: what ``to_arviz`` returned.
        **options: passed on, such as ``var_names`` and ``coords``.
    """
    if isinstance(container, xarray.DataTree):
        import arviz_stats

        return arviz_stats.summary(container, **options)
    import arviz

    return arviz.summary(container, **options)


def widest_entries(container: Any, most: int = 10) -> pd.DataFrame:
    """ArviZ's summary of the scalar entries with the largest posterior standard deviation, one row an entry.

    Args:
        container: what ``to_arviz`` returned.
        most: rows.
    """
    table = summarise(_widest(container, most), kind="stats")
    return table.rename_axis("entry").reset_index()


def widest_forest(container: Any, most: int = 10) -> Figure:
    """ArviZ's forest plot of the same entries: medians, 50 % and 90 % HDI.

    Args:
        container: what ``to_arviz`` returned.
        most: entries.
    """
    from matplotlib import pyplot

    shown = _widest(container, most)
    size = (7.6, 0.8 + 0.3 * most)
    if choose_container("auto") == "datatree":
        import arviz_plots

        grid = arviz_plots.plot_forest(
            shown, combined=True, point_estimate="median", ci_kind="hdi", ci_probs=(0.5, 0.9), backend="matplotlib",
            figure_kwargs={"figsize": size},
        )  # fmt: skip
        figure: Figure = grid.viz["figure"].item()
    else:
        import arviz

        shown = arviz.from_datatree(shown) if isinstance(shown, xarray.DataTree) else shown
        axes = arviz.plot_forest(shown, combined=True, hdi_prob=0.9, figsize=size, textsize=10)
        axes[0].set_title("")
        figure = axes[0].figure
    pyplot.close(figure)  # pyplot forgets it; it is ours now
    figure.tight_layout()
    return figure


def _widest(container: Any, most: int) -> Any:
    """A container of those entries alone, each under its label."""
    posterior = container["posterior"]
    posterior = posterior.to_dataset() if isinstance(posterior, xarray.DataTree) else posterior
    found: list[tuple[float, str, np.ndarray]] = []
    for name, variable in posterior.data_vars.items():
        spread = variable.std(("chain", "draw"))
        for flat in np.argsort(spread.values, axis=None)[::-1][:most]:
            place = dict(zip(spread.dims, np.unravel_index(flat, spread.shape), strict=True))
            coordinates = [str(spread[dim].values[position]) for dim, position in place.items()]
            label = f"{name}[{', '.join(coordinates)}]" if coordinates else str(name)
            draws = variable.isel(place).transpose("chain", "draw").values
            found.append((float(spread.values.flat[flat]), label, draws))
    found.sort(key=lambda entry: -entry[0])
    entries = {label: (("chain", "draw"), draws) for _, label, draws in found[:most]}
    dataset = xarray.Dataset(entries, coords={"chain": posterior["chain"], "draw": posterior["draw"]})
    if isinstance(container, xarray.DataTree):
        return xarray.DataTree.from_dict({"posterior": dataset})
    import arviz

    return arviz.InferenceData(posterior=dataset)
