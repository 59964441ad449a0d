"""Checkpoints that do not belong together, hold something else, or cannot be written: one line that says so."""

import hashlib
import io
import os
import zipfile

import pytest
import torch

from inference import CheckpointError, checkpoint
from pp_models import files
from pp_models.sealed_tensors import sealed_tensors
from tests.inference.test_checkpoint import contents, train

STATE, WEIGHTS = "state-00000012.pt", "weights-00000012.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return contents(folder)


@pytest.fixture
def run(finished, tmp_path):
    for name, content in finished.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def forge(run, name, content):
    """Puts a file in the place of another, and its hash into the index, as somebody who knows the format would."""
    (run / name).write_bytes(content)
    index = files.read_sealed_json(run / "checkpoint.json")
    for kind in ("weights", "state"):
        for entry in index["checkpoints"]:
            if entry[kind]["file"] == name:
                entry[kind]["sha256"] = hashlib.sha256(content).hexdigest()
    (run / "checkpoint.json").write_bytes(files.sealed_json(index))


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def refused(run, message, error=CheckpointError):
    before = contents(run)
    with pytest.raises(error, match=message) as caught:
        train(run, resume=True, steps=14)
    assert "\n" not in str(caught.value) and contents(run) == before


def without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


@pytest.mark.parametrize("key", sorted(checkpoint.STATE))
def test_a_state_without_a_key_is_refused(run, key):
    state = checkpoint.load(run)[2]
    forge(run, STATE, saved(without(state, key)))
    refused(run, rf"{STATE}: is not the state of a fit, or not readable \(its keys are not a state's\)$")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "3"}, r"\(seed: Input should be a valid integer, got '3'\)$"),
        ({"history": [{"step": "two"}]}, r"\(history.0.step: Input should be a valid number, got 'two'\)$"),
        ({"skipped": [[1]]}, r"\(skipped.0.1: Field required\)$"),
        ({"schedule": {"peaks": [0.1]}}, r"\(schedule.scheduler: Field required\)$"),
        ({"schedule": 3}, r"is not the state of a fit, or not readable \('int' object is not iterable\)$"),
        ({"format": 99}, r"is of format 99; this version reads format 1$"),
        ({"step": 8}, r"the files of step 12 do not belong together$"),
    ],
)
def test_a_state_that_holds_something_else_is_refused(run, change, message):
    state = checkpoint.load(run)[2]
    forge(run, STATE, saved(state | change))
    refused(run, message)


def test_the_optimizer_in_a_state_is_checked_before_it_is_used(run):
    state = checkpoint.load(run)[2]
    optimizer = state["optimizer"]
    at = min(optimizer["state"])  # a vector that no context was empty for has none
    first = optimizer["state"][at]
    huge = torch.zeros(1).expand(10**12)
    for change, message in (
        (without(first, "exp_avg"), r": exp_avg is missing\)$"),
        (first | {"exp_avg": huge}, r": exp_avg has shape \[1000000000000\] instead of \["),
        (first | {"other": huge}, r": other says shape \[1000000000000\], more than it holds\)$"),
        (first | {"exp_avg_sq": first["exp_avg_sq"] * torch.nan}, r": exp_avg_sq holds values that no step writes\)$"),
        (first | {"exp_avg": first["exp_avg"] + 1j}, r": exp_avg holds values that no step writes\)$"),
    ):
        changed = optimizer | {"state": optimizer["state"] | {at: change}}
        forge(run, STATE, saved(state | {"optimizer": changed}))
        refused(run, r"^optimizer: the run in .* was made with another one \(.*" + message, ValueError)
    for changed in (without(optimizer, "state"), optimizer | {"param_groups": []}, [], optimizer | {"state": {99: {}}}):
        forge(run, STATE, saved(state | {"optimizer": changed}))
        refused(run, r"^optimizer: the run in .* was made with another one \(", ValueError)


def test_a_state_of_a_hundred_bytes_and_a_million_million_entries_is_refused_at_once(run):
    """Lists of twice the same list: small as a pickle, endless for whoever goes through them."""
    vast: object = 0.0
    for _ in range(40):
        vast = [vast, vast]
    state = checkpoint.load(run)[2]
    optimizer = state["optimizer"]
    for change in ({"history": vast}, {"skipped": [vast]}, {"schedule": {"peaks": vast, "scheduler": None}}):
        forge(run, STATE, saved(state | change))
        refused(run, rf"{STATE}: is not the state of a fit, or not readable \(its \S+ is nested\)$")
    for name in ("seed", "format"):
        forge(run, STATE, saved(state | {name: vast}))
        refused(run, r"its counters are no numbers\)$")
    (group,) = optimizer["param_groups"]
    for change in ({"betas": vast}, {"more": vast}):
        changed = optimizer | {"param_groups": [group | change]}
        forge(run, STATE, saved(state | {"optimizer": changed}))
        refused(run, r"^optimizer: ", ValueError)
    at = min(optimizer["state"])
    changed = optimizer | {"state": optimizer["state"] | {at: optimizer["state"][at] | {"more": vast}}}
    forge(run, STATE, saved(state | {"optimizer": changed}))
    refused(run, r"^optimizer: .* more has more than 10000 entries\)$", ValueError)


def test_optimizers_that_keep_other_shapes_and_lists_go_on(tmp_path):
    class Factored(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for p in self.param_groups[0]["params"]:
                if p.grad is not None and p.dim() == 2:
                    self.state[p]["row"] = p.grad.square().mean(-1)
                    self.state[p]["factors"] = [p.new_zeros(99, 99), (1.0, None, "word")]

    for steps in (4, 8):
        train(tmp_path, steps, resume=True, optimizer=lambda p: Factored(p, 1e-3, momentum=0.9))
    assert checkpoint.read_index(tmp_path)[0]["step"] == 8


def test_a_compressed_state_is_not_unpacked(run):
    """A state of zeros takes a thousandth of its size when compressed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(run / STATE) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in plain.infolist():
            archive.writestr(member.filename, plain.read(member))
    forge(run, STATE, packed.getvalue())
    refused(run, r"not readable \(it is compressed, which no state is\)$")


def test_weights_say_their_step_and_format(run, monkeypatch):
    tensors = checkpoint.load(run)[1]
    forge(run, WEIGHTS, sealed_tensors(tensors, {"step": 8}))
    refused(run, r"the files of step 12 do not belong together$")
    monkeypatch.setattr("pp_models.sealed_tensors.FORMAT", 99)
    newer = sealed_tensors(tensors, {"step": 12})
    monkeypatch.undo()
    forge(run, WEIGHTS, newer)
    refused(run, rf"{WEIGHTS}: is of format 99; this version reads format 1$")
    plain = sealed_tensors(tensors, {"step": 12}).replace(b'"guidebook"', b'"gui_ebook"')
    forge(run, WEIGHTS, plain)
    refused(run, rf"{WEIGHTS}: is not a file of guidebook's \(KeyError: 'guidebook'\)$")


def test_weights_that_are_complex_or_too_large_are_refused(run):
    tensors = checkpoint.load(run)[1]
    forge(run, WEIGHTS, sealed_tensors({n: t + 0j for n, t in tensors.items()}, {"step": 12}))
    refused(run, r"dtype torch.complex64 in the checkpoint, torch.float32 here; convert model and guide first$")
    with open(run / WEIGHTS, "r+b") as file:
        file.truncate(10**13)  # a hole: no disk has it, and no memory would
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: has 10000000000000 bytes; such a file has at most"):
        train(run, resume=True)


# -- what cannot be written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "held"),
    [("weights-00000008", 4), ("state-00000008", 4), ("checkpoint.json", 4), ("retired.json", 8)],
)
def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(finished, tmp_path, monkeypatch, name, held):
    real = files.create_exclusively
    seen = []

    def full(path):
        seen.append(path.name)
        times = 2 if name == "checkpoint.json" else 1
        if sum(each.startswith(f".{name}") for each in seen) >= times and path.name.startswith(f".{name}"):
            raise OSError(28, "No space left on device")
        return real(path)

    monkeypatch.setattr(files, "create_exclusively", full)
    with pytest.raises(CheckpointError, match=rf"{name}\S*: cannot be written \(No space left on device\)") as caught:
        train(tmp_path)
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    if name[0] in "ws":
        assert str(caught.value).endswith("; the checkpoint of step 4 is intact")
        assert set(contents(tmp_path)) == {
            "weights-00000004.safetensors", "state-00000004.pt", "checkpoint.json", "metrics.jsonl",
            "architecture.json",
        }  # fmt: skip
    assert not any("partial" in each for each in contents(tmp_path))
    assert checkpoint.read_index(tmp_path)[0]["step"] == held
    train(tmp_path, resume=True)
    assert contents(tmp_path) == finished


def test_a_metric_that_cannot_be_written_is_one_line_and_no_half_line_stays(tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            return self.file.write(content[:5])  # what a full disk takes

    rows = tmp_path / "metrics.jsonl"
    rows.write_text('{"step": 2}\n')
    monkeypatch.setattr(files, "open", lambda *a, **k: Full(open(*a, **k)), raising=False)  # noqa: SIM115
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\); the lines before are"):
        files.append_line(rows, '{"step": 4}')
    monkeypatch.undo()
    assert rows.read_text() == '{"step": 2}\n'
    rows.unlink()
    os.mkfifo(rows)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: is not a regular file$"):
        files.append_line(rows, "{}")


@pytest.mark.parametrize("log_every", [2, 100])
def test_a_folder_that_goes_away_while_it_is_written_to(tmp_path, log_every):
    folder = tmp_path / "run"

    def gone(row):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    with pytest.raises(CheckpointError) as caught:
        train(folder, steps=12, log_every=log_every, checkpoint_every=12, callbacks=[gone])
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert not folder.exists()
