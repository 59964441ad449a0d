"""Common ground: every method on the same tasks with one budget; what stands is read, and pieces add up."""

import math
import sys

import pandas as pd
import pytest
import torch

from evaluation.experiments import common_gp, common_images, reproduce
from evaluation.experiments.common_fits import (
    LEVELS,
    SCALES,
    FitScores,
    budget_of,
    exact_scores,
    fit_folder,
    trained,
)
from evaluation.experiments.common_ground import EXACT, METHODS, _checks, _notes, by_task
from evaluation.experiments.experiment import Workshop, summary
from evaluation.methods import METHODS as KNOWN
from evaluation.scores.scoring import score_oracle
from guidebook.runs import open_run
from inference import CheckpointError
from pp_models.tasks import downloads

pytestmark = pytest.mark.usefixtures("coarse_pictures")

TASKS = ["gp-weakly-periodic-fixed-tnp", "gp-mix-tnp"]
SMOKE = SCALES["smoke"]


@pytest.fixture(scope="module")
def ran(out):
    """Two methods on two kernels."""
    return reproduce("common/gp", "smoke", out=out, progress=False, tasks=TASKS, methods=["nmdp", "cnp"])


@pytest.fixture
def no_step(monkeypatch):
    def trained_again(self, sealed):
        raise AssertionError("a kept fit was trained again")

    monkeypatch.setattr(sys.modules["inference.fit"].TrainingStep, "forward", trained_again)


def test_gp_at_smoke_scale(ran, out):
    assert ran.command == (
        "guidebook reproduce common/gp --scale smoke --seeds 0 --tasks gp-weakly-periodic-fixed-tnp,gp-mix-tnp "
        "--methods nmdp,cnp"
    )
    assert set(ran.figures) == {"context_size", "calibration", "by_seconds", "functions"}
    assert {path.stem for path in (out / "common/gp-smoke").glob("*.png")} == set(ran.figures)
    assert list(ran.table.task.unique()) == TASKS and set(ran.table.model) == {"nmdp", "cnp", EXACT}
    measured = ran.table[ran.table.model != EXACT]
    columns = ["ll", "rll", "pll", "joint_ll", "joint_pll", "rmse", "crps", "in 50 %", "in 80 %", "in 95 %"]
    assert measured[[*columns, "parameters", "steps", "seconds", "ms a step"]].notna().all(axis=None)
    assert (measured.steps == SMOKE.steps).all() and (measured.seconds > 0).all()
    assert (measured[["pll", "ll"]] <= -math.log(0.01) - 0.919).all(axis=None)  # the floor's ceiling
    assert all(check.holds in (True, None) for check in ran.checks)  # smoke claims nothing but limits
    assert [list(table.columns) for table in ran.tables.values()] == 2 * [["model", *TASKS]]
    assert list(summary(ran.table)["task"]) == [TASKS[0]] * 3 + [TASKS[1]] * 3


def test_what_stands_is_read_and_pieces_add_up(ran, out, no_step):
    again = reproduce("common/gp", "smoke", out=out, progress=False, tasks=TASKS, methods=["nmdp", "cnp"])
    pd.testing.assert_frame_equal(ran.table, again.table)
    piece = reproduce("common/gp", "smoke", out=out, progress=False, tasks=TASKS[1:], methods=["cnp"])
    both = ran.table[(ran.table.task == TASKS[1]) & (ran.table.model != "nmdp")]
    pd.testing.assert_frame_equal(piece.table, both.reset_index(drop=True))
    assert "functions" not in piece.figures  # of methods that were not asked for
    with pytest.raises(AssertionError, match="trained again"):
        reproduce("common/gp", "smoke", out=out, progress=False, tasks=TASKS[1:], methods=["np"])


def test_a_fit_without_scores_is_scored_and_not_trained(ran, out, no_step, tmp_path):
    folder = fit_folder(Workshop(out / "common", progress=False), TASKS[0], SMOKE, "cnp", 0)
    before = (folder / "scores.json").read_bytes()
    (folder / "scores.json").unlink()
    found = reproduce("common/gp", "smoke", out=out, progress=False, tasks=TASKS[:1], methods=["cnp"])
    row, first = found.table.iloc[0], ran.table[(ran.table.task == TASKS[0]) & (ran.table.model == "cnp")].iloc[0]
    assert row.pll == first.pll and "seconds" not in found.table.columns  # what it took is not known any more
    (folder / "scores.json").write_bytes(before[:-2])
    with pytest.raises(CheckpointError, match=r"scores.json"):
        reproduce("common/gp", "smoke", out=out, progress=False, tasks=TASKS[:1], methods=["cnp"])
    (folder / "scores.json").write_bytes(before)


def test_a_kept_fit_is_a_run(ran, out):
    folder = fit_folder(Workshop(out / "common", progress=False), TASKS[1], SMOKE, "nmdp", 0)
    configuration, method, step = open_run(folder)
    assert (configuration.model, configuration.tasks, step) == ("nmdp", TASKS[1], SMOKE.steps)
    assert method.model.likelihood.min_scale == 0.01


def test_watching_a_fit_leaves_it_as_it_would_have_been(tmp_path):
    budget = SMOKE._replace(steps=6)
    test = common_gp.test_tasks(TASKS[0], budget)
    for name in ("nvdp", "bnp", "convcnp"):
        first, curve = trained(Workshop(tmp_path / "a", progress=False), test, budget, name, 3, watch=True)
        second, _ = trained(Workshop(tmp_path / "b", progress=False), test, budget, name, 3)
        assert len(curve.points) == 6 and curve.scoring > 0
        for one, two in ((first.model, second.model), (first.guide, second.guide)):
            assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())


def test_seconds_buy_steps_by_their_cost(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.run_configuration.step_cost", lambda *args, **options: 0.01)
    outcome = reproduce(
        "common/gp", "smoke", [1], tmp_path, progress=False, cpu_seconds=0.3, tasks=TASKS[:1], methods=["cnp"]
    )
    assert outcome.table.steps.iloc[0] == 30 and outcome.command.endswith(
        "--seeds 1 --cpu-seconds 0.3 --tasks gp-weakly-periodic-fixed-tnp --methods cnp"
    )
    assert (tmp_path / "common/gp-smoke-0.3s/results.json").exists()
    assert (tmp_path / f"common/fits/{TASKS[0]}-0.3s/cnp-seed1/run.json").exists()
    assert budget_of("small", 5.0) == SCALES["small"]._replace(cpu_seconds=5.0)


def test_the_same_functions_are_seen_through_more_and_more_points():
    test = common_gp.test_tasks(TASKS[1], SMOKE)
    assert [batches[0].context.num_points for batches in test.by_size.values()] == list(common_gp.SIZES)
    first, *others = (batches[0] for batches in test.by_size.values())
    assert first.full.num_points == common_gp.POINTS
    for other in others:
        assert torch.equal(first.full.y, other.full.y)
    digits = common_images.test_tasks("digits", SMOKE, Workshop.__new__(_Quiet))
    seen = [batches[0] for batches in digits.by_size.values()]
    assert all(torch.equal(batch.truth["index"], seen[0].truth["index"]) for batch in seen)
    assert [batch.context.num_points for batch in seen] == list(common_images.SIZES["digits"])


class _Quiet(Workshop):
    progress = False


def test_the_exact_answer_is_calibrated_and_the_oracles():
    test = common_gp.test_tasks("gp-mix-fixed-tnp", SMOKE._replace(test_batches=16, test_batch_size=16))
    found = exact_scores(test, 0.01)
    assert found.scores["pll"] == pytest.approx(score_oracle(test.batches, 0.01).pll.mean())
    for level in LEVELS:
        assert found.coverage[f"{100 * level:g}"] == pytest.approx(level, abs=0.03)
    values = list(found.by_size.values())
    assert values == sorted(values)


def test_images_at_smoke_scale_leave_out_what_is_not_here(tmp_path, monkeypatch):
    monkeypatch.delenv(downloads.DATA_VARIABLE, raising=False)
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(downloads, "_download", lambda *arguments: pytest.fail("the network was reached"))
    outcome = reproduce("common/images", "smoke", out=tmp_path / "runs", progress=False, methods=["nvdp", "convcnp"])
    assert list(outcome.table.task.unique()) == ["digits"] and EXACT not in set(outcome.table.model)
    assert set(outcome.figures) == {"context_size", "calibration", "by_seconds", "digits_nvdp", "digits_convcnp"}
    assert any("Left out" in note and "mnist" in note for note in outcome.notes)
    assert outcome.table.pll.notna().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nvdp/gp-random", {"cpu_seconds": 3.0}, "cpu_seconds: got 3.0; nvdp/gp-random has no such option, common/gp "),
        ("nmdp/gp-mix", {"methods": ["cnp"]}, r"methods: got \['cnp'\]; nmdp/gp-mix has no such option"),
        ("common/gp", {"cpu_seconds": 0.0}, "cpu_seconds: got 0.0; it must be positive and finite"),
        ("common/gp", {"tasks": ["gp-rbf"]}, "tasks: got 'gp-rbf'; common/gp has gp-rbf-fixed-tnp, "),
        ("common/gp", {"methods": ["cnp", "cnp"]}, r"methods: got \['cnp', 'cnp'\]; it must be names, each once"),
        ("common/images", {"methods": ["comvcnp"]}, "methods: got 'comvcnp'; did you mean 'convcnp'"),
        ("common/images", {"tasks": []}, r"tasks: got \[\]; it must be names"),
    ],
)
def test_pieces_are_refused_before_anything_is_written(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        reproduce(name, "smoke", out=tmp_path / "runs", progress=False, **options)
    assert not (tmp_path / "runs").exists()


def made_up(**scores):
    rows = [
        {"task": "t", "model": model, "seed": seed, "pll": value + seed / 10, "joint_pll": value}
        for model, value in scores.items()
        for seed in ((-1,) if model == EXACT else (0, 1))
    ]
    return pd.DataFrame(rows)


def test_the_papers_best_is_held_against_the_best_rival():
    table = made_up(nvdp=0.1, nmdp=0.5, convcnp=0.4, cnp=0.0, **{"nvdp+path": 0.3, "cnp+path": 0.35, EXACT: 1.0})
    rival, joint, rates, exact = _checks(table, "t", True)
    assert rival.measured == "nmdp - convcnp: +0.100" and rival.holds is True and joint.holds is None
    assert rates.measured == "-0.050, -0.050" and rates.holds is None and exact.holds is True
    assert _checks(table, "t", False)[0].holds is None
    worse = made_up(nmdp=0.5, convcnp=0.6, **{EXACT: 0.4})
    assert [check.holds for check in _checks(worse, "t", True)] == [False, None, False]
    assert by_task(table, "pll").iloc[0].tolist() == ["nvdp", "0.15 ± 0.07"]
    assert set(METHODS) <= set(KNOWN)


def test_a_fit_that_was_given_less_than_its_budget_is_named():
    fits = {
        ("gp-mix-tnp", name, 0): FitScores(10, seconds, 5, {}, {}, {})
        for name, seconds in (("cnp", 14.2), ("np", 30.0), ("anp", None))
    }
    off = _notes(fits, SCALES["small"], [0])[-1]
    assert "cnp on gp-mix-tnp, seed 0 (14 s)" in off and "np on" not in off.replace("cnp on", "")
