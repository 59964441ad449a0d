"""Tasks and points as one dimension ``observation``, which is what ArviZ's functions of data take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from evaluation.arviz.pyro_converter import Variable

LAYOUTS = ("task", "observation")
#: dimension that stacks what is scored
OBSERVATION = "observation"


def as_observations(
    groups: Mapping[str, Mapping[str, Variable]], mask: Tensor, task_dims: tuple[str, ...]
) -> dict[str, dict[str, Variable]]:
    """Stacks (task, point) of every group to the points that exist, and drops a lone output's dimension.

    Args:
        groups: by group and variable name; dimensions may lie before and after (task, point).
        mask: of the scored points ``[*B, N]``.
        task_dims: names of ``*B``.
    """
    stacked = (*task_dims, "point")
    kept = mask.cpu().numpy()
    positions = {dim: index for dim, index in zip(stacked, kept.nonzero(), strict=True)}

    def one(variable: Variable) -> Variable:
        dims = variable.dims
        start = next((i for i in range(len(dims)) if dims[i : i + len(stacked)] == stacked), None)
        if start is None:
            return variable
        index: tuple = (slice(None),) * start
        values = variable.values[(*index, kept)]
        names = (*dims[:start], OBSERVATION, *dims[start + len(stacked) :])
        if names[-1] == "output" and values.shape[-1] == 1:
            values, names = values[..., 0], names[:-1]
        return Variable(np.ascontiguousarray(values), names, positions, names.index(OBSERVATION))

    found = {group: {name: one(variable) for name, variable in each.items()} for group, each in groups.items()}
    for group in ("constant_data", "predictions_constant_data"):
        found.get(group, {}).pop("mask", None)  # what does not exist is not there
    return found
