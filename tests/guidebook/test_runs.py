from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from evaluation.findings import LEVELS
from evaluation.recipes import RECIPES, recipe
from evaluation.run_configuration import RunConfiguration, affordable, configure, read_configuration
from guidebook.inspection import inspect_pretrained, inspect_run
from guidebook.runs import open_run, start
from inference import CheckpointError, TrainingDiverged, predict
from pp_models import DataError
from pp_models.files import locked, read_sealed_json, sealed_json
from pp_models.tasks import downloads
from pp_models.tasks.task_table import TASKS, TEST_SEED, task_stream

TINY = {"steps": 2, "width": 8, "batch_size": 2}
QUIET = {"device": "cpu", "progress": False}


def test_a_run_is_opened_with_the_parameters_it_ended_with(tmp_path):
    configuration = RunConfiguration("nvdp+det", "trigonometric", seed=3, beta=0.7, **TINY)
    result = start(configuration, tmp_path, **QUIET)
    assert read_configuration(tmp_path) == configuration
    opened, method, step = open_run(tmp_path)
    assert opened == configuration and step == 2 and not method.guide.training
    for fitted, again in ((result.model, method.model), (result.guide, method.guide)):
        assert fitted.state_dict().keys() == again.state_dict().keys()
        assert all(torch.equal(t, again.state_dict()[name]) for name, t in fitted.state_dict().items())
    batch = task_stream("trigonometric", 2, 3, test=True).batch(0)
    one, two = (
        predict(m, g, batch.context, batch.full, 1, weights="mean").mean
        for m, g in ((result.model, result.guide), (method.model, method.guide))
    )
    assert torch.equal(one, two)


def test_building_is_seeded_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (RunConfiguration("np", "gp-rbf", seed=s, **TINY).build() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (torch.cat([p.flatten() for p in m.guide.parameters()]) for m in (first, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("objective", [None, "elbo"])
def test_a_kl_schedule_reaches_the_objective_and_a_resumed_run_goes_on_with_it(tmp_path, objective):
    options = {"kl_schedule": "warm-up:4", "width": 8, "batch_size": 2, "objective": objective}
    plain = RunConfiguration("np", "gp-rbf", **TINY, objective=objective).build().objective
    found = RunConfiguration("np", "gp-rbf", **options, steps=2).build().objective
    assert found.kl_schedule.steps == 4 and plain.kl_schedule is None
    assert (type(found), found.kl_reduction, found.normalize) == (type(plain), plain.kl_reduction, plain.normalize)
    whole = start(RunConfiguration("np", "gp-rbf", **options, steps=6), tmp_path / "whole", **QUIET)
    start(RunConfiguration("np", "gp-rbf", **options, steps=3), tmp_path / "parts", **QUIET)
    again = RunConfiguration("np", "gp-rbf", **options, steps=6)
    parts = start(again, tmp_path / "parts", resume=True, **QUIET)
    for one, two in zip(whole.guide.parameters(), parts.guide.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("model", "tasks", "objective", "beta", "expected"),
    [
        ("nvdp", "gp-rbf", None, None, 1.4),
        ("nvdp", "digits", None, None, 0.5),
        ("nvdp", "gp-rbf", None, 0.2, 0.2),
        ("np", "gp-rbf", None, 3.0, 3.0),
        ("np", "gp-rbf", None, None, 1.0),
        ("nvdp", "gp-rbf", "elbo", None, 1.0),
        ("nvdp", "gp-rbf", "elbo", 0.0, 0.0),
    ],
)
def test_beta_reaches_the_objective_of_every_method(model, tasks, objective, beta, expected):
    method = RunConfiguration(model, tasks, objective, beta=beta, **TINY).build()
    assert method.objective.beta == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: got 0; it must be at least 1"),
        ({"steps": 1.5}, "steps: got 1.5; it must be of type int"),
        ({"steps": True}, "steps: got True; it must be of type int"),
        ({"seed": 2**63}, "seed: got 9223372036854775808; it must be a non-negative integer below 2\\^63"),
        ({"width": "8"}, "width: got '8'; it must be of type int"),
        ({"learning_rate": 0}, "learning_rate: got 0; it must be positive and finite"),
        ({"learning_rate": float("inf")}, "learning_rate: got inf; it must be positive and finite"),
        ({"beta": -1.0}, "beta: got -1.0; it must be finite and not negative"),
        ({"num_particles": 0}, "num_particles: got 0; it must be at least 1"),
        ({"schedule": "steps"}, "schedule: got 'steps'; it must be one of constant, linear, cosine"),
        ({"warmup": -0.1}, "warmup: got -0.1; it must be finite and not negative"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: got 0.0; it must be positive and finite"),
        ({"recipe": "secret"}, "recipe: got 'secret'; it must be one of best, paper"),
        ({"input_features": -1}, "input_features: got -1; it must be at least 0 and at most 4,096"),
        ({"objective": 3}, "objective: got 3; it must be of type str | None"),
        ({"model": None}, "model: got None; it must be of type str"),
    ],
)
def test_values_out_of_range_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message.replace("|", "\\|")):
        RunConfiguration(**{"model": "nvdp", "tasks": "gp-rbf", **options})


def test_a_fit_that_is_refused_restores_run_json(tmp_path):
    configuration = RunConfiguration("cnp", "gp-rbf", **TINY)
    start(configuration, tmp_path, **QUIET)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fewer = RunConfiguration("cnp", "gp-rbf", steps=1, width=8, batch_size=2)
    with pytest.raises(ValueError, match="steps: got 1, but the run in .* is already at step 2"):
        start(fewer, tmp_path, resume=True, **QUIET)
    more = RunConfiguration("cnp", "gp-rbf", steps=9, width=8, batch_size=2)
    with pytest.raises(ValueError, match="device: got 'gpu'"):
        start(more, tmp_path, resume=True, device="gpu")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_fit_that_diverges_keeps_its_run(tmp_path, caplog):
    configuration = RunConfiguration("cnp", "gp-rbf", steps=9, width=8, batch_size=2, learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match="Try a smaller learning_rate"):
        start(configuration, tmp_path, **QUIET)
    assert read_configuration(tmp_path) == configuration


def test_precision_belongs_to_the_run(tmp_path):
    configuration = RunConfiguration("cnp", "gp-rbf", precision="64-true", **TINY)
    start(configuration, tmp_path, **QUIET)
    with pytest.raises(CheckpointError, match="precision: got '32-true', but the run to resume in .* has '64-true'"):
        start(RunConfiguration("cnp", "gp-rbf", **TINY), tmp_path, resume=True, **QUIET)
    assert open_run(tmp_path)[2] == 2


def test_a_run_file_of_an_earlier_version_takes_the_defaults(tmp_path):
    (tmp_path / "run.json").write_bytes(sealed_json({"model": "np", "tasks": "digits", "seed": 4}))
    found = read_configuration(tmp_path)
    assert found == RunConfiguration("np", "digits", seed=4)
    assert (found.schedule, found.warmup, found.max_grad_norm, found.recipe) == ("constant", 0, None, "paper")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_run(tmp_path)


def test_inspection_scores_as_often_as_it_is_asked_and_the_same(tmp_path):
    start(RunConfiguration("np+vp", "digits", **TINY), tmp_path, **QUIET)
    scores, summary, found = inspect_run(tmp_path, 3)
    again, _, same = inspect_run(tmp_path, 3)
    assert found == same and found.level in LEVELS
    assert scores.equals(again) and list(scores.model) == ["np+vp"] and len(summary) == 10
    assert {"ll", "rll", "pll", "joint_ll", "joint_pll", "crps", "within_1sd", "within_2sd"} < set(scores)
    with pytest.raises(ValueError, match="draws: got 1; at least 2 are needed"):
        inspect_run(tmp_path, 1)


def test_an_entry_of_the_gallery_is_inspected_by_name(tmp_path):
    scores, _, found = inspect_pretrained("nmdp-strict-branches", tmp_path / "entry", 3)
    assert list(scores.model) == ["nmdp-strict"] and found.level in LEVELS
    page = (tmp_path / "entry" / "report.html").read_text(encoding="utf-8")
    assert "guidebook inspect nmdp-strict-branches --draws 3" in page and (tmp_path / "entry" / "posterior.nc").exists()
    with pytest.raises(ValueError, match=r"^name: got 'no-such'; "):
        inspect_pretrained("no-such", tmp_path / "entry")
    with pytest.raises(ValueError, match="draws: got 1; at least 2 are needed"):
        inspect_pretrained("nmdp-strict-branches", tmp_path / "entry", 1)


def test_nvdp_of_an_earlier_version_is_the_papers():
    method = RunConfiguration("nvdp", "gp-rbf", **TINY).build()
    assert method.model.input_features is None and method.guide.encoder.by_point
    best = configure("nvdp", "gp-rbf", width=8).build()
    assert best.model.input_features is not None and not best.guide.encoder.by_point


@pytest.mark.parametrize("model", [*RECIPES, "dnp"])
def test_what_is_not_given_is_the_recipe(model):
    found, own = configure(model, "gp-rbf", seed=1, batch_size=None), recipe(model)
    assert found.recipe == "best" and found.seed == 1 and found.steps == 3_000
    for name in ("learning_rate", "schedule", "warmup", "max_grad_norm", "batch_size"):
        assert getattr(found, name) == getattr(own, name)


def test_what_is_given_or_held_comes_before_the_recipe():
    found = configure("nvdp", "gp-rbf", learning_rate=0.1, max_grad_norm=0)
    assert (found.learning_rate, found.max_grad_norm, found.schedule) == (0.1, None, "cosine")
    paper = configure("nvdp", "gp-rbf", recipe="paper")
    assert (paper.learning_rate, paper.schedule, paper.warmup, paper.max_grad_norm) == (1e-3, "constant", 0, None)
    held = RunConfiguration("nvdp", "gp-rbf", batch_size=3, seed=5, pooling="attention")
    again = configure("nvdp", "gp-rbf", held, warmup=2)
    assert again == RunConfiguration("nvdp", "gp-rbf", batch_size=3, pooling="attention", warmup=2)
    assert configure("cnp", "gp-rbf", held) == configure("cnp", "gp-rbf")  # start says that it is another model


def test_settings_of_a_run_reach_its_fit(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("evaluation.run_configuration.fit", lambda *args, **options: seen.update(options))
    chosen = {"schedule": "linear", "warmup": 0.2, "max_grad_norm": 0.5}
    start(RunConfiguration("cnp", "gp-rbf", **chosen, **TINY), tmp_path, **QUIET)
    assert seen.items() >= chosen.items()


def test_parts_and_the_floor_of_the_tasks_reach_the_method():
    method = configure("nvdp", "gp-rbf-tnp", width=8, pooling="mean", path="regression", input_features=3).build()
    assert method.guide.encoder.by_point and method.model.path.regression.kind == "fourier"
    assert method.model.input_features.frequencies.numel() == 3
    assert method.model.likelihood.min_scale == 0.01
    assert configure("nvdp", "gp-rbf", width=8).build().model.likelihood.min_scale == 0.1


def test_cpu_seconds_buy_steps_and_leave_the_configuration_as_it_is(monkeypatch):
    monkeypatch.setattr("evaluation.run_configuration.step_cost", lambda *args, **options: 0.02)
    configuration = RunConfiguration("cnp", "gp-rbf", **TINY)
    assert affordable(configuration, 3.0, "cpu") == (150, 0.02)
    assert affordable(configuration, 1e-3, "cpu") == (20, 0.02)  # the least that a fit takes
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^cpu_seconds: got \S+; it must be positive and finite$"):
            affordable(configuration, seconds)


NEED_FILES = {"mnist", "emnist", "emnist-unseen", "omniglot", "cifar10", "cifar10-subset", "celeba", "svhn"}
NEED_FILES |= {"ecg200", "ecg5000", "abalone", "era5"}
NEED_FILES |= {f"{table}{kind}" for table in ("sarcos", "wq", "scm20d") for kind in ("", "-clusters")}


@pytest.mark.parametrize("name", [n for n in TASKS if n not in NEED_FILES])
def test_every_task_name_has_a_training_and_a_test_stream(name):
    train, test = task_stream(name, 2, 5), task_stream(name, 2, 5, test=True)
    assert (train.seed, test.seed) == (5, 5 + TEST_SEED)
    batch, whole = train.batch(0), test.batch(0)
    assert batch.full.x.shape[0] == whole.full.x.shape[0] == 2
    points = {
        "trigonometric": 200,
        "digits": 64,
        "ecg-simulated": 600,
        "synthetic-clusters": 125,
    }.get(name, 49 if name.endswith("-tnp") else 400)
    scored = (
        whole.target if name in ("synthetic", "mixed-offset", "branches") else whole.full
    )  # contexts are no part of the grid
    assert scored.num_points == points >= batch.full.num_points


def test_an_unknown_task_name():
    with pytest.raises(ValueError, match="tasks: got 'gp-rbv'; did you mean 'gp-rbf'"):
        task_stream("gp-rbv")


@pytest.mark.parametrize("objective", [None, "iwae", "pp-avi"])
def test_particles_reach_the_objective(objective):
    method = RunConfiguration("mean-field", "gp-rbf", objective, num_particles=5, **TINY).build()
    assert method.objective.num_particles == 5


def test_beta_is_refused_where_there_is_no_kl():
    with pytest.raises(ValueError, match=r"^beta: objective 'iwae' has no such option; it has "):
        RunConfiguration("mean-field", "gp-rbf", "iwae", beta=0.5, **TINY).build()
    with pytest.raises(ValueError, match=r"^beta: got 0.5; npml has no KL to weigh$"):
        RunConfiguration("mean-field", "gp-rbf", "npml", beta=0.5, **TINY).build()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10**9}, r"is not a run configuration \(width: got 1000000000; it must be .* at most 16,384\)$"),
        ({"batch_size": 10**9}, r"\(batch_size: got 1000000000; it must be at least 1 and at most 65,536\)$"),
        ({"num_particles": 10**9}, r"\(num_particles: got 1000000000; it must be at least 1 and at most 1,048,576\)$"),
        ({"width": 16_384}, r"^width: .*run.json says 16384, but nothing in the checkpoint is wider than \d+; "),
        ({"depth": 3}, r"\(depth: Unexpected keyword argument, got '3'\)$"),
    ],
)
def test_sizes_of_a_received_run_are_looked_at_before_anything_is_built(tmp_path, monkeypatch, change, message):
    start(RunConfiguration("cnp", "gp-rbf", **TINY), tmp_path, **QUIET)
    held = read_sealed_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_bytes(sealed_json(held | change))

    def built(*arguments):
        raise AssertionError("something was built")

    monkeypatch.setattr("evaluation.run_configuration.build", built)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_opening_a_received_run_never_reaches_the_network(tmp_path, monkeypatch):
    def asked(*arguments):
        raise AssertionError("the network was reached")

    start(RunConfiguration("cnp", "gp-rbf", **TINY), tmp_path / "run", **QUIET)
    held = read_sealed_json(tmp_path / "run/run.json")
    (tmp_path / "run/run.json").write_bytes(sealed_json(held | {"tasks": "svhn"}))
    monkeypatch.delenv("GUIDEBOOK_DATA", raising=False)
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(downloads, "_download", asked)
    for call in (open_run, inspect_run):
        with pytest.raises(DataError, match=r"^svhn/train_32x32.mat: it is not on this machine, and opening a run "):
            call(tmp_path / "run")


def test_a_second_start_in_one_folder_changes_nothing(tmp_path):
    configuration = RunConfiguration("cnp", "gp-rbf", **TINY)
    start(configuration, tmp_path, **QUIET)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with ThreadPoolExecutor(1) as pool, locked(tmp_path, "out", passed_on=True), locked(tmp_path, "out"):
        second = pool.submit(start, replace(configuration, steps=9), tmp_path, True, **QUIET)
        with pytest.raises(CheckpointError, match=r"^out: .* is being written to by another run; wait for it, or name"):
            second.result()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with locked(tmp_path, "out", passed_on=True):
        for _ in range(2):  # one after the other, and not one within another
            with locked(tmp_path, "out"), pytest.raises(CheckpointError, match="by another run"):
                start(replace(configuration, steps=9), tmp_path, True, **QUIET)
    with locked(tmp_path, "out"), pytest.raises(CheckpointError, match="by another run"):
        start(replace(configuration, steps=9), tmp_path, True, **QUIET)
