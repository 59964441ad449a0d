"""Checkpoints: a run killed anywhere resumes to the same bytes, and nothing damaged, foreign or malicious is taken."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from guides import AmortisedMeanFieldGuide
from inference import CheckpointError, checkpoint, fit
from pp_models import BayesianNetwork, files, tasks

ROOT = Path(__file__).parents[2]


def pair(width=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
        return model, AmortisedMeanFieldGuide(model, width=width)


def train(folder, steps=12, pair=pair, **options):
    options = {"checkpoint_every": 4, "log_every": 2, "progress": False, "device": "cpu", "seed": 3} | options
    return fit(*pair(), tasks.gp(batch_size=2, seed=1), "elbo", steps, checkpoint_dir=folder, **options)


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return contents(folder)


def test_a_finished_run_holds_two_checkpoints_and_nothing_else(whole):
    steps = ("00000008", "00000012")
    expected = {f"weights-{s}.safetensors" for s in steps} | {f"state-{s}.pt" for s in steps}
    assert set(whole) == expected | {"architecture.json", "checkpoint.json", "metrics.jsonl"}
    assert len(whole["metrics.jsonl"].splitlines()) == 6
    index = json.loads(whole["checkpoint.json"])["checkpoints"]
    assert [c["step"] for c in index] == [12, 8]
    for entry in (c[kind] for c in index for kind in ("weights", "state")):
        assert hashlib.sha256(whole[entry["file"]]).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("stop", [4, 5, 8, 11])
def test_a_resumed_run_ends_with_the_same_bytes(whole, tmp_path, stop):
    def stopper(row):
        return row["step"] >= stop  # log_every=2: at an even step

    train(tmp_path, callbacks=[stopper])
    result = train(tmp_path, resume=True)
    assert result.steps == 12
    assert [row["step"] for row in result.history] == [2, 4, 6, 8, 10, 12]
    found = contents(tmp_path)
    # what was saved when it stopped between two checkpoints may stay as the older of the two
    for name in ("weights-00000012.safetensors", "state-00000012.pt", "metrics.jsonl"):
        assert found[name] == whole[name], name
    if stop in (4, 8):
        assert found == whole


def test_resuming_a_finished_run_changes_nothing(whole, tmp_path):
    train(tmp_path)
    result = train(tmp_path, resume=True)
    assert (result.steps, contents(tmp_path)) == (12, whole)
    with pytest.raises(ValueError, match=r"^steps: got 10, but the run in .* is already at step 12$"):
        train(tmp_path, steps=10, resume=True)


def test_resume_without_a_checkpoint_starts_at_the_beginning(whole, tmp_path):
    train(tmp_path / "new", resume=True)
    assert contents(tmp_path / "new") == whole


KILLED = """
import builtins, os, signal, sys
import lightning_fabric, pydantic, torch  # once, and not in every child
torch.set_num_threads(1)
from pp_models import files
from tests.inference.test_checkpoint import train

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Half:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *exc):
        self.file.close()
    def tell(self):
        return self.file.tell()
    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        die()

def kill_at(kind, name, count):
    seen = [0]
    def due(path):
        seen[0] += os.path.basename(path).strip(".").startswith(name)
        return seen[0] == count
    def replace(source, target, real=os.replace):
        hit = kind in ("before", "after") and due(target)
        if hit and kind == "before":
            die()
        real(source, target)
        if hit:
            die()
    def opened(path, *rest, **options):
        file = builtins.open(path, *rest, **options)
        return Half(file) if kind == "half" and due(path) else file
    def created(path, real=files.create_exclusively):
        path_of[0] = path
        return real(path)
    def fdopen(descriptor, *rest, real=os.fdopen):
        file, path, path_of[0] = real(descriptor, *rest), path_of[0], ""
        return Half(file) if kind == "half" and due(path) else file
    path_of = [""]
    os.replace, os.fdopen, files.create_exclusively = replace, fdopen, created
    files.open = opened

for number, point in enumerate(sys.argv[2:]):
    kind, name, count = point.split(",")
    folder = os.path.join(sys.argv[1], str(number))
    child = os.fork()
    if child == 0:
        kill_at(kind, name, int(count))
        train(folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
"""

#: what happens, to a file whose name begins so, at its n-th writing (the second checkpoint is that of step 8)
KILLS = [
    "half,weights-00000004,1",
    "half,weights-00000008,1",
    "before,weights-00000008,1",
    "after,weights-00000008,1",
    "half,state-00000008,1",
    "before,state-00000008,1",
    "after,state-00000008,1",
    "half,checkpoint.json,2",
    "before,checkpoint.json,2",
    "after,checkpoint.json,2",
    "half,metrics.jsonl,4",
    "half,checkpoint.json,3",
    "after,checkpoint.json,3",
    "half,retired.json,1",
    "after,retired.json,1",
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """One folder for each kill, left as the kill left it."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), *KILLS], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder, [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("number", range(len(KILLS)), ids=KILLS)
def test_a_run_killed_at_any_write_resumes_to_the_same_bytes(whole, killed, number):
    folder, signals = killed
    assert signals[number] == 9
    run = folder / str(number)
    before = contents(run)
    last = KILLS[number].endswith(("checkpoint.json,3", "retired.json,1"))
    assert last or "weights-00000012.safetensors" not in before
    kind, name, _ = KILLS[number].split(",")
    if kind == "half" and not name.startswith("metrics"):
        assert any(left.endswith(".partial") and name in left for left in before)
    assert [c["step"] for c in checkpoint.read_index(run)] == {
        "half,weights-00000004,1": [],
        "after,checkpoint.json,2": [8, 4],
        "half,checkpoint.json,3": [8, 4],
        "after,checkpoint.json,3": [12, 8],
        "half,retired.json,1": [8, 4],
        "after,retired.json,1": [8, 4],
    }.get(KILLS[number], [4])
    train(run, resume=True)
    assert contents(run) == whole


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(whole, tmp_path):
    """A finished run that a test may damage."""
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("name", ["weights-00000012.safetensors", "state-00000012.pt"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
def test_a_damaged_newest_checkpoint_is_named_and_the_previous_one_works(whole, run, name, damage):
    path = run / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    with pytest.raises(CheckpointError, match=name) as caught:
        train(run, resume=True)
    assert "\n" not in str(caught.value)
    assert damage == "missing" or "resume='previous' continues from step 8" in str(caught.value)
    assert train(run, resume="previous").steps == 12
    assert contents(run) == whole


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"checkpoints": [{"step": "x"}]}', b'{"checkpoints": [{"step": 1}]}', b"\xff\xfe"]
)
def test_a_damaged_index_is_named(run, content):
    (run / "checkpoint.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint.json: is not a ") as caught:
        train(run, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry", [{"file": "weights-00000012.safetensors"}, {"file": "../x", "sha256": "0"}, "weights"]
)
def test_an_index_of_another_form_is_named(run, entry):
    index = files.read_sealed_json(run / "checkpoint.json")
    index["checkpoints"][0]["weights"] = entry
    (run / "checkpoint.json").write_bytes(files.sealed_json(index))
    with pytest.raises(CheckpointError, match=r"checkpoint.json: is not a "):
        train(run, resume=True)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_code_in_a_state_file_is_refused_and_never_run(run):
    bomb = Malicious()
    bomb.path = str(run / "executed")
    index = files.read_sealed_json(run / "checkpoint.json")
    for content in (pickle.dumps(bomb, protocol=2), None):
        path = run / "state-00000012.pt"
        if content is None:
            torch.save({"optimizer": bomb}, path)
        else:
            path.write_bytes(content)
        # a forger would write the right hash, too
        index["checkpoints"][0]["state"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (run / "checkpoint.json").write_bytes(files.sealed_json(index))
        with pytest.raises(
            CheckpointError, match=r"state-00000012.pt: is not the state of a fit, or not readable \("
        ) as caught:
            train(run, resume=True)
        assert "\n" not in str(caught.value)
        assert not (run / "executed").exists()


@pytest.mark.parametrize("name", ["checkpoint.json", "weights-00000012.safetensors", "state-00000012.pt"])
def test_every_flipped_bit_is_found_or_harmless(whole, run, name):
    """A sample of single flipped bits over each file: refused in one line, or resumed to the same bytes."""
    content = (run / name).read_bytes()
    for place in range(3, len(content), max(1, len(content) // 12)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        (run / name).write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            train(run, resume=True)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    (run / name).write_bytes(content)
    assert contents(run) == whole


def test_an_edited_index_does_not_resume_at_another_step(run):
    index = files.read_sealed_json(run / "checkpoint.json")
    index["checkpoints"][0]["step"] = 11
    (run / "checkpoint.json").write_bytes(files.sealed_json(index))
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint.json: is not a checkpoint index \(checkpoints.0: step 11 has files of another step\)$",
    ):
        train(run, resume=True)


def test_another_format_is_refused(run, monkeypatch):
    index = files.read_sealed_json(run / "checkpoint.json")
    monkeypatch.setattr(files, "FORMAT", 99)
    content = files.sealed_json(index)
    monkeypatch.undo()
    (run / "checkpoint.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint.json: is of format 99; this version reads format 1$"):
        train(run, resume=True)


def test_devices_pipes_and_deep_nesting_are_refused(run):
    index = run / "checkpoint.json"
    index.unlink()
    index.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"checkpoint.json: is not a regular file$"):
        train(run, resume=True)
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(CheckpointError, match=r"checkpoint.json: is not a regular file$"):
        train(run, resume=True)
    index.unlink()
    index.write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"checkpoint.json: is not a file of guidebook's \(RecursionError"):
        train(run, resume=True)


def test_weights_of_another_dtype_or_not_finite_are_refused(whole, run):
    step, tensors, state = checkpoint.load(run)
    for change, message in (
        (lambda t: t.double(), r"dtype torch.float64 in the checkpoint, torch.float32 here"),
        (lambda t: torch.full_like(t, torch.nan), r"holds values that are not finite"),
    ):
        checkpoint.save(run, step, {n: change(t) for n, t in tensors.items()}, state)
        with pytest.raises(CheckpointError, match=message):
            train(run, resume=True)


def test_a_run_goes_on_with_its_own_optimizer_only(run):
    with pytest.raises(ValueError, match=r"^optimizer: the run in .* was made with another one \("):
        train(
            run,
            steps=14,
            resume=True,
            optimizer=lambda p: torch.optim.SGD([{"params": p[:1]}, {"params": p[1:]}], 1e-3),
        )
    with pytest.raises(ValueError, match=r"^learning_rate: got \[0.01\], but the run to resume has \[0.001\]$"):
        train(run, steps=14, resume=True, learning_rate=0.01)
    with pytest.raises(
        ValueError, match=r"^optimizer: betas is \(0.5, 0.9\), but the run to resume has \(0.9, 0.999\)$"
    ):
        train(run, steps=14, resume=True, optimizer=lambda p: torch.optim.Adam(p, 1e-3, (0.5, 0.9), fused=True))


def test_two_resumes_of_one_folder_do_not_meet(run):
    with (
        files.locked(run, "checkpoint_dir"),
        pytest.raises(CheckpointError, match=r"^checkpoint_dir: .* is being written to by another run; wait for it"),
    ):
        train(run, steps=14, resume=True)
    assert train(run, steps=14, resume=True).steps == 14


def test_a_fit_in_another_thread_is_refused_and_global_state_is_put_back():
    import threading

    from tests.conftest import global_state, leaks

    before, errors = global_state(), []

    def second():
        try:
            fit(*pair(), tasks.gp(batch_size=2), steps=2, progress=False)
        except RuntimeError as error:
            errors.append(str(error))

    def meanwhile(row):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    fit(*pair(), tasks.gp(batch_size=2), steps=2, progress=False, log_every=1, callbacks=[meanwhile])
    assert len(errors) == 2 and errors[0].startswith("fit: another thread of this process is fitting, and Pyro's")
    assert leaks(before, global_state()) == []


def test_only_one_checkpoint_has_no_previous(tmp_path):
    train(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match=r"holds only one checkpoint$"):
        train(tmp_path, resume="previous")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint$"):
        checkpoint.load(tmp_path / "none")


def test_an_abandoned_future_is_not_kept_as_the_previous_checkpoint(run):
    # back to step 8, then on with other checkpoints: what step 12 held belongs to a run that is no more
    train(run, steps=10, resume="previous", checkpoint_every=10)
    assert [c["step"] for c in checkpoint.read_index(run)] == [10, 8]


def test_a_checkpoint_of_another_architecture_is_refused_whole(run):
    model, guide = pair(width=16)
    before = {n: t.clone() for n, t in guide.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"^guide\.\S+: shape .* in the checkpoint, .* here; ") as caught:
        train(run, pair=lambda: (model, guide), resume=True)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[n], t) for n, t in guide.state_dict().items())
    deeper = BayesianNetwork([1, 4, 4, 2], likelihood="gaussian-head")
    with pytest.raises(CheckpointError, match=r"^guide\.heads\.2\.\S+: missing in the checkpoint; "):
        train(run, pair=lambda: (deeper, AmortisedMeanFieldGuide(deeper, width=8)), resume=True)


#: what a user may keep in a folder, named nearly as a run names its own files
OTHERS = (
    "weights-final.safetensors", "weights-mine-20GB.safetensors", "state-of-the-art.pt", "state-before.pt",
    ".download.partial", ".thesis.tex.partial", "notes.txt", ".writable", ".checkpoint.json.partial",
    ".weights-00000004.safetensors.0123456789abcdef.partial",
)  # fmt: skip


def test_files_of_others_are_never_touched(tmp_path):
    for name in OTHERS:
        (tmp_path / name).write_text("precious")
    (tmp_path / ".store.partial").mkdir()
    train(tmp_path)
    train(tmp_path, steps=14, resume=True)
    assert {name: (tmp_path / name).read_text() for name in OTHERS} == dict.fromkeys(OTHERS, "precious")
    assert (tmp_path / ".store.partial").is_dir()


@pytest.mark.parametrize("name", ["metrics.jsonl", "weights-00000012.safetensors", "state-00000003.pt"])
def test_a_file_that_a_run_would_write_over_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(CheckpointError, match=rf"^checkpoint_dir: .* holds {name}, which belongs to no checkpoint"):
        train(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "precious"}


def test_a_link_in_the_way_is_not_followed(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    folder.mkdir()
    for name in (".writable", ".checkpoint.json.partial"):
        (folder / name).symlink_to(victim)
    train(folder)
    assert victim.read_text() == "precious"


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    (tmp_path / "kept").write_bytes(b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = r"kept: cannot be written \(No space left on device\); what was there is intact$"
    with pytest.raises(files.FileError, match=message):
        files.write_atomically(tmp_path / "kept", b"after")
    assert contents(tmp_path) == {"kept": b"before"}


def test_an_existing_run_is_not_overwritten(whole, run):
    with pytest.raises(CheckpointError, match=r"^checkpoint_dir: .* already holds a run at step 12; pass resume=True"):
        train(run)
    assert contents(run) == whole


def test_a_folder_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"^checkpoint_dir: .*file/run is not a folder that can be written to"):
        train(tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match=r"cannot be written \("):
        checkpoint.write(tmp_path / "file" / "run", "x", b"1")


def test_a_folder_that_vanishes_is_an_error_at_the_next_write(tmp_path):
    folder = tmp_path / "run"

    def remove(row):
        if row["step"] == 8:
            shutil.rmtree(folder)

    with pytest.raises(CheckpointError, match="cannot be written"):
        train(folder, callbacks=[remove])


def test_weights_are_plain_safetensors_with_the_module_names(run):
    step, tensors, state = checkpoint.load(run)
    model, guide = pair()
    assert step == 12
    expected = {f"{k}.{n}" for k, m in (("model", model), ("guide", guide)) for n in m.state_dict()}
    assert set(tensors) == expected
    assert set(state) == checkpoint.STATE | checkpoint.STATE_SINCE and state["seed"] == 3
    checkpoint.load_into({"model": model, "guide": guide}, tensors)
    assert all(torch.equal(t, tensors[f"guide.{n}"]) for n, t in guide.state_dict().items())


def test_another_seed_is_refused_on_resume(run):
    with pytest.raises(ValueError, match=r"^seed: got 4, but the run in .* has seed 3$"):
        train(run, steps=14, seed=4, resume=True)
