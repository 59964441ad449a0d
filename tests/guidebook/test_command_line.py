"""The guidebook command: what it prints, what it leaves behind, and one clear line for whatever is wrong."""

import gzip
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from guidebook import command_line
from inference import compile_step
from pp_models.files import read_sealed_json, sealed_json
from pp_models.tasks import downloads

ROOT = Path(__file__).parents[2]
TINY = ("--width", "8", "--batch-size", "2", "--device", "cpu")
COMMANDS = ("list", "demo", "fit", "inspect", "reproduce", "doctor")


@pytest.fixture(autouse=True)
def own_process_settings(monkeypatch):
    """A wide terminal, and no data folder."""
    monkeypatch.setattr(command_line.console, "_width", 200)
    monkeypatch.delenv(downloads.DATA_VARIABLE, raising=False)
    monkeypatch.delenv("GUIDEBOOK_TRACEBACK", raising=False)


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


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run of four steps with two checkpoints, made once; copy it to change it."""
    from evaluation.run_configuration import RunConfiguration
    from guidebook.runs import start

    folder = tmp_path_factory.mktemp("runs") / "first"
    start(
        RunConfiguration("nvdp", "gp-rbf", steps=4, width=8, batch_size=2),
        folder,
        device="cpu",
        progress=False,
        checkpoint_every=2,
    )
    return folder


@pytest.fixture
def run_folder(fitted, tmp_path):
    import shutil

    return Path(shutil.copytree(fitted, tmp_path / "run"))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def is_one_error_line(outcome, status=1):
    """The message, after checking status and shape."""
    got, out, err = outcome
    assert got == status, err
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in out + err
    return err.removeprefix("error: ").rstrip("\n")


# -- what there is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("models", ["nvdp", "cnp", "np+cnp+vp", "anp", "mean-field", "mc-dropout"]),
        ("guides", ["BernoulliExpertGuide", "AmortisedMeanFieldGuide", "MCDropoutGuide", "NeuralProcessGuide"]),
        ("objectives", ["elbo", "conditional-prior", "npvi"]),
        ("tasks", ["gp-rbf", "gp-mix", "trigonometric", "digits", "svhn"]),
        ("experiments", ["nvdp/gp-random", "nvdp/active-learning", "nvdp/inpainting-celeba"]),
    ],
)
def test_list_names_everything_of_a_kind(guidebook, kind, names):
    status, out, err = guidebook("list", kind)
    words = out.split()
    assert status == 0 and err == "" and [name for name in names if name not in words] == []
    everything = guidebook("list")[1]
    assert all(name in everything.split() for name in names)


def test_list_of_an_unknown_kind(guidebook):
    message = is_one_error_line(guidebook("list", "kernels"))
    assert (
        message
        == "kind: got 'kernels'; it must be one of models, guides, families, objectives, tasks, experiments, pretrained"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_the_command_can_read(command):
    found = CliRunner().invoke(command_line.app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert found.exit_code == 0
    example = next(line for line in found.output.splitlines() if "Example: guidebook " in line)
    assert f"guidebook {command}" in example


def test_help_without_a_command_names_every_command(guidebook):
    status, out, err = guidebook()
    assert status == 2 and err == ""
    assert [c for c in COMMANDS if c not in out] == []


def test_help_does_not_wait_for_torch():
    script = """
import sys
from guidebook.command_line import main
main([*sys.argv[1:], "--help"])
heavy = {"torch", "pyro", "arviz", "matplotlib", "pandas"} & set(sys.modules)
assert not heavy, heavy
"""
    for words in ([], ["fit"]):
        done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "Usage: guidebook" in done.stdout, done.stderr


def test_doctor_tells_versions_device_and_folders(guidebook, tmp_path, monkeypatch):
    monkeypatch.setenv(downloads.DATA_VARIABLE, str(tmp_path))
    status, out, err = guidebook("doctor")
    assert status == 0 and err == ""
    rows = {line.split("  ")[1].strip(): line for line in out.splitlines()[1:] if line.strip()}
    assert version("torch") in rows["torch"] and str(tmp_path) in rows["GUIDEBOOK_DATA"]
    assert {"python", "pyro-ppl", "arviz", "ArviZ container", "GPU", "CPU", "disk"} <= set(rows)


def test_doctor_says_that_the_data_folder_is_missing_and_goes_on(guidebook, tmp_path, monkeypatch):
    monkeypatch.setenv(downloads.DATA_VARIABLE, str(tmp_path / "[none]"))
    status, out, err = guidebook("doctor")
    assert status == 0 and err == ""
    assert "[none]'; it must name an existing folder" in out and "downloads go to" in out


# -- fit, inspect, resume -----------------------------------------------------------------------------------------


def test_fit_inspect_resume_round_trip(guidebook, tmp_path):
    folder = tmp_path / "a [b] c"  # brackets are markup to rich
    fit = ["fit", *TINY, "--schedule", "constant", "--warmup", 0, "--out", folder]
    status, out, err = guidebook(*fit, "--steps", 2)
    assert status == 0 and err == ""
    assert "step 2: loss " in out and "0 steps skipped" in out and f"next: guidebook inspect '{folder}'\n" in out
    assert {"run.json", "checkpoint.json", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}

    status, out, err = guidebook("inspect", folder, "--draws", 3)
    assert status == 0 and err == "" and f"wrote {folder / 'posterior.nc'} and {folder / 'report.html'}\n" in out
    assert "exact GP, sd >= 0.1" in out and "layer_" in out and ".weight[" in out
    assert (folder / "posterior.nc").read_bytes()[:4] == b"\x89HDF" and "<img" in (folder / "report.html").read_text()

    status, out, _ = guidebook("fit", *TINY, "--out", folder, "--steps", 4, "--resume")  # the rest is the run's
    assert status == 0 and "step 4: loss " in out
    assert json.loads((folder / "run.json").read_text())["steps"] == 4
    whole = tmp_path / "whole"
    assert guidebook(*fit[:-1], whole, "--steps", 4)[0] == 0
    newest = ["weights-00000004.safetensors", "state-00000004.pt"]
    assert (folder / newest[0]).read_bytes() == (whole / newest[0]).read_bytes()


def test_cpu_seconds_in_place_of_steps(guidebook, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.run_configuration.step_cost", lambda *args, **options: 0.1)
    fit = ["fit", *TINY, "--model", "cnp", "--cpu-seconds", 2.5, "--out", tmp_path / "run"]
    status, out, err = guidebook(*fit)
    assert status == 0 and "a step costs 100.0 ms of CPU: 25 steps\n" in out and "step 25: loss " in out
    assert re.fullmatch(r"25 steps will take about \d+ s\n", err)
    held = read_sealed_json(tmp_path / "run/run.json")
    assert (held["steps"], held["learning_rate"], held["schedule"], held["warmup"]) == (25, 1e-3, "cosine", 0.03)
    monkeypatch.setattr("evaluation.run_configuration.step_cost", lambda *args, **options: 0.01)
    status, out, _ = guidebook(*fit, "--resume")  # another moment's cost changes nothing
    assert status == 0 and "goes on at step 25 of 25\n" in out
    message = is_one_error_line(guidebook(*fit, "--steps", 3))
    assert message == "cpu_seconds: got 2.5 beside steps = 3; take one of them"


@pytest.mark.parametrize(
    ("model", "tasks", "site"),
    [("cnp", "trigonometric", "representation["), ("np", "digits", "z["), ("mean-field", "digits", ".weight[")],
)
def test_other_models_and_tasks_can_be_fitted_and_inspected(guidebook, tmp_path, model, tasks, site):
    assert guidebook("fit", *TINY, "--model", model, "--tasks", tasks, "--steps", 1, "--out", tmp_path)[0] == 0
    status, out, err = guidebook("inspect", tmp_path, "--draws", 2)
    assert status == 0 and err == "" and site in out
    assert "exact GP" not in out


def test_a_resumed_run_starts_from_the_checkpoint_before_a_damaged_one(guidebook, run_folder, fitted):
    newest = run_folder / "weights-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    fit = ["fit", *TINY, "--steps", 4, "--out", run_folder]
    assert "resume='previous' continues from step 2" in is_one_error_line(guidebook(*fit, "--resume"))
    assert guidebook(*fit, "--previous")[0] == 0
    assert newest.read_bytes() == (fitted / newest.name).read_bytes()


# -- bad input ----------------------------------------------------------------------------------------------------

BAD_FITS = {
    "tasks": (["--tasks", "gp-foo"], "tasks: got 'gp-foo'; it is none of"),
    "model": (["--model", "gan"], "model: got 'gan'; it is none of"),
    "objective": (["--objective", "elbow"], "objective: got 'elbow'; did you mean 'elbo'"),
    "steps": (["--steps", "0"], "steps: got 0; it must be at least 1"),
    "negative seed": (["--seed", "-1"], "seed: got -1; it must be a non-negative integer below 2^63"),
    "huge seed": (["--seed", "9" * 30], "seed: got 999999999999999999999999999999; it must be a non-negative integer"),
    "width": (["--width", "0"], "width: got 0; it must be at least 1"),
    "width for the heads": (
        ["--model", "anp", "--width", "12"],
        "representation_dim: got 12; attention needs a multiple",
    ),
    "batch size": (["--batch-size", "0"], "batch_size: got 0; it must be at least 1"),
    "learning rate": (["--learning-rate", "nan"], "learning_rate: got nan; it must be positive and finite"),
    "schedule": (["--schedule", "steps"], "schedule: got 'steps'; it must be one of constant, linear, cosine"),
    "warm-up": (["--warmup", "2"], "warmup: got 2.0, 2 steps; the fit has 2"),
    "gradient norm": (["--max-grad-norm", "-1"], "max_grad_norm: got -1.0; it must be positive"),
    "recipe": (["--recipe", "secret"], "recipe: got 'secret'; it must be one of best, paper"),
    "pooling": (["--pooling", "median"], "pooling: got 'median'; it must be one of"),
    "a part of another method": (["--experts", "strict"], "experts: got 'strict'; of nvdp one can name pooling and"),
    "path": (["--path", "walk"], "path: got 'walk'; it must be one of"),
    "features": (["--input-features", "-3"], "input_features: got -3; it must be at least 0"),
    "beta": (["--beta", "nan"], "beta: got nan; it must be finite and not negative"),
    "KL schedule": (
        ["--kl-schedule", "linear:3"],
        "kl_schedule: got 'linear:3'; it must be parts such as",
    ),
    "no KL": (
        ["--model", "bnp", "--kl-schedule", "warm-up:3"],
        "kl_schedule: got one, and 'npml' has",
    ),
    "free bits": (
        ["--kl-schedule", "free-bits:1"],
        "kl_schedule: got free_bits = 1.0 with kl_reduction='mean'",
    ),
    "device": (["--device", "gpu"], "device: got 'gpu'; it must be 'auto', 'cpu', 'cuda', 'cuda:N',"),
    "device number": (["--device", "cpu:x"], "device: got 'cpu:x'; it must be"),
    "precision": (["--precision", "31-true"], "precision: got '31-true'; "),
}


@pytest.mark.parametrize("name", BAD_FITS)
def test_a_refused_fit_says_why_and_leaves_no_run_behind(guidebook, tmp_path, name):
    words, expected = BAD_FITS[name]
    outcome = guidebook("fit", *TINY, "--steps", 2, "--out", tmp_path / "run", *words)
    assert is_one_error_line(outcome).startswith(expected)
    assert contents(tmp_path) == {}
    assert guidebook("fit", *TINY, "--steps", 1, "--out", tmp_path / "run")[0] == 0  # the folder is free


@pytest.mark.parametrize(("count", "expected"), [(0, "but this machine has no usable CUDA"), (1, "has 1 CUDA devices")])
def test_a_cuda_device_that_is_not_there(guidebook, tmp_path, monkeypatch, count, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    outcome = guidebook("fit", *TINY, "--steps", 2, "--out", tmp_path / "run", "--device", "cuda:1")
    message = is_one_error_line(outcome)
    assert message.startswith("device: got 'cuda:1', ") and expected in message and contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fit", "--hidden", "3"], "No such option: --hidden"),
        (["fit", "--steps", "many"], "'--steps'"),
        (["fit", "--steps"], "'--steps' requires an argument"),
        (["inspect"], "Missing argument"),
        (["inspect", "here", "there"], "unexpected extra argument"),
        (["train"], "No such command 'train'"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line_with_status_2(guidebook, words, expected):
    message = is_one_error_line(guidebook(*words), status=2)
    command = " fit" if words[0] == "fit" else " inspect" if words[0] == "inspect" else ""
    assert expected in message and message.endswith((f"; see guidebook{command} --help", "; see guidebook --help"))


@pytest.mark.parametrize("command", ["fit", "demo", "reproduce"])
@pytest.mark.parametrize("below", [True, False])
def test_an_unwritable_folder(guidebook, tmp_path, command, below):
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    words = {"fit": ["fit", *TINY], "demo": ["demo"], "reproduce": ["reproduce", "nvdp/gp-random", "--scale", "smoke"]}
    message = is_one_error_line(guidebook(*words[command], "--out", file / "run" if below else file))
    assert message.startswith("out: ") and "is not a folder that can be written to" in message
    assert contents(tmp_path) == {Path("file"): b"mine"}


#: a file of the user's in the way of each command, and the folder that the message names
IN_THE_WAY = {
    "demo": (["demo", "--steps", "1"], ("report.html", "posterior.nc", "gp.csv", "functions.png"), ""),
    "compare": (["compare", "--steps", "1"], ("report.html", "compare.csv", "compare.png"), ""),
    "reproduce": (
        ["reproduce", "nvdp/gp-random", "--scale", "smoke"],
        ("results.json", "table.csv", "holiday.png", "report.html"), "nvdp/gp-random-smoke",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "name"), [(command, name) for command in IN_THE_WAY for name in IN_THE_WAY[command][1]]
)
def test_a_file_of_the_users_is_refused_before_anything_runs(guidebook, tmp_path, command, name):
    words, _, below = IN_THE_WAY[command]
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"precious")
    message = is_one_error_line(guidebook(*words, "--out", tmp_path))
    why = "was not written by guidebook; move it away, or name another folder"
    assert message == f"out: {folder} holds {name}, which {why}"
    assert contents(folder) == {Path(name): b"precious"}


@pytest.mark.parametrize("name", ["report.html", "posterior.nc"])
def test_inspect_writes_over_its_own_files_alone(guidebook, run_folder, name):
    (run_folder / name).write_bytes(b"precious")
    before = contents(run_folder)
    message = is_one_error_line(guidebook("inspect", run_folder))
    assert message.startswith(f"run: {run_folder} holds {name}, which was not written by guidebook; move it away")
    assert contents(run_folder) == before


def test_an_existing_run_is_not_overwritten(guidebook, run_folder):
    before = contents(run_folder)
    message = is_one_error_line(guidebook("fit", *TINY, "--steps", 4, "--out", run_folder))
    assert message == f"out: {run_folder} already holds a run; use --resume or another folder"
    assert contents(run_folder) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "1"], "seed: got 1, but the run to resume in "),
        (["--width", "16"], "width: got 16, but"),
        (["--model", "cnp"], "model: got 'cnp', but"),
        (["--tasks", "gp-mix"], "tasks: got 'gp-mix', but"),
        (["--objective", "elbo"], "objective: got 'elbo', but"),
        (["--learning-rate", "0.1"], "learning_rate: got 0.1, but"),
        (["--beta", "2"], "beta: got 2.0, but"),
        (["--kl-schedule", "warm-up:9"], "kl_schedule: got 'warm-up:9', but"),
        (["--precision", "64-true"], "precision: got '64-true', but"),
        (["--steps", "3"], "steps: got 3, but the run in "),
    ],
)
def test_resuming_with_other_settings_is_refused_and_changes_nothing(guidebook, run_folder, words, expected):
    before = contents(run_folder)
    outcome = guidebook("fit", *TINY, "--steps", 4, "--out", run_folder, "--resume", *words)
    assert is_one_error_line(outcome).startswith(expected)
    assert contents(run_folder) == before


@pytest.mark.parametrize("file", ["weights-00000004.safetensors", "state-00000004.pt", "checkpoint.json"])
@pytest.mark.parametrize("command", ["inspect", "resume"])
def test_a_truncated_checkpoint(guidebook, run_folder, file, command):
    path = run_folder / file
    path.write_bytes(path.read_bytes()[:-20])
    before = contents(run_folder)
    words = ["inspect", run_folder] if command == "inspect" else ["fit", *TINY, "--out", run_folder, "--resume"]
    message = is_one_error_line(guidebook(*words))
    assert message.startswith(str(path)) and ("truncated" in message or "is not a checkpoint index" in message)
    assert contents(run_folder) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[1, 2]",
        {"model": "nvdp"},
        {"model": "nvdp", "tasks": "gp-rbf", "depth": 3},
        {"model": "nvdp", "tasks": "gp-rbf", "width": "8"},
        {"model": ["nvdp"], "tasks": "gp-rbf"},
        {"model": "nvdp", "tasks": "gp-rbf", "steps": True},
        {"model": "nvdp", "tasks": "gp-rbf", "learning_rate": float("nan")},
    ],
)
@pytest.mark.parametrize("command", ["inspect", "resume"])
def test_a_corrupted_run_file(guidebook, run_folder, content, command):
    sealed = isinstance(content, dict)
    (run_folder / "run.json").write_bytes(sealed_json(content) if sealed else content)
    before = contents(run_folder)
    words = ["inspect", run_folder] if command == "inspect" else ["fit", *TINY, "--out", run_folder, "--resume"]
    message = is_one_error_line(guidebook(*words))
    what = "is not a run configuration (" if sealed else "is not a file of guidebook's ("
    assert message.startswith(f"{run_folder / 'run.json'}: {what}")
    assert contents(run_folder) == before


def test_a_run_file_that_names_an_unknown_model_or_another_one(guidebook, run_folder):
    held = read_sealed_json(run_folder / "run.json")
    (run_folder / "run.json").write_bytes(sealed_json(held | {"model": "gan"}))
    assert is_one_error_line(guidebook("inspect", run_folder)).startswith("model: got 'gan'; it is none of")
    (run_folder / "run.json").write_bytes(sealed_json(held | {"width": 16}))
    assert "the checkpoint is of another model or guide" in is_one_error_line(guidebook("inspect", run_folder))


def test_inspecting_what_is_no_run(guidebook, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name in ("nothing", "file"):
        message = is_one_error_line(guidebook("inspect", tmp_path / name))
        assert message == f"{tmp_path / name}: holds no run (run.json is missing)"


def test_inspect_needs_two_draws_and_a_place_to_write(guidebook, run_folder):
    assert is_one_error_line(guidebook("inspect", run_folder, "--draws", 1)).startswith("draws: got 1; at least 2")
    (run_folder / "posterior.nc").mkdir()
    before = contents(run_folder)
    assert "posterior.nc" in is_one_error_line(guidebook("inspect", run_folder, "--draws", 2))
    assert contents(run_folder) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nvdp/gp"], "experiment: got 'nvdp/gp'; did you mean 'nvdp/gp-"),
        (["nvdp/gp-random", "--scale", "tiny"], "scale: got 'tiny'; it must be one of smoke, small, paper"),
        (["nvdp/gp-random", "--device", "gpu"], "device: got 'gpu'; it must be 'auto', 'cpu', 'cuda', 'cuda:N',"),
        (["nvdp/gp-random", "--seeds", "abc"], "seeds: got 'abc'; it must be integers separated by commas"),
        (["nvdp/gp-random", "--seeds", "0,-1"], "seeds: got [0, -1]; it must be non-negative integers"),
        (["nvdp/gp-random", "--seeds", "1,1"], "seeds: got [1, 1]; it must be non-negative integers below 2^63, each"),
        (["nvdp/gp-random", "--seeds", "9" * 30], "seeds: got [999999999999999999999999999999]; "),
        (
            ["nvdp/gp-random", "--cpu-seconds", "3"],
            "cpu_seconds: got 3.0; nvdp/gp-random has no such option, common/gp",
        ),
        (["common/gp", "--tasks", "gp-rbf-tnp,digits"], "tasks: got 'digits'; common/gp has gp-rbf-fixed-tnp, "),
        (["common/images", "--methods", "comvcnp"], "methods: got 'comvcnp'; did you mean 'convcnp'"),
    ],
)
def test_reproduce_refuses_before_it_writes(guidebook, tmp_path, words, expected):
    outcome = guidebook("reproduce", *words, "--out", tmp_path / "runs")
    assert is_one_error_line(outcome).startswith(expected) and contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--steps", "0"], "steps: got 0; it must be at least 1"),
        (["--seed", "-1"], "seed: got -1; it must be a non-negative integer"),
        (["--seed", "9" * 30], "seed: got 999"),
        (["--images", "imagenet"], "name: got 'imagenet'; it must be one of digits, mnist,"),
    ],
)
def test_demo_refuses_before_it_trains(guidebook, tmp_path, words, expected):
    assert is_one_error_line(guidebook("demo", "--out", tmp_path / "demo", *words)).startswith(expected)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("command", ["fit", "demo", "reproduce"])
def test_a_data_folder_with_a_corrupted_file(guidebook, tmp_path, monkeypatch, command):
    for prefix in ("train", "t10k"):
        path = tmp_path / f"data/mnist/{prefix}-images-idx3-ubyte.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(bytes(5000))[:-12])
    monkeypatch.setenv(downloads.DATA_VARIABLE, str(tmp_path / "data"))
    before = contents(tmp_path)
    out = ["--out", tmp_path / "out"]
    words = {
        "fit": ["fit", *TINY, "--tasks", "mnist", *out],
        "demo": ["demo", "--images", "mnist", *out],
        "reproduce": ["reproduce", "nvdp/inpainting-mnist", "--scale", "smoke", *out],
    }
    message = is_one_error_line(guidebook(*words[command]))
    assert "-images-idx3-ubyte.gz: it is no complete gzip file" in message and f"replace {tmp_path / 'data'}" in message
    assert contents(tmp_path) == before


def test_a_data_folder_that_does_not_exist(guidebook, tmp_path, monkeypatch):
    monkeypatch.setenv(downloads.DATA_VARIABLE, str(tmp_path / "nowhere"))
    message = is_one_error_line(guidebook("fit", *TINY, "--tasks", "svhn", "--out", tmp_path / "run"))
    assert message == f"GUIDEBOOK_DATA: got '{tmp_path / 'nowhere'}'; it must name an existing folder"


def test_an_interruption_is_one_line(guidebook, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluation.run_configuration.fit", interrupted)
    message = is_one_error_line(guidebook("fit", *TINY, "--out", tmp_path / "run"), status=130)
    assert message.startswith("interrupted")


def test_what_nobody_expected_keeps_its_traceback(guidebook, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("evaluation.run_configuration.fit", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        guidebook("fit", *TINY, "--out", tmp_path / "run")
    monkeypatch.setenv("GUIDEBOOK_TRACEBACK", "1")
    with pytest.raises(ValueError, match="steps: got 0"):
        guidebook("fit", *TINY, "--steps", 0)


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (["inspect", "runs/nothing"], 1, "error: runs/nothing: holds no run (run.json is missing)\n"),
        (["fit", "--hidden", "3"], 2, "error: No such option: --hidden"),
    ],
)
def test_errors_of_a_real_process_are_one_line_too(tmp_path, words, status, expected):
    """Warnings that an import prints would show here and not in this process."""
    done = subprocess.run(
        [sys.executable, "-m", "guidebook", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status and done.stdout == ""
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1, done.stderr
    assert contents(tmp_path) == {}


# -- what others may have put into a name ------------------------------------------------------------------------------


def test_inspect_takes_a_name_of_the_gallery_and_says_what_else_it_takes(guidebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = guidebook("inspect", "nmdp-strict-branches", "--draws", 2)
    assert status == 0 and "Scores on test tasks" in out and Path("runs/nmdp-strict-branches/report.html").exists()
    status, out, _ = guidebook("inspect", "nmdp-strict-branches", "--draws", 2, "--out", "here")
    assert status == 0 and Path("here/posterior.nc").exists()
    status, _, error = guidebook("inspect", "nowhere")
    assert (
        status == 1 and "run: got 'nowhere'; it must be the folder of a run, or of guidebook list pretrained" in error
    )
    status, _, error = guidebook("inspect", "here", "--out", "there")
    assert status == 1 and "out: got 'there'; a run's report goes into its folder, here" in error


def test_control_codes_in_a_path_are_shown_and_not_obeyed(guidebook, tmp_path):
    status, out, err = guidebook("inspect", tmp_path / "a\x1b[31m\x07b")
    assert status == 1 and "\x1b" not in out + err and "\\x1b[31m\\x07b" in err


def test_a_command_in_a_report_is_quoted_for_a_shell(fitted, tmp_path):
    import shutil

    from guidebook.inspection import inspect_run

    folder = Path(shutil.copytree(fitted, tmp_path / "it's; rm -rf x"))
    inspect_run(folder, 2)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "guidebook inspect &#39;it&#39;&#34;&#39;&#34;&#39;s; rm -rf x&#39; --draws 2" in page


def test_a_title_is_no_markup(capsys):
    import pandas as pd

    command_line.show("[red]a[/blue]", pd.DataFrame({"a long column": [1.0]}))
    assert "[red]a[/blue]" in capsys.readouterr().out


def test_doctor_names_every_dependency_and_how_to_get_what_is_missing(guidebook, monkeypatch):
    from importlib import metadata

    real = metadata.version

    def version(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    out = guidebook("doctor")[1]
    found = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if len(line.split()) > 1}
    assert {"guidebook", "torch", "pyro-ppl", "numpyro", "arviz", "transformers", "accelerate"} <= set(found)
    assert found["peft"] == "not installed; pip install guidebook[adapters]"
    assert "pytest" not in found and "mkdocs" not in found


def test_a_piped_table_is_not_cut():
    done = subprocess.run(
        [sys.executable, "-m", "guidebook.command_line", "list", "models"], cwd=ROOT, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "COLUMNS"},
    )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["bnnp"])
    assert line.strip().endswith("layerwise posteriors, learned prior, noise learned below 0.5")


@pytest.mark.parametrize("words", [["list", "objectives"], ["doctor"]])
def test_output_that_cannot_be_written_is_one_line(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "guidebook.command_line", *words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "error: the output: No space left on device\n")


def test_a_reader_that_has_seen_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "guidebook.command_line", "list"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_brackets_and_codes_in_folders_are_shown_by_doctor(guidebook, tmp_path, monkeypatch):
    folder = tmp_path / "[red]\x1b[31m"
    folder.mkdir()
    monkeypatch.setenv("GUIDEBOOK_DATA", str(folder))
    monkeypatch.setattr("pp_models.tasks.downloads.cache_folder", lambda: folder)
    out = guidebook("doctor")[1].replace("\n", "")
    assert "\x1b[31m" not in out and out.count("[red]\\x1b[31m") == 2


def test_a_step_is_compiled_where_it_is_asked_for(guidebook, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("inference.compile_step.inductor", compile_step.as_recorded)  # the graph without its compiler
    fit = ["fit", *TINY, "--model", "cnp", "--steps", 2]
    status, out, _ = guidebook(*fit, "--compile", "yes", "--out", tmp_path / "yes")
    assert status == 0 and re.search(r"; \d+ s, compiled$", out, re.MULTILINE)
    status, out, _ = guidebook(*fit, "--compile", "no", "--out", tmp_path / "no")
    assert status == 0 and ", compiled" not in out
    message = is_one_error_line(guidebook(*fit, "--compile", "maybe", "--out", tmp_path / "maybe"))
    assert message == "compile: got 'maybe'; it must be auto, yes or no"
