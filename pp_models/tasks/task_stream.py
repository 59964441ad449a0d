"""Task distributions: infinite, seeded, resumable streams of TaskBatch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pp_models.arguments import SEED, TASKS, checked
from pp_models.data import TaskBatch


class TaskStream(ABC):
    """An infinite iterable of :class:`TaskBatch` whose b-th batch depends on ``(seed, b)`` alone.

    So two processes with the same seed see the same stream, a resumed run sees the batch it would have seen, and
    ``stream.batch(b)`` gives any batch without drawing those before it. Iterating moves the stream's own position.

    Args:
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
    """

    #: height and width in pixels of the images that are its tasks; None for others
    image_size: tuple[int, int] | None = None

    def description(self) -> bytes | None:
        """What a folder with a fit to these tasks keeps of them, as the file ``data.json``; None for nothing."""
        return None

    @property
    def input_interval(self) -> tuple[float, float] | None:
        """Ends of the interval that holds the inputs of tasks on a line, where they are known."""
        return None

    @checked(batch_size=TASKS, seed=SEED)
    def __init__(self, batch_size: int = 16, seed: int = 0) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.position = 0

    @abstractmethod
    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch with the given generator (CPU)."""

    def batch(self, index: int) -> TaskBatch:
        """The batch at ``index``, whatever the stream's position."""
        words = np.random.SeedSequence([self.seed, index]).generate_state(2, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        return self.sample(generator)

    def __next__(self) -> TaskBatch:
        batch = self.batch(self.position)
        self.position += 1
        return batch

    def __iter__(self) -> Iterator[TaskBatch]:
        return self

    def state_dict(self) -> dict[str, int]:
        """Seed and position; plain integers."""
        return {"seed": self.seed, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues a stream saved by ``state_dict``."""
        self.seed = int(state["seed"])
        self.position = int(state["position"])


def batches_of(stream: Any, start: int, num_tasks: int) -> list[TaskBatch]:
    """Batches of a stream from number ``start`` on, as many as it takes for ``num_tasks`` tasks at least."""
    batches: list[TaskBatch] = []
    while sum(batch.context.batch_shape.numel() for batch in batches) < num_tasks:
        batches.append(stream.batch(start + len(batches)))
    return batches
