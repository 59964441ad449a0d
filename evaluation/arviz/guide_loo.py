"""Leave-one-out of a guide's draws, corrected by their importance weights, from an ArviZ container."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import xarray

from evaluation.arviz.pyro_converter import SAMPLE_DIMS
from evaluation.arviz.resampling import groups_of
from evaluation.diagnostics.leave_one_out import loo


class ApproximateLOO(NamedTuple):
    """PSIS-LOO of draws of a guide.

    Args:
        elpd: expected log predictive density of all points, in nats.
        se: its standard error over points.
        p_loo: the effective number of parameters.
        pointwise: of each point.
        khat: Pareto k-hat of each point's weights; above 0.7 its number says little.
    """

    elpd: float
    se: float
    p_loo: float
    pointwise: xarray.DataArray
    khat: xarray.DataArray


def approximate_loo(idata: Any, var_name: str | None = None) -> ApproximateLOO:
    """PSIS-LOO with the correction for draws of a guide (Magnusson et al. 2019); ragged tasks are right too.

    ``az.loo`` takes a guide's draws for the posterior's. ArviZ 1.x has ``loo_approximate_posterior``, which wants log_p
    and log_q broadcast to every point by hand; here each point takes its own task's.

    Args:
        idata: what :func:`evaluation.to_arviz` or :func:`evaluation.from_pyro_svi` gave.
        var_name: variable of ``log_likelihood``, where there are several.

    Raises:
        ValueError: no log-likelihood, or no weights, as in draws of NUTS, which ``az.loo`` is right for.

    Example:
        >>> # gb.approximate_loo(gb.to_arviz(model, guide, data)).elpd
    """
    groups = groups_of(idata)
    likelihoods, stats = groups.get("log_likelihood"), groups.get("sample_stats")
    if likelihoods is None:
        raise ValueError("idata: it has no group log_likelihood; it must come from to_arviz or from_pyro_svi")
    if stats is None or not {"log_p", "log_q", "log_weight"} <= set(stats.data_vars):
        raise ValueError("idata: it has no sample_stats/log_weight, so its draws are the posterior's: use az.loo")
    names = list(likelihoods.data_vars)
    if var_name is None and len(names) > 1:
        raise ValueError(f"var_name: got None; it must be one of {', '.join(map(str, names))}")
    if var_name is not None and var_name not in names:
        raise ValueError(f"var_name: got {var_name!r}; it must be one of {', '.join(map(str, names))}")
    points = likelihoods[names[0] if var_name is None else var_name]
    log_p, log_q = (_at_points(stats[name], points) for name in ("log_p", "log_q"))
    rest = [dim for dim in points.dims if dim not in SAMPLE_DIMS]
    order = (*SAMPLE_DIMS, *rest)
    values, p, q = (torch.from_numpy(np.array(a.transpose(*order).values, "f8")) for a in (points, log_p, log_q))
    # each point is a batch of one, with its task's weights
    found = loo(values.unsqueeze(-1), p, q)
    like = points.isel(chain=0, draw=0, drop=True).transpose(*rest)
    pointwise, khat = (like.copy(data=part.squeeze(-1).numpy()) for part in (found.elpd, found.khat))
    number = max(pointwise.size, 1)
    se = float(np.sqrt(number * pointwise.values.var(ddof=1))) if number > 1 else float("nan")
    return ApproximateLOO(float(pointwise.sum()), se, float(found.p_loo.sum()), pointwise, khat)


def _at_points(numbers: xarray.DataArray, points: xarray.DataArray) -> xarray.DataArray:
    """Numbers of draws and tasks, at every point: along stacked points by their own coordinate of the task."""
    for dim in [d for d in numbers.dims if d not in (*SAMPLE_DIMS, *points.dims)]:
        stacked = dim if dim in points.coords else f"{points.name}_{dim}"  # as from_pyro_svi names it
        if stacked not in points.coords:
            raise ValueError(f"idata: sample_stats has dimension {dim!r}, which log_likelihood does not know")
        numbers = numbers.sel({dim: points.coords[stacked]}).drop_vars([dim], errors="ignore")
    return numbers.broadcast_like(points)
