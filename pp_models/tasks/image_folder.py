"""Image completion on your own pictures: the files of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pp_models.arguments import FLAG, PATH, SEED, WIDTH, checked, each, either, number, one_of
from pp_models.data import DataError
from pp_models.tasks.image_data import ImageData
from pp_models.tasks.image_tasks import ImageTasks

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
#: pixels of one picture, and of all of them
MOST_PIXELS, MOST_IN_ALL = 2**24, 2**31
SPLITS = ("train", "validation", "test")


@checked(
    folder=PATH,
    size=either(int, other=each(WIDTH, 2, 2, "be a size, or (height, width)")),
    split=one_of(*SPLITS),
    shares=each(number(0, 1), 3, 3, "be three shares, of training, validation and test images"),
    grey=FLAG,
    split_seed=SEED,
)
def from_images(
    folder: Any,
    split: str = "train",
    batch_size: int = 16,
    seed: int = 0,
    *,
    size: int | tuple[int, int] | None = None,
    grey: bool = False,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    split_seed: int = 0,
    **options: Any,
) -> ImageTasks:
    """Image completion on the pictures of a folder, a task a picture; folders in it are classes.

    Args:
        folder: holds PNG, JPEG, BMP, GIF, TIFF or WebP files; where they are in folders of their own, the folder's name
            is a picture's label.
        split: ``"train"``, ``"validation"`` or ``"test"``, by picture.
        batch_size: tasks a batch.
        seed: of the stream.
        size: side, or (height, width), to which pictures are resized; None needs pictures of one size.
        grey: one channel in place of three.
        shares: of pictures in each split.
        split_seed: of the split; the same for all three.
        **options: of :class:`ImageTasks`; ``full_image=True`` is the test mode.

    Raises:
        DataError: no folder, no pictures, one that cannot be read, or pictures of several sizes.
        ValueError: an argument out of range.
    """
    paths, root = picture_paths(folder), Path(folder)
    if not shares[0] > 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares: got {tuple(shares)}; they must sum to 1, the first above 0")
    order = np.random.default_rng(split_seed).permutation(len(paths))
    ends = [0, round(shares[0] * len(paths)), round((shares[0] + shares[1]) * len(paths)), len(paths)]
    i = SPLITS.index(split)
    chosen = [paths[j] for j in sorted(order[ends[i] : ends[i + 1]])]
    if not chosen:
        raise DataError(
            f"split: got {split!r}, which has none of the {len(paths)} pictures; give it a share by shares="
        )
    pictures = read_pictures(chosen, root, size, grey)
    classes = sorted({path.parent.name for path in paths if path.parent != root})
    labels = None
    if classes:
        labels = np.array([classes.index(path.parent.name) if path.parent != root else -1 for path in chosen])
        labels = None if (labels < 0).any() else labels
    return ImageTasks(ImageData(pictures, labels, f"folder {root.name}"), batch_size, seed, **options)


def picture_paths(folder: Any) -> list[Path]:
    """The files of pictures in a folder and in its folders, in order of their names.

    Raises:
        DataError: no folder, or none in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"folder: got {str(root)!r}; there must be such a folder")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not paths:
        raise DataError(f"folder: {root} holds no pictures; it must hold files that end in {', '.join(ENDINGS)}")
    return paths


def read_pictures(paths: list[Path], root: Path, size: int | tuple[int, int] | None, grey: bool) -> np.ndarray:
    """Pictures of one size, uint8 ``[n, H, W, C]``.

    Args:
        paths: of the files.
        root: the folder, for messages.
        size: to resize them to, a side or (height, width); None needs them to have one.
        grey: one channel in place of three.

    Raises:
        DataError: one cannot be read, they differ in size, or there are too many of them.
    """
    wanted = None if size is None else (WIDTH.check("size", size),) * 2 if isinstance(size, int) else tuple(size)
    pictures: list[np.ndarray] = []
    for path in paths:
        pictures.append(_read(path, wanted, grey))
        if pictures[-1].shape != pictures[0].shape:
            raise DataError(
                f"folder: {root} has pictures of {pictures[0].shape[:2]} and {pictures[-1].shape[:2]} pixels; they "
                "must have one size: resize them by size="
            )
        if pictures[0].size * len(pictures) > MOST_IN_ALL:
            raise DataError(f"folder: {root} has {len(paths)} pictures of {pictures[0].shape}; take a smaller size=")
    return np.stack(pictures)


def _read(path: Path, size: tuple[int, ...] | None, grey: bool) -> np.ndarray:
    """A picture, uint8 ``[H, W, C]``."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"it has {picture.width} by {picture.height} pixels, more than {MOST_PIXELS:,}")
            found = picture.convert("L" if grey else "RGB")
            if size is not None:
                found = found.resize((size[1], size[0]), Image.Resampling.LANCZOS)
            array = np.asarray(found, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"folder: {path} cannot be read as a picture ({str(error)[:150]})") from None
    return array[..., None] if array.ndim == 2 else array
