"""Progress in named stages: on a terminal only, and nothing left behind."""

import io

import pytest
from rich.console import Console

from inference import progress
from inference.progress import FitProgress, Stages, in_words


def shown(terminal, enabled=True):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with Stages(enabled, console) as stages:
        stages.advance()  # before any stage: nothing to count
        stages.begin("simulated [tasks]", 3, done=1)
        stages.advance(2)
        stages.begin("weights", 4)
        stages.rename("predictions")
        stages.advance()
    return out.getvalue()


def test_a_terminal_sees_the_stages_and_their_counts():
    text = shown(True)
    assert "predictions" in text and "1/4" in text and "weights" not in text.rsplit("predictions")[-1]


def test_a_log_and_a_disabled_bar_get_nothing():
    assert shown(False) == "" and shown(True, enabled=False) == ""


def test_stderr_of_a_test_is_no_terminal(capsys):
    with Stages() as stages:
        stages.begin("work", 1)
        stages.advance()
    assert capsys.readouterr() == ("", "")


def forecast(monkeypatch, capsys, steps, done=0, enabled=True):
    """What a fit says on stderr whose first step takes 100 s and every other one 2 s."""
    clock = iter([100.0, 118.0])  # after the first step, after the tenth
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    bar = FitProgress(steps, done, enabled)
    for step in range(done, steps):
        bar.stepped(step + 1)
    return capsys.readouterr().err


def test_a_fit_says_after_ten_steps_how_long_it_will_take(monkeypatch, capsys):
    assert forecast(monkeypatch, capsys, 3_000) == "3,000 steps will take about 1 h 40 min\n"
    assert forecast(monkeypatch, capsys, 300, done=270) == "30 steps will take about 60 s\n"
    assert forecast(monkeypatch, capsys, 10) == ""  # it is over
    assert forecast(monkeypatch, capsys, 300, enabled=False) == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (41, "41 s"), (180, "3 min"), (7_850, "2 h 11 min"), (5_990, "1 h 40 min")]
)
def test_lengths_of_time_in_words(seconds, words):
    assert in_words(seconds) == words
