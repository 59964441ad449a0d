"""Reading data files that anybody may have made: regular, of bounded size, unpacked no further than what is wanted.

Every function raises a DataError of one line that names the file and says that it is to be replaced.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pp_models.data import DataError
from pp_models.files import FileError, read_at_most, read_regular

if TYPE_CHECKING:
    from PIL import Image

#: the largest published file read here is CelebA's archive, 1.5 GB; all others are below half of that
MOST_BYTES = 2**31
#: of what one file or member holds when unpacked; EMNIST's training images are 88 MB, CIFAR-10 is 185 MB
MOST_UNPACKED = 2**29
#: of a picture; CelebA's and Omniglot's are a hundred times smaller
MOST_PIXELS = 2**22
#: what unpackers raise of what is not their own
UNPACKING = (
    *(OSError, EOFError, KeyError, ValueError, RuntimeError, NotImplementedError),
    *(zlib.error, zipfile.BadZipFile, tarfile.TarError),
)


class TooLarge(ValueError):
    """What would be unpacked is larger than any such file is."""


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Makes whatever a reader raises one line.

    Args:
        path: what is read, and to be replaced.
        what: it should be: "a complete archive of PNG files".
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # parsers raise many kinds for what is not their own
        reason = (str(error).splitlines() or [""])[0][:120]
        raise DataError(f"{path.name}: it is no {what} ({type(error).__name__}: {reason}); replace {path}") from error


def content_of(path: Path, most: int = MOST_BYTES) -> bytes:
    """All of a regular file of at most so many bytes."""
    try:
        return read_regular(path, most)
    except FileError as error:
        raise DataError(f"{path.name}: {str(error).removeprefix(f'{path}: ')}; replace {path}") from None
    except OSError as error:
        raise DataError(f"{path.name}: it cannot be read ({error.strerror or error}); replace {path}") from None


def gunzip(content: bytes, name: str, path: Path, most: int = MOST_UNPACKED) -> bytes:
    """What gzipped bytes hold, if that is at most so many bytes; ``path`` is what a reader of the error replaces."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            found = read_at_most(file, most)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: it is no complete gzip file ({type(error).__name__}); replace {path}") from error
    if len(found) > most:
        raise DataError(f"{name}: it unpacks to more than {most} bytes, which none does; replace {path}")
    return found


def text_of(path: Path, most: int = MOST_UNPACKED) -> str:
    """The text of a file, or of its gzipped form."""
    raw = content_of(path, most)
    raw = gunzip(raw, path.name, path, most) if path.suffix == ".gz" else raw
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: it cannot be read ({type(error).__name__}); replace {path}") from error


def read_member(archive: zipfile.ZipFile, name: str, most: int = MOST_UNPACKED) -> bytes:
    """A member of a zip archive, unpacked if it says that it is at most so many bytes (no more are unpacked).

    Raises:
        TooLarge: it says more.
        KeyError: there is none of that name.
        zipfile.BadZipFile: it is encrypted or damaged.
    """
    member = archive.getinfo(name)
    if member.flag_bits & 1:
        raise zipfile.BadZipFile(f"{name} is encrypted")
    if member.file_size > most:
        raise TooLarge(f"{name} would unpack to {member.file_size} bytes, which none does")
    return archive.read(member)


def read_npz(path: Path, names: Iterable[str]) -> list[np.ndarray]:
    """Arrays of an npz file; shapes are compared with the bytes that are there before anything is built, and pickled
    content is refused."""
    names = list(names)
    with reading(path, "complete npz file"), zipfile.ZipFile(io.BytesIO(content_of(path))) as archive:
        held = set(archive.namelist())
        for name in names:
            if f"{name}.npy" not in held:
                raise DataError(f"{path.name}: it has no array {name}; replace {path}")
        return [_read_npy(read_member(archive, f"{name}.npy"), name) for name in names]


def _read_npy(content: bytes, name: str) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    header: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"{name} says shape {shape}, its length does not")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def read_tar(path: Path, names: Iterable[str]) -> list[bytes]:
    """Plain members of a gzipped tar archive."""
    raw = gunzip(content_of(path), path.name, path)
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
        return [_plain(archive, name, len(raw)) for name in names]


def _plain(archive: tarfile.TarFile, name: str, most: int) -> bytes:
    member = archive.getmember(name)
    if not member.isreg() or member.size > most:  # a sparse one may say more than is there
        raise tarfile.TarError(f"{name} is no plain file")
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def open_picture(content: bytes, kind: str) -> Image.Image:
    """A picture whose size is looked at before it is decoded.

    Args:
        content: of a file.
        kind: the only format taken: "PNG" or "JPEG".

    Raises:
        TooLarge: more than ``MOST_PIXELS`` pixels, or none.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(content), formats=(kind,))
    if not 0 < picture.width * picture.height <= MOST_PIXELS:
        raise TooLarge(f"a picture of {picture.width} x {picture.height} pixels, which none has")
    return picture


def read_matlab(path: Path, shapes: dict[str, tuple[int | None, ...]]) -> list[np.ndarray]:
    """Arrays of a Matlab 5 file, whose shapes and unpacked sizes are looked at before any is built.

    Args:
        path: the file.
        shapes: of every array wanted, None where any length will do.
    """
    from scipy.io import loadmat, whosmat

    with reading(path, f"complete Matlab file with arrays {' and '.join(shapes)}"):
        content = content_of(path)
        _check_matlab_sizes(content)
        found = {name: shape for name, shape, _ in whosmat(io.BytesIO(content))}
        for name, wanted in shapes.items():
            shape = found.get(name)
            if shape is None:
                raise ValueError(f"there is no {name}")
            fits = len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))
            if not fits or not 0 < math.prod(shape) * 8 <= 8 * MOST_UNPACKED:
                raise ValueError(f"{name} has shape {shape}")
        arrays = loadmat(io.BytesIO(content), variable_names=list(shapes))
        return [np.asarray(arrays[name]) for name in shapes]


def _check_matlab_sizes(content: bytes) -> None:
    """Refuses a compressed variable that unpacks to more than any does."""
    order = "little" if content[126:128] == b"IM" else "big"
    place = 128
    while place + 8 <= len(content):
        kind, size = (int.from_bytes(content[place + i : place + i + 4], order) for i in (0, 4))  # type: ignore[arg-type]
        if kind == 15:  # compressed
            unpacker, packed, total = zlib.decompressobj(), content[place + 8 : place + 8 + size], 0
            while packed and not unpacker.eof:
                total += len(unpacker.decompress(packed, 2**20))
                packed = unpacker.unconsumed_tail
                if total > 4 * MOST_UNPACKED:
                    raise TooLarge("an array unpacks to more than any does")
        place += 8 + size


def check_classes(name: str, labels: np.ndarray, classes: int, first: int = 0) -> np.ndarray:
    """Labels as int64, each a class.

    Raises:
        DataError: there is none, or one is no whole number from ``first`` on below ``first + classes``.
    """
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iuf":
        raise DataError(
            f"{name}: its labels have shape {labels.shape} and dtype {labels.dtype}; there must be one each"
        )
    wrong = ~((labels >= first) & (labels < first + classes) & (labels == np.floor(labels)))
    if wrong.any():
        raise DataError(f"{name}: it has label {labels[wrong][0]}; labels are {first} to {first + classes - 1}")
    return labels.astype(np.int64)
