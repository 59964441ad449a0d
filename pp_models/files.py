"""Files that are complete or absent, whatever happens while they are written, and never somebody else's."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        raise FileError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


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
