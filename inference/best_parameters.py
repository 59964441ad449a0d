"""The parameters of a fit whose held-out loss was lowest: what early stopping goes back to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from inference.averaging import StandIns, fit_parameters
from inference.held_out import HELD_OUT
from pp_models.files import FileError

#: what a checkpoint's state says of it
KEYS = {"step", "loss", "values", "iterates"}


class BestParameters(StandIns):
    """Keeps the parameters of the logged step whose held-out loss was lowest; a fit ends at them.

    Args:
        parameters: what is trained.
        keep: False keeps none.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], keep: bool) -> None:
        super().__init__(parameters)
        self.keep = keep
        self.step, self.loss = 0, math.inf

    def note(self, row: Mapping[str, float]) -> None:
        """Takes in a logged row, with the parameters as they are."""
        loss = row.get(HELD_OUT)
        if self.keep and loss is not None and loss < self.loss:
            self.step, self.loss = int(row["step"]), loss
            self.values = [p.detach().clone() for p in self.parameters]

    def state_dict(self, held: list[Tensor]) -> dict[str, Any] | None:
        """For a checkpoint whose weights are the best: of which step, and what training goes on from."""
        if not self.values:
            return None
        return {"step": self.step, "loss": self.loss, "values": list(self.values), "iterates": held}

    def load(self, state: Mapping[str, Any] | None, history: Sequence[Mapping[str, float]], folder: Any) -> None:
        """Goes on from a checkpoint: the parameters are again what they were after its last step.

        Args:
            state: what :meth:`state_dict` gave.
            history: rows logged so far.
            folder: for messages.

        Raises:
            ValueError: the run has kept its best and this one would not, or the other way round.
            FileError: it is no such state.
        """
        if state is None:
            if self.keep and any(HELD_OUT in row for row in history):
                raise ValueError(
                    f"keep_best: got True, but the run in {folder} has not kept its best parameters so far; pass False"
                )
            return
        if not (
            isinstance(state, dict)
            and set(state) == KEYS
            and type(state["step"]) is int
            and isinstance(state["loss"], float)
            and math.isfinite(state["loss"])
            and all(fit_parameters(state[name], self.parameters) for name in ("values", "iterates"))
        ):
            raise FileError(f"{folder}: the best parameters in its state do not fit model and guide")
        if not self.keep:
            raise ValueError(
                f"keep_best: got False, but the run in {folder} is at its best parameters, of step {state['step']}; "
                "pass True"
            )
        self.restore(state["iterates"])
        self.step, self.loss = state["step"], state["loss"]
        self.values = [v.to(p.device) for v, p in zip(state["values"], self.parameters, strict=True)]
