"""The mean of a fit's last parameters (Polyak and Juditsky 1992), which is nearer the optimum than the last of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_swa_multi_avg_fn

from pp_models.files import FileError

#: what a checkpoint's state says of it
KEYS = {"count", "averages", "iterates"}


class StandIns:
    """Values that a fit ends at, and its checkpoints hold, in place of the parameters that training goes on from.

    Args:
        parameters: what is trained.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        #: one for each parameter; empty while there are none
        self.values: list[Tensor] = []

    @torch.no_grad()
    def put(self) -> list[Tensor]:
        """Puts the values in the parameters' place, if there are any; what stood there."""
        held = [p.detach().clone() for p in self.parameters] if self.values else []
        for p, value in zip(self.parameters, self.values, strict=False):
            p.copy_(value)
        return held

    @contextmanager
    def in_place(self) -> Iterator[list[Tensor]]:
        """The values in the parameters' place for a while; gives the parameters that training goes on from."""
        held = self.put()
        try:
            yield held
        finally:
            self.restore(held)

    @torch.no_grad()
    def restore(self, held: Sequence[Tensor]) -> None:
        """Puts parameters back, those of a checkpoint too."""
        for p, value in zip(self.parameters, held, strict=False):
            p.copy_(value)


class LastParameters(StandIns):
    """Keeps the mean of the parameters after each of the last steps; a fit ends at it.

    Args:
        parameters: what is trained.
        share: of the steps whose parameters are averaged; None for no averaging.
        steps: of the fit.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], share: float | None, steps: int) -> None:
        super().__init__(parameters)
        self.share = share
        #: the first step whose parameters count
        self.start = steps if share is None else steps - max(1, round(share * steps))
        self.count = 0
        self._update: Any = get_swa_multi_avg_fn()

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Takes in the parameters after a step, counted from 0."""
        if self.share is None or step < self.start:
            return
        now = [p.detach().to(_kept(p.dtype)) for p in self.parameters]
        if not self.count:
            self.values = [value.clone() for value in now]
        else:
            self._update(self.values, now, self.count)
        self.count += 1

    def state_dict(self, held: list[Tensor]) -> dict[str, Any] | None:
        """For a checkpoint whose weights are the means: how many they are of, and what training goes on from."""
        return {"count": self.count, "averages": list(self.values), "iterates": held} if self.count else None

    def load(self, state: Mapping[str, Any] | None, done: int, folder: Any) -> None:
        """Goes on from a checkpoint: the parameters are again what they were after its last step.

        Args:
            state: what :meth:`state_dict` gave.
            done: steps done.
            folder: for messages.

        Raises:
            ValueError: the run has averaged, or has not, where this one would otherwise.
            FileError: it is no such state.
        """
        expected = max(done - self.start, 0) if self.share is not None else 0
        if state is None and not expected:
            return
        found = _checked(state, self.parameters, folder) if state is not None else 0
        if self.share is None:
            raise ValueError(
                f"average: got None, but the run in {folder} is at the mean of its last {found} steps; pass the share "
                "that it was begun with"
            )
        if expected and found != expected:
            least = int(done / (1 - self.share)) + 1 if self.share < 1 else None
            remedy = f"; it must be of {least:,} steps or more, which begin to average later" if least else ""
            raise ValueError(
                f"average: got {self.share:g} of so many steps that averaging begins at step {self.start}, but the run "
                f"in {folder} has averaged {found} of its {done} steps{remedy}"
            )
        assert state is not None
        self.restore(state["iterates"])
        if expected:
            self.count = found
            self.values = [v.to(p.device) for v, p in zip(state["averages"], self.parameters, strict=True)]


def _kept(dtype: torch.dtype) -> torch.dtype:
    """Half precision would lose the small changes of a mean of many."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _checked(state: Any, parameters: Sequence[Tensor], folder: Any) -> int:
    """How many steps a mean is of, once it fits the parameters.

    Raises:
        FileError: it does not.
    """
    fits = isinstance(state, dict) and set(state) == KEYS and type(state["count"]) is int and state["count"] > 0
    if not (
        fits and fit_parameters(state["averages"], parameters, _kept) and fit_parameters(state["iterates"], parameters)
    ):
        raise FileError(f"{folder}: the mean of the last parameters in its state does not fit model and guide")
    return int(state["count"])


def fit_parameters(
    values: Any, parameters: Sequence[Tensor], dtype: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype
) -> bool:
    """Whether these are finite tensors, one for each parameter, of its shape and of the dtype that is kept of its."""
    return (
        isinstance(values, list)
        and len(values) == len(parameters)
        and all(
            isinstance(v, Tensor) and (v.shape, v.dtype) == (p.shape, dtype(p.dtype)) and bool(torch.isfinite(v).all())
            for v, p in zip(values, parameters, strict=True)
        )
    )
