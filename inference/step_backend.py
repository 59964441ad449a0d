"""Whether a fit's step is compiled: what was asked for, what pays, and what an interrupted run was begun with."""

from __future__ import annotations

import getpass
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from inference.compile_step import PRECISIONS, CannotCompile, check_traceable, watched
from inference.training_step import TrainingStep
from pp_models.files import write_atomically

logger = logging.getLogger("guidebook")

EAGER, INDUCTOR = "eager", "inductor"
BACKENDS = (EAGER, INDUCTOR)
#: steps that pay for compiling, about 90 CPU seconds; and where inductor's cache holds the graph, about 2
LONG, LONG_ENOUGH_WARM = 20_000, 1_000


def choose(
    compile: bool | str,
    steps: int,
    module: TrainingStep,
    device: torch.device,
    precision: str,
    begun_with: str | None = None,
    show: bool = False,
) -> str:
    """``"eager"`` or ``"inductor"``; what is not plain from the arguments is said in one line.

    Args:
        compile: True, False or ``"auto"``.
        steps: still to do.
        module: model, guide and objective.
        device: where the step runs.
        precision: a Fabric precision.
        begun_with: the backend of the run to resume, which ``"auto"`` follows.
        show: print what was chosen, on stderr, and not in the log alone.
    """
    if compile is False:
        _differs(EAGER, begun_with)
        return EAGER
    if compile == "auto" and begun_with is not None:
        return begun_with
    why = None
    try:
        check_traceable(module)
        if precision not in PRECISIONS:
            raise CannotCompile(f"precision {precision!r} scales its losses")
    except CannotCompile as reason:
        why = str(reason)
    if compile == "auto":
        if steps < LONG_ENOUGH_WARM or why is not None or not has_compiler(device):
            return EAGER
        warm = marker(module, device, precision).exists()
        if steps < LONG and not warm:
            return EAGER
        length = "the compiler's cache is warm" if warm else "long enough to pay for a minute or two of compiling"
        _say(f"the step is compiled ({steps:,} steps, {length}; compile=False does without)", show)
        return INDUCTOR
    if why is not None:
        logger.warning("compile: runs eagerly, for %s", why)
    found = EAGER if why is not None else INDUCTOR
    _differs(found, begun_with)
    return found


def _say(line: str, show: bool) -> None:
    logger.info(line)
    if show:
        print(line, file=sys.stderr)


def _differs(found: str, begun_with: str | None) -> None:
    if begun_with is not None and begun_with != found:
        logger.warning("compile: the run was begun %s and goes on %s; its last digits differ", begun_with, found)


def has_compiler(device: torch.device) -> bool:
    """Whether inductor finds what it writes its kernels for."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    names = [os.environ.get("CXX"), "g++", "clang++"]
    return device.type == "cpu" and any(name and shutil.which(name) for name in names)


def marker(module: TrainingStep, device: torch.device, precision: str) -> Path:
    """A file in inductor's cache that says that this step was compiled on this machine before."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder is None:
        folder = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    facts = [torch.__version__, device.type, precision, type(module.objective).__name__]
    facts += [f"{name} {list(p.shape)} {p.dtype}" for name, p in module.named_parameters()]
    facts += [f"{name} {members.get(name)!r}" for members, names in watched(module) for name in names]
    return Path(folder) / "guidebook" / hashlib.sha256("\n".join(facts).encode()).hexdigest()


def mark(path: Path) -> None:
    """Leaves that file; a cache that cannot be written to is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, b"")
    except OSError:
        pass
