"""The cells of a grid as tasks of a Ray cluster: a local one, or one at an address."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")
#: the address that starts a cluster of this machine's own cores
LOCAL = "local"
#: a cell whose worker dies (out of memory, a node gone) is run again so often
RETRIES = 2


def import_ray() -> Any:
    """Ray.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("ray: it is not installed; pip install guidebook[ray]") from None
    return ray


def on_ray(work: Callable[[T], dict], items: Sequence[T], address: str) -> Iterator[tuple[T, dict | str]]:
    """Runs work on every item, one thread and one core each; yields each result as it comes.

    The workers compute as this process does with one thread, so that results are those of a loop.

    Args:
        work: from an item to its result; both travel by cloudpickle.
        items: what to work on.
        address: ``"local"``, or a cluster's: ``"auto"``, ``"ray://head:10001"``.

    Yields:
        An item, and its result or, where its worker died more than ``RETRIES`` times, the reason.

    Raises:
        ValueError: Ray is not installed, or no cluster answers at the address.
    """
    ray = import_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    started = not ray.is_initialized()
    if started:
        where = {} if address == LOCAL else {"address": address}
        try:
            ray.init(**where, log_to_driver=False, configure_logging=False, **({} if where else LOCAL_OPTIONS))
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"ray: no cluster answers at {address!r} ({reason[:160]})") from None
    try:
        run = ray.remote(num_cpus=1, max_retries=RETRIES)(_in_worker)
        shared, flushes = ray.put(work), flushes_denormals()
        waiting = {run.remote(shared, item, flushes): item for item in items}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            item = waiting.pop(ready)
            try:
                yield item, ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines() or [""]
                yield item, f"its worker died {RETRIES + 1} times ({type(error).__name__}: {lines[0][:120]})"
    finally:
        if started:
            ray.shutdown()


#: a cluster of one's own shows no dashboard
LOCAL_OPTIONS = {"address": LOCAL, "include_dashboard": False}


def flushes_denormals() -> bool:
    """Whether this process takes denormal numbers for zero, as the command line does."""
    return not bool(torch.tensor(1e-40) * 1.0 > 0)


def _in_worker(work: Callable[[T], dict], item: T, flushes: bool) -> dict:
    torch.set_num_threads(1)
    torch.set_flush_denormal(flushes)
    return work(item)
