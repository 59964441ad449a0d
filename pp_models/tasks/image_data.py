"""Image data sets as uint8 arrays: digits (embedded), MNIST, EMNIST, Omniglot, CIFAR-10, CelebA and SVHN.

Nothing here unpickles: archives are read as idx, PNG, JPEG, binary records, Matlab 5 arrays or pickle-free npz.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pp_models.data import DataError
from pp_models.files import FileError, write_atomically
from pp_models.tasks import downloads
from pp_models.tasks.data_files import (
    MOST_UNPACKED,
    check_classes,
    content_of,
    gunzip,
    open_picture,
    read_matlab,
    read_member,
    read_npz,
    read_tar,
    reading,
)

#: of one picture of an archive, and of all of Omniglot (32,460 were published)
MOST_PICTURE_BYTES, MOST_DRAWINGS = 2**22, 100_000
CIFAR10_SUBSET = "cifar10_subset/cifar10_jpeg_subset.npz"


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images and what is known of them.

    Args:
        images: uint8 ``[n, H, W]`` or ``[n, H, W, 3]``; 255 is ink in MNIST, Omniglot and digits.
        labels: class indices int64 ``[n]``, or None.
        source: what the pixels are, for tables and figure captions.
    """

    images: np.ndarray
    labels: np.ndarray | None
    source: str


def _checked(
    name: str, images: np.ndarray, labels: np.ndarray | None, shape: tuple[int, ...], classes: int = 0, first: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images of the published shape ``[n, *shape]`` and labels int64 ``[n]``, each a class.

    Raises:
        DataError: they are something else, or there is none.
    """
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise DataError(
            f"{name}: images of shape {images.shape} and dtype {images.dtype}; they must be uint8 [n, "
            f"{', '.join(map(str, shape))}] with at least one"
        )
    if labels is None:
        return images, None
    if labels.shape != images.shape[:1]:
        raise DataError(f"{name}: images of shape {images.shape} and labels of shape {labels.shape} do not match")
    return images, check_classes(name, labels, classes, first)


def load_images(name: str = "digits", split: str = "train", progress: bool = True) -> ImageData:
    """Loads an image data set from ``GUIDEBOOK_DATA``, the cache or its publisher.

    Args:
        name: ``"digits"`` (8x8, embedded in scikit-learn; first 1500 images train, the other 297 test), ``"mnist"``
            (28x28), ``"omniglot"`` (28x28; train is the first 1200 characters as in NVDP, test the other 423),
            ``"emnist"`` (balanced, the ten digits; 28x28), ``"emnist-unseen"`` (its 37 classes of letters, which TNP
            tests on after training on the digits), ``"cifar10"`` (the published archive), ``"cifar10-subset"`` (12,000
            JPEG-compressed images from the data folder), ``"celeba"`` (center crop of 136, resized to 32x32 as in
            NVDP) or ``"svhn"`` (32x32 RGB).
        split: ``"train"`` or ``"test"``.
        progress: shows a progress bar for downloads and long conversions.

    Raises:
        ValueError: the name or the split is unknown.
        DataError: a file is absent and cannot be downloaded, or is corrupted.
    """
    if name not in LOADERS:
        raise ValueError(f"name: got {name!r}; it must be one of {', '.join(LOADERS)}")
    if split not in ("train", "test"):
        raise ValueError(f"split: got {split!r}; it must be train or test")
    return LOADERS[name](split, progress)


def _digits(split: str, progress: bool) -> ImageData:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 to 16
    part = slice(0, 1500) if split == "train" else slice(1500, None)
    return ImageData(images[part], data.target[part].astype(np.int64), "scikit-learn digits, 8x8")


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped idx file of unsigned bytes.

    Raises:
        DataError: it is no such file, or truncated.
    """
    return _parse_idx(content_of(path, MOST_UNPACKED), path.name, path)


def _parse_idx(content: bytes, name: str, path: Path) -> np.ndarray:
    """An idx array from gzipped bytes; ``path`` is what a reader of the error replaces."""
    raw = gunzip(content, name, path)
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DataError(f"{name}: it is no idx file of unsigned bytes; replace {path}")
    header = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:header]) if len(raw) >= header else ()
    if len(raw) - header != math.prod(shape):  # of Python's integers, which do not overflow
        raise DataError(f"{name}: its header says shape {shape}, its length does not; replace {path}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _mnist(split: str, progress: bool) -> ImageData:
    prefix = "train" if split == "train" else "t10k"
    images = read_idx(downloads.fetch(f"mnist/{prefix}-images-idx3-ubyte.gz", progress))
    labels = read_idx(downloads.fetch(f"mnist/{prefix}-labels-idx1-ubyte.gz", progress))
    return ImageData(*_checked("mnist", images, labels, (28, 28), 10), "MNIST, 28x28")


def _emnist(split: str, progress: bool, classes: range = range(10)) -> ImageData:
    """The balanced set, from its idx files in the data folder or from the publisher's archive of all EMNIST sets."""
    names = [f"emnist-balanced-{split}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    own = [downloads.find(f"emnist/{name}") for name in names]
    if own[0] is not None and own[1] is not None:
        images, labels = read_idx(own[0]), read_idx(own[1])
    else:
        path = downloads.fetch("emnist/gzip.zip", progress)
        with reading(path, f"complete archive with {names[0]}"), zipfile.ZipFile(path) as archive:
            images, labels = (_parse_idx(read_member(archive, f"gzip/{name}"), name, path) for name in names)
    images, found = _checked("emnist", images, labels, (28, 28), 47)
    assert found is not None
    labels = found
    chosen = (labels >= classes.start) & (labels < classes.stop)
    # the publisher stores each picture column by column
    pictures = np.ascontiguousarray(images[chosen].transpose(0, 2, 1))
    source = f"EMNIST balanced, classes {classes.start} to {classes.stop - 1}, 28x28"
    return ImageData(pictures, labels[chosen], source)


def _write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Keeps arrays in the cache; an interruption or a full disk leaves no half-written archive."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except (OSError, FileError) as error:
        raise DataError(f"{path.name}: the cache folder {path.parent} cannot be written ({error})") from None


def _track(items: list, title: str, progress: bool) -> Iterable:
    if not progress:
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, title, console=Console(stderr=True))


def _omniglot(split: str, progress: bool) -> ImageData:
    path = downloads.find("omniglot/omniglot_28.npz")
    if path is None:
        path = _convert_omniglot(progress)
    images, labels = read_npz(path, ("images", "class_id"))
    images, found = _checked("omniglot", images, labels, (28, 28), 1623)
    assert found is not None
    part = found < 1200 if split == "train" else found >= 1200
    return ImageData(images[part], found[part], "Omniglot, 28x28 by area mean, ink 255")


def _convert_omniglot(progress: bool) -> Path:
    """Reduces the published 105x105 drawings to 28x28 grey levels, once; classes in order of file names."""
    from PIL import Image

    images: list[np.ndarray] = []
    labels: list[int] = []
    classes: dict[str, int] = {}
    for name in ("images_background", "images_evaluation"):
        source = downloads.fetch(f"omniglot/{name}.zip", progress)
        with reading(source, "complete archive of PNG files"), zipfile.ZipFile(source) as archive:
            members = sorted(m for m in archive.namelist() if m.endswith(".png") and "__MACOSX" not in m)
            if not 0 < len(members) <= MOST_DRAWINGS:
                raise ValueError(f"it holds {len(members)} drawings")
            for member in _track(members, f"reading {name}", progress):
                drawing = open_picture(read_member(archive, member, MOST_PICTURE_BYTES), "PNG").convert("L")
                images.append(255 - np.asarray(drawing.resize((28, 28), Image.Resampling.BOX)))
                labels.append(classes.setdefault(member.rsplit("/", 1)[0], len(classes)))
    target = downloads.cache_folder() / "omniglot/omniglot_28.npz"
    _write_npz(target, images=np.stack(images), class_id=np.array(labels, np.uint16))
    return target


def _cifar10_subset(split: str, progress: bool) -> ImageData:
    path = downloads.find(CIFAR10_SUBSET)
    if path is None:
        raise DataError(
            f"cifar10-subset: no file {CIFAR10_SUBSET} with uint8 arrays x_train, y_train, x_test and y_test; put it "
            f"into the folder that {downloads.DATA_VARIABLE} names, or use cifar10, which is downloaded"
        )
    images, labels = read_npz(path, (f"x_{split}", f"y_{split}"))
    source = f"CIFAR-10 subset of {len(images)} JPEG-compressed images, not comparable with published results"
    return ImageData(*_checked("cifar10-subset", images, labels, (32, 32, 3), 10), source)


def _cifar10(split: str, progress: bool) -> ImageData:
    path = downloads.fetch("cifar10/cifar-10-binary.tar.gz", progress)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    with reading(path, "complete CIFAR-10 binary archive"):
        raw = b"".join(read_tar(path, [f"cifar-10-batches-bin/{name}" for name in names]))
        records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    # a record is the label, then three 32x32 planes; a pixel of ours is its red, green and blue
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    checked = _checked("cifar10", np.ascontiguousarray(images), records[:, 0], (32, 32, 3), 10)
    return ImageData(*checked, "CIFAR-10, 32x32")


def _svhn(split: str, progress: bool) -> ImageData:
    path = downloads.fetch(f"svhn/{split}_32x32.mat", progress)
    x, y = read_matlab(path, {"X": (32, 32, 3, None), "y": (None, 1)})
    images, labels = _checked("svhn", x.transpose(3, 0, 1, 2), y.reshape(-1), (32, 32, 3), 10, first=1)
    assert labels is not None
    return ImageData(np.ascontiguousarray(images), labels % 10, "SVHN cropped digits, 32x32")  # 10 is a zero


#: The published partition, by number of the image: train, then validation (not offered here), then test.
_CELEBA_NUMBERS = {"train": range(1, 162_771), "test": range(182_638, 202_600)}


def _celeba(split: str, progress: bool) -> ImageData:
    source_name = "CelebA, center crop of 136 resized to 32x32"
    converted = downloads.find(f"celeba/celeba_32_{split}.npz")
    if converted is not None:
        (images,) = read_npz(converted, ("images",))
        return ImageData(*_checked("celeba", images, None, (32, 32, 3)), source_name)
    source = downloads.find("celeba/img_align_celeba") or downloads.find("celeba/img_align_celeba.zip")
    if source is None:
        raise DataError(
            "celeba: it has no direct download; get img_align_celeba.zip from its publisher and put it into "
            f"the folder that {downloads.DATA_VARIABLE} names, or into {downloads.cache_folder()}, "
            "as celeba/img_align_celeba.zip"
        )
    if source.is_dir():
        found = {path.name: lambda p=path: content_of(p, MOST_PICTURE_BYTES) for path in source.glob("*.jpg")}  # type: ignore[misc]
        with reading(source, "folder of JPEG files"):
            images = _read_faces(source, found, split, progress)
    else:
        with reading(source, "complete archive of JPEG files"), zipfile.ZipFile(source) as archive:
            members = {m.rsplit("/", 1)[-1]: m for m in archive.namelist() if m.endswith(".jpg")}
            found = {
                name: lambda m=m: read_member(archive, m, MOST_PICTURE_BYTES)  # type: ignore[misc]
                for name, m in members.items()
            }
            images = _read_faces(source, found, split, progress)
    _write_npz(downloads.cache_folder() / f"celeba/celeba_32_{split}.npz", images=images)
    return ImageData(images, None, source_name)


def _read_faces(source: Path, found: Mapping[str, Callable[..., bytes]], split: str, progress: bool) -> np.ndarray:
    from PIL import Image

    numbers = _CELEBA_NUMBERS[split]
    names = sorted(name for name in found if name[:-4].isdigit() and int(name[:-4]) in numbers)
    if not names:
        raise DataError(f"{source.name}: it holds no image of the {split} split ({numbers[0]:06}.jpg and on)")
    images = np.empty((len(names), 32, 32, 3), np.uint8)
    for i, name in enumerate(_track(names, f"reading {source.name}", progress)):
        face = open_picture(found[name](), "JPEG").convert("RGB")
        left, top = (face.width - 136) // 2, (face.height - 136) // 2
        crop = face.crop((left, top, left + 136, top + 136))
        images[i] = np.asarray(crop.resize((32, 32), Image.Resampling.BICUBIC))
    return images


LOADERS: dict[str, Callable[[str, bool], ImageData]] = {
    "digits": _digits,
    "mnist": _mnist,
    "emnist": _emnist,
    "emnist-unseen": partial(_emnist, classes=range(10, 47)),
    "omniglot": _omniglot,
    "cifar10": _cifar10,
    "cifar10-subset": _cifar10_subset,
    "celeba": _celeba,
    "svhn": _svhn,
}
