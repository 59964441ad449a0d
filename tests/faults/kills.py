"""Fits that are killed at random moments and resumed until they are done: the same bytes as one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from tests.faults.flips import train


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_and_resume(folder: Path, scale: float, chance: random.Random, most: int) -> int:
    """Runs a fit in a process that is killed after a random time, again and again, until one ends by itself.

    Args:
        folder: of the run.
        scale: seconds that a whole fit takes; a kill comes within that and a little more.
        chance: of the moments.
        most: kills; after those the fit is let be.

    Returns:
        How many processes were killed.
    """
    killed = 0
    while True:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train(folder, steps=24, resume=True)
                status = 0
            finally:
                os._exit(status)
        if killed < most:
            time.sleep(chance.uniform(0, 1.2 * scale))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            if os.WEXITSTATUS(status):
                raise RuntimeError(f"{folder}: the resumed fit failed")
            return killed
        killed += 1


def kills(count: int, seed: int, scratch: Path) -> tuple[int, int]:
    """At least so many kills over as many folders as it takes.

    Returns:
        Kills, and folders that ended with other bytes than a fit that was left alone.

    Raises:
        RuntimeError: a resumed fit failed.
    """
    whole = scratch / "whole"
    train(whole, steps=24)  # once, for everything that is loaded late
    started = time.perf_counter()
    train(scratch / "again", steps=24)
    scale = time.perf_counter() - started
    expected, chance = contents(whole), random.Random(seed)
    done = different = number = 0
    while done < count:
        folder = scratch / str(number)
        done += kill_and_resume(folder, scale, chance, min(8, count - done))
        different += contents(folder) != expected
        number += 1
    return done, different
