"""ECGs, abalone and ERA5: what is read, how it is split, and what is said when it is not there."""

import gzip
import sys

import numpy as np
import pytest
import torch

from pp_models import DataError, tasks
from pp_models.tasks.ecg_tasks import read_series, simulated_beat
from pp_models.tasks.era5_tasks import SWITZERLAND, TEST_STEPS
from pp_models.tasks.tabular_tasks import read_abalone
from tests.recorded_stand_ins import write_abalone, write_era5


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """Neither a data folder nor a cache with files in it."""
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    monkeypatch.setattr("pp_models.tasks.downloads.cache_folder", lambda: tmp_path / "cache")
    return tmp_path


def test_a_simulated_beat_moves_along_a_flat_line():
    beat = simulated_beat()
    assert beat.shape == (300,) and float(beat.abs().max()) == pytest.approx(0.5)
    x, f = tasks.ecg().on_grid(6, 600, seed=0)
    assert x.shape == (600, 1) and f.shape == (6, 600, 1)
    peaks = f.squeeze(-1).argmax(-1)
    assert len(set(peaks.tolist())) > 3
    for row, peak in zip(f.squeeze(-1).double(), peaks, strict=True):
        start = int(peak) - int(beat.argmax())
        torch.testing.assert_close(row[start : start + 300], beat, rtol=0, atol=1e-6)
        outside = torch.cat([row[:start], row[start + 300 :]])
        assert float((outside - beat[0]).abs().max()) < 1e-6


def test_without_neurokit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "neurokit2", None)
    simulated_beat.cache_clear()
    with pytest.raises(DataError, match=r"^ecg: simulated beats need neurokit2; pip install 'guidebook\[ecg\]'$"):
        tasks.ecg()
    simulated_beat.cache_clear()


def test_recordings_are_those_of_the_archive(recorded_files):
    series, labels = read_series("ecg200", "train")
    assert series.shape == (100, 96) and set(labels.tolist()) == {-1, 1}
    torch.testing.assert_close(series.std(1), torch.ones(100, dtype=torch.float64), rtol=0, atol=0.02)
    batch = tasks.ecg("ecg200", batch_size=8).batch(3)
    grid = torch.linspace(-3, 3, 96)
    values = series.float()
    for x, y, label in zip(batch.full.x, batch.full.y, batch.truth["label"], strict=True):
        place = (x - grid).abs().argmin(-1)
        match = (values[:, place] == y.squeeze(-1)).all(-1)
        assert int(match.sum()) == 1 and labels[match] == label
    (train, kinds), (test, other_kinds) = (read_series("ecg5000", split) for split in ("train", "test"))
    assert train.shape == (350, 140) and test.shape == (150, 140)
    assert len(torch.cat([train, test]).unique(dim=0)) == 500
    # the file is sorted by label
    assert kinds.bincount().tolist() == [0, 205, 124, 7, 14]
    assert other_kinds.bincount().tolist() == [0, 87, 53, 3, 5, 2]


def test_abalone_is_split_by_sex_and_scaled_by_what_is_trained_on(recorded_files):
    tables = read_abalone()
    assert {sex: len(t) for sex, t in tables.items()} == {"M": 1528, "F": 1307, "I": 1342}
    stream = tasks.abalone(batch_size=4)
    assert [len(t) for t in stream.tables] == [1528, 1307]
    known = torch.cat(stream.tables)
    torch.testing.assert_close(known.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(known.std(0), torch.ones(8), rtol=0, atol=1e-5)
    batch = stream.batch(0)
    assert batch.truth["sex"].tolist() == [0, 1, 0, 1] and batch.context.x.shape[-1] == 7
    test = tasks.abalone("test", 1)
    held_out = test.batch(0)
    assert held_out.context.num_points == 1342 // 4 and held_out.full.num_points == 1342
    assert (
        test.ring_scale == stream.ring_scale == pytest.approx(float(torch.cat([tables["M"], tables["F"]])[:, 7].std()))
    )
    assert float(held_out.full.y.mean()) < -0.5  # infants are younger


def test_infants_do_not_reach_the_scales_of_training(nothing):
    streams = []
    for infant_size in (0.5, 50.0):
        write_abalone(nothing / "uci", np.random.default_rng(1), infant_size)
        streams.append((tasks.abalone(), tasks.abalone("test", 1)))
    (train, test), (train_again, test_again) = streams
    assert all(torch.equal(a, b) for a, b in zip(train.tables, train_again.tables, strict=True))
    assert train.ring_scale == train_again.ring_scale
    assert float(test_again.tables[0][:, :7].mean()) > 10 * float(test.tables[0][:, :7].mean().abs())


def test_abalone_batches_are_seeded_disjoint_and_in_range(recorded_files):
    stream, again = (tasks.abalone(batch_size=2, seed=4, num_points=(50, 80)) for _ in range(2))
    again.load_state_dict({"seed": 4, "position": 1})
    batches = [next(stream) for _ in range(8)]
    assert torch.equal(next(again).full.y, batches[1].full.y)
    for batch in batches:
        n, m = batch.full.num_points, batch.context.num_points
        assert 50 <= n <= 80 and int(0.1 * n) <= m <= 0.5 * n
        assert all(len(rows.unique(dim=0)) == n for rows in batch.full.x)  # measurements here are all distinct
    assert len({batch.context.num_points for batch in batches}) > 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.ecg("ecg200"), r"^ecg200: no file ecg/ECG200_TRAIN.csv.gz; take the set from the UCR archive "),
        (tasks.abalone, r"^abalone: no file uci/abalone.csv; take abalone.data from archive.ics.uci.edu "),
        (tasks.era5, r"^era5: no era5/\*.nc; ERA5-Land is free at cds.climate.copernicus.eu "),
    ],
)
def test_a_missing_file_says_where_to_get_it(nothing, make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_broken_files(nothing):
    (nothing / "ecg").mkdir()
    path = nothing / "ecg" / "ECG200_TRAIN.csv.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"^ECG200_TRAIN.csv.gz: it is no complete gzip file \("):
        tasks.ecg("ecg200")
    path.write_bytes(gzip.compress(b"1,2,3\n1,2,3\n"))
    with pytest.raises(DataError, match=r"^ecg/ECG200_TRAIN.csv.gz: it has 3 columns; a label and 96 samples were "):
        tasks.ecg("ecg200")
    (nothing / "uci").mkdir()
    (nothing / "uci" / "abalone.csv").write_text("sex,a\nX,1\n")
    with pytest.raises(DataError, match=r"^abalone.csv: it is no table of abalones \(KeyError: "):
        tasks.abalone()
    (nothing / "uci" / "abalone.csv").write_text("sex,a\n" + "".join(f"{sex},1,1,1,1,1,1,1,9\n" for sex in "MFI"))
    with pytest.raises(
        DataError, match=r"^uci/abalone.csv: it has rows {'M': 1, 'F': 1, 'I': 1}; abalone has {'M': 15"
    ):
        tasks.abalone()
    (nothing / "era5").mkdir()
    (nothing / "era5" / "a.nc").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"^a.nc: it is no file of ERA5-Land \("):
        tasks.era5()


@pytest.mark.parametrize("time", ["time", "valid_time"])
def test_era5_takes_the_box_the_land_and_the_last_times_for_testing(nothing, time):
    temperature, rain = write_era5(nothing / "era5", 20, time)
    train, test = tasks.era5("train", 3, point_share=1.0), tasks.era5("test", 3)
    assert len(train.rain) == 20 - TEST_STEPS and len(test.rain) == TEST_STEPS
    batch = train.batch(0)
    assert batch.full.x.shape[-1] == 3 and batch.full.y.shape[-1] == 1
    assert bool(torch.isfinite(batch.full.x).all())
    torch.testing.assert_close(train.rain.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    box = rain[:4, 4:15, 2:17] * 1000
    land = np.isfinite(temperature[:4, 4:15, 2:17]).all(0)
    assert train.rain_scale == pytest.approx(float(box[:, land].std()), rel=1e-6)
    assert len(train.places) == int(land.sum())
    assert sorted(tasks.era5("test", 16).batch(0).truth["time"].tolist()) == list(range(16))
    again = tasks.era5("test", 3)
    assert torch.equal(again.batch(4).full.y, test.batch(4).full.y)
    shown = [test.batch(i) for i in range(20)]
    counts = [b.context.num_points / b.full.num_points for b in shown]
    assert all(b.full.num_points == round(0.25 * len(test.places)) for b in shown)
    assert max(counts) <= 0.25 and all(len(rows.unique(dim=0)) == len(rows) for rows in shown[0].full.x)
    # a task's rain is that of its time, put back into millimetres
    whole = tasks.era5("train", 2, point_share=1.0, dtype=torch.float64).batch(1)
    for y, time in zip(whole.full.y, whole.truth["time"], strict=True):
        millimetres = y.squeeze(-1) * train.rain_scale + box[:, land].mean()
        np.testing.assert_allclose(millimetres.sort().values, np.sort(box[int(time)][land]), atol=1e-9)
    fewer = tasks.era5("train", 3, point_share=1.0, without_switzerland=True)
    latitude, longitude = np.arange(50.0, 44.9, -0.5), np.arange(5.0, 12.1, 0.5)
    rows = (latitude >= SWITZERLAND["latitude"][0]) & (latitude <= SWITZERLAND["latitude"][1])
    columns = (longitude >= SWITZERLAND["longitude"][0]) & (longitude <= SWITZERLAND["longitude"][1])
    assert len(train.places) - len(fewer.places) == int((land & np.outer(rows, columns)).sum()) > 0


def test_era5_bad_arguments(nothing):
    write_era5(nothing / "era5", TEST_STEPS)
    with pytest.raises(DataError, match=r"^era5: got 16 times; the last 16 are for testing, and more are needed$"):
        tasks.era5()
    with pytest.raises(ValueError, match=r"^split: got 'dev'; it must be 'train' or 'test'$"):
        tasks.era5("dev")
    with pytest.raises(ValueError, match=r"^point_share: got 0; it must lie in \(0, 1\]$"):
        tasks.era5(point_share=0)
