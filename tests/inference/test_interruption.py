"""Ctrl-C and SIGTERM: the step is finished, a checkpoint written, and the resumed run ends with the same bytes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from inference import Interrupted, checkpoint
from tests.inference.test_checkpoint import contents, train

ROOT = Path(__file__).parents[2]


def sending(number, at, times=1):
    """A callback that signals this process at a logged step."""

    def send(row):
        if row["step"] == at:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return send


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder, log_every=1)
    return contents(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 4, 7, 11])
def test_an_interrupted_fit_loses_no_step_and_ends_with_the_same_bytes(whole, tmp_path, number, at):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=rf"^interrupted at step {at}; the checkpoint in .* is complete, resume=True"):
        train(tmp_path, log_every=1, callbacks=[sending(number, at)])
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert checkpoint.read_index(tmp_path)[0]["step"] == at
    assert train(tmp_path, log_every=1, resume=True).steps == 12
    assert contents(tmp_path) == whole


def test_interrupted_again_and_again(whole, tmp_path):
    for at in (2, 3, 7, 9):
        with pytest.raises(Interrupted):
            train(tmp_path, log_every=1, resume=True, callbacks=[sending(signal.SIGINT, at)])
    train(tmp_path, log_every=1, resume=True)
    assert contents(tmp_path) == whole


def test_a_second_signal_does_not_wait(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path, log_every=1, callbacks=[sending(signal.SIGINT, 2, times=2)])
    assert not isinstance(caught.value, Interrupted)
    assert checkpoint.read_index(tmp_path) == []


def test_without_a_folder_signals_mean_what_they_meant():
    from inference import fit
    from pp_models import tasks
    from tests.inference.test_checkpoint import pair

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(*pair(), tasks.gp(batch_size=2), steps=5, log_every=1, progress=False,
            callbacks=[sending(signal.SIGINT, 2)])  # fmt: skip
    assert not isinstance(caught.value, Interrupted)


def test_a_fit_in_another_thread_leaves_signals_alone(whole, tmp_path):
    thread = threading.Thread(target=train, args=(tmp_path,), kwargs={"log_every": 1})
    thread.start()
    thread.join()
    assert contents(tmp_path) == whole


def test_the_command_says_where_it_stopped_and_where_it_goes_on(tmp_path):
    command = [sys.executable, "-m", "guidebook.command_line", "fit", "--model", "cnp", "--width", "8",
               "--batch-size", "2", "--device", "cpu", "--out", str(tmp_path / "run")]  # fmt: skip
    with subprocess.Popen([*command, "--steps", "1000000"], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    last = error.strip().splitlines()[-1]
    step = checkpoint.read_index(tmp_path / "run")[0]["step"]
    assert last == f"error: interrupted at step {step}; the same command with --resume goes on from there"
    more = [*command, "--steps", str(step + 2), "--resume"]
    done = subprocess.run(more, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"goes on at step {step} of {step + 2}")
