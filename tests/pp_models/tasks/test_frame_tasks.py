"""Tasks from tables, arrays and folders: what is scaled, split, masked, and what is refused in one line."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from PIL import Image

from pp_models import DataError, tasks
from pp_models.files import FileError
from pp_models.tasks import frame_files
from tests.sensor_table import LEVELS, sensor_table

X, Y = ["x1", "x2", "site"], ["y1", "y2"]


def sensors(**options):
    return tasks.from_dataframe(sensor_table(), "id", X, Y, **options)


def test_a_table_becomes_ragged_scaled_tasks_divided_by_task():
    stream, table = sensors(batch_size=4, seed=3), sensor_table()
    assert (stream.dim_x, stream.dim_y) == (2 + len(LEVELS), 2)
    names = {split: set(stream.task_names[split]) for split in ("train", "validation", "test")}
    assert {len(n) for n in names.values()} == {20, 2} and set.union(*names.values()) == set(table["id"])
    assert sum(len(n) for n in names.values()) == 24
    trained = table[table["id"].isin(names["train"])]
    column = next(c for c in stream.columns.x if c.name == "x1")
    assert column.mean == pytest.approx(trained["x1"].mean())
    assert column.scale == pytest.approx(trained["x1"].std(ddof=0))
    # 1 row lacks both outputs: no point; 2 lack one, which is what their mask says
    held = [d for pool in stream.pools.values() for d in pool]
    assert sum(d.num_points for d in held) == len(table) - 1 and stream.missing_outputs
    assert [int((~torch.cat([d.observed for d in held])[:, i]).sum()) for i in (0, 1)] == [2, 0]
    assert not tasks.from_dataframe(table.dropna(), "id", X, Y).missing_outputs
    x = torch.cat([d.x for d in stream.pool])
    assert torch.equal(x[:, 2:].sum(1), torch.ones(len(x)))
    y = torch.cat([d.y for d in stream.pool]).double()
    known = torch.cat([d.observed for d in stream.pool])
    mean = (y * known).sum(0) / known.sum(0)
    torch.testing.assert_close(mean, torch.zeros(2, dtype=y.dtype), rtol=0, atol=0.02)


def test_batches_are_seeded_disjoint_contexts_of_the_chosen_sizes():
    stream = sensors(batch_size=8, num_context=(1, 3))
    again = sensors(batch_size=8, num_context=(1, 3))
    for i in range(5):
        batch, same = stream.batch(i), again.batch(i)
        assert torch.equal(batch.context.x, same.context.x) and torch.equal(batch.target.y, same.target.y)
        assert bool(((batch.context.counts >= 1) & (batch.context.counts <= 3)).all())
        assert len(set(batch.truth["task"].tolist())) == 8
        sizes = torch.tensor([float(stream.pool[t].num_points) for t in batch.truth["task"]])
        assert torch.equal(batch.context.counts + batch.target.counts, sizes)
    assert {int(c) for i in range(20) for c in sensors(batch_size=8).batch(i).context.counts} >= {0, 1, 2, 3}
    small = sensors(batch_size=8, max_points=2).batch(0)
    assert bool((small.context.counts + small.target.counts == 2).all())


def test_one_table_without_tasks_is_one_data_set_divided_by_row():
    table = sensor_table().dropna()
    stream = tasks.from_dataframe(table, x="x1", y="y1", split=(0.5, 0.25, 0.25), batch_size=3)
    assert [len(stream.of(split).pool) for split in ("train", "validation", "test")] == [1, 1, 1]
    assert stream.batch(0).context.batch_shape == (3,)
    with pytest.raises(ValueError, match="group: got 'site' without task"):
        tasks.from_dataframe(table, x="x1", y="y1", group="site")


def test_tasks_of_a_group_go_to_one_split_and_names_may_repeat_between_groups():
    frame = pd.DataFrame({"site": np.repeat(list("abcdef"), 6), "id": np.tile(np.repeat([1, 2], 3), 6)})
    frame["x"], frame["y"] = np.arange(36.0), np.arange(36.0) ** 2
    stream = tasks.from_dataframe(frame, "id", "x", "y", group="site", split=(0.5, 0.25, 0.25))
    sites = {split: {name.split(" · ")[0] for name in stream.task_names[split]} for split in stream.pools}
    assert sum(len(s) for s in sites.values()) == 6 and set.union(*sites.values()) == set("abcdef")
    assert sum(len(pool) for pool in stream.pools.values()) == 12


def test_dates_are_days_and_a_forecast_has_the_past_as_context():
    days = pd.date_range("2024-02-27", periods=6)
    frame = pd.DataFrame({"id": [1] * 6 + [2] * 6, "day": [*days, *days[::-1]], "y": np.arange(12.0)})
    day = frame["day"].dt
    for time in (frame["day"], day.strftime("%Y-%m-%d"), day.tz_localize("Asia/Tokyo"), day.date):
        stream = tasks.from_dataframe(
            frame.assign(day=time), "id", y="y", time="day", split=(1, 0, 0), forecast=True, batch_size=2
        )
        assert stream.columns.x[0].kind == "date"
        assert stream.columns.x[0].scale == pytest.approx(np.arange(6).std())
        batch = stream.batch(1)
        for i in range(2):
            past = batch.context.x[i][batch.context.full_mask()[i]]
            future = batch.target.x[i][batch.target.full_mask()[i]]
            assert past.numel() == 0 or float(past.max()) < float(future.min())
    with pytest.raises(ValueError, match="forecast: got True without time"):
        tasks.from_dataframe(frame, "id", "day", "y", forecast=True)


def test_texts_are_classes_or_inputs_and_whole_numbers_are_one_category_however_written():
    table = sensor_table()
    stream = tasks.from_dataframe(table, "id", ["x1"], "site", batch_size=2)
    assert stream.classes == sorted(LEVELS) and stream.batch(0).full.y.dtype == torch.long
    frame = pd.DataFrame({"id": [1, 1, 2, 2], "code": [1, 2, 1, 2], "y": [0.0, 1, 2, 3]})
    columns = tasks.from_dataframe(frame, "id", "code", "y", categorical=["code"], split=(1, 0, 0)).columns
    for same in ([1, 2, 2, 1], [1.0, 2.0, 2.0, 1.0], ["1", "2", "2", "1"]):
        one_hot = columns.inputs(pd.DataFrame({"code": same}))
        assert one_hot.tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    "values, kind",
    [
        (["1", "2.5", "-3"], "number"),
        (pd.array([1, 2, 3], dtype="Int64"), "number"),
        (pd.to_timedelta([1, 2, 5], unit="h"), "number"),
        ([True, False, True], "number"),
        (["2024-01-05T10:00:00", "2024-01-06", "2024-02-01"], "date"),
        (pd.Categorical(["hi", "lo", "hi"], categories=["lo", "hi"], ordered=True), "category"),
        ([1, "a", 2.0], "category"),
        (["日本", "🙂", "日本"], "category"),
        ([[1], [2], [3]], None),
        ([1j, 2j, 3j], None),
        ([b"a", b"b", b"c"], None),
    ],
)
def test_a_column_of_any_type_is_taken_rightly_or_refused_in_one_line(values, kind):
    frame = pd.DataFrame({"id": [1, 2, 3], "y": [0.0, 1, 2]})
    frame["c"] = values
    if kind is None:
        with pytest.raises(DataError, match="'c'.*; it must (be a number|hold numbers, dates or texts)"):
            tasks.from_dataframe(frame, "id", "c", "y", split=(1, 0, 0))
        return
    columns = tasks.from_dataframe(frame, "id", "c", "y", split=(1, 0, 0)).columns
    assert columns.x[0].kind == kind
    if kind == "category" and isinstance(values, pd.Categorical):
        assert columns.x[0].categories == ["lo", "hi"]


@pytest.mark.parametrize("kind", ["polars", "xarray", "csv", "netcdf", "named index"])
def test_every_kind_of_table_gives_the_same_tasks(kind, tmp_path):
    table = sensor_table().dropna().reset_index(drop=True)
    if kind == "csv":
        table.to_csv(tmp_path / "a.csv", index=False)
        given = tmp_path / "a.csv"
    elif kind == "netcdf":
        xarray.Dataset.from_dataframe(table).to_netcdf(tmp_path / "a.nc")
        given = str(tmp_path / "a.nc")
    elif kind == "xarray":
        given = xarray.Dataset.from_dataframe(table)
    elif kind == "polars":

        class Frame:  # what is asked of polars
            def to_pandas(self):
                return table

        given = Frame()
    else:
        given = table.set_index("id")
    expected = tasks.from_dataframe(table, "id", X, Y).batch(0)
    found = tasks.from_dataframe(given, "id", X, Y).batch(0)
    torch.testing.assert_close(found.full.x, expected.full.x)
    torch.testing.assert_close(found.full.y, expected.full.y)


@pytest.mark.parametrize(
    "change, options, line",
    [
        ({}, {"x": ["x1", "nope"]}, r"x: got 'nope'; it must be a column of the table, which has id, x1, x2"),
        ({}, {"x": ["x1", "id"]}, r"column 'id' is named twice"),
        ({}, {"x": ["x1"], "y": ["y1", "site"]}, r"y: column 'site' holds 'north'; an output must hold numbers"),
        ({"x1": np.nan}, {}, r"x: 3 row\(s\), counted from 0 \(0, 1, 2\), lack a value in x1; inputs and tasks must"),
        ({"site": None}, {}, r"x: 3 row\(s\), counted from 0 \(0, 1, 2\), lack a value in site"),
        ({"id": None}, {}, r"task: 3 row\(s\), counted from 0 \(0, 1, 2\), lack a value in id"),
        ({"x1": np.inf}, {}, r"x: 3 row\(s\), counted from 0 \(0, 1, 2\), are infinite in column 'x1'"),
        ({"y1": -np.inf}, {}, r"y: 3 row\(s\), counted from 0 \(0, 1, 2\), are infinite in column 'y1'"),
        ({"x1": 1e300}, {}, r"x: column 'x1' reaches 1e\+300; its square must be finite"),
        ({"x2": "high"}, {}, r"x: column 'x2' has \d+ different values, such as .*; categories are at most 100"),
        ({}, {"time": "site"}, r"time: column 'site' holds 'north'; it must hold numbers or dates as 2024-05-31"),
        ({}, {"split": (0.5, 0.2, 0.2)}, r"split: got \(0.5, 0.2, 0.2\); it must sum to 1"),
        ({}, {"x": []}, r"x: got \[\]; it must name at least one column"),
        ({}, {"categorical": ["y1"]}, r"categorical: got 'y1'; it must be one of x"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_in_one_line(change, options, line):
    table = sensor_table().dropna().reset_index(drop=True).astype({"x2": object})
    for name, value in change.items():
        table.loc[:2, name] = value
    table["x2"] = table["x2"].infer_objects()
    with pytest.raises(ValueError, match=line) as caught:
        tasks.from_dataframe(table, **{"task": "id", "x": X, "y": Y, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given, line",
    [
        (3, "frame: got 3; it must be a DataFrame"),
        ("nowhere.csv", "frame: got 'nowhere.csv'; there must be such a file"),
        ("table.exe", "frame: got 'table.exe'; its name must end in one of .csv"),
        (pd.DataFrame({"x": []}), "frame: got a table without rows"),
        (pd.DataFrame([[1, 2]], columns=["x", "x"]), "frame: two columns are named 'x'"),
    ],
)
def test_what_is_no_table_is_refused(given, line):
    with pytest.raises(DataError, match=line):
        tasks.from_dataframe(given, None, "x", "y")


def test_a_parquet_file_is_read_by_pandas_or_says_what_is_missing(tmp_path, monkeypatch):
    table, path = sensor_table().dropna().reset_index(drop=True), tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setattr(pd, "read_parquet", lambda path: table)
    assert tasks.from_dataframe(path, "id", X, Y).dim_y == 2

    def missing(path):
        raise ImportError("Unable to find a usable engine;\ntried using: 'pyarrow', 'fastparquet'.")

    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(DataError, match=r"a.parquet is a Parquet file, .*: pip install guidebook\[parquet\]$"):
        tasks.from_dataframe(path, "id", X, Y)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00id", b"", b'a,b\n"1,2\n3', b"\x00" * 9])
def test_a_file_that_is_no_csv_is_refused(content, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match="frame: |x: got 'x'"):
        tasks.from_dataframe(path, None, "x", "y")


def test_constant_columns_are_refused_or_kept_and_rows_twice_are_two_points():
    table = pd.DataFrame({"id": [1, 1, 2, 2, 2], "x": [1.0, 2, 1, 1, 2], "c": 5.0, "y": [1.0, 2, 3, 3, 4]})
    with pytest.raises(DataError, match="x: column 'c' is 5 in all training rows; it must vary: drop it"):
        tasks.from_dataframe(table, "id", ["x", "c"], "y", split=(1, 0, 0))
    kept = tasks.from_dataframe(table, "id", ["x", "c"], "y", split=(1, 0, 0), keep_constant=True)
    assert sorted(d.num_points for d in kept.pool) == [2, 3]
    assert torch.cat([d.x for d in kept.pool])[:, 1].tolist() == [0.0] * 5


def test_arrays_are_ragged_tasks_with_missing_outputs_and_classes():
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, 2)) for n in (4, 7, 5, 6)]
    y = [each.sum(1) for each in x]
    y[1][2] = np.nan
    stream = tasks.from_arrays([torch.from_numpy(x[0]), *x[1:]], y, split=(1, 0, 0), names=["länge", "b"])
    assert [d.num_points for d in stream.pool] == [4, 6, 5, 6] and stream.columns.x[0].name == "länge"
    words = tasks.from_arrays(x, [np.where(each[:, 0] > 0, "up", "down") for each in x], split=(1, 0, 0))
    assert words.classes == ["down", "up"]
    numbers = tasks.from_arrays(x, [(each[:, 0] > 0).astype(int) for each in x], split=(1, 0, 0), classes=True)
    assert numbers.classes == ["0", "1"]
    assert tasks.from_arrays(np.stack([x[0], x[0]]), np.stack([y[0], y[0]]), split=(1, 0, 0)).dim_x == 2
    for bad, line in [
        ((x, y[:3]), "y: got 3 tasks; it must have as many as x, 4"),
        (([x[0], x[1][:, :1]], y[:2]), r"x: got tasks of widths \[1, 2\]"),
        ((x[:2], [y[0], y[1][:3]]), "y: task 1 has 3 points; it must have as many as x, 7"),
        ((x[0][:, 0], y[0]), r"x: got one array of shape \[4\]; it must hold an array for each task"),
        (([np.zeros((2, 2, 2))], [y[0]]), r"x: task 0 has shape \[2, 2, 2\]"),
        ((None, y), "x: got NoneType"),
    ]:
        with pytest.raises(DataError, match=line):
            tasks.from_arrays(*bad)


def test_pictures_of_a_folder_are_tasks_by_split_with_folders_as_labels(tmp_path):
    for i in range(10):
        folder = tmp_path / ("cats" if i % 2 else "dogs")
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 5, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
    splits = ("train", "validation", "test")
    streams = {s: tasks.from_images(tmp_path, s, 2, size=4, shares=(0.6, 0.2, 0.2)) for s in splits}
    values = [{int(p) for p in stream.pixels.unique()} for stream in streams.values()]
    assert [len(v) for v in values] == [6, 2, 2] and len(set.union(*values)) == 10
    assert streams["train"].image_size == (4, 4) and set(streams["train"].labels.tolist()) <= {0, 1}
    assert streams["train"].batch(0).full.y.shape[-1] == 3
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken.png cannot be read as a picture"):
        tasks.from_images(tmp_path, shares=(1, 0, 0), size=4)
    (tmp_path / "broken.png").unlink()
    Image.fromarray(np.zeros((7, 5, 3), np.uint8)).save(tmp_path / "tall.png")
    with pytest.raises(DataError, match=r"pixels; they must have one size: resize them by size="):
        tasks.from_images(tmp_path, shares=(1, 0, 0))
    with pytest.raises(DataError, match="there must be such a folder"):
        tasks.from_images(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        tasks.from_images(tmp_path / "empty")


def test_tasks_are_the_same_after_a_round_through_files_and_altered_ones_are_refused(tmp_path):
    stream = sensors(batch_size=3, num_context=(1, 2), max_points=5)
    (tmp_path / "data.json").write_bytes(stream.description())
    (tmp_path / "data.safetensors").write_bytes(frame_files.rows_bytes(stream))
    description = frame_files.read_description(tmp_path)
    again = frame_files.read_tasks(tmp_path, description)
    assert again.columns == stream.columns and again.task_names == stream.task_names
    for split in ("train", "test"):
        assert torch.equal(again.of(split).batch(4).full.y, stream.of(split).batch(4).full.y)
    other = tasks.from_dataframe(sensor_table().dropna(), "id", ["x1"], Y)
    (tmp_path / "data.safetensors").write_bytes(frame_files.rows_bytes(other))
    with pytest.raises(FileError, match=r"data.safetensors: does not fit data.json"):
        frame_files.read_tasks(tmp_path, description)
    content = bytearray((tmp_path / "data.json").read_bytes())
    content[content.index(b"mean") + 8] ^= 1
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(FileError):
        frame_files.read_description(tmp_path)


def test_the_example_table_is_one_that_tasks_are_made_of():
    table = tasks.example_table(8)
    assert tasks.example_table(8).equals(table) and table["y1"].isna().sum() == 1
    assert tasks.from_dataframe(table, "id", X, Y).dim_x == 5
