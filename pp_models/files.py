"""Files that are complete or absent, whatever happens while they are written, and never somebody else's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class FileError(RuntimeError):
    """A file or folder that cannot be written or read; the message names it and the reason."""


def create_exclusively(path: Path) -> int:
    """Creates a file that did not exist, never through a link, and returns its descriptor, open for writing."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666)


def partial_path(path: Path, owner: str = "") -> Path:
    """A name beside ``path`` that nobody can predict, for what will take its place.

    Args:
        path: what is written.
        owner: part of the name, so that its owner can find what a kill left behind.
    """
    return path.with_name(f".{path.name}.{owner}{secrets.token_hex(8)}.partial")


def write_atomically(path: Path, content: bytes, owner: str = "") -> None:
    """Writes a file so that it is, at any moment, either what it was or all of ``content``.

    Args:
        path: where.
        content: all of it.
        owner: see :func:`partial_path`.

    Raises:
        FileError: it cannot be written; what was there is intact.
    """
    with replaced_atomically(path, owner) as partial, os.fdopen(create_exclusively(partial), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replaced_atomically(path: Path, owner: str = "") -> Iterator[Path]:
    """A path to write a file or folder at, that takes the place of ``path`` when the block ends well.

    However the block ends, nothing half-written is left: where it fails, what was at ``path`` is intact.

    Args:
        path: what will be replaced.
        owner: see :func:`partial_path`.

    Raises:
        FileError: the system refused to write.
    """
    partial = partial_path(path, owner)
    try:
        yield partial
        if partial.is_dir() and path.exists():  # a folder cannot be renamed over another that holds files
            old = partial_path(path, owner)
            os.replace(path, old)
            os.replace(partial, path)
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        else:
            os.replace(partial, path)
        _keep_name(path.parent)
    except OSError as error:
        if not path.parent.is_dir():
            raise FileError(f"{path}: cannot be written (its folder is gone)") from None
        intact = "; what was there is intact" if path.exists() else ""
        raise FileError(f"{path}: cannot be written ({error.strerror or error}){intact}") from None
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file, whole or not at all.

    Raises:
        FileError: it cannot be written, or is no regular file; the lines before are intact.
    """
    try:
        if path.exists() and not path.is_file():
            raise FileError(f"{path}: is not a regular file")
        with open(path, "ab", buffering=0) as file:
            size = file.tell()
            content = line.encode() + b"\n"
            try:
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        reason = error.strerror or error
        raise FileError(f"{path}: cannot be written ({reason}); the lines before are intact") from None


def reserve(path: Path, size: int) -> None:
    """Proves that a file of so many bytes can be written, for writers that do not survive a full disk.

    Raises:
        OSError: it cannot.
    """
    try:
        with os.fdopen(create_exclusively(path), "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            else:
                for start in range(0, size, 2**20):
                    file.write(bytes(min(2**20, size - start)))
    finally:
        path.unlink(missing_ok=True)


def _keep_name(folder: Path) -> None:
    """Makes a new name in a folder survive a crash of the machine, where the system can."""
    if os.name != "posix":
        return
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make_folder(folder: str | os.PathLike, argument: str) -> Path:
    """Creates a folder and proves that it can be written to.

    Args:
        folder: which.
        argument: whose value it is, for the message.

    Raises:
        FileError: it cannot be created or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = partial_path(path / "writable")
        os.close(create_exclusively(probe))
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(f"{argument}: {path} is not a folder that can be written to ({reason})") from None
    return path


#: a JSON file of settings or results is never larger
MOST_JSON_BYTES = 64 * 2**20
FORMAT = 1
#: how dataclasses that are read from files are filled: no key left over, no word taken for a number
STRICT: Any = {"strict": True, "extra": "forbid"}
#: the same of files that say more than is read
LENIENT: Any = {"strict": True, "extra": "ignore"}


def read_regular(path: Path, most: int | None = None, part: bool = False) -> bytes:
    """The content of a regular file; devices, pipes and what is too large are refused before anything is read.

    Args:
        path: the file.
        most: bytes that it may have.
        part: of a larger one, read so many.

    Raises:
        OSError: it cannot be opened or read.
        FileError: it is no regular file, or larger.
    """
    # a pipe without a writer would hang
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise FileError(f"{path}: is not a regular file")
        if most is not None and about.st_size > most and not part:
            raise FileError(f"{path}: has {about.st_size} bytes; such a file has at most {most}")
        if most is None:
            return file.read()
        content = read_at_most(file, most)
    if len(content) > most and not part:  # it grew, or its system does not know its size
        raise FileError(f"{path}: has more than {most} bytes; such a file has no more")
    return content[:most]


def read_at_most(file: Any, most: int) -> bytes:
    """What is left of a file, or one byte more than ``most`` of it; no memory is taken before there is content."""
    parts, left = [], most + 1
    while left and (part := file.read(min(left, 2**20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def sealed_json(content: Mapping[str, Any]) -> bytes:
    """A JSON object with its format and a checksum of all the rest.

    Raises:
        ValueError: ``content`` has a key of theirs.
    """
    taken = sorted({"format", "sha256"} & set(content))
    if taken:
        raise ValueError(f"content: got a key {taken[0]!r}, which holds the seal; it must have another name")
    whole = json.loads(json.dumps({**content, "format": FORMAT}))  # as it will be read
    return json.dumps({**whole, "sha256": _digest(whole)}, indent=1).encode()


def read_sealed_json(path: Path) -> dict[str, Any]:
    """The object that :func:`sealed_json` wrote, without format and checksum.

    Raises:
        OSError: it cannot be opened or read.
        FileError: it is no such file, of another format, or altered.
    """
    try:
        whole = json.loads(read_regular(path, MOST_JSON_BYTES))
        found = dict(whole)
        digest, form = found.pop("sha256"), found["format"]
        own = _digest(found)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:100]}"
        raise FileError(f"{path}: is not a file of guidebook's ({reason})") from None
    if digest != own:
        raise FileError(f"{path}: truncated or altered (SHA-256 differs)")
    if form != FORMAT:
        raise FileError(f"{path}: is of format {form!r}; this version reads format {FORMAT}")
    del found["format"]
    return found


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_checked_json(path: Path, schema: type[T], what: str) -> T:
    """What :func:`sealed_json` wrote, as an instance of a dataclass whose fields say what it may hold.

    Args:
        path: the file.
        schema: see :func:`checked`.
        what: the file holds, for the message: "a run configuration".

    Raises:
        OSError: it cannot be opened or read.
        FileError: as :func:`read_sealed_json`, or it holds something else.
    """
    found = read_sealed_json(path)
    try:
        return checked(found, schema)
    except ValueError as error:
        raise FileError(f"{path}: is not {what} ({error})") from None


def checked(content: Any, schema: type[T]) -> T:
    """What was read as JSON, checked field by field before anything is built from it.

    Args:
        content: objects, lists, numbers, words.
        schema: a dataclass with ``STRICT`` as its ``__pydantic_config__``, or a type made of such.

    Raises:
        ValueError: a key too many or too few, or a value of another type or out of range; one line that names it.
    """
    from pydantic import TypeAdapter, ValidationError  # here, for it takes a while to import

    try:
        return TypeAdapter(schema).validate_json(json.dumps(content))
    except TypeError as error:  # a state may hold what JSON cannot
        raise ValueError(str(error)) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        got = "" if first["type"] in ("missing", "value_error") else f", got {str(first['input'])[:60]!r}"
        reason = first["msg"].removeprefix("Value error, ").splitlines()[0]
        raise ValueError(f"{where}: {reason}{got}" if where else reason) from None


#: threads that hold a folder for what they call, by its device and number
_passed_on: dict[tuple[int, int], int] = {}


@contextmanager
def locked(folder: Path, argument: str, passed_on: bool = False) -> Iterator[None]:
    """Holds a folder for this process alone; the lock goes with the process, however it ends.

    Args:
        folder: an existing folder.
        argument: whose value it is, for the message.
        passed_on: to whatever this thread calls that asks for the folder, to one at a time.

    Raises:
        FileError: another process or thread holds it.
    """
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise FileError(f"{argument}: {folder} cannot be opened ({error.strerror or error})") from None
    about = os.fstat(descriptor)
    key = (about.st_dev, about.st_ino)
    if _passed_on.get(key) == threading.get_ident():
        os.close(descriptor)
        owner = _passed_on.pop(key)
        try:
            yield
        finally:
            _passed_on[key] = owner
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(
                f"{argument}: {folder} is being written to by another run; wait for it, or name another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        if passed_on:
            _passed_on[key] = threading.get_ident()
        yield
    finally:
        if passed_on and _passed_on.get(key) == threading.get_ident():
            del _passed_on[key]
        os.close(descriptor)
