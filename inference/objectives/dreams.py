"""Latents and observations drawn from the model, and the guide's density of those latents given those observations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from inference.objectives.fixed_values import only_drawn
from inference.objectives.independent_plates import sample_sites
from pp_models.contract import as_guide
from pp_models.data import Dataset


def repeated(data: Dataset, count: int) -> Dataset:
    """``count`` copies of every task along a new first dimension."""
    x = data.x.expand(count, *data.x.shape)
    masks = (None if mask is None else mask.expand(count, *mask.shape) for mask in (data.mask, data.observed))
    return Dataset.unchecked(x, None, *masks)  # what is drawn will miss the outputs that the data miss


def simulate_data_set(model: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict, Trace]:
    """Draws latents and observations at the inputs of a Dataset."""
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    return (args[0].with_y(trace.nodes["y"]["value"]), *args[1:]), kwargs, trace


class Anew(Messenger):
    """Draws observed sites as latent ones; deterministic sites and factors stay."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic", False):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False
            self.names.append(msg["name"])


def simulate_arguments(model: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict, Trace]:
    """Draws latents and observations; a model's argument of an observed site's name becomes what was drawn.

    Raises:
        ValueError: an observed site that no argument is called by.
    """
    with Anew() as anew:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    drawn = {name: trace.nodes[name]["value"] for name in anew.names}
    names = _parameters(model)
    observed = {n: i for i, n in enumerate(names[: len(args)]) if n in drawn}
    missing = sorted(drawn.keys() - observed.keys() - (kwargs.keys() & set(names)))
    if missing or not drawn:
        which = f"site {missing[0]!r} is observed, and no argument is called so" if missing else "it observes nothing"
        raise ValueError(
            f"model: {which}, so that the guide could not be shown what was simulated; name the argument as the "
            "site, or pass simulate="
        )
    changed = [drawn[names[i]] if i in observed.values() else value for i, value in enumerate(args)]
    return tuple(changed), {name: drawn.get(name, value) for name, value in kwargs.items()}, trace


def _parameters(model: Any) -> list[str]:
    call = model.forward if isinstance(model, nn.Module) else model
    try:
        return list(inspect.signature(call).parameters)
    except (TypeError, ValueError):
        return []


def guide_at(guide: Callable, dream: Trace, args: tuple, kwargs: Mapping[str, Any]) -> Trace:
    """The guide at the latents of a dream: a trace whose densities are of them.

    Raises:
        ValueError: the dream's prior is flat somewhere.
    """
    for name, site in sample_sites(dream):
        if getattr(site["fn"], "_mask", None) is False:
            raise ValueError(
                f"site {name!r}: its prior is flat, so that nothing can be simulated; take a model with a proper "
                "prior, or an objective that does not simulate (rws with sleep_phi=0)"
            )
    values = {name: site["value"] for name, site in sample_sites(dream)}
    auxiliary: Mapping[str, Tensor] = as_guide(guide).auxiliary_values(values)
    fixed = only_drawn(dream)
    if auxiliary:
        fixed = Trace()
        for name, value in auxiliary.items():
            fixed.add_node(name, name=name, type="sample", is_observed=False, infer={}, value=value)
    return poutine.trace(poutine.replay(guide, trace=fixed)).get_trace(*args, **kwargs)
