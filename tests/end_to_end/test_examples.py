"""Every example runs, and learns something."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest
from pyro.infer.autoguide import AutoNormal

from guides import AmortisedMeanFieldGuide, BernoulliExpertGuide, MCDropoutGuide

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """An example as a module; it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name):
        module = importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
        return module

    return load


@pytest.mark.parametrize("guide_class", [BernoulliExpertGuide, AmortisedMeanFieldGuide, MCDropoutGuide, AutoNormal])
def test_swapping_the_guide_is_one_argument(example, guide_class):
    first, last = example("swap_guides").train(guide_class, steps=12)
    assert last < first


def test_swapping_the_objective_is_one_name(example):
    compare = example("compare_objectives").compare
    for name in ("dreg", "npml"):
        before, _, _ = compare(name, steps=1, num_particles=4)
        after, bound, ess = compare(name, steps=30, num_particles=4)
        assert after > before
        assert bound < 0 and 1 <= ess <= 4


def test_the_readme_shows_the_example_that_compares_objectives():
    example = (EXAMPLES / "compare_objectives.py").read_text(encoding="utf-8")
    assert len(example.splitlines()) < 40
    assert f"```python\n{example}```" in (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs_as_a_script(path, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    out, err = capsys.readouterr()
    assert out.strip() and err == ""
