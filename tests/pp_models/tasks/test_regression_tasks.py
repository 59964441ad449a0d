"""Tables with several outputs: what is read, how it is divided into tasks, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.io import savemat

from pp_models import DataError, tasks
from pp_models.tasks.regression_tables import RegressionTable, load_table, synthetic_table
from pp_models.tasks.regression_tasks import RegressionTasks, cells


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder and no cache."""
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    monkeypatch.setattr("pp_models.tasks.downloads.cache_folder", lambda: tmp_path / "cache")
    return tmp_path


def test_tables_have_the_widths_of_the_published_ones(recorded_files):
    widths = {"sarcos": (21, 7), "wq": (16, 14), "scm20d": (61, 16), "synthetic": (21, 7)}
    for name, (inputs, outputs) in widths.items():
        table = load_table(name)
        assert (table.x.shape[1], table.y.shape[1]) == (inputs, outputs) and len(table.x) == len(table.y)
        assert str(len(table.x)) in table.source
    assert "test file alone, not comparable" in load_table("sarcos").source


def test_both_sarcos_files_are_pooled_and_repeated_rows_left_out(folder):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, 28))
    (folder / "sarcos").mkdir()
    savemat(folder / "sarcos/sarcos_inv.mat", {"sarcos_inv": rows})
    savemat(folder / "sarcos/sarcos_inv_test.mat", {"sarcos_inv_test": np.concatenate([rows[::10], rows[:2] + 1])})
    table = load_table("sarcos")
    assert (len(table.x), table.duplicates) == (32, 3)
    np.testing.assert_array_equal(torch.cat([table.x, table.y], 1)[:30], rows)
    assert table.source == "SARCOS, 32 distinct rows of both published files"
    savemat(folder / "sarcos/sarcos_inv_test.mat", {"other": rows})
    with pytest.raises(DataError, match="sarcos_inv_test.mat: it is no complete Matlab file with arrays sarcos_inv"):
        load_table("sarcos")
    savemat(folder / "sarcos/sarcos_inv_test.mat", {"sarcos_inv_test": rows[:, :27]})
    with pytest.raises(DataError, match=r"sarcos_inv_test has shape \(30, 27\)"):
        load_table("sarcos")


def test_missing_and_broken_tables(folder):
    with pytest.raises(DataError, match=r"^sarcos: no files sarcos/sarcos_inv.mat and .* gaussianprocess.org/gpml"):
        load_table("sarcos")
    with pytest.raises(DataError, match=r"^wq: no file mulan/wq.arff; take it from .* mulan.sourceforge.net"):
        tasks.multi_output("wq")
    with pytest.raises(ValueError, match="name: got 'boston'; it must be one of sarcos, wq, scm20d, synthetic"):
        load_table("boston")
    (folder / "mulan").mkdir()
    (folder / "mulan/wq.arff").write_text("@data\n1,2,x\n")
    with pytest.raises(DataError, match=r"wq.arff: it is no table \(ValueError: could not convert"):
        load_table("wq")
    (folder / "mulan/wq.arff").write_text("@data\n1,2,3\n")
    with pytest.raises(DataError, match=r"wq.arff: it has shape \(1, 3\); 16 inputs and 14 outputs"):
        load_table("wq")
    (folder / "mulan/wq.arff").write_text("@data\n" + ",".join(["nan"] * 30) + "\n")
    with pytest.raises(DataError, match="it holds missing values"):
        load_table("wq")


def test_the_synthetic_function_is_fixed_and_is_its_signal_plus_noise():
    first, again, quiet = synthetic_table(), synthetic_table(), synthetic_table(noise=0.0)
    assert torch.equal(first.y, again.y)
    torch.testing.assert_close(quiet.y.std(0), torch.ones(7, dtype=torch.float64))
    assert float((first.y - quiet.y).std()) == pytest.approx(0.1, abs=0.005)


def test_random_division_is_dnps_protocol():
    train, test = (tasks.multi_output("synthetic", split, 3, 5) for split in ("train", "test"))
    assert (len(train.train_rows), len(train.test_rows)) == (1600, 400)
    assert torch.equal(train.train_rows, test.train_rows)
    assert not set(train.train_rows.tolist()) & set(train.test_rows.tolist())
    known = set(train.train_rows.tolist())
    for batch in (train.batch(i) for i in range(20)):
        m = batch.context.num_points
        assert 3 <= m <= 100 and batch.target.num_points == 100
        rows = batch.truth["row"]
        assert set(rows.flatten().tolist()) <= known
        assert all(len(row.unique()) == m + 100 for row in rows)
    batch = test.batch(0)
    assert batch.context.num_points == 30 and set(batch.truth["row"][:, :30].flatten().tolist()) <= known
    assert all(torch.equal(row[30:].sort().values, test.test_rows) for row in batch.truth["row"])
    torch.testing.assert_close(batch.full.y, test.y[batch.truth["row"]])


@pytest.mark.parametrize("division", ["random", "clusters"])
def test_columns_are_standardised_by_the_training_rows(division):
    table = synthetic_table(400, 3, 2)
    table = RegressionTable(torch.cat([100 * table.x + 7, torch.ones(400, 1).double()], 1), 5 * table.y - 3, "rows")
    stream = RegressionTasks(table, division=division, num_context=(3, 10), num_target=20)
    for values in (stream.x[:, :3], stream.y):
        known = values[stream.train_rows]
        torch.testing.assert_close(known.mean(0), torch.zeros(known.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(known.std(0), torch.ones(known.shape[1]), rtol=0, atol=1e-5)
        assert float(values[stream.test_rows].mean(0).abs().max()) > 1e-3
    assert not stream.x[:, 3].any()  # a constant column


def test_cells_are_of_equal_size_and_compact():
    x = synthetic_table(512, 4).x
    cell = cells(x, 16)
    assert cell.bincount().tolist() == [32] * 16
    within = sum(float(x[cell == i].var(0).sum()) for i in range(16)) / 16
    assert within < 0.65 * float(x.var(0).sum())
    for count in (0, 3, 512):
        with pytest.raises(ValueError, match=f"num_clusters: got {count}; it must be a power of two and at most 256"):
            cells(x, count)


def test_clusters_make_tasks_that_a_context_tells_apart():
    train, test = (tasks.multi_output("synthetic", s, 6, 1, division="clusters") for s in ("train", "test"))
    assert (len(train.groups), len(test.groups)) == (12, 4)
    seen, held_out = ({int(c) for i in range(20) for c in s.batch(i).truth["cell"]} for s in (train, test))
    assert len(seen) == 12 and len(held_out) == 4 and not seen & held_out
    batch = test.batch(0)
    assert batch.full.num_points == 125 and batch.context.num_points == 31
    assert all(len(row.unique()) == 125 for row in batch.truth["row"])
    assert all((train.cell[row] == c).all() for row, c in zip(batch.truth["row"], batch.truth["cell"], strict=True))
    batches = [train.batch(i) for i in range(40)]
    near = torch.stack([(b.target.y - b.context.y.mean(1, keepdim=True)).square().mean() for b in batches])
    assert float(near.mean()) < 0.7 * float(torch.stack([b.target.y.square().mean() for b in batches]).mean())


def test_streams_are_seeded_and_resume():
    stream, again = (tasks.multi_output("synthetic", "train", 2, 4, division="clusters") for _ in range(2))
    again.load_state_dict({"seed": 4, "position": 1})
    next(stream)
    assert torch.equal(next(stream).full.y, next(again).full.y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split: got 'valid'; it must be 'train' or 'test'"),
        ({"division": "kmeans"}, "division: got 'kmeans'; it must be 'random' or 'clusters'"),
        ({"num_target": 1600}, r"num_context, num_target: got \(3, 100\) and 1600; a task here has only 1600 rows"),
        ({"division": "clusters", "num_clusters": 64, "num_target": 30}, "a task here has only 31 rows"),
        ({"split": "test", "num_context": (1601, 1601)}, "a task here has only 400 rows"),
    ],
)
def test_what_the_rows_cannot_meet_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RegressionTasks("synthetic", **options)
