"""A fit that is interrupted finishes its step and writes a checkpoint first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A fit ended by Ctrl-C or SIGTERM, after it wrote a checkpoint.

    Args:
        step: steps done.
        folder: where the checkpoint is.
        number: of the signal.
    """

    def __init__(self, step: int, folder: Path, number: int) -> None:
        super().__init__(f"interrupted at step {step}; the checkpoint in {folder} is complete, resume=True goes on")
        self.step, self.folder, self.number = step, folder, number


class Asked:
    """Whether a signal has asked a fit to end.

    Attributes:
        number: of the signal; None so far.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The first signal is kept until the step is done; a second one does not wait."""
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def until_asked(enabled: bool) -> Iterator[Asked]:
    """Takes Ctrl-C and SIGTERM as a request within a block; afterwards they mean what they meant.

    Args:
        enabled: False leaves signals alone, as does any thread but the main one, which cannot take them.
    """
    asked = Asked()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    # a handler that is not Python's own cannot be put back
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not None}
    try:
        for number in before:
            signal.signal(number, asked)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
