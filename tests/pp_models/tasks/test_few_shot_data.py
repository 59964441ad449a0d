import numpy as np
import pytest
import torch
from PIL import Image

import guidebook as gb
from pp_models.data import DataError
from pp_models.tasks import few_shot_data


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Sixteen drawings a character: 1,300 characters in the order of their files."""
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(1_300), 2).astype(np.uint16)
    (tmp_path / "omniglot").mkdir()
    images = rng.integers(0, 256, (len(labels), 28, 28)).astype(np.uint8)
    np.savez(tmp_path / "omniglot/omniglot_28.npz", images=images, class_id=labels)
    return images, labels


def test_characters_of_omniglot_are_divided_and_turned_in_training_alone(data):
    images, labels = data
    parts = {s: gb.tasks.few_shot("omniglot", s, 5, 1, 1, progress=False) for s in ("train", "validation", "test")}
    assert {split: len(part.examples) for split, part in parts.items()} == {
        "train": 4 * 1_100,
        "validation": 100,
        "test": 100,
    }
    seen = {split: {name.split()[1] for name in part.names} for split, part in parts.items()}
    assert not (seen["train"] & seen["validation"] or seen["train"] & seen["test"] or seen["validation"] & seen["test"])
    first = torch.from_numpy(images[labels == 0]).float() / 255 - 0.5
    for turn in range(4):
        torch.testing.assert_close(parts["train"].examples[turn], torch.rot90(first, turn, (1, 2)).flatten(1))
    assert parts["train"].batch(0).context.x.shape == (16, 5, 784)
    plain = gb.tasks.few_shot("omniglot", "train", 5, 1, 1, rotations=False, size=14, progress=False)
    assert len(plain.examples) == 1_100 and plain.dim_x == 196


@pytest.mark.parametrize("folder", ["val", "validation"])
def test_ones_own_copy_is_read_by_split(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    for split, names in (("train", "abc"), (folder, "de"), ("test", "fgh")):
        for name in names:
            where = tmp_path / "mini-imagenet" / split / name
            where.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (20, 20), (40 * i, ord(name), 0)).save(where / f"{i}.png")
    tasks = gb.tasks.few_shot("mini-imagenet", "test", 3, 1, 2, size=8)
    assert tasks.names == ["f", "g", "h"] and tasks.dim_x == 8 * 8 * 3
    assert gb.tasks.few_shot("mini-imagenet", "validation", 2, 1, 2, size=8).names == ["d", "e"]
    with pytest.raises(DataError, match=r"^cifar-fs: no folder cifar-fs/train of pictures by class; put a copy into"):
        gb.tasks.few_shot("cifar-fs")
    with pytest.raises(ValueError, match=r"^rotations: got True; mini-imagenet is not turned"):
        gb.tasks.few_shot("mini-imagenet", rotations=True)


def test_unknown_names_and_sizes_are_refused(data):
    with pytest.raises(
        ValueError, match=r"^name: got 'omniglott'; it must be one of " + ", ".join(few_shot_data.NAMES)
    ):
        gb.tasks.few_shot("omniglott")
    with pytest.raises(ValueError, match=r"^size: got \(15, 15\); it must divide the images' 28 by 28 pixels$"):
        gb.tasks.few_shot("omniglot", size=15, progress=False)
