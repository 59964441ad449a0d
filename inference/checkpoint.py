"""Checkpoints that survive a kill at any moment: every file is complete or absent, and checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sys
import zipfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pp_models.files import (
    FORMAT,
    STRICT,
    FileError,
    checked,
    read_checked_json,
    read_regular,
    sealed_json,
    write_atomically,
)
from pp_models.sealed_tensors import check_tensors, sealed_tensors, shapes_of, unsealed_tensors

INDEX = "checkpoint.json"
#: what the state of a fit holds
STATE = {"optimizer", "schedule", "history", "skipped", "seed", "step", "format"}
#: and may hold: those of earlier versions do not
STATE_SINCE = {"backend", "accumulate", "average", "best"}
#: and of these whoever reads them checks the contents
CHECKED_BY_THEIR_OWN = ("optimizer", "schedule", "average", "best")
RETIRED = "retired.json"
KEEP = 2


#: what a fit writes into a folder, under names that only it uses, and what a kill leaves of them
OWN_FILES = r"weights-\d{8,12}\.safetensors|state-\d{8,12}\.pt|checkpoint\.json|retired\.json|metrics\.jsonl|run\.json"
OWN_FILES += r"|architecture\.json|data\.json|data\.safetensors"
OWNER = "guidebook-"
_LEFT_BEHIND = re.compile(rf"\.({OWN_FILES})\.{OWNER}[0-9a-f]{{16}}\.partial")

#: a checkpoint that cannot be written or read
CheckpointError = FileError
#: a checkpoint's state holds what its weights hold a few times over, and the history
MOST_STATE_BYTES = 2**28


@dataclass(frozen=True)
class _File:
    __pydantic_config__ = STRICT
    file: str
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(OWN_FILES, self.file):
            raise ValueError(f"{self.file!r} is no file of a checkpoint")


@dataclass(frozen=True)
class _Checkpoint:
    __pydantic_config__ = STRICT
    step: int
    weights: _File
    state: _File
    interim: bool = False

    def __post_init__(self) -> None:
        if (self.weights.file, self.state.file) != _names(self.step):
            raise ValueError(f"step {self.step} has files of another step")


@dataclass(frozen=True)
class _Index:
    __pydantic_config__ = STRICT
    checkpoints: list[_Checkpoint]


@dataclass(frozen=True)
class _Retired:
    __pydantic_config__ = STRICT
    files: list[str]


@dataclass(frozen=True)
class _Schedule:
    __pydantic_config__ = STRICT
    peaks: list[float]
    scheduler: dict[str, Any] | None


@dataclass(frozen=True)
class _State:
    """What is read of a state before anything is done with it; the optimizer's part has its own check."""

    __pydantic_config__ = STRICT
    schedule: _Schedule
    history: list[dict[str, float]]
    skipped: list[tuple[int, str]]
    seed: int
    step: int
    format: int
    backend: str = "eager"
    accumulate: int = 1


def _check_flat(state: dict[str, Any]) -> None:
    """Refuses what is nested deeper than a state is: a pickle of a hundred bytes may say 2^40 entries, each the same.

    Raises:
        ValueError: it is.
    """
    deep = (dict, list, tuple, set)
    rows = {"peaks": [state["schedule"].get("peaks")]} if isinstance(state["schedule"], dict) else {}
    for name, found in {"history": state["history"], "skipped": state["skipped"], **rows}.items():
        for row in found if isinstance(found, list) else [found]:
            inner = row.values() if isinstance(row, dict) else row if isinstance(row, list | tuple) else ()
            if any(isinstance(value, deep) for value in inner):
                raise ValueError(f"its {name} is nested")
    if any(
        isinstance(state[name], deep)
        for name in ("seed", "step", "format", *(STATE_SINCE & set(state) - set(CHECKED_BY_THEIR_OWN)))
    ):
        raise ValueError("its counters are no numbers")


def _names(step: int) -> tuple[str, str]:
    return f"weights-{step:08d}.safetensors", f"state-{step:08d}.pt"


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


def read_index(folder: Path) -> list[dict[str, Any]]:
    """What the folder holds, newest first; empty without a checkpoint.

    Raises:
        CheckpointError: the index is not readable.
    """
    path = folder / INDEX
    if not os.path.lexists(path):
        return []
    try:
        found = read_checked_json(path, _Index, "a checkpoint index")
    except OSError as error:
        raise CheckpointError(f"{path}: is not a checkpoint index ({error.strerror or error})") from None
    return [
        asdict(c) if c.interim else {k: v for k, v in asdict(c).items() if k != "interim"} for c in found.checkpoints
    ]


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
    torch.save(_canonical({**state, "step": step, "format": FORMAT}), buffer)
    before = read_index(folder)
    contents = dict(zip(_names(step), (sealed_tensors(tensors, {"step": step}), buffer.getvalue()), strict=True))
    try:
        weights, kept_state = (_entry(folder, name, content) for name, content in contents.items())
    except CheckpointError as error:
        for name in set(contents) - _files(before):  # half a checkpoint
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        at = [c["step"] for c in before if folder.is_dir()]
        intact = f"; the checkpoint of step {at[0]} is intact" if at else "; the folder holds no checkpoint"
        raise CheckpointError(str(error).removesuffix("; what was there is intact") + intact) from None
    new: dict[str, Any] = {"step": step, "weights": weights, "state": kept_state}
    # a later one can only be of a run that was abandoned (resume="previous")
    regular = [c for c in before if c["step"] < step and not c.get("interim")]
    kept = [new | {"interim": True}, *regular[:KEEP]] if interim else [new, *regular][:KEEP]
    retired = sorted(_files(before) - _files(kept))
    if retired:  # said before the index forgets them, so that a kill at any moment leaves nothing that nobody knows
        write(folder, RETIRED, sealed_json({"files": retired}))
    write(folder, INDEX, sealed_json({"checkpoints": kept}))
    _remove_retired(folder, kept)


def _files(checkpoints: list[dict[str, Any]]) -> set[str]:
    return {c[kind]["file"] for c in checkpoints for kind in ("weights", "state")}


def _remove_retired(folder: Path, checkpoints: list[dict[str, Any]]) -> None:
    """Removes the files that a checkpoint left the index with, and the note of them."""
    try:
        retired = read_checked_json(folder / RETIRED, _Retired, "a list of files").files
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"{folder / RETIRED}: cannot be read ({error.strerror or error})") from None
    try:
        for name in {name for name in retired if re.fullmatch(OWN_FILES, name)} - _files(checkpoints):
            (folder / name).unlink(missing_ok=True)
        (folder / RETIRED).unlink()
    except OSError as error:
        raise CheckpointError(f"{folder}: a file that is no longer needed stays ({error.strerror or error})") from None


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


def refuse_foreign_files(folder: Path, argument: str, expected: Collection[str] = ()) -> None:
    """Refuses to begin a run where files stand that it would write over.

    Args:
        folder: where it would be.
        argument: whose value that is, for the message.
        expected: files that the caller has written for it.

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
    named = [name for name in named if name != "run.json" and name not in expected]
    if named:
        raise CheckpointError(
            f"{argument}: {folder} holds {named[0]}, which belongs to no checkpoint there; a run that was stopped "
            "early goes on with resume=True, anything else needs another folder"
        )


def _verified(folder: Path, entry: dict[str, str], others: list[int], most: int | None) -> bytes:
    path = folder / entry["file"]
    try:
        content = read_regular(path, most)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        hint = f"; resume='previous' continues from step {others[0]}" if others else ""
        raise CheckpointError(f"{path}: truncated or altered ({len(content)} bytes, SHA-256 differs){hint}")
    return content


def shapes(folder: str | os.PathLike) -> dict[str, list[int]]:
    """Shapes by name of the newest checkpoint's tensors, of which nothing else is read.

    Raises:
        CheckpointError: there is none, or it is not readable.
    """
    index = read_index(Path(folder))
    if not index:
        raise CheckpointError(f"{folder}: holds no checkpoint")
    return shapes_of(Path(folder) / index[0]["weights"]["file"])


def size_of(modules: dict[str, torch.nn.Module]) -> int:
    """Bytes that modules' parameters and buffers may take in a file, descriptions included."""
    return sum(8 * tensor.numel() + 1_000 for tensor in _named(modules).values()) + 100_000


def load(
    folder: str | os.PathLike, which: int = 0, most: int | None = None
) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint: step, tensors, state. No code in it is ever run.

    Args:
        folder: where ``save`` wrote.
        which: 0 for the newest, 1 for the one before.
        most: bytes of weights; a larger file is refused before it is read (:func:`size_of`).

    Raises:
        CheckpointError: there is none, or a file is missing, truncated or altered, too large, or of another step.
    """
    folder = Path(folder)
    index = read_index(folder)
    if which >= len(index):
        raise CheckpointError(f"{folder}: holds {'no' if not index else 'only one'} checkpoint")
    entry = index[which]
    others = [c["step"] for c in index[which + 1 :]]
    weights = _verified(folder, entry["weights"], others, most)
    state_bytes = _verified(folder, entry["state"], others, None if most is None else 8 * most + MOST_STATE_BYTES)
    tensors, facts = unsealed_tensors(weights, folder / entry["weights"]["file"])
    state = _read_state(folder / entry["state"]["file"], state_bytes)
    if {facts.get("step"), state["step"]} != {entry["step"]}:
        raise CheckpointError(f"{folder}: the files of step {entry['step']} do not belong together")
    return entry["step"], tensors, state


def _read_state(path: Path, content: bytes) -> dict[str, Any]:
    """The state of a fit; its tensors take no more memory than the file has bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed, which no state is")
        state = torch.load(io.BytesIO(content), weights_only=True)
        if not isinstance(state, dict) or set(state) - STATE_SINCE != STATE:
            raise ValueError("its keys are not a state's")
        _check_flat(state)
        rest = {name: value for name, value in state.items() if name not in CHECKED_BY_THEIR_OWN}
        schedule = dict(state["schedule"])
        if schedule.get("scheduler") is not None:
            schedule["scheduler"] = {}  # torch's own, whatever it holds
        found = checked({**rest, "schedule": schedule}, _State)
    except Exception as error:  # whatever a parser makes of bytes that are not its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: is not the state of a fit, or not readable ({reason[:200]})") from None
    if found.format != FORMAT:
        raise CheckpointError(f"{path}: is of format {found.format}; this version reads format {FORMAT}")
    return {"backend": "eager", "accumulate": 1, "average": None, "best": None, **state}


def check_fits(modules: dict[str, torch.nn.Module], tensors: dict[str, Tensor]) -> None:
    """Whether tensors named ``{key}.{name}`` are those of modules.

    Raises:
        CheckpointError: a name is missing or left over, a shape or dtype differs, or a value is not finite.
    """
    check_tensors(tensors, _named(modules), "the checkpoint")


def load_into(modules: dict[str, torch.nn.Module], tensors: dict[str, Tensor]) -> None:
    """Copies tensors named ``{key}.{name}`` into modules, all or nothing.

    Raises:
        CheckpointError: see :func:`check_fits`.
    """
    check_fits(modules, tensors)
    with torch.no_grad():
        for name, target in _named(modules).items():
            target.copy_(tensors[name])


def _named(modules: dict[str, torch.nn.Module]) -> dict[str, Tensor]:
    return {f"{key}.{name}": t for key, module in modules.items() for name, t in module.state_dict().items()}
