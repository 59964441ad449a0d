"""Checkpoints that survive a kill at any moment: every file is complete or absent, and checked when read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pp_models.files import FileError, write_atomically

INDEX = "checkpoint.json"
RETIRED = "retired.json"
KEEP = 2


#: what a fit writes into a folder, under names that only it uses, and what a kill leaves of them
OWN_FILES = r"weights-\d{8}\.safetensors|state-\d{8}\.pt|checkpoint\.json|retired\.json|metrics\.jsonl|run\.json"
OWNER = "guidebook-"
_LEFT_BEHIND = re.compile(rf"\.({OWN_FILES})\.{OWNER}[0-9a-f]{{16}}\.partial")

#: a checkpoint that cannot be written or read
CheckpointError = FileError


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


def write(folder: Path, name: str, content: bytes) -> None:
    """Writes one of a run's own files; what a kill leaves of it is found and removed when the run goes on.

    Raises:
        CheckpointError: the folder cannot be written to.
    """
    write_atomically(folder / name, content, OWNER)


def _entry(folder: Path, name: str, content: bytes) -> dict[str, str]:
    write(folder, name, content)
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
            {"step": int(c["step"])}
            | {kind: _checked(c[kind]) for kind in ("weights", "state")}
            | ({"interim": True} if c.get("interim") is True else {})
            for c in checkpoints
        ]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{path}: is not a checkpoint index ({type(error).__name__}: {error})") from None


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], interim: bool = False) -> None:
    """Writes a checkpoint and then makes it the folder's newest; the one before it is kept.

    Args:
        folder: an existing folder.
        step: steps done.
        tensors: parameters and buffers by name (safetensors).
        state: optimizer, tasks and counters; only what ``torch.load(weights_only=True)`` reads.
        interim: of a fit that was interrupted: the next checkpoint takes its place, so that the folder ends as if
            nothing had happened.

    Raises:
        CheckpointError: the folder cannot be written to; earlier checkpoints stay.
    """
    buffer = io.BytesIO()
    torch.save(_canonical(state), buffer)
    on_host = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    new: dict[str, Any] = {
        "step": step,
        "weights": _entry(folder, f"weights-{step:08d}.safetensors", safetensors.torch.save(on_host)),
        "state": _entry(folder, f"state-{step:08d}.pt", buffer.getvalue()),
    }
    before = read_index(folder)
    # a later one can only be of a run that was abandoned (resume="previous")
    regular = [c for c in before if c["step"] < step and not c.get("interim")]
    kept = [new | {"interim": True}, *regular[:KEEP]] if interim else [new, *regular][:KEEP]
    retired = sorted(_files(before) - _files(kept))
    if retired:  # said before the index forgets them, so that a kill at any moment leaves nothing that nobody knows
        write(folder, RETIRED, json.dumps(retired).encode())
    write(folder, INDEX, json.dumps({"format": 1, "checkpoints": kept}, indent=1).encode())
    _remove_retired(folder, kept)


def _files(checkpoints: list[dict[str, Any]]) -> set[str]:
    return {c[kind]["file"] for c in checkpoints for kind in ("weights", "state")}


def _remove_retired(folder: Path, checkpoints: list[dict[str, Any]]) -> None:
    """Removes the files that a checkpoint left the index with, and the note of them."""
    try:
        retired = json.loads((folder / RETIRED).read_text())
        names = {name for name in retired if re.fullmatch(OWN_FILES, name)} - _files(checkpoints)
    except FileNotFoundError:
        return
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / RETIRED}: is not a list of files ({error})") from None
    for name in names:
        (folder / name).unlink(missing_ok=True)
    (folder / RETIRED).unlink()


def remove_leftovers(folder: Path) -> None:
    """Removes what a kill left of this run's own files: those a checkpoint retired, and those half-written.

    Nothing else in the folder is touched.

    Raises:
        CheckpointError: the index is not readable.
    """
    _remove_retired(folder, read_index(folder))
    for path in folder.iterdir():
        if _LEFT_BEHIND.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def refuse_foreign_files(folder: Path, argument: str) -> None:
    """Refuses to begin a run where files stand that it would write over.

    Raises:
        CheckpointError: the folder holds a run, or files named like a run's.
    """
    held = read_index(folder)
    if held:
        step = held[0]["step"]
        raise CheckpointError(
            f"{argument}: {folder} already holds a run at step {step}; pass resume=True or name another folder"
        )
    named = sorted(path.name for path in folder.iterdir() if re.fullmatch(OWN_FILES, path.name))
    named = [name for name in named if name != "run.json"]
    if named:
        raise CheckpointError(
            f"{argument}: {folder} holds {named[0]}, which belongs to no checkpoint there; a run that was stopped "
            "early goes on with resume=True, anything else needs another folder"
        )


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
