"""Data files made by somebody who wants memory, time, the network or a wrong number: one line that names the file."""

import gzip
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pp_models import DataError
from pp_models.tasks import data_files, downloads
from pp_models.tasks.downloads import no_downloads
from pp_models.tasks.ecg_tasks import read_series
from pp_models.tasks.image_data import load_images
from pp_models.tasks.regression_tables import load_table
from pp_models.tasks.tabular_tasks import read_abalone
from pp_models.tasks.text_tasks import load_text
from tests.pp_models.tasks.test_image_data import cifar_archive, encoded, folder, idx, pixels, put  # noqa: F401

#: what a refusal may take, where the bombs unpack to a hundred times as much
MOST_MEMORY = 2**26


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """A 64th of the limits, so that bombs need not be large to be told."""
    monkeypatch.setattr(data_files, "MOST_UNPACKED", 2**23)
    for function in (data_files.gunzip, data_files.text_of, data_files.read_member):
        monkeypatch.setattr(function, "__defaults__", (2**23,))


def refused(make, *arguments, message):
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message) as caught:
            make(*arguments)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


MNIST = "mnist/train-images-idx3-ubyte.gz", "mnist/train-labels-idx1-ubyte.gz"
LABELS = np.arange(6, dtype=np.uint8)
#: 64 MB of zeros in 64 kB
GZIP_BOMB = gzip.compress(bytes(2**26))


def big_idx(*shape, content=b""):
    return gzip.compress(bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GZIP_BOMB, idx(LABELS), r"^train-images\S*: it unpacks to more than 8388608 bytes, which none does; replace"),
        (big_idx(2**31, 2**31, 4), idx(LABELS), r"its header says shape \(2147483648, 2147483648, 4\)"),  # 0 in int64
        (big_idx(*[2**16] * 4), idx(LABELS), r"its header says shape \(65536, 65536, 65536, 65536\)"),
        (big_idx(0, 28, 28), big_idx(0), r"^mnist: images of shape \(0, 28, 28\) .* with at least one$"),
        (idx(pixels(6, 14, 14)), idx(LABELS), r"^mnist: images of shape \(6, 14, 14\) and dtype uint8; they must be"),
        (idx(pixels(6, 28, 28)), idx(LABELS + 5), r"^mnist: it has label 10; labels are 0 to 9$"),
    ],
)
def test_idx_files(folder, images, labels, message):  # noqa: F811
    put(folder, MNIST[0], images)
    put(folder, MNIST[1], labels)
    refused(load_images, "mnist", message=message)


@pytest.mark.parametrize("kind", ["device", "pipe", "huge"])
def test_what_is_no_regular_file_is_never_read(folder, kind):  # noqa: F811
    path = folder / MNIST[0]
    path.parent.mkdir()
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with open(path, "wb") as file:
            file.truncate(10**13)
    message = (
        "is not a regular file; replace" if kind != "huge" else "has 10000000000000 bytes; such a file has at most"
    )
    refused(load_images, "mnist", message=rf"^train-images-idx3-ubyte.gz: (it )?{message}")


def npz(folder, **members):  # noqa: F811
    path = folder / "omniglot/omniglot_28.npz"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(shape, content, dtype="|u1"):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    ("images", "classes", "message"),
    [
        (npy((10**6, 28, 28), bytes(2**26)), npy((1,), b"\0"), r"no complete npz file \(TooLarge: images.npy would"),
        (
            npy((10**9, 28, 28), b"\0"),
            npy((1,), b"\0"),
            r"images says shape \(1000000000, 28, 28\), its length",
        ),
        (npy((-1, 28, 28), b""), npy((1,), b"\0"), r"no complete npz file \(ValueError: "),
        (npy((1, 28, 28), bytes(784)), npy((1,), b"\xff\xff", "<u2"), r"it has label 65535; labels are 0 to 1622$"),
        (npy((1, 28, 28), bytes(784 * 8), "<f8"), npy((1,), b"\0"), r"images of shape \(1, 28, 28\) and dtype float64"),
        (npy((0, 28, 28), b""), npy((0,), b""), "with at least one$"),
    ],
)
def test_npz_files(folder, images, classes, message):  # noqa: F811
    npz(folder, images=images, class_id=classes)
    refused(load_images, "omniglot", message=message)


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def encrypted(content):
    """The same archive with every member marked as encrypted."""
    changed = bytearray(content)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := changed.find(mark, at + 1)) >= 0:
            changed[at + place] |= 1
    return bytes(changed)


def vast_picture(kind):
    """A few bytes that say 60,000 x 60,000 pixels."""
    if kind == "JPEG":
        content = bytearray(encoded(pixels(8, 8, 3), "JPEG"))
        frame = content.find(b"\xff\xc0")
        content[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
        return bytes(content)
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + head
    rest = b"IDAT" + zlib.compress(bytes(100))
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, rest, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped({"a/1.png": bytes(2**26)}), r"TooLarge: a/1.png would unpack to 67108864 bytes"),
        (encrypted(zipped({"a/1.png": encoded(pixels(105, 105), "PNG")})), r"BadZipFile: a/1.png is encrypted"),
        (zipped({"a/1.png": vast_picture("PNG")}), r"complete archive of PNG files \((TooLarge|Decompression\w+): "),
        (zipped({"a/1.png": encoded(pixels(105, 105), "BMP")}), r"UnidentifiedImageError"),  # no other format is read
        (zipped({"a/readme": b""}), r"ValueError: it holds 0 drawings"),
        (zipped({}), r"ValueError: it holds 0 drawings"),
    ],
)
def test_zip_archives_of_pictures(folder, content, message):  # noqa: F811
    put(folder, "omniglot/images_background.zip", content)
    put(folder, "omniglot/images_evaluation.zip", content)
    refused(load_images, "omniglot", "train", False, message=rf"^images_background.zip: it is no .*{message}")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"000001.jpg": vast_picture("JPEG")}, r"JPEG files \((TooLarge|Decompression\w+): "),
        ({"readme": b""}, r"it holds no image of the train split"),
    ],
)
@pytest.mark.parametrize("archived", [True, False])
def test_faces(folder, members, message, archived):  # noqa: F811
    if archived:
        put(folder, "celeba/img_align_celeba.zip", zipped(members))
    else:
        for name, content in members.items():
            put(folder, f"celeba/img_align_celeba/{name}", content)
    refused(load_images, "celeba", "train", False, message=message)


def test_a_pipe_among_the_faces(folder):  # noqa: F811
    (folder / "celeba/img_align_celeba").mkdir(parents=True)
    os.mkfifo(folder / "celeba/img_align_celeba/000001.jpg")
    refused(load_images, "celeba", "train", False, message=r"^000001.jpg: is not a regular file; replace")


def test_emnist_archives(folder):  # noqa: F811
    names = [f"gzip/emnist-balanced-train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    good = {names[0]: idx(pixels(6, 28, 28)), names[1]: idx(LABELS)}
    for content, message in (
        (zipped(good | {names[0]: GZIP_BOMB}), r"^emnist-balanced-train-images\S+: it unpacks to more than"),
        (zipped(good | {names[0]: bytes(2**26)}), r"^gzip.zip: it is no .* \(TooLarge: "),
        (encrypted(zipped(good)), r"^gzip.zip: it is no .* \(BadZipFile: \S+ is encrypted\)"),
        (zipped(good | {names[1]: idx(LABELS + 42)}), r"^emnist: it has label 47; labels are 0 to 46$"),
        (zipped({}), r"^gzip.zip: it is no .* \(KeyError: "),
    ):
        put(folder, "emnist/gzip.zip", content)
        refused(load_images, "emnist", message=message)


def test_tar_archives(folder):  # noqa: F811
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    good = cifar_archive(pixels(2, 32, 32, 3), np.array([3, 7]), names)
    wrong = cifar_archive(pixels(2, 32, 32, 3), np.array([3, 10]), names)

    def archive(change):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as file:
            for name in names:
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                change(info)
                file.addfile(info)
        return stream.getvalue()

    def link(info):
        info.type, info.linkname = tarfile.SYMTYPE, info.name  # to itself

    def sparse(info):
        info.pax_headers = {
            "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0",
            "GNU.sparse.size": str(2**40), "GNU.sparse.name": info.name,
        }  # fmt: skip

    for content, message in (
        (GZIP_BOMB, r"it unpacks to more than 8388608 bytes, which none does"),
        (archive(link), r"no complete CIFAR-10 binary archive \(TarError: \S+ is no plain file\)"),
        (archive(sparse), r"no complete CIFAR-10 binary archive \(TarError: \S+ is no plain file\)"),
        (archive(lambda info: None), r"^cifar10: images of shape \(0, 32, 32, 3\) .* with at least one$"),
        (gzip.compress(tarfile.NUL * 10_240), r"no complete CIFAR-10 binary archive \((KeyError|ReadError): "),
        (wrong, r"^cifar10: it has label 10; labels are 0 to 9$"),
        (good[:-2_000], r"it is no complete gzip file"),
    ):
        put(folder, "cifar10/cifar-10-binary.tar.gz", content)
        refused(load_images, "cifar10", message=message)


def test_matlab_files(folder):  # noqa: F811
    path = folder / "svhn/train_32x32.mat"
    path.parent.mkdir()
    images, labels = pixels(32, 32, 3, 2), np.array([[1], [10]], np.uint8)
    for arrays, message in (
        ({"X": images, "y": labels + 1}, r"^svhn: it has label 11; labels are 1 to 10$"),
        ({"X": images, "y": labels[:1]}, r"^svhn: images of shape .* and labels of shape \(1,\) do not match$"),
        ({"X": images[:16], "y": labels}, r"ValueError: X has shape \(16, 32, 3, 2\)"),
        ({"X": images[..., :0], "y": labels}, r"ValueError: X has shape \(32, 32, 3, 0\)"),
        ({"y": labels}, r"ValueError: there is no X"),
    ):
        savemat(path, arrays)
        refused(load_images, "svhn", message=message)
    head = path.read_bytes()[:128]
    bomb = zlib.compress(bytes(2**26), 9)
    path.write_bytes(head + struct.pack("<II", 15, len(bomb)) + bomb)
    refused(load_images, "svhn", message=r"TooLarge: an array unpacks to more than any does")


def test_tables_and_texts(folder, monkeypatch):  # noqa: F811
    line = ",".join(["0.5"] * 96)
    for content, message in (
        (GZIP_BOMB, r"^ECG200_TRAIN.csv.gz: it unpacks to more than"),
        (gzip.compress(b""), r"^ECG200_TRAIN.csv.gz: it is no table of recordings \(ValueError: it is empty\)"),
        (gzip.compress(f"1,{line}\n1.5,{line}\n".encode()), r"it has label 1.5; labels are -1 to 5$"),
        (gzip.compress(f"1e300,{line}\n".encode()), r"it has label 1e\+300; labels are -1 to 5$"),
        (gzip.compress(f"1,{line[:-3]}nan\n".encode()), r"it holds values that are not finite"),
    ):
        put(folder, "ecg/ECG200_TRAIN.csv.gz", content)
        refused(read_series, "ecg200", message=message)
    rows = [f"{sex},{','.join(['1'] * 8)}" for sex in ("M", "F", "I")]
    monkeypatch.setattr("pp_models.tasks.tabular_tasks.ROWS", {"M": 1, "F": 1, "I": 1})
    for content, message in (
        (
            "\n".join(["header", *rows]).replace("I,1", "I,inf"),
            r"^uci/abalone.csv: it holds values that are not",
        ),
        (
            "header\n" + "M" * 200_000,
            r"^abalone.csv: it is no table of abalones \(Error: field larger",
        ),
        ("header\n", r"^uci/abalone.csv: every row needs"),
    ):
        put(folder, "uci/abalone.csv", content.encode())
        refused(read_abalone, message=message)
    put(folder, "mulan/wq.arff", b"@data\n")
    refused(load_table, "wq", message=r"^wq.arff: it has shape")


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("arc-easy", "arc/ARC-Easy-train.jsonl", DEEP, r"ARC-Easy-train.jsonl: it holds a line that is no question \("),
        ("arc-easy", "arc/ARC-Easy-train.jsonl", b'{"question": "q"}', r"\(0.choices: Field required\)$"),
        ("arc-easy", "arc/ARC-Easy-train.jsonl", b"[1]", r"that is no question \(0: "),
        ("arc-easy", "arc/ARC-Easy-train.jsonl", b"", r"holds no question; replace it$"),
        (
            "arc-easy", "arc/ARC-Easy-train.jsonl", json.dumps({"question": "q", "choices": "ab", "label": 0}).encode(),
            r"\(0.choices: Input should be a valid array",
        ),
        (
            "arc-easy", "arc/ARC-Easy-train.jsonl",
            json.dumps({"question": "q", "choices": ["a", "b"], "label": 2}).encode(),
            r"\(0: label 2 lies outside 0 to 1\)$",
        ),
        ("winogrande-xs", "winogrande/train_xs.jsonl", b'{"answer": "3"}', r"\(0.sentence: Field required\)$"),
        (
            "winogrande-xs", "winogrande/train_xs.jsonl",
            json.dumps({"sentence": "_", "option1": "a", "option2": "b", "answer": "3"}).encode(),
            r"\(0: answer 3 is neither 1 nor 2\)$",
        ),
        ("cola", "glue/CoLA/in_domain_train.tsv", b"", r"^cola: CoLA/in_domain_train.tsv holds no sentence"),
        ("cola", "glue/CoLA/in_domain_train.tsv", b"x" * 200_000, r"^cola: a row of .* is not what it should be \("),
        ("cola", "glue/CoLA/in_domain_train.tsv.gz", GZIP_BOMB, r"^in_domain_train.tsv.gz: it unpacks to more than"),
    ],
)  # fmt: skip
def test_texts(folder, name, file, content, message):  # noqa: F811
    put(folder, file, content)
    refused(load_text, name, message=message)


def test_within_no_downloads_nothing_is_asked_for(folder, monkeypatch):  # noqa: F811
    def asked(*arguments):
        raise AssertionError("the network was reached")

    monkeypatch.setattr(downloads, "_download", asked)
    for name in ("mnist", "emnist", "omniglot", "cifar10", "svhn"):
        with no_downloads("opening a run"):
            refused(load_images, name, message=r"it is not on this machine, and opening a run downloads nothing; make")
    for name in ("rte", "obqa", "cola", "arc-easy", "winogrande-xs"):
        with no_downloads("opening a run"):
            refused(load_text, name, message=r"it is not on this machine, and opening a run downloads nothing; make")
    with pytest.raises(AssertionError, match="the network was reached"):
        load_images("mnist", progress=False)


def test_a_full_disk_while_downloading_or_keeping(folder, monkeypatch, tmp_path):  # noqa: F811
    def full(url, target, pooch):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    import pooch

    monkeypatch.undo()
    monkeypatch.setenv(downloads.DATA_VARIABLE, str(folder))
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **options: full)
    refused(load_images, "mnist", "train", False, message=r"the download from \S+ failed \(No space left on device\)")
    assert list((tmp_path / "cache/mnist").iterdir()) == []

    def write(path, content):
        raise OSError(28, "No space left on device")

    for part in ("background", "evaluation"):
        put(folder, f"omniglot/images_{part}.zip", zipped({f"{part}/1.png": encoded(pixels(105, 105), "PNG")}))
    monkeypatch.setattr("pp_models.tasks.image_data.write_atomically", write)
    refused(load_images, "omniglot", "train", False, message=r"^omniglot_28.npz: the cache folder .* cannot be")


def test_a_picture_is_looked_at_before_it_is_decoded():
    wide = io.BytesIO()
    Image.new("L", (5_000, 5_000)).save(wide, "PNG")
    with pytest.raises(data_files.TooLarge, match="a picture of 5000 x 5000 pixels, which none has"):
        data_files.open_picture(wide.getvalue(), "PNG")
