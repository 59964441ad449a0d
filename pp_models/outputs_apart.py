"""Closed-form conditioning where single outputs of a point are missing: every output has points of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class OutputsApart(NamedTuple):
    """What a context says, output by output.

    Args:
        state: a state as where nothing is missing, batch ``[*B, Dy]``, of one output each.
    """

    state: Any

    @property
    def log_evidence(self) -> Tensor:
        """Log-density of what is known of the context under each head ``[*B, H]``, nats, all outputs together."""
        return self.state.log_evidence.sum(-2)

    @property
    def coefficients(self) -> Tensor:
        """Posterior means of a regression's coefficients ``[*B, H, K, Dy]``."""
        return together(self.state.coefficients.squeeze(-1), 2)


def apart(y: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """y ``[*B, N, Dy]`` as tasks of one output ``[*B, Dy, N, 1]``, and their masks ``[*B, Dy, N]``."""
    return y.mT.unsqueeze(-1), observed.mT


def together(values: Tensor, event_dims: int) -> Tensor:
    """``[*B, Dy, H, *event]`` as ``[*B, H, *event, Dy]``.

    Args:
        values: of each output.
        event_dims: dimensions after Dy, that of the heads included.
    """
    return values.movedim(-1 - event_dims, -1)


def state_apart(state: Any, observed: Tensor | None) -> Any:
    """The state of earlier points, of the kind that further points need.

    Raises:
        ValueError: outputs were apart in the one and together in the other.
    """
    if state is None:
        return None
    if isinstance(state, OutputsApart) != (observed is not None):
        raise ValueError(
            "state: its points and these must both have a mask of outputs, or neither; pass observed= (all True where "
            "nothing is missing) to both"
        )
    return state.state if isinstance(state, OutputsApart) else state
