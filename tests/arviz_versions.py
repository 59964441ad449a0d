"""What differs between ArviZ below 1 and from 1 on, in one place, so that every test runs on both."""

from typing import Any

import arviz
import arviz_stats
import xarray

from evaluation.arviz.pyro_converter import choose_container

#: what the installed ArviZ reads, and what it can be given
NATIVE = choose_container("auto")
CONTAINERS = ["inferencedata", "datatree"] if NATIVE == "inferencedata" else ["datatree"]


def container_of(container: str, **groups: xarray.Dataset) -> Any:
    """Groups as a container of that kind."""
    return xarray.DataTree.from_dict(groups) if container == "datatree" else arviz.InferenceData(**groups)


def statistics(data: Any) -> Any:
    """The library whose ``summary``, ``loo`` and ``compare`` take this container."""
    return arviz_stats if isinstance(data, xarray.DataTree) else arviz


def loo(data: Any) -> Any:
    """ArviZ's leave-one-out with its points, whichever container."""
    return statistics(data).loo(data, pointwise=True)


def elpd(data: Any) -> float:
    """ArviZ's leave-one-out expected log predictive density, whichever container."""
    found = loo(data)
    return float(found.elpd if isinstance(data, xarray.DataTree) else found.elpd_loo)


def group_names(data: Any) -> set[str]:
    return set(data.children if isinstance(data, xarray.DataTree) else data.groups())


def as_dataset(group: Any) -> xarray.Dataset:
    return group.to_dataset(inherit=False) if isinstance(group, xarray.DataTree) else group
