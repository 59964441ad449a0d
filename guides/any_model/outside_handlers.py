"""Runs of a program that no handler outside of it sees: a guide looks at its model while itself is being traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK


@contextmanager
def outside_handlers() -> Iterator[None]:
    """Takes every handler and plate off, and puts them back; ``poutine.block`` would leave plates their dims."""
    handlers, dims = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
    _PYRO_STACK.clear()
    _DIM_ALLOCATOR._stack.clear()
    try:
        yield
    finally:
        _PYRO_STACK[:] = handlers
        _DIM_ALLOCATOR._stack[:] = dims


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Draws from a seed, and leaves the random state as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
