"""The swap matrix: rows, failures, resuming, equal starts, figure, report and command."""

import json
import math

import pandas as pd
import pytest
import torch

import evaluation
from evaluation import plots
from evaluation.comparison import grid_tasks, swap_matrix
from evaluation.comparison.families import MODELS
from evaluation.comparison.swap_matrix import COLUMNS
from evaluation.comparison.swap_report import failures, summarise, verdicts
from evaluation.findings import LEVELS
from guidebook.command_line import main
from guides import GUIDES, AmortisedMeanFieldGuide
from inference.objectives import make
from pp_models import BayesianNetwork, tasks
from pp_models.files import FileError

TINY = {
    "steps": 4, "width": 8, "batch_size": 2, "test_tasks": 8, "draws": 3, "snr_particles": (1, 2), "snr_repeats": 3,
    "num_particles": 2, "num_simulations": 0, "progress": False,
}  # fmt: skip


def grid(**changes):
    options = {"models": ["network"], "guides": ["mean-field"], "objectives": ["elbo", "iwae"], "tasks": "gp-rbf",
               "seeds": [0], **TINY, **changes}  # fmt: skip
    return evaluation.compare(**options)


def test_one_row_a_run():
    table = grid(guides=["mean-field", "mc-dropout"], seeds=(0, 3))
    assert list(table.columns) == COLUMNS and len(table) == 8
    assert set(zip(table["guide"], table["objective"], table["seed"], strict=True)) == {
        (g, o, s) for g in ("mean-field", "mc-dropout") for o in ("elbo", "iwae") for s in (0, 3)
    }
    assert (table["status"] == "ok").all() and (table["steps"] == 4).all() and (table["skipped"] == 0).all()
    for column in ("pll", "joint_pll", "ll", "rmse", "loss", "ess", "snr_guide", "seconds"):
        assert table[column].map(math.isfinite).all(), column
    assert table["ess"].between(1.0, 2.0 + 1e-4).all()
    noise = table.attrs["gradient_noise"]
    assert len(noise) == 16 and set(noise["num_particles"]) == {1, 2}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_by_name_with_a_guide_of_its_family(model):
    own = {"convcnp": "context-points", "tnp-d": "context-points", "dnp": "distance-informed"}
    own |= dict.fromkeys(("np", "np+cnp", "cnp", "anp", "canp", "inr"), "neural-process")
    own |= dict.fromkeys(("mixture", "mixture-strict"), "dirichlet-mixture")
    guide = own.get(model, "mean-field")
    table = grid(models=[model], guides=[guide], objectives=["elbo"], steps=2, snr_particles=())
    assert table["status"].tolist() == ["ok"]


def test_a_cell_that_cannot_train_is_recorded_and_the_grid_goes_on():
    table = grid(models=["np", "network"], guides=["mean-field"])
    assert table["status"].tolist() == ["failed", "failed", "ok", "ok"]
    reason = "model: got NeuralProcess; AmortisedMeanFieldGuide is a guide for a BayesianNetwork"
    assert table["reason"].tolist()[:2] == [reason, reason]
    assert failures(table) == [f"np with mean-field under 2 objectives (2 runs): {reason}"]
    brief = summarise(table)
    assert brief["failed"].sum() == 2 and brief["pll"].notna().sum() == 2


def test_every_run_gets_a_verdict_and_the_report_begins_with_it(tmp_path):
    table = grid(models=["np", "cnp", "network"], guides=["mean-field", "neural-process"], objectives=["elbo"],
                 num_simulations=50, snr_particles=(), out=tmp_path)  # fmt: skip
    lines = verdicts(table)
    assert list(lines.columns) == ["model", "guide", "verdict", "why"]  # one objective and one seed
    assert set(lines["verdict"][table["status"] == "failed"]) == {"failed"}
    fitted = lines[table["status"] == "ok"]
    assert len(fitted) >= 3 and set(fitted["verdict"]) <= set(LEVELS) and fitted["why"].str.endswith(".").all()
    assert lines["why"][0] == "model: got NeuralProcess; AmortisedMeanFieldGuide is a guide for a BayesianNetwork"
    report = (tmp_path / "report.html").read_text()
    assert report.index("runs can be trusted") < report.index("Held-out likelihood")
    assert "--simulations 50" in report and "--width 8" in report
    assert "runs can be trusted" not in page_without_verdicts(tmp_path / "without")
    with pytest.raises(ValueError, match=r"^num_simulations: got 5; it must be 0, for no verdicts, or at least 50$"):
        grid(num_simulations=5)


def page_without_verdicts(folder):
    grid(out=folder, objectives=["elbo"], snr_particles=())
    return (folder / "report.html").read_text()


def test_a_fit_that_cannot_be_tested_keeps_its_scores(monkeypatch):
    def broken(*args, **options):
        raise ValueError("guide: it has no draws\nmore")

    monkeypatch.setattr(swap_matrix, "verdict", broken)
    table = grid(objectives=["elbo"], num_simulations=50, snr_particles=())
    assert table["status"].tolist() == ["ok"] and math.isfinite(table["pll"][0])
    assert (table["verdict"][0], table["why"][0]) == ("not tested", "guide: it has no draws")


def test_a_run_that_diverges_is_recorded():
    class Bad(type(make("elbo"))):
        def reduce(self, terms):
            return super().reduce(terms) * math.nan

    table = grid(objectives={"bad": lambda: Bad(), "good": lambda: make("elbo")})
    assert table["status"].tolist() == ["failed", "ok"]
    assert "loss or gradient not finite" in table["reason"][0]


def test_objectives_start_from_the_same_parameters_and_tasks(monkeypatch):
    seen = []

    def record(model, guide, stream, objective, **options):
        parameters = torch.cat([p.detach().flatten() for m in (model, guide) for p in m.parameters()])
        seen.append((parameters, stream.batch(0).target.y, options["seed"]))
        raise ValueError("enough")

    monkeypatch.setattr(swap_matrix, "fit", record)
    grid(objectives=["elbo", "iwae", "rws"], seeds=(0, 1))
    assert [s for _, _, s in seen] == [0, 0, 0, 1, 1, 1]
    for first in (0, 3):
        for other in (first + 1, first + 2):
            assert torch.equal(seen[first][0], seen[other][0]) and torch.equal(seen[first][1], seen[other][1])
    assert not torch.equal(seen[0][0], seen[3][0])


def test_ones_own_models_guides_objectives_and_streams():
    table = evaluation.compare(
        {"small": lambda task: BayesianNetwork([task.dim_x, 4, 2 * task.dim_y], likelihood="gaussian-head")},
        {"mean field": lambda model: AmortisedMeanFieldGuide(model, 4)},
        {"two/particles": lambda: make("iwae", num_particles=2, normalize=True)},
        tasks.gp("matern52", 2, 5),
        [1],
        **{**TINY, "num_particles": None},
    )
    assert table["status"].tolist() == ["ok"] and table["objective"].tolist() == ["two/particles"]


def same(a, b):
    pd.testing.assert_frame_equal(a.drop(columns="seconds"), b.drop(columns="seconds"), check_dtype=False)


def test_a_finished_grid_is_read_and_files_are_written(tmp_path, monkeypatch):
    first = grid(out=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "cells", "compare.csv", "gradient_noise.csv", "compare.png", "report.html", ".written.json",
    }  # fmt: skip
    report = (tmp_path / "report.html").read_text()
    assert "Held-out likelihood" in report and "guidebook compare --models network" in report
    stored = pd.read_csv(tmp_path / "compare.csv", keep_default_na=False, na_values=[""])
    assert stored["pll"].tolist() == pytest.approx(first["pll"].tolist())

    def never(*args, **kwargs):
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr(swap_matrix, "fit", never)
    same(grid(out=tmp_path), first)
    with pytest.raises(ValueError, match=r"^steps: got 5, but .* was run with 4; use that or another folder$"):
        grid(out=tmp_path, steps=5)


def test_an_interrupted_grid_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole = grid(out=tmp_path / "whole", steps=6)
    calls = []
    train, score = swap_matrix.fit, grid_tasks.score_tasks

    def interrupted(*args, **options):
        result = train(*args, **{**options, "checkpoint_every": 2, "steps": 4 if len(calls) == 1 else 6})
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(swap_matrix, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grid(out=tmp_path / "halves", steps=6)
    monkeypatch.setattr(swap_matrix, "fit", train)
    monkeypatch.setattr(grid_tasks, "score_tasks", score)
    same(grid(out=tmp_path / "halves", steps=6), whole)


def test_failed_cells_are_tried_again_only_when_asked(tmp_path, monkeypatch):
    train = swap_matrix.fit
    monkeypatch.setattr(swap_matrix, "fit", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("out of memory\nmore")))
    failed = grid(out=tmp_path)
    assert failed["reason"].tolist() == ["out of memory"] * 2
    monkeypatch.setattr(swap_matrix, "fit", train)
    assert (grid(out=tmp_path)["status"] == "failed").all()
    assert (grid(out=tmp_path, retry_failed=True)["status"] == "ok").all()
    assert (grid(out=tmp_path)["status"] == "ok").all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["gan"]}, r"^models: got 'gan'; it is none of"),
        ({"guides": ["auto"]}, r"^guides: got 'auto'; it is none of 24 names such as "),
        ({"objectives": ["elbow"]}, r"^objectives: got 'elbow'; did you mean 'elbo'"),
        ({"objectives": []}, r"^objectives: got none; at least one is needed$"),
        ({"seeds": []}, r"^seeds: got .*; it must hold at least one seed$"),
        ({"tasks": "gp-foo"}, r"^tasks: got 'gp-foo'; it is none of"),
        ({"steps": 0}, r"^steps: got 0; it must be at least 1$"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        grid(out=tmp_path / "new", **changes)
    assert not (tmp_path / "new" / "cells").exists()


# -- figure and command ------------------------------------------------------------------------------------------------


def small_table():
    table = grid(models=["network", "np"], guides=["mean-field", "neural-process"])
    return table, table.attrs["gradient_noise"]


def test_the_figure_shows_what_there_is():
    table, noise = small_table()
    figure = plots.swap_matrix_plot(table, noise)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["Held-out likelihood and cost", "Noise of the guide's gradient", "Weights"]
    dots = sum(len(c.get_offsets()) for c in figure.axes[0].collections)
    assert dots == (table["status"] == "ok").sum() == 4
    assert len(plots.swap_matrix_plot(table).axes) == 1
    assert len(plots.swap_matrix_plot(table, noise[:0]).axes) == 1
    failed = table[table["status"] == "failed"]
    with pytest.raises(ValueError, match=r"^table: none of its 4 runs has status 'ok'; there is nothing to show$"):
        plots.swap_matrix_plot(failed, noise)


def test_the_command(tmp_path, capsys):
    words = ["compare", "--models", "network,np", "--guides", "mean-field", "--objectives", "elbo,rws", "--steps", "3",
             "--width", "8", "--batch-size", "2", "--num-particles", "2", "--seeds", "0",
             "--out", str(tmp_path)]  # fmt: skip
    main(words)
    shown = capsys.readouterr().out
    assert "network" not in shown.split("failed:")[0].splitlines()[0]
    assert "np with mean-field under 2 objectives (2 runs): model: got NeuralProcess" in shown
    assert str(tmp_path / "report.html") in shown
    results = sorted(tmp_path.glob("cells/*/result.json"))
    assert len(results) == 4 and all(json.loads(p.read_text())["row"]["seed"] == 0 for p in results)
    with pytest.raises(SystemExit):
        main([*words, "--seeds", "zero"])
    assert capsys.readouterr().err.startswith("error: seeds: got 'zero'; it must be integers separated by commas")
    main(["list", "families"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*MODELS, *GUIDES))


def test_nothing_but_failures_still_writes_its_tables(tmp_path):
    table = grid(models=["np"], out=tmp_path)
    assert (table["status"] == "failed").all()
    assert (tmp_path / "compare.csv").exists() and not (tmp_path / "compare.png").exists()
    assert "is a guide for a BayesianNetwork" in (tmp_path / "report.html").read_text()


def test_a_run_far_below_the_rest_does_not_hide_them():
    table, _ = small_table()
    many = pd.concat([table[table["status"] == "ok"]] * 3, ignore_index=True)
    many.loc[0, "pll"] = -1e6
    axes = plots.swap_matrix_plot(many).axes[0]
    assert axes.get_ylim()[0] > -100
    assert [text.get_text() for text in axes.texts] == ["1 run at or below this line"]


@pytest.mark.parametrize("name", ["compare.csv", "report.html", "cells/network--mean-field--elbo--0/result.json"])
def test_files_of_others_in_the_folder_of_a_grid_are_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    with pytest.raises(FileError, match=rf"^out: .* holds {path.name}"):
        grid(guides=["mean-field"], objectives=["elbo"], out=tmp_path)
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["precious"]
