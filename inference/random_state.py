"""Random numbers of a block under a seed of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_device(seed: int, device: torch.device) -> None:
    """Seeds the CPU's generator and a device's: what ``torch.manual_seed`` does, which asks after every kind of device.

    Args:
        seed: a non-negative integer below 2^64.
        device: the one that computes.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


@contextmanager
def seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """Runs a block under its own seed and puts the random state back; ``None`` leaves the state alone."""
    if seed is None:
        yield
        return
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
