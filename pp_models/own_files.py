"""Files that a call writes into a folder of the user's: it writes over those of an earlier call, and over no others.

An index in the folder says what was written, by name and content. What it does not list, or what was changed since, is
somebody's, and refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pp_models.files import (
    STRICT,
    FileError,
    make_folder,
    partial_path,
    read_checked_json,
    replaced_atomically,
    sealed_json,
    write_atomically,
)

INDEX = ".written.json"


@dataclass(frozen=True)
class _Written:
    """SHA-256 of each file by name; two where a write may have been cut off between them."""

    files: dict[str, list[str]]

    __pydantic_config__ = STRICT


def refuse_others(folder: Path, argument: str, *patterns: str) -> None:
    """Refuses to begin where files stand that would be written over, and that are not this library's.

    Args:
        folder: an existing folder.
        argument: whose value it is, for the message.
        *patterns: names that will be written, such as ``"report.html"`` or ``"*.csv"``.

    Raises:
        FileError: the folder holds such a file; nothing was changed.
    """
    try:
        found = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise FileError(f"{argument}: {folder} cannot be read ({error.strerror or error})") from None
    for name in found:
        if name != INDEX and any(fnmatchcase(name, pattern) for pattern in patterns):
            _listed(folder, name, argument)


def write_own(path: Path, content: bytes, argument: str = "out") -> None:
    """Writes a file atomically where none is, or over what an earlier call wrote there.

    Args:
        path: where.
        content: all of it.
        argument: whose value the folder is, for the message.

    Raises:
        FileError: another file stands there, or it cannot be written; what was there is intact.
    """
    _claim(path, hashlib.sha256(content).hexdigest(), argument)
    write_atomically(path, content)


@contextmanager
def replaced_own(path: Path, argument: str = "out") -> Iterator[Path]:
    """The same for writers that need a path: one to write at, that takes the place of ``path`` afterwards.

    Raises:
        FileError: as :func:`write_own`.
    """
    _listed(path.parent, path.name, argument)
    with replaced_atomically(path) as partial:
        yield partial
        _claim(path, _digest(partial), argument)


@contextmanager
def filled_atomically(folder: Path, argument: str) -> Iterator[Path]:
    """A new folder to write files into, which take the places of those of the same names when the block ends well.

    What else the folder holds stays. However the block ends, nothing half-written is left; where it fails, what was in
    the folder is intact.

    Args:
        folder: where the files will be; created if need be.
        argument: whose value it is, for the message.

    Raises:
        FileError: the system refused to write.
    """
    is_new = not folder.exists()
    path = make_folder(folder, argument)
    partial, before = partial_path(path / "new"), partial_path(path / "old")
    moved: list[tuple[Path, Path]] = []
    try:
        partial.mkdir()
        yield partial
        before.mkdir()
        for new in sorted(found for found in partial.rglob("*") if not found.is_dir()):
            place = path / new.relative_to(partial)
            place.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(place):
                kept = before / str(len(moved))
                try:
                    os.link(place, kept, follow_symlinks=False)
                except OSError:  # a file system without such links
                    shutil.copy2(place, kept, follow_symlinks=False)
                moved.append((kept, place))
            os.replace(new, place)
    except BaseException as error:
        for kept, place in reversed(moved):
            os.replace(kept, place)
        if isinstance(error, OSError):
            intact = "" if is_new else "; what was there is intact"
            raise FileError(f"{argument}: {path} cannot be written ({error.strerror or error}){intact}") from None
        raise
    finally:
        for own in (partial, before):
            shutil.rmtree(own, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()


def _claim(path: Path, digest: str, argument: str) -> None:
    """Lists a content before it is written, so that no kill leaves a file that nobody knows."""
    files = _read(path.parent)
    before = _listed(path.parent, path.name, argument)
    files[path.name] = sorted({*before, digest})
    write_atomically(path.parent / INDEX, sealed_json(asdict(_Written(files))))


def _listed(folder: Path, name: str, argument: str) -> list[str]:
    """The content of a file of ours, none where no file is.

    Raises:
        FileError: there is one, and it is not ours.
    """
    path = folder / name
    if not os.path.lexists(path):
        return []
    listed = _read(folder).get(name, ())
    if path.is_file() and not path.is_symlink() and (digest := _digest(path)) in listed:
        return [digest]
    why = "was changed since guidebook wrote it" if listed else "was not written by guidebook"
    raise FileError(f"{argument}: {folder} holds {name}, which {why}; move it away, or name another folder")


def _read(folder: Path) -> dict[str, list[str]]:
    try:
        return dict(read_checked_json(folder / INDEX, _Written, "a list of what was written").files)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FileError(f"{folder / INDEX}: cannot be read ({error.strerror or error})") from None


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
