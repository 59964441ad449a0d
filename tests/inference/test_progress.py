"""Progress in named stages: on a terminal only, and nothing left behind."""

import io

from rich.console import Console

from inference.progress import Stages


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
