"""Points of a context embedded once, for a guide that is run on the context and on the whole task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from pp_models.data import Dataset


class SharedPoints:
    """What encoders made of a whole task's points, of which the context's are the first.

    Args:
        context: the context.
        full: ``context | target``, or the context itself.
    """

    def __init__(self, context: Dataset, full: Dataset) -> None:
        self.context, self.full = context, full
        self._made: dict[int, tuple[Any, Tensor]] = {}

    def embedded(self, encoder: Any, data: Dataset, embed: Callable[[Dataset], Tensor]) -> Tensor | None:
        """Embeddings ``[*B, N, E]`` of the one or the other data set; None for any other.

        Args:
            encoder: whose they are.
            data: what it is asked for.
            embed: makes them, each point's from that point alone.
        """
        if data is not self.context and data is not self.full:
            return None
        if id(encoder) not in self._made:
            self._made[id(encoder)] = encoder, embed(self.full)  # holding the encoder keeps its id its own
        found = self._made[id(encoder)][1]
        return found if data is self.full else found[..., : self.context.num_points, :]


_active: ContextVar[SharedPoints | None] = ContextVar("shared_points", default=None)


@contextmanager
def shared_points(context: Dataset, full: Dataset) -> Iterator[None]:
    """Within the block an encoder that treats points one by one passes over a task once, whichever it is asked for."""
    token = _active.set(SharedPoints(context, full))
    try:
        yield
    finally:
        _active.reset(token)


def active_points() -> SharedPoints | None:
    """What the innermost block shares."""
    return _active.get()
