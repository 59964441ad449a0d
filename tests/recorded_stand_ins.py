"""Stand-ins for recorded data sets, so that the tests need no downloads."""

import gzip
import json
import struct

import numpy as np
import pytest
import scipy.io
import xarray

from pp_models.tasks.tabular_tasks import ROWS


def write_archive(folder, rng):
    """ECG files of the archive's shapes: a label, then a standardised series."""
    folder.mkdir()
    for name, rows, length, labels in (
        ("ECG200_TRAIN", 100, 96, {-1: 31, 1: 69}),
        ("ECG200_TEST", 100, 96, {-1: 36, 1: 64}),
        ("ECG5000_TRAIN", 500, 140, {1: 292, 2: 177, 3: 10, 4: 19, 5: 2}),
    ):
        series = rng.standard_normal((rows, length)).cumsum(1)
        series = (series - series.mean(1, keepdims=True)) / series.std(1, ddof=1, keepdims=True)
        label = np.repeat(list(labels), list(labels.values()))
        lines = [",".join(map(repr, [int(c), *map(float, row)])) for c, row in zip(label, series, strict=True)]
        with gzip.open(folder / f"{name}.csv.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")


def write_abalone(folder, rng, infant_size=0.5):
    """Rows of the published numbers by sex; ``infant_size`` scales what is measured on infants."""
    folder.mkdir(exist_ok=True)
    lines = ["sex,length,diameter,height,whole_weight,shucked_weight,viscera_weight,shell_weight,rings"]
    for sex, count in ROWS.items():
        size = infant_size if sex == "I" else 1.0
        measured = size * rng.uniform(0.1, 1.0, (count, 7))
        rings = rng.integers(3, 8, count) if sex == "I" else rng.integers(6, 20, count)
        lines += [f"{sex},{','.join(f'{v:.4f}' for v in row)},{r}" for row, r in zip(measured, rings, strict=True)]
    (folder / "abalone.csv").write_text("\n".join(lines) + "\n")


def write_era5(folder, steps=20, time="time"):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    latitude, longitude = np.arange(52.0, 44.0, -0.5), np.arange(4.0, 13.0, 0.5)  # north to south, as it comes
    shape = (steps, len(latitude), len(longitude))
    temperature = 280 + 5 * rng.standard_normal(shape)
    temperature[:, -1, 3] = np.nan  # sea
    rain = 1e-3 * rng.random(shape)
    dims = (time, "latitude", "longitude")
    xarray.Dataset(
        {"t2m": (dims, temperature), "tp": (dims, rain)},
        {time: np.arange(steps), "latitude": latitude, "longitude": longitude},
    ).to_netcdf(folder / "land.nc", engine="h5netcdf")
    return temperature, rain


def write_mnist(folder, rng, count=6):
    """A few random images in the publisher's format."""
    folder.mkdir()
    for prefix in ("train", "t10k"):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(count, dtype=np.uint8)))


def idx(array):
    """A gzipped idx file of unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def write_tables(folder, rng, rows=320):
    """Tables of several outputs: SARCOS's test file, water quality as ARFF, supply chains as npz."""
    for name in ("sarcos", "mulan"):
        (folder / name).mkdir(exist_ok=True)

    def table(inputs, outputs):
        x = rng.standard_normal((rows, inputs))
        return x, np.sin(x @ rng.standard_normal((inputs, outputs))) + 0.1 * rng.standard_normal((rows, outputs))

    for name, widths in (("sarcos/sarcos_test4449", (21, 7)), ("mulan/scm20d", (61, 16))):
        x, y = table(*widths)
        np.savez(folder / f"{name}.npz", X=x, Y=y)
    lines = [",".join(f"{v:.5f}" for v in row) for row in np.concatenate(table(16, 14), 1)]
    header = ["@relation wq", *(f"@attribute a{i} numeric" for i in range(30)), "", "@DATA"]
    (folder / "mulan/wq.arff").write_text("\n".join([*header, "% a comment", *lines, ""]))


def write_pictures(folder, rng, count=8):
    """EMNIST, SVHN and the subset of CIFAR-10, a few random images each in the formats of the real ones."""
    for name in ("emnist", "svhn", "cifar10_subset"):
        (folder / name).mkdir(exist_ok=True)
    arrays = {}
    for split in ("train", "test"):
        grey = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"emnist/emnist-balanced-{split}-images-idx3-ubyte.gz").write_bytes(idx(grey))
        labels = np.arange(count, dtype=np.uint8) * 5
        (folder / f"emnist/emnist-balanced-{split}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        colour = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays |= {f"x_{split}": colour, f"y_{split}": np.arange(count, dtype=np.uint8)}
        content = {"X": colour.transpose(1, 2, 3, 0), "y": np.arange(1, count + 1, dtype=np.uint8)[:, None]}
        scipy.io.savemat(folder / f"svhn/{split}_32x32.mat", content)
    np.savez(folder / "cifar10_subset/cifar10_jpeg_subset.npz", **arrays)


def write_text(folder, rng):
    """GLUE, ARC and WinoGrande in the formats of the published files, with sentences of a few words."""
    for name in ("glue/CoLA", "glue/SST-2", "glue/MRPC", "arc", "winogrande"):
        (folder / name).mkdir(parents=True)

    def sentence(label):
        words = [*rng.choice(["we", "saw", "the", "old", "film", "again"], 4), "good" if label else "bad"]
        return " ".join(words) + "."

    def write(name, header, row, count):
        lines = [] if header is None else [header]
        lines += ["\t".join(row(i, int(rng.integers(2)))) for i in range(count)]
        (folder / f"{name}.gz").write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))

    for name, count in (("in_domain_train", 90), ("in_domain_dev", 24), ("out_of_domain_dev", 20)):
        write(f"glue/CoLA/{name}.tsv", None, lambda i, c: ("s", str(c), "" if c else "*", sentence(c)), count)
    for name, count in (("train", 90), ("dev", 40)):
        write(f"glue/SST-2/{name}.tsv", "sentence\tlabel", lambda i, c: (sentence(c) + " ", str(c)), count)
        header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        write(
            f"glue/MRPC/{name}.tsv",
            header,
            lambda i, c: (str(c), "1", "2", 'He said "' + sentence(c), sentence(1)),
            count,
        )
    arc = {"question": "Which is big?", "choices": ["a", "b", "c"], "label": 2}
    (folder / "arc/ARC-Easy-train.jsonl").write_text((json.dumps(arc) + "\n") * 3)
    winogrande = {"sentence": "A thanked B as _ was kind.", "option1": "A", "option2": "B", "answer": "2"}
    (folder / "winogrande/train_xs.jsonl.gz").write_bytes(gzip.compress((json.dumps(winogrande) + "\n").encode()))


@pytest.fixture(scope="session")
def recorded_folder(tmp_path_factory):
    """A data folder with ECGs, tables, images and text in the formats of the real ones, and a small ERA5."""
    folder = tmp_path_factory.mktemp("recorded")
    write_archive(folder / "ecg", np.random.default_rng(0))
    write_abalone(folder / "uci", np.random.default_rng(1))
    write_mnist(folder / "mnist", np.random.default_rng(2))
    write_era5(folder / "era5", 40)
    write_tables(folder, np.random.default_rng(3))
    write_pictures(folder, np.random.default_rng(4))
    write_text(folder, np.random.default_rng(5))
    return folder


@pytest.fixture
def recorded_files(recorded_folder, monkeypatch):
    """Makes ``recorded_folder`` the data folder."""
    monkeypatch.setenv("GUIDEBOOK_DATA", str(recorded_folder))
    return recorded_folder
