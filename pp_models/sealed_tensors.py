"""Tensors in a safetensors file that says its format, what it is of and a checksum, checked before any is used."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pp_models.files import FORMAT, FileError, read_regular

#: bytes of the description at the head of a file, which a model of 100,000 tensors does not fill
MOST_HEADER_BYTES = 16 * 2**20
#: where in its head the rest is said
KEY = "guidebook"


def sealed_tensors(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """A safetensors file with facts, format and a checksum of all the rest; the same arguments give the same bytes.

    Args:
        tensors: by name, anywhere.
        facts: what JSON can hold, by name.
    """
    on_host = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    about = {"facts": json.loads(json.dumps(facts)), "format": FORMAT}  # as it will be read
    about |= {"sha256": _digest(on_host, about)}
    # one key: safetensors writes several in no order of its own
    return safetensors.torch.save(on_host, {KEY: json.dumps(about, sort_keys=True)})


def unsealed_tensors(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of what :func:`sealed_tensors` made.

    Args:
        content: of the file.
        path: where it was read, for the message.

    Raises:
        FileError: it is no such file, of another format, or altered.
    """
    try:
        about = dict(json.loads(json.loads(content[8 : 8 + _header_size(content)])["__metadata__"][KEY]))
        digest, form = about.pop("sha256"), about["format"]
        tensors = safetensors.torch.load(content)
        own = _digest(tensors, about)
        facts = dict(about["facts"])
    except Exception as error:  # whatever a parser makes of bytes that are not its own
        reason = (str(error).splitlines() or [""])[0][:100]
        raise FileError(f"{path}: is not a file of guidebook's ({type(error).__name__}: {reason})") from None
    if digest != own:
        raise FileError(f"{path}: truncated or altered (SHA-256 differs)")
    if form != FORMAT:
        raise FileError(f"{path}: is of format {form!r}; this version reads format {FORMAT}")
    return tensors, facts


def read_sealed_tensors(path: Path, most: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file of at most so many bytes.

    Raises:
        FileError: as :func:`unsealed_tensors`, or it cannot be read.
    """
    try:
        return unsealed_tensors(read_regular(path, most), path)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None


def shapes_of(path: Path) -> dict[str, list[int]]:
    """Shapes by name as the head of a safetensors file gives them; nothing else of it is read.

    Raises:
        FileError: it cannot be read, or has no such head.
    """
    try:
        head = read_regular(path, MOST_HEADER_BYTES, part=True)
        described = json.loads(head[8 : 8 + _header_size(head)])
        return {
            name: [int(size) for size in entry["shape"]] for name, entry in described.items() if name != "__metadata__"
        }
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError, struct.error) as error:
        raise FileError(f"{path}: is no safetensors file ({type(error).__name__})") from None


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Whether tensors that were read can take the place of others: names, shapes, dtypes, and no value that is not
    finite.

    Args:
        tensors: what was read.
        expected: what they will replace.
        where: they were read, for the message.

    Raises:
        FileError: they cannot; the message names the first.
    """
    for name in sorted(set(expected) ^ set(tensors)):
        holder = where if name in expected else "this model and guide"
        raise FileError(f"{name}: missing in {holder}; {where} is of another model or guide")
    for name, target in expected.items():
        found = tensors[name]
        if target.shape != found.shape:
            raise FileError(
                f"{name}: shape {list(found.shape)} in {where}, {list(target.shape)} here; {where} is of another model "
                "or guide"
            )
        if target.dtype != found.dtype:
            raise FileError(
                f"{name}: dtype {found.dtype} in {where}, {target.dtype} here; convert model and guide first"
            )
        check_finite(name, found, where)


def check_finite(name: str, tensor: Tensor, where: str) -> None:
    """Refuses values that no training writes.

    Raises:
        FileError: one is not finite.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise FileError(f"{name}: holds values that are not finite in {where}; no fit writes such a file")


def _header_size(content: bytes) -> int:
    (size,) = struct.unpack("<Q", content[:8])
    if size > len(content) - 8:
        raise ValueError("its head is longer than the file")
    return size


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
