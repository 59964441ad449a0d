"""Every experiment runs at smoke scale, writes what it says, and can be run again from its kept fits."""

import itertools
import json
import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation.experiments import (
    EXPERIMENTS,
    SCALES,
    experiment,
    nvdp_ablations,
    nvdp_gp,
    nvdp_trigonometric,
    reproduce,
)
from evaluation.experiments.experiment import Check, Outcome, Scale, Workshop, check_table, summary, write_outcome
from evaluation.methods import TaskShape, build
from evaluation.scores.metrics import rate_spread
from inference import CheckpointError
from inference.active_context import acquire
from pp_models import tasks
from pp_models.tasks import downloads
from tests.evaluation.experiments.test_bnnp_experiments import FIGURES as BNNP_FIGURES
from tests.evaluation.experiments.test_nmdp_experiments import FIGURES as NMDP_FIGURES
from tests.recorded_stand_ins import write_mnist

pytestmark = pytest.mark.usefixtures("coarse_pictures")

CEILING = -math.log(0.1) - 0.5 * math.log(2 * math.pi)
FIGURES = {
    "nvdp/gp-random": {"comparison", "functions", "rates", "learning"},
    "nvdp/gp-fixed": {"comparison", "functions", "rates", "learning"},
    "nvdp/trigonometric": {"ambiguity"},
    "nvdp/active-learning": {"queries"},
    "nvdp/ablations": {"comparison"},
    "nvdp/masks": {"parts"},
    "nvdp/full-rates": {"costs"},
}


@pytest.fixture(scope="module")
def first_run(out):
    """Runs an experiment at smoke scale once for all tests."""
    outcomes = {}

    def run(name):
        if name not in outcomes:
            outcomes[name] = reproduce(name, "smoke", out=out, progress=False)
        return outcomes[name]

    return run


@pytest.fixture
def undrawn(monkeypatch):
    """Spares the seconds that drawing takes where a test is about something else."""
    monkeypatch.setattr(experiment, "as_png", lambda figure: b"")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """MNIST, Omniglot and CelebA of a few random images each, in the formats of their publishers."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    write_mnist(folder / "mnist", rng)
    for name in ("omniglot", "celeba"):
        (folder / name).mkdir()
    images = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    np.savez(folder / "omniglot/omniglot_28.npz", images=images, class_id=np.arange(1197, 1203, dtype=np.uint16))
    for split in ("train", "test"):
        faces = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"celeba/celeba_32_{split}.npz", images=faces)
    return folder


def check_files(outcome, folder, figures):
    names = {path.name for path in folder.iterdir()}
    assert {"results.json", "table.csv", "report.html"} <= names
    assert {path.stem for path in folder.glob("*.png")} == figures == set(outcome.figures)
    results = json.loads((folder / "results.json").read_text())
    assert results["name"] == outcome.name and results["command"] == outcome.command
    assert [check["holds"] for check in results["checks"]] == [check.holds for check in outcome.checks]
    assert len(results["table"]) == len(pd.read_csv(folder / "table.csv")) == len(outcome.table)
    page = (folder / "report.html").read_text()
    assert page.count("<img") == len(figures) and "http://" not in page.replace("http://www.w3.org", "")
    assert outcome.command in page
    assert len(names) == 4 + len(figures) + len(outcome.tables)


@pytest.mark.parametrize("name", FIGURES)
def test_experiment_at_smoke_scale(first_run, out, name):
    outcome = first_run(name)
    assert outcome.name == name and outcome.command == f"guidebook reproduce {name} --scale smoke --seeds 0"
    check_files(outcome, out / f"{name}-smoke", FIGURES[name])
    assert outcome.checks and all(isinstance(check.holds, bool | None) for check in outcome.checks)
    assert not any(check.holds is False for check in outcome.checks)  # limits hold even for untrained methods
    scores = outcome.table.filter(regex="^(ll|rll|pll)$|^ll[ ,]")
    methods = ~outcome.table.model.str.startswith("exact")
    assert scores.shape[1] >= 2 and scores[methods].notna().all(axis=None)
    assert (scores[methods] <= CEILING).all(axis=None)


@pytest.mark.parametrize("name", ["nvdp/gp-random", "nvdp/gp-fixed"])
def test_no_method_is_above_the_floored_oracle(first_run, name):
    table = first_run(name).table.set_index("model")
    best = table.loc["exact GP, σ ≥ 0.1"]
    methods = table[table.seed >= 0]
    assert set(methods.index) == {"nvdp", "cnp", "np", "np+cnp+vp"}
    assert (methods[["ll", "pll", "joint_pll"]] <= best[["ll", "pll", "joint_pll"]] + 0.05).all(axis=None)
    assert (table.loc["exact GP", ["ll", "joint_ll"]] >= best[["ll", "joint_ll"]] - 1e-6).all()
    assert methods.ll.max() < best.ll - 0.5  # ten steps do not learn what the exact answer knows


@pytest.mark.parametrize("name", ["nvdp/active-learning", "nvdp/ablations"])
def test_a_second_run_reads_the_kept_fits_and_gives_the_same_table(first_run, undrawn, out, name, monkeypatch):
    first = first_run(name)
    kept = {path: path.stat().st_mtime_ns for path in (out / "nvdp/fits").rglob("weights-*")}

    def no_step(self, sealed):
        raise AssertionError("a kept fit was trained again")

    # "inference.fit" as a name is the function of that module
    monkeypatch.setattr(sys.modules["inference.fit"].TrainingStep, "forward", no_step)
    second = reproduce(name, "smoke", out=out, progress=False)
    pd.testing.assert_frame_equal(first.table, second.table)
    assert [c.measured for c in first.checks] == [c.measured for c in second.checks]
    assert kept == {path: path.stat().st_mtime_ns for path in (out / "nvdp/fits").rglob("weights-*")}


@pytest.mark.parametrize(
    ("name", "source", "columns"),
    [
        ("nvdp/inpainting-digits", "Test pixels: scikit-learn digits, 8x8", ["ll 10 px", "ll 30 px"]),
        ("nvdp/inpainting-mnist", "Test pixels: MNIST, 28x28", ["ll 10 px", "ll 30 px", "ll 100 px"]),
        ("nvdp/inpainting-omniglot-mnist", "Training pixels: Omniglot, 28x28", ["ll 10 px", "ll 30 px", "ll 100 px"]),
        ("nvdp/inpainting-celeba", "Test pixels: CelebA, center crop", ["ll 10 px", "ll 30 px", "ll 100 px"]),
    ],
)
def test_inpainting_at_smoke_scale(out, data_folder, monkeypatch, name, source, columns):
    monkeypatch.setenv(downloads.DATA_VARIABLE, str(data_folder))
    outcome = reproduce(name, "smoke", out=out, progress=False)
    assert outcome.name == name
    check_files(outcome, out / f"{name}-smoke", {"completions"})
    assert any(source in note for note in outcome.notes)
    assert [c for c in outcome.table.columns if c.endswith(" px")] == columns
    scores = outcome.table[["ll", "rll", "pll", *columns]]
    assert scores.notna().all(axis=None) and (scores <= CEILING).all(axis=None)
    assert [check.name for check in outcome.checks][:3] == [
        f"NVDP - {n} in LL, seed 0" for n in ("CNP", "NP", "NP+CNP+VP")
    ]


def test_the_experiments_are_those_of_the_papers():
    inpainting = {f"nvdp/inpainting-{x}" for x in ("digits", "mnist", "omniglot-mnist", "celeba")}
    adapters = {"lrvd/planted", "lrvd/kappa", "lrvd/gpt2"}
    adapters |= {f"lrvd/minilm-{x}" for x in ("cola", "mrpc", "sst2", "docstrings")}
    adapters |= {f"lrvd/deberta-{x}" for x in ("cola", "mrpc", "sst2", "rte", "qnli", "qqp", "mnli")}
    answers = ("winogrande-s", "winogrande-m", "arc-challenge", "arc-easy", "obqa", "boolq")
    adapters |= {f"lrvd/llama-{x}" for x in answers}
    common = {"common/gp", "common/images", "common/few-shot", "nvdp/label-noise"}
    assert set(FIGURES) | inpainting | set(BNNP_FIGURES) | set(NMDP_FIGURES) | adapters | common == set(EXPERIMENTS)
    assert SCALES == ("smoke", "small", "paper")
    for module in (nvdp_gp, nvdp_ablations, nvdp_trigonometric):
        assert tuple(module.SCALES) == SCALES and all(name == s.name for name, s in module.SCALES.items())
    paper = nvdp_gp.SCALES["paper"]
    assert (paper.width, paper.batch_size, paper.learning_rate, paper.betas) == (128, 16, 5e-4, (0.99, 0.999))


@pytest.mark.parametrize("module", [nvdp_gp, nvdp_ablations, nvdp_trigonometric])
def test_claims_are_judged_at_small_scale_and_written_as_plain_booleans(tmp_path, undrawn, monkeypatch, module):
    """The real small scale takes hours: here it is smaller than smoke, and most of what it claims is false."""
    monkeypatch.setitem(module.SCALES, "small", Scale("small", 2, 8, 2, test_batches=2))
    if module is nvdp_gp:
        monkeypatch.setitem(module.METHODS, "small", ["nvdp", "cnp", "np", "np+cnp+vp"])
    name = {nvdp_gp: "nvdp/gp-random", nvdp_ablations: "nvdp/ablations", nvdp_trigonometric: "nvdp/trigonometric"}[
        module
    ]
    outcome = reproduce(name, "small", [0, 3], tmp_path, progress=False)
    claims = [check for check in outcome.checks if check.holds is not None]
    assert len(claims) >= 3 and all(type(check.holds) is bool for check in claims)
    results = json.loads((tmp_path / f"{name}-small/results.json").read_text())
    assert [check["holds"] for check in results["checks"]] == [check.holds for check in outcome.checks]
    missed = any(check.holds is False for check in claims)
    assert ("MISSED" in (tmp_path / f"{name}-small/report.html").read_text()) == missed
    assert set(outcome.table.seed) >= {0, 3}
    assert outcome.command == f"guidebook reproduce {name} --scale small --seeds 0,3"


def test_the_ablations_look_at_the_rates_of_their_own_half_way_fits(first_run, out):
    outcome = first_run("nvdp/ablations")
    scale = nvdp_ablations.SCALES["smoke"]
    fits = out / "nvdp/fits"
    assert {path.name for path in (fits / "gp-rbf-ablations-smoke-half").iterdir()} == {"nvdp-seed0", "nvdp-sum-seed0"}
    for folder, steps in (("gp-rbf-ablations-smoke-half", scale.steps // 2), ("gp-rbf-ablations-smoke", scale.steps)):
        index = json.loads((fits / folder / "nvdp-seed0/checkpoint.json").read_text())
        assert index["checkpoints"][0]["step"] == steps
    table = outcome.table.set_index("model")
    assert table.rate_spread_half_way.notna().to_dict() == {
        n: n in ("nvdp", "nvdp-sum") for n in nvdp_ablations.VARIANTS
    }
    assert (table.rate_spread_half_way["nvdp"]) != table.rate_spread["nvdp"]
    # the same fit by hand
    task, stream = TaskShape(1, 1, scale.width), tasks.gp("rbf", scale.batch_size, 0)
    workshop = Workshop(out / "nvdp", progress=False)
    method, _ = workshop.train("gp-rbf-ablations-smoke-half", "nvdp", task, stream, scale, 0, scale.steps // 2)
    many = tasks.gp_test("rbf", 64, seed=2_000_000).batch(0)
    hidden = list(rate_spread(method.guide, many.context).values())[1:-1]
    assert table.rate_spread_half_way["nvdp"] == pytest.approx(sum(r.weight_spread for r in hidden) / len(hidden))


def test_a_damaged_kept_fit_is_named(tmp_path):
    scale = Scale("smoke", 2, 8, 2)
    workshop = Workshop(tmp_path, progress=False)
    arguments = ("key", "cnp", TaskShape(1, 1, 8), tasks.gp("rbf", 2, 0), scale, 0)
    _, history = workshop.train(*arguments)
    assert [row["step"] for row in history] == [2]
    path = next(tmp_path.rglob("weights-*"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or altered"):
        workshop.train(*arguments)


# -- active learning ----------------------------------------------------------------------------------------------


@pytest.fixture
def learner():
    method = build("nvdp", TaskShape(1, 1, 8))
    method.guide.eval()
    return method, tasks.gp_test("rbf", 3, grid=30, num_context=(4, 8)).batch(0).full


@pytest.mark.parametrize("acquisition", ["max sd", "random"])
def test_queries_add_one_point_a_step_and_keep_the_others(learner, acquisition):
    method, pool = learner
    batches = acquire(method.model, method.guide, pool, 4, 9, acquisition, seed=1)
    assert [batch.context.num_points for batch in batches] == [4, 5, 6, 7, 8, 9]
    assert [batch.target.num_points for batch in batches] == [26, 25, 24, 23, 22, 21]
    values = pool.y.squeeze(-1)
    for task in range(3):
        of = dict(zip(pool.x[task, :, 0].tolist(), values[task].tolist(), strict=True))
        contexts = [set(batch.context.x[task, :, 0].tolist()) for batch in batches]
        assert all(a < b for a, b in itertools.pairwise(contexts))
        for batch, context in zip(batches, contexts, strict=True):
            target = set(batch.target.x[task, :, 0].tolist())
            assert not context & target and context | target == set(of)
            for part in (batch.context, batch.target):
                pairs = zip(part.x[task, :, 0].tolist(), part.y[task, :, 0].tolist(), strict=True)
                assert all(of[x] == y for x, y in pairs)
    again = acquire(method.model, method.guide, pool, 4, 9, acquisition, seed=1)
    assert torch.equal(again[-1].context.x, batches[-1].context.x)


def test_both_acquisitions_start_alike_and_max_sd_goes_to_the_largest_sd(learner, monkeypatch):
    method, pool = learner

    class Sd:
        """A predictive sd that is largest at one known end of the line, seen points included."""

        std = pool.x + 3

    monkeypatch.setattr("inference.active_context.predict", lambda *args, **kwargs: Sd)
    greedy = acquire(method.model, method.guide, pool, 2, 5, "max sd", seed=1)
    drawn = acquire(method.model, method.guide, pool, 2, 5, "random", seed=1)
    assert torch.equal(greedy[0].context.x, drawn[0].context.x)
    assert not torch.equal(greedy[-1].context.x, drawn[-1].context.x)
    for task in range(3):
        first = set(greedy[0].context.x[task, :, 0].tolist())
        unseen = sorted(set(pool.x[task, :, 0].tolist()) - first)
        assert set(greedy[-1].context.x[task, :, 0].tolist()) - first == set(unseen[-3:])
    other = acquire(method.model, method.guide, pool, 2, 5, "random", seed=2)
    assert not torch.equal(other[0].context.x, drawn[0].context.x)


# -- tables -------------------------------------------------------------------------------------------------------


def test_summary_is_mean_and_standard_error_over_seeds():
    table = pd.DataFrame(
        {"model": ["b", "b", "b", "a"], "seed": [0, 1, 2, 0], "ll": [1.0, 2.0, 3.0, 5.0], "note": list("wxyz")}
    )
    found = summary(table)
    assert found.to_dict("records") == [
        {"model": "b", "seeds": 3, "ll": "2.000 ± 0.577"},
        {"model": "a", "seeds": 1, "ll": "5.000"},
    ]
    table["kl"] = [math.nan, math.nan, math.nan, 1.0]
    assert list(summary(table).kl) == ["", "1.000"]


def test_checks_read_yes_missed_or_reported():
    found = check_table([Check("a", "> 0", "1", True), Check("b", "> 0", "-1", False), Check("c", "", "0", None)])
    assert list(found.columns) == ["claim", "criterion", "measured", "holds"]
    assert list(found.holds) == ["yes", "MISSED", "(reported)"]
    assert list(check_table([]).columns) == ["claim", "criterion", "measured", "holds"]


def test_an_outcome_is_written_with_missing_numbers_and_odd_table_titles(tmp_path):
    table = pd.DataFrame({"model": ["a<b>"], "seed": [0], "ll": [math.nan]})
    outcome = Outcome("x/y", "guidebook reproduce x/y", table, tables={"LL by m: all!": table})
    write_outcome(outcome, tmp_path / "x")
    assert {path.name for path in (tmp_path / "x").iterdir()} == {
        "results.json",
        "table.csv",
        "ll-by-m--all.csv",
        "report.html",
        ".written.json",
    }
    write_outcome(outcome, tmp_path / "x")  # again, over its own
    assert json.loads((tmp_path / "x/results.json").read_text())["table"] == [{"model": "a<b>", "seed": 0, "ll": None}]
    assert "a<b>" not in (tmp_path / "x/report.html").read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="^out: .* is not a folder that can be written to"):
        write_outcome(outcome, tmp_path / "file")


def test_the_command_names_an_experiment_a_scale_and_seeds(tmp_path):
    for arguments, message in (
        (("nvdp",), "experiment: got 'nvdp'; did you mean 'nvdp/gp-random' or "),
        (("nvdp/gp-random", "huge"), "scale: got 'huge'; it must be one of smoke, small, paper"),
        (("nvdp/gp-random", "smoke", []), r"seeds: got \[\]; .* at least one"),
        (("nvdp/gp-random", "smoke", [2, 2]), r"seeds: got \[2, 2\]; .* each once"),
    ):
        with pytest.raises(ValueError, match=message):
            reproduce(*arguments, out=tmp_path)
    assert list(tmp_path.iterdir()) == []
