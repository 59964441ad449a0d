"""The fixture that guards every other test: it seeds, and it sees a leak."""

import random
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pyro
import pytest
import torch

from tests.conftest import global_state, leaks, restore

ROOT = Path(__file__).parents[1]

LEAKS = {
    "torch default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch.distributions validation": lambda: torch.distributions.Distribution.set_default_validate_args(
        not torch.distributions.Distribution._validate_args
    ),
    "pyro.settings module_local_params": lambda: pyro.settings.set(
        module_local_params=not pyro.settings.get("module_local_params")
    ),
    "Pyro handler stack": lambda: pyro.poutine.trace().__enter__(),
    "matplotlib lines.linewidth": lambda: matplotlib.rcParams.update({"lines.linewidth": 9.0}),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_named_and_undone(name):
    before = global_state()
    LEAKS[name]()
    found = leaks(before, global_state())
    restore(before)
    assert any(line.startswith(f"{name}: ") for line in found)
    assert leaks(before, global_state()) == []


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_starts_from_the_same_seeds(turn):
    expected = random.Random(0).random(), np.random.RandomState(0).rand(), torch.Generator().manual_seed(0)
    assert (random.random(), np.random.rand()) == expected[:2]
    assert torch.equal(torch.rand(3), torch.rand(3, generator=expected[2]))


def test_importing_the_rooms_changes_no_global_state():
    script = """
import torch
from tests.conftest import global_state, leaks
import pyro
before, state = global_state(), torch.get_rng_state()
import pp_models, pp_models.tasks, guides, inference, evaluation
import evaluation.scores.metrics, evaluation.arviz.arviz_conversion
import evaluation.plots, evaluation.report, guidebook.command_line, evaluation.experiments, guidebook.demo
assert leaks(before, global_state()) == [], leaks(before, global_state())
assert torch.equal(torch.get_rng_state(), state)
assert len(pyro.get_param_store()) == 0
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
