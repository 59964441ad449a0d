import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pp_models import DataError, tasks
from pp_models.tasks import downloads
from pp_models.tasks.image_data import load_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder and an empty cache; nothing can be downloaded."""
    own = tmp_path / "data"
    own.mkdir()
    monkeypatch.setenv(downloads.DATA_VARIABLE, str(own))
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(downloads, "_download", lambda urls, target, progress: "no network in tests")
    return own


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def encoded(array, kind):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_digits_use_the_whole_range_and_need_no_file(folder):
    data = load_images("digits")
    assert data.images.shape == (1500, 8, 8) and data.images.dtype == np.uint8
    assert (data.images.min(), data.images.max()) == (0, 255) and set(data.labels) == set(range(10))
    assert len(load_images("digits", "test").images) == 297


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_mnist_idx_files(folder, split, prefix):
    images, labels = pixels(6, 28, 28), np.arange(6, dtype=np.uint8)
    put(folder, f"mnist/{prefix}-images-idx3-ubyte.gz", idx(images))
    put(folder, f"mnist/{prefix}-labels-idx1-ubyte.gz", idx(labels))
    data = load_images("mnist", split)
    np.testing.assert_array_equal(data.images, images)
    assert data.labels.tolist() == list(range(6)) and data.labels.dtype == np.int64
    batch = tasks.images("mnist", split, batch_size=2).batch(0)
    assert batch.full.num_points <= 200 and batch.context.y.shape[-1] == 1


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (idx(pixels(6, 28, 28))[:-30], "train-images-idx3-ubyte.gz: it is no complete gzip file"),
        (b"plain text", "it is no complete gzip file"),
        (gzip.compress(b"not idx"), "it is no idx file of unsigned bytes"),
        (gzip.compress(gzip.decompress(idx(pixels(6, 28, 28)))[:-1]), r"its header says shape \(6, 28, 28\)"),
        (gzip.compress(b"\0\0\x08\x03\0"), "its header says shape"),
        (idx(pixels(5, 28, 28)), r"mnist: images of shape \(5, 28, 28\) and labels of shape \(6,\) do not match"),
    ],
)
def test_broken_mnist_files(folder, content, match):
    put(folder, "mnist/train-images-idx3-ubyte.gz", content)
    put(folder, "mnist/train-labels-idx1-ubyte.gz", idx(np.arange(6, dtype=np.uint8)))
    with pytest.raises(DataError, match=match) as error:
        load_images("mnist")
    assert "\n" not in str(error.value)


def test_omniglot_npz_is_split_by_character(folder):
    images, class_id = pixels(4, 28, 28), np.array([0, 1199, 1200, 1622], np.uint16)
    (folder / "omniglot").mkdir()
    np.savez(folder / "omniglot/omniglot_28.npz", images=images, class_id=class_id)
    train, test = load_images("omniglot", "train"), load_images("omniglot", "test")
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), images)
    assert train.labels.tolist() == [0, 1199] and test.labels.tolist() == [1200, 1622]


def test_omniglot_archives_are_inverted_reduced_and_kept(folder, tmp_path):
    drawing = np.full((105, 105), 255, np.uint8)
    drawing[:15, :15] = 0  # ink in the 4x4 pixels of the corner

    def archive(names):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as file:
            for name in names:
                file.writestr(name, encoded(drawing, "PNG"))
        return stream.getvalue()

    put(folder, "omniglot/images_background.zip", archive(["b/B/character01/2.png", "b/A/character01/1.png"]))
    put(folder, "omniglot/images_evaluation.zip", archive(["e/C/character01/3.png"]))
    data = load_images("omniglot", progress=False)
    assert data.images.shape == (3, 28, 28) and data.labels.tolist() == [0, 1, 2]
    assert (data.images[0, :4, :4] == 255).all() and data.images[0, 5:].max() == 0
    assert (tmp_path / "cache/omniglot/omniglot_28.npz").is_file()
    np.testing.assert_array_equal(load_images("omniglot").images, data.images)


def test_an_npz_with_pickled_content_or_missing_arrays_is_refused(folder):
    (folder / "omniglot").mkdir()
    path = folder / "omniglot/omniglot_28.npz"
    np.savez(path, images=np.array([{}], dtype=object), class_id=np.zeros(1))
    with pytest.raises(DataError, match="omniglot_28.npz: it is no complete npz file"):
        load_images("omniglot")
    np.savez(path, images=pixels(1, 28, 28))
    with pytest.raises(DataError, match="omniglot_28.npz: it has no array class_id"):
        load_images("omniglot")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="omniglot_28.npz: it is no complete npz file"):
        load_images("omniglot")


def cifar_archive(images, labels, names):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in names:
            planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            content = np.concatenate([labels[:, None], planes], 1).astype(np.uint8).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_cifar10_binary_archive_gives_colours_by_pixel(folder):
    images, labels = pixels(2, 32, 32, 3), np.array([3, 7])
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    path = put(folder, "cifar10/cifar-10-binary.tar.gz", cifar_archive(images, labels, names))
    train, test = load_images("cifar10"), load_images("cifar10", "test")
    np.testing.assert_array_equal(train.images, np.tile(images, (5, 1, 1, 1)))
    np.testing.assert_array_equal(test.images, images)
    assert test.labels.tolist() == [3, 7] and test.source == "CIFAR-10, 32x32"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="cifar-10-binary.tar.gz: it is no complete gzip file"):
        load_images("cifar10")


def test_the_jpeg_subset_of_cifar10_says_what_it_is(folder):
    (folder / "cifar10_subset").mkdir()
    arrays = {"x_train": pixels(3, 32, 32, 3), "y_train": np.arange(3, dtype=np.uint8)}
    np.savez(folder / "cifar10_subset/cifar10_jpeg_subset.npz", **arrays)
    stream = tasks.images("cifar10-subset", batch_size=2)
    assert stream.source == "CIFAR-10 subset of 3 JPEG-compressed images, not comparable with published results"
    assert stream.batch(0).target.y.shape[-1] == 3
    with pytest.raises(DataError, match=r"cifar10/cifar-10-binary.tar.gz: the download"):  # never in its place
        load_images("cifar10", progress=False)


def test_an_absent_subset_says_what_it_needs(folder):
    with pytest.raises(DataError, match="^cifar10-subset: no file cifar10_subset/cifar10_jpeg_subset.npz with uint8"):
        load_images("cifar10-subset")


def emnist_files(split="train"):
    """Five balanced images of classes 0, 9, 10, 46 and 3, and the two files that hold them."""
    images, labels = pixels(5, 28, 28), np.array([0, 9, 10, 46, 3], np.uint8)
    names = [f"emnist-balanced-{split}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    return images, dict(zip(names, (idx(images), idx(labels)), strict=True))


@pytest.mark.parametrize("archived", [True, False])
def test_emnist_digits_train_and_letters_are_unseen(folder, archived):
    images, files = emnist_files()
    if archived:
        (folder / "emnist").mkdir()
        with zipfile.ZipFile(folder / "emnist/gzip.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(f"gzip/{name}", content)
    else:
        for name, content in files.items():
            put(folder, f"emnist/{name}", content)
    digits, letters = load_images("emnist"), load_images("emnist-unseen")
    np.testing.assert_array_equal(digits.images, images[[0, 1, 4]].transpose(0, 2, 1))
    assert digits.labels.tolist() == [0, 9, 3] and letters.labels.tolist() == [10, 46]
    assert letters.source == "EMNIST balanced, classes 10 to 46, 28x28"
    assert tasks.images("emnist", batch_size=2, protocol="tnp").batch(0).full.num_points <= 199


def test_broken_emnist_archives(folder):
    put(folder, "emnist/gzip.zip", b"no zip")
    with pytest.raises(DataError, match="gzip.zip: it is no complete archive with emnist-balanced-test-images"):
        load_images("emnist", "test")
    _, files = emnist_files()
    with zipfile.ZipFile(folder / "emnist/gzip.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"gzip/{name}", content[:-9])
    with pytest.raises(DataError, match=r"emnist-balanced-train-images-idx3-ubyte.gz: it is no complete gzip file"):
        load_images("emnist")


def test_svhn_matlab_files(folder):
    images = pixels(4, 32, 32, 3)
    (folder / "svhn").mkdir()
    path = folder / "svhn/train_32x32.mat"
    savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": np.array([[1], [9], [10], [4]], np.uint8)})
    data = load_images("svhn")
    np.testing.assert_array_equal(data.images, images)
    assert data.labels.tolist() == [1, 9, 0, 4]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="train_32x32.mat: it is no complete Matlab file"):
        load_images("svhn")


def face(grey):
    """178x218 like the published images: grey inside the central 136 square, black outside."""
    array = np.zeros((218, 178, 3), np.uint8)
    array[41:177, 21:157] = grey
    return encoded(array, "JPEG")


def test_celeba_folder_and_archive_are_cropped_and_kept(folder, tmp_path):
    for name, grey in (("000001.jpg", 200), ("162770.jpg", 100), ("162771.jpg", 1), ("182638.jpg", 50)):
        put(folder, f"celeba/img_align_celeba/{name}", face(grey))
    data = load_images("celeba", progress=False)
    assert data.images.shape == (2, 32, 32, 3) and data.labels is None
    assert abs(data.images[0].astype(int) - 200).max() <= 12 and abs(data.images[1, 8:24, 8:24].mean() - 100) < 2
    assert (tmp_path / "cache/celeba/celeba_32_train.npz").is_file()
    np.testing.assert_array_equal(load_images("celeba").images, data.images)
    for path in (folder / "celeba/img_align_celeba").iterdir():
        path.unlink()
    (folder / "celeba/img_align_celeba").rmdir()
    with zipfile.ZipFile(folder / "celeba/img_align_celeba.zip", "w") as archive:
        archive.writestr("img_align_celeba/182638.jpg", face(50))
    test = load_images("celeba", "test", progress=False)
    assert test.images.shape == (1, 32, 32, 3) and abs(test.images.mean() - 50) < 3


def test_celeba_says_where_to_put_the_file(folder):
    with pytest.raises(DataError, match="celeba: it has no direct download; .* as celeba/img_align_celeba.zip"):
        load_images("celeba")
    put(folder, "celeba/img_align_celeba.zip", b"broken")
    with pytest.raises(DataError, match="img_align_celeba.zip: it is no complete archive of JPEG files"):
        load_images("celeba")


@pytest.mark.parametrize("name", ["mnist", "emnist", "omniglot", "cifar10", "svhn"])
def test_absent_files_that_cannot_be_downloaded(folder, name):
    with pytest.raises(DataError, match=rf"^{name}/.*: the download .* failed \(no network in tests\); try again"):
        load_images(name, progress=False)


def test_unknown_names_and_splits():
    with pytest.raises(
        ValueError, match="name: got 'digit'; it must be one of digits, mnist, emnist, emnist-unseen, omniglot"
    ):
        tasks.images("digit")
    with pytest.raises(ValueError, match="split: got 'valid'; it must be train or test"):
        tasks.images("digits", "valid")
