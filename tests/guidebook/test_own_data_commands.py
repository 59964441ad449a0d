"""A person's CSV from the command line: fit, predict and inspect, with one clear line for whatever is wrong."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import guidebook as gb
from evaluation import plots
from evaluation.methods import TaskShape, build
from evaluation.scores.metrics import crps
from evaluation.scores.scoring import score_as_used, score_tasks
from guidebook import command_line
from guidebook.inspection import inspect_run
from tests.sensor_table import sensor_table

COLUMNS = ("--task", "id", "--x", "x1,x2,site", "--y", "y1,y2")
TINY = ("--model", "bnnp", "--width", "8", "--batch-size", "2", "--device", "cpu")


@pytest.fixture(autouse=True)
def own_process_settings(monkeypatch):
    monkeypatch.setattr(command_line.console, "_width", 200)


@pytest.fixture
def guidebook(capsys):
    """Runs the command in this process: exit status, stdout, stderr."""

    def run(*words):
        status = 0
        capsys.readouterr()
        try:
            command_line.main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def csv(tmp_path):
    """The table, and one with half of its outputs left empty and a task that was never seen."""
    sensor_table().to_csv(tmp_path / "tasks.csv", index=False)
    new = sensor_table(3, seed=5).dropna().reset_index(drop=True)
    new.loc[::2, ["y1", "y2"]] = np.nan
    new.to_csv(tmp_path / "new.csv", index=False)
    return tmp_path / "tasks.csv", tmp_path / "new.csv"


def test_a_csv_goes_to_predictions_with_intervals_in_two_commands(guidebook, csv, tmp_path):
    data, new = csv
    run, out = tmp_path / "run", tmp_path / "predictions.csv"
    status, said, _ = guidebook("fit", "--data", data, *COLUMNS, *TINY, "--steps", 4, "--out", run)
    assert status == 0 and f"guidebook predict {run} --data new.csv" in said
    assert gb.load(run).model.missing_outputs  # 2 rows have some outputs and lack others
    status, said, _ = guidebook("predict", run, "--data", new, "--out", out, "--quantiles", "0.1,0.5,0.9")
    assert status == 0 and f"wrote {out}" in said
    found, asked = pd.read_csv(out), pd.read_csv(new)[lambda t: t["y1"].isna()].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[["id", "x1", "x2", "site"]], asked[["id", "x1", "x2", "site"]])
    assert found["y1_mean"].between(700, 1300).all() and found["y2_mean"].abs().max() < 0.2
    assert ((found["y1_q0.1"] < found["y1_q0.5"]) & (found["y1_q0.5"] < found["y1_q0.9"])).all()
    again = gb.load(run).predict(new, 200, seed=0).to_dataframe([0.1, 0.5, 0.9])
    np.testing.assert_allclose(again["y2_std"], found["y2_std"], rtol=1e-6)

    status, said, _ = guidebook("inspect", run, "--draws", 20)
    assert status == 0 and "Scores on test tasks" in said and "rmse y1" in said and "crps" not in said
    report = (run / "report.html").read_text()
    assert "random contexts of the table&#39;s 2 test tasks. All is in the table&#39;s units" in report
    scores, _, _ = inspect_run(run, 20)
    assert scores["rmse y1"][0] > 1 > scores["rmse y2"][0]  # y1 is about 1000, its sd 40; y2 below 0.01
    status, _, error = guidebook("inspect", run, "--device", "tpu")
    assert status == 1 and "device: got 'tpu'; it must be" in error
    status, said, _ = guidebook("fit", "--resume", *TINY, "--steps", 6, "--out", run)
    assert status == 0 and "goes on at step 4 of 6" in said
    assert gb.load(run).steps == 6
    sensor_table(seed=9).to_csv(data, index=False)
    status, _, error = guidebook("fit", "--resume", "--data", data, *COLUMNS, *TINY, "--steps", 8, "--out", run)
    assert status == 1 and "data: it differs from what the run to resume" in error


def test_functions_of_one_input_are_drawn_in_the_tables_units(guidebook, csv, tmp_path, monkeypatch):
    drawn = []
    real = plots.fan_plot
    monkeypatch.setattr(
        plots, "fan_plot", lambda *args, **options: drawn.append((args, options)) or real(*args, **options)
    )
    table = sensor_table().dropna()
    table.to_csv(csv[0], index=False)
    fit = ("fit", "--data", csv[0], "--task", "id", "--x", "x1", "--y", "y1,y2", *TINY, "--steps", 2)
    assert guidebook(*fit, "--out", tmp_path / "run")[0] == 0
    assert guidebook("inspect", tmp_path / "run", "--draws", 20)[0] == 0
    assert [options["axis_names"] for _, options in drawn] == [("x1", "y1"), ("x1", "y2")]
    (predictions, batch, x), _ = drawn[0]
    assert x.double().min() >= table["x1"].min() - 1e-6 and x.max() <= table["x1"].max() + 1e-6
    assert predictions["bnnp"].mean[..., 0].min() > 700 and batch.full.y[..., 0].min() >= table["y1"].min() - 1e-3


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(guidebook, csv, tmp_path):
    data, _ = csv
    fit = ("fit", "--data", data, *COLUMNS, *TINY, "--keep-last")  # of two runs one has a row more to choose from
    guidebook(*fit, "--schedule", "constant", "--warmup", 0, "--steps", 3, "--out", tmp_path / "parts")
    guidebook(*fit, "--schedule", "constant", "--warmup", 0, "--steps", 6, "--out", tmp_path / "constant")
    guidebook(*fit, "--schedule", "constant", "--warmup", 0, "--steps", 6, "--out", tmp_path / "parts", "--resume")
    parts, whole = gb.load(tmp_path / "parts"), gb.load(tmp_path / "constant")
    for found, expected in zip(parts.guide.parameters(), whole.guide.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_classes_go_the_same_way(guidebook, csv, tmp_path):
    data, _ = csv
    run, out = tmp_path / "run", tmp_path / "classes.csv"
    words = ("--task", "id", "--x", "x1,x2", "--y", "site", "--model", "cnp", "--width", 8, "--steps", 3)
    assert guidebook("fit", "--data", data, *words, "--out", run)[0] == 0
    table = sensor_table(3, seed=5)
    table.loc[::2, "site"] = None
    table.to_csv(tmp_path / "new.csv", index=False)
    assert guidebook("predict", run, "--data", tmp_path / "new.csv", "--out", out)[0] == 0
    assert set(pd.read_csv(out)["site"]) <= {"north", "süd", "west [old]"}
    status, said, _ = guidebook("inspect", run, "--draws", 20)
    assert status == 0 and "accuracy" in said


@pytest.mark.parametrize(
    "words, line",
    [
        (("fit", "--data", "{data}", "--x", "x1"), "y: got []; it must name at least one column"),
        (("fit", "--data", "{data}", "--tasks", "gp-rbf"), "tasks: got 'gp-rbf' beside data"),
        (
            ("fit", "--data", "nowhere.csv", "--x", "a", "--y", "b"),
            "frame: got 'nowhere.csv'; there must be such a file",
        ),
        (("fit", "--data", "{data}", *COLUMNS, "--split", "a,b"), "split: got 'a'; it must be numbers"),
        (("fit", "--data", "{data}", *COLUMNS, "--num-context", "many"), "num_context: got 'many'"),
        (("fit", "--data", "{data}", *COLUMNS, "--model", "convcnp"), "dim_x: got 5; it must be 1"),
        (("fit", "--data", "{data}", "--x", "x1", "--y", "site", "--model", "nmdp"), "which predict numbers"),
        (("predict", "{data}.run", "--data", "{data}"), "holds no fit"),
        (("predict", "{data}.run", "--data", "{data}", "--out", "a.xlsx"), "its name must end in .csv or .parquet"),
    ],
)
def test_what_is_wrong_is_one_line(words, line, guidebook, csv, tmp_path):
    words = [word.format(data=csv[0]) for word in words]
    status, _, error = guidebook(*words, *(("--out", tmp_path / "run") if words[0] == "fit" else ()))
    assert status == 1 and line in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_fit_is_watched_on_the_tables_tasks_of_validation(guidebook, csv, tmp_path):
    data, run = csv[0], tmp_path / "run"
    status, said, _ = guidebook("fit", "--data", data, *COLUMNS, *TINY, "--steps", 4, "--validation", "--out", run)
    assert status == 0 and "held-out loss" in said
    every = ("--data", data, *COLUMNS, *TINY, "--steps", 4, "--patience", 2, "--out", tmp_path / "other")
    status, _, error = guidebook("fit", *every, "--split", "0.8,0,0.2")
    assert status == 1 and "validation: the table has none; give its tasks a share" in error
    status, said, _ = guidebook(
        "fit", "--model", "cnp", *TINY[2:], "--steps", 4, "--patience", 1, "--out", tmp_path / "gp"
    )
    assert status == 0 and "held-out loss" in said


def test_a_fit_to_a_table_ends_at_its_best_parameters_where_it_has_tasks_to_tell(guidebook, csv, tmp_path):
    fit = ("fit", "--data", csv[0], *COLUMNS, "--model", "cnp", "--width", 16, "--learning-rate", 0.02)
    fit = (*fit, "--schedule", "constant")
    status, said, _ = guidebook(*fit, "--steps", 150, "--out", tmp_path / "best")
    assert status == 0 and "held-out loss" in said
    rows = [json.loads(line) for line in (tmp_path / "best" / "metrics.jsonl").read_text().splitlines()]
    lowest = min(rows, key=lambda row: row["held_out_loss"])["step"]
    assert (f"kept the parameters of step {lowest}, whose held-out loss was the lowest" in said) == (lowest < 150)
    status, said, _ = guidebook(*fit, "--steps", 150, "--keep-last", "--out", tmp_path / "last")
    assert status == 0 and "held-out loss" in said and "kept the parameters" not in said
    assert lowest < 150 and not all(
        torch.equal(a, b)
        for a, b in zip(*(gb.load(tmp_path / n).model.parameters() for n in ("best", "last")), strict=True)
    )
    for words in (("--no-validation",), ("--split", "0.9,0,0.1")):
        status, said, _ = guidebook(*fit, *words, "--steps", 4, "--out", tmp_path / words[0])
        assert status == 0 and "held-out" not in said
    status, _, error = guidebook(*fit, "--no-validation", "--keep-best", "--out", tmp_path / "no")
    assert status == 1 and "validation: got --no-validation beside --keep-best, which needs it" in error


def test_methods_are_compared_on_a_table_in_its_units_and_again_from_what_stands(guidebook, csv, tmp_path):
    out = tmp_path / "grid"
    options = ("--data", csv[0], *COLUMNS, "--methods", "bnnp,nmdp", "--steps", 2, "--width", 8, "--simulations", 0)
    status, said, _ = guidebook("compare", *options, "--out", out)
    assert status == 0 and "rmse y1" in said and "bnnp · its own" in said
    table = pd.read_csv(out / "compare.csv")
    assert list(table["status"]) == ["ok", "ok"] and bool((table["rmse y1"] > 1).all())  # y1 is about 1000, its sd 40
    assert bool((table["rmse y2"] < 1).all()) and table["rmse"].isna().all()
    status, said, _ = guidebook("compare", *options, "--out", out)
    assert status == 0
    pd.testing.assert_frame_equal(pd.read_csv(out / "compare.csv"), table, check_dtype=False)
    changed = pd.read_csv(csv[0]).assign(y1=lambda t: t["y1"] + t["x1"])
    changed.to_csv(tmp_path / "other.csv", index=False)
    status, _, wrong = guidebook("compare", "--data", tmp_path / "other.csv", *options[2:], "--out", out)
    assert status != 0 and "tasks: got 'own-data, rows" in wrong
    status, _, wrong = guidebook("compare", *options, "--tasks", "gp-rbf", "--out", out)
    assert status != 0 and "take one of them" in wrong


@pytest.mark.parametrize("method", ["nmdp", "nmdp-kernels"])
def test_a_mixtures_closed_form_scores_in_units_are_the_scaled_ones(method):
    tasks = gb.tasks.from_dataframe(sensor_table().dropna(), "id", ["x1"], ["y1", "y2"], batch_size=4)
    built = build(method, TaskShape.of(tasks.train, 16))
    batch = tasks.test.batch(0)
    scaled = gb.predict(built.model, built.guide, batch.context, batch.full, 1, weights="mean")
    moved = scaled.in_units([3.0, 4.0], [2.0, 2.0])
    y = torch.tensor([3.0, 4.0]) + 2.0 * batch.full.y.double()
    expected = 2 * crps(scaled, batch.full.y, None, "mixture").double()
    torch.testing.assert_close(crps(moved, y, None, "mixture"), expected, rtol=1e-5, atol=1e-6)
    assert score_as_used(built.model, built.guide, [batch], columns=tasks.columns)["crps"].notna().all()


def test_scores_in_a_tables_units_are_the_scaled_ones_moved():
    tasks = gb.tasks.from_dataframe(sensor_table().dropna(), "id", ["x1"], ["y1", "y2"], batch_size=4)
    model = gb.BayesianNetwork([1, 4], likelihood="gaussian-head")
    guide = gb.guides.AmortisedMeanFieldGuide(model, 8)
    batches = [tasks.test.batch(0)]
    scaled = score_tasks(model, guide, batches, weights="samples", num_samples=5)
    found = score_tasks(model, guide, batches, weights="samples", num_samples=5, columns=tasks.columns)
    move = np.log(tasks.columns.y_scale).mean()
    np.testing.assert_allclose(found["pll"], scaled["pll"] - move, rtol=1e-4)
    np.testing.assert_allclose(found["joint_pll"], scaled["joint_pll"] - move, rtol=1e-4)
    both = (found[["rmse y1", "rmse y2"]] / tasks.columns.y_scale) ** 2
    np.testing.assert_allclose(np.sqrt(both.mean(axis=1)), scaled["rmse"], rtol=1e-4)
