"""Checkpoints that survive a kill at any moment: every file is complete or absent, and checked when read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

INDEX = "checkpoint.json"
KEEP = 2


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file and the reason."""


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it is, at any moment, either what it was or all of ``content``.

    Raises:
        CheckpointError: the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # the new name, too, must survive a crash of the machine
        finally:
            os.close(directory)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from None


def make_folder(folder: str | os.PathLike, argument: str) -> Path:
    """Creates a folder and proves that it can be written to.

    Raises:
        CheckpointError: it cannot be created or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"{argument}: {path} is not a folder that can be written to ({error.strerror})") from None
    return path


def _canonical(value: Any) -> Any:
    """The same value built anew: pickle writes shared and merely equal objects differently, and bytes must agree."""
    if isinstance(value, dict):
        return {_canonical(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_canonical(v) for v in value)
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    return value


def _entry(folder: Path, name: str, content: bytes) -> dict[str, str]:
    write_atomically(folder / name, content)
    return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}


def _checked(entry: dict[str, str]) -> dict[str, str]:
    name, digest = str(entry["file"]), str(entry["sha256"])
    if Path(name).name != name:
        raise ValueError(f"{name} is not in this folder")
    return {"file": name, "sha256": digest}


def read_index(folder: Path) -> list[dict[str, Any]]:
    """What the folder holds, newest first; empty without a checkpoint.

    Raises:
        CheckpointError: the index is not readable.
    """
    path = folder / INDEX
    if not path.exists():
        return []
    try:
        checkpoints = json.loads(path.read_text())["checkpoints"]
        return [
            {"step": int(c["step"])} | {kind: _checked(c[kind]) for kind in ("weights", "state")} for c in checkpoints
        ]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{path}: is not a checkpoint index ({type(error).__name__}: {error})") from None


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes a checkpoint and then makes it the folder's newest; the one before it is kept.

    Args:
        folder: an existing folder.
        step: steps done.
        tensors: parameters and buffers by name (safetensors).
        state: optimizer, tasks and counters; only what ``torch.load(weights_only=True)`` reads.

    Raises:
        CheckpointError: the folder cannot be written to; earlier checkpoints stay.
    """
    buffer = io.BytesIO()
    torch.save(_canonical(state), buffer)
    on_host = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    new = {
        "step": step,
        "weights": _entry(folder, f"weights-{step:08d}.safetensors", safetensors.torch.save(on_host)),
        "state": _entry(folder, f"state-{step:08d}.pt", buffer.getvalue()),
    }
    # a later one can only be of a run that was abandoned (resume="previous")
    kept = [new, *(c for c in read_index(folder) if c["step"] < step)][:KEEP]
    write_atomically(folder / INDEX, json.dumps({"format": 1, "checkpoints": kept}, indent=1).encode())
    names = {c[kind]["file"] for c in kept for kind in ("weights", "state")}
    for pattern in ("weights-*.safetensors", "state-*.pt", ".*.partial"):
        for path in folder.glob(pattern):
            if path.name not in names:
                path.unlink(missing_ok=True)


def _verified(folder: Path, entry: dict[str, str], others: list[int]) -> bytes:
    path = folder / entry["file"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        hint = f"; resume='previous' continues from step {others[0]}" if others else ""
        raise CheckpointError(f"{path}: truncated or altered ({len(content)} bytes, SHA-256 differs){hint}")
    return content


def load(folder: str | os.PathLike, which: int = 0) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint: step, tensors, state. No code in it is ever run.

    Args:
        folder: where ``save`` wrote.
        which: 0 for the newest, 1 for the one before.

    Raises:
        CheckpointError: there is none, or a file is missing, truncated or altered.
    """
    folder = Path(folder)
    index = read_index(folder)
    if which >= len(index):
        raise CheckpointError(f"{folder}: holds {'no' if not index else 'only one'} checkpoint")
    entry = index[which]
    others = [c["step"] for c in index[which + 1 :]]
    weights = _verified(folder, entry["weights"], others)
    state_bytes = _verified(folder, entry["state"], others)
    try:
        tensors = safetensors.torch.load(weights)
        state = torch.load(io.BytesIO(state_bytes), weights_only=True)
    except Exception as error:  # whatever a parser makes of bytes that are not its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder}: checkpoint of step {entry['step']} is not readable ({reason})") from None
    return entry["step"], tensors, state


def load_into(modules: dict[str, torch.nn.Module], tensors: dict[str, Tensor]) -> None:
    """Copies tensors named ``{key}.{name}`` into modules, all or nothing.

    Raises:
        CheckpointError: a name is missing or left over, or a shape differs.
    """
    targets = {f"{key}.{name}": t for key, module in modules.items() for name, t in module.state_dict().items()}
    for name in sorted(set(targets) ^ set(tensors)):
        where = "the checkpoint" if name in targets else "this model and guide"
        raise CheckpointError(f"{name}: missing in {where}; the checkpoint is of another model or guide")
    for name, target in targets.items():
        if target.shape != tensors[name].shape:
            raise CheckpointError(
                f"{name}: shape {list(tensors[name].shape)} in the checkpoint, {list(target.shape)} here; "
                "the checkpoint is of another model or guide"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
