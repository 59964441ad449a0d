"""Noise per example as an effect handler: every row of a batch under a draw of its own."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK

from pp_models.arguments import checked, integer


class per_example_noise(Messenger):
    """Draws what a guide over adapters makes random once for each row of the data, instead of once for the batch.

    Wrap it around guide *and* model together, inside of a plate of particles. A site's draws are n times as many, and
    its density, or KL, counts 1/n: the bound has the same expectation, and its likelihood part the noise of n
    independent terms instead of that of one draw that all share (the "sequence" noise of LRVD's peft layers). Rows
    under different draws are **not one function**: never use it for predictions. Point masses stay one. What a layer
    reads once for all rows, such as a DeBERTa's relative positions, has the draw of the first.

    Args:
        rows: n, points of all tasks together.

    Raises:
        ValueError: n below 1; where a model is run on another number of rows, it says so.
    """

    @checked(rows=integer(1))
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        #: sites of the guide that have n draws, which the model's must have too
        self.names: set[str] = set()

    def __enter__(self) -> per_example_noise:
        self.names.clear()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        name, fn = msg["name"], msg["fn"]
        of_model = msg["value"] is not None  # replayed
        if of_model and name not in self.names:
            return
        if not of_model:
            if isinstance(fn, Delta) or fn.batch_shape or not fn.event_shape:
                return
            self.names.add(name)
        msg["fn"] = fn.expand((self.rows,)).to_event(1)
        msg["scale"] = msg["scale"] / self.rows


def rows_with_noise() -> int | None:
    """How many rows have a draw of their own, where :class:`per_example_noise` is on; else None."""
    for handler in _PYRO_STACK:
        if isinstance(handler, per_example_noise):
            return handler.rows
    return None
