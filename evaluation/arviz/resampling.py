"""Weighted draws of a guide made into equal ones, by Pareto-smoothed importance resampling."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import xarray

from evaluation.arviz.pyro_converter import SAMPLE_DIMS
from inference.pareto_smoothing import khat_threshold, psis_weights
from pp_models.arguments import DRAWS, SEED, checked

#: groups whose draws are of the posterior
WEIGHED = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "unconstrained_posterior",
    "log_prior",
)


@checked(num_samples=DRAWS, seed=SEED)
def resample(idata: Any, num_samples: int | None = None, *, seed: int = 0) -> Any:
    """Draws of the posterior by the importance weights of a guide's draws, for tools that know no weights.

    What :func:`evaluation.to_arviz` and :func:`evaluation.from_pyro_svi` give holds ``log_weight`` beside draws of the
    guide; a summary, an interval or ``loo`` of them is the guide's. Here the draws are resampled, with replacement, by
    their Pareto-smoothed weights (Vehtari et al. 2024), one place of a stratified sample each. Where tasks (or the
    elements of a plate that holds every site) have weights of their own, each is resampled by its own; what is kept as
    one draw is then a draw of each.

    Args:
        idata: an ``InferenceData`` or ``DataTree`` with ``sample_stats/log_weight``.
        num_samples: draws; as many as there are if None. They make one chain.
        seed: of the sample.

    Returns:
        A container of the same kind: the groups of the posterior resampled, all others as they were.

    Raises:
        ValueError: there are no weights, as in draws of NUTS or draws that were resampled before.

    Warns:
        UserWarning: some k-hat is above its limit, so that the weights mend nothing; or a variable belongs to no
            element of the plates and is left out.

    Example:
        >>> # weighed = gb.resample(gb.from_pyro_svi(model, guide, data)); az.loo(weighed)
    """
    groups = groups_of(idata)
    stats = groups.get("sample_stats")
    if stats is None or "log_weight" not in stats:
        raise ValueError(
            "idata: it has no sample_stats/log_weight, so its draws are equal already; it must come from to_arviz or "
            "from_pyro_svi, not resampled before"
        )
    weights = stats["log_weight"].transpose(*SAMPLE_DIMS, ...)
    plates = tuple(weights.dims[2:])
    smoothed, khat = psis_weights(torch.as_tensor(weights.values).double())
    limit = khat_threshold(int(np.prod(weights.shape[:2])))
    bad = int((khat > limit).sum())
    if bad:
        warnings.warn(
            f"k-hat is above {limit:.2f} for {bad} of {khat.numel()} (largest {float(khat.max()):.2f}): these weights "
            "have no reliable mean, and resampling does not mend the guide there",
            stacklevel=2,
        )
    count = num_samples or int(np.prod(weights.shape[:2]))
    chosen = xarray.DataArray(_stratified(smoothed.exp().flatten(0, 1), count, seed), dims=("draw", *plates))
    places = {plate: weights[plate].values for plate in plates}
    found = {}
    for name, group in groups.items():
        found[name] = group if name not in WEIGHED else _resampled(name, group, chosen, places)
    return _packed(idata, found)


def _stratified(weights: torch.Tensor, count: int, seed: int) -> np.ndarray:
    """Indices ``[count, *B]`` in random order, by weights ``[S, *B]`` that sum to one."""
    flat = weights.reshape(len(weights), -1).numpy()
    generator = np.random.default_rng(seed)
    found = np.empty((count, flat.shape[1]), dtype=np.int64)
    for i, column in enumerate(flat.T):
        places = (np.arange(count) + generator.random(count)) / count
        edges = np.cumsum(column)
        found[:, i] = generator.permutation(np.searchsorted(edges / edges[-1], places).clip(max=len(column) - 1))
    return found.reshape(count, *weights.shape[1:])


def _resampled(name: str, group: Any, chosen: xarray.DataArray, places: dict[str, np.ndarray]) -> Any:
    kept = {}
    for label, variable in group.data_vars.items():
        if label == "log_weight" or not set(SAMPLE_DIMS) <= set(variable.dims):
            continue  # what sums up the weights speaks of the draws that were
        index = _index(variable, chosen, places)
        if index is None:
            missing = " and ".join(plate for plate in places if plate not in variable.dims)
            warnings.warn(f"{name}/{label} has no dimension {missing} and is left out", stacklevel=3)
            continue
        stacked = variable.stack(_sample=SAMPLE_DIMS, create_index=False)
        own = [str(dim) for dim in index.dims if dim != "draw"]
        pointwise = {dim: xarray.DataArray(np.arange(index.sizes[dim]), dims=dim) for dim in own}
        drawn = stacked.isel(_sample=index, **pointwise).drop_vars(SAMPLE_DIMS, errors="ignore")
        others = [dim for dim in variable.dims if dim not in SAMPLE_DIMS]
        kept[label] = drawn.expand_dims("chain").transpose("chain", "draw", *others)
    size = chosen.sizes["draw"]
    attrs = {**group.attrs, "resampled": "by Pareto-smoothed importance weights"}
    return xarray.Dataset(kept, {"chain": [0], "draw": np.arange(size)}, attrs)


def _index(variable: Any, chosen: xarray.DataArray, places: dict[str, np.ndarray]) -> xarray.DataArray | None:
    """Which draw each element of a variable takes: its own task's, where tasks have weights of their own."""
    if not places or set(places) <= set(variable.dims):
        return chosen
    # a stacked dimension has, for each plate, a coordinate that says which element an entry belongs to
    for dim in variable.dims:
        at = {}
        for plate, values in places.items():
            coordinate = next(
                (
                    c
                    for n, c in variable.coords.items()
                    if c.dims == (dim,) and (n == plate or str(n).endswith(f"_{plate}"))
                ),
                None,
            )
            if coordinate is None:
                break
            where = {value: i for i, value in enumerate(values.tolist())}
            at[plate] = xarray.DataArray([where[value] for value in coordinate.values.tolist()], dims=str(dim))
        else:
            return chosen.isel(at)
    return None


def groups_of(idata: Any) -> dict[str, Any]:
    """The groups of a container.

    Raises:
        ValueError: it is none.
    """
    if isinstance(idata, xarray.DataTree):
        return {name: node.to_dataset() for name, node in idata.children.items()}
    if not hasattr(idata, "groups"):
        raise ValueError(f"idata: got {type(idata).__name__}; it must be an InferenceData or a DataTree")
    return {name: getattr(idata, name) for name in idata.groups()}


def _packed(idata: Any, groups: dict[str, Any]) -> Any:
    if isinstance(idata, xarray.DataTree):
        return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=idata.attrs), **groups})
    import arviz  # here, because it takes seconds to import

    return arviz.InferenceData(**groups, attrs=dict(idata.attrs))
