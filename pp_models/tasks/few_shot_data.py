"""Published few-shot data sets by name: Omniglot, and one's own copies of mini-ImageNet and CIFAR-FS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pp_models.arguments import FLAG, checked, integer, one_of
from pp_models.data import DataError
from pp_models.tasks import downloads
from pp_models.tasks.few_shot_tasks import SPLITS, FewShotTasks, from_few_shot
from pp_models.tasks.image_data import load_images
from pp_models.tasks.image_tasks import shrink

#: of Omniglot's first 1,200 characters, those from here on are for validation
OMNIGLOT_TRAINED = 1_100
#: folders of a split, as the published copies call it
FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
OWN_COPIES = ("mini-imagenet", "cifar-fs")
#: names of :func:`few_shot`
NAMES = ("omniglot", *OWN_COPIES)


@checked(name=one_of(*NAMES), split=one_of(*SPLITS), size=integer(4, 256), rotations=FLAG)
def few_shot(
    name: str = "omniglot",
    split: str = "train",
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    *,
    size: int | None = None,
    rotations: bool | None = None,
    progress: bool = True,
) -> FewShotTasks:
    """Few-shot tasks of a published data set; ``x`` is a picture's numbers ``[D]``, row by row, in [-0.5, 0.5].

    Omniglot: 1,100 characters train, 100 validate, 423 test (of all 1,623 in the order of their files, as NVDP divides
    them); a character turned by 90, 180 and 270 degrees is another class, in training alone, as is usual.
    Mini-ImageNet and CIFAR-FS have no source that may be downloaded freely: put a copy into the folder that
    ``GUIDEBOOK_DATA`` names, as ``mini-imagenet/train/CLASS/*.jpg``, ``mini-imagenet/val/…``, ``mini-imagenet/test/…``.

    Args:
        name: ``"omniglot"``, ``"mini-imagenet"`` or ``"cifar-fs"``.
        split: ``"train"``, ``"validation"`` or ``"test"``; classes, not pictures, are divided.
        ways: classes a task.
        shots: examples of each class as context.
        queries: examples of each class as target.
        batch_size: tasks a batch.
        seed: of the stream.
        size: side of a picture; Omniglot's must divide 28, which is the default, as is 84 for mini-ImageNet and 32 for
            CIFAR-FS.
        rotations: turned Omniglot characters as further classes; by default in training alone.
        progress: show that of a download.

    Raises:
        DataError: the files are not to be had, or hold too few classes or examples.
        ValueError: an argument out of range.
    """
    if name in OWN_COPIES:
        if rotations:
            raise ValueError(f"rotations: got True; {name} is not turned, Omniglot alone is")
        side = size or (84 if name == "mini-imagenet" else 32)
        return from_few_shot(
            _own_copy(name, split), split="train", ways=ways, shots=shots, queries=queries, batch_size=batch_size,
            seed=seed, size=side, shares=(1.0, 0.0, 0.0),
        )  # fmt: skip
    data = load_images("omniglot", "test" if split == "test" else "train", progress)
    assert data.labels is not None
    images, labels = torch.as_tensor(data.images), np.asarray(data.labels)
    if size is not None:
        images = shrink(images, (size, size))
    x = images.float() / 255 - 0.5
    part = np.ones(len(labels), bool)
    if split != "test":
        part = (labels < OMNIGLOT_TRAINED) == (split == "train")
    turns = range(4 if (split == "train" if rotations is None else rotations) else 1)
    examples, names = [], []
    for label in np.unique(labels[part]):
        found = x[torch.from_numpy(labels == label)]
        for turn in turns:
            examples.append(torch.rot90(found, turn, (1, 2)).flatten(1))
            names.append(f"character {label}" + (f" turned by {90 * turn}" if turn else ""))
    return FewShotTasks(examples, names, ways, shots, queries, batch_size, seed)


def _own_copy(name: str, split: str) -> Path:
    folder = downloads.data_folder()
    for part in FOLDERS[split]:
        if folder is not None and (folder / name / part).is_dir():
            return folder / name / part
    raise DataError(
        f"{name}: no folder {name}/{FOLDERS[split][0]} of pictures by class; put a copy into the folder that "
        f"{downloads.DATA_VARIABLE} names"
    )
