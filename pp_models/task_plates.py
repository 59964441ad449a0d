"""The independent task dimensions as named Pyro plates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pyro
import torch
from torch import Tensor

from pp_models.data import DataError

TASK_PLATE = "tasks"
PARTICLE_PLATE = "particles"


def task_plate_name(position: int) -> str:
    """Name of the task plate at dim ``-1 - position``: ``tasks``, ``tasks_1``, ``tasks_2`` …"""
    return TASK_PLATE if position == 0 else f"{TASK_PLATE}_{position}"


@contextmanager
def task_plates(batch_shape: torch.Size, device: torch.device | None = None) -> Iterator[None]:
    """Enters one plate for each task dimension of ``batch_shape``, the rightmost named ``tasks``.

    Raises:
        DataError: a dimension has size 0.
    """
    if 0 in batch_shape:
        raise DataError(f"data: got task dimensions {list(batch_shape)}; it must hold at least one task")
    with ExitStack() as stack:
        for position, size in enumerate(reversed(batch_shape)):
            name, at = task_plate_name(position), -1 - position
            stack.enter_context(pyro.plate(name, size, dim=at, device=device))  # type: ignore[arg-type]
        yield


def without_repeats(value: Tensor, event_dims: int) -> Tensor:
    """Drops copies along leading dimensions: an expanded point mass is the same for all particles.

    What is computed from the result is computed once instead of once a particle, and broadcasts to the same values.

    Args:
        value: ``[*B, *event]``.
        event_dims: number of trailing dimensions that are left as they are.
    """
    for dim in range(value.dim() - event_dims):
        if value.stride(dim) == 0 and value.shape[dim] > 1:
            value = value.narrow(dim, 0, 1)
    return value
