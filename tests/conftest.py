"""Every test starts from the same seeds and an empty parameter store, and fails when it leaks global state."""

import os
import signal
import threading

os.environ.setdefault("MPLBACKEND", "Agg")  # before matplotlib is imported: no test opens a window
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling takes longer than running such small models

import matplotlib
import pyro
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK

pytest_plugins = ["tests.recorded_stand_ins"]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Keeps bytes out of the tests' names: a gzip carries the time, and processes must collect the same names."""
    return argname if isinstance(val, bytes) else None


def global_state() -> dict[str, object]:
    """The process-wide switches that a library must leave as it found them, by name."""
    return {
        "torch default dtype": torch.get_default_dtype(),
        "torch default device": torch.get_default_device(),
        "torch number of threads": torch.get_num_threads(),
        "torch gradients enabled": torch.is_grad_enabled(),
        "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch.distributions validation": torch.distributions.Distribution._validate_args,
        "Pyro handler stack": list(_PYRO_STACK),
        **{f"pyro.settings {name}": value for name, value in pyro.settings.get().items()},
        # items() of rcParams would resolve the backend; copy() does not
        **{f"matplotlib {name}": value for name, value in dict.items(matplotlib.rcParams.copy())},
    }


def leaks(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """One line for each switch that differs."""
    return [f"{name}: {before[name]} before, {after[name]} after" for name in before if before[name] != after[name]]


def restore(before: dict[str, object]) -> None:
    """Puts the switches back, so that one leaking test does not fail the next."""
    torch.set_default_dtype(before["torch default dtype"])
    if torch.get_default_device() != before["torch default device"]:  # setting one, even cpu, moves what it meets
        cpu = before["torch default device"] == torch.device("cpu")
        torch.set_default_device(None if cpu else before["torch default device"])
    torch.set_num_threads(before["torch number of threads"])
    torch.set_grad_enabled(before["torch gradients enabled"])
    torch.use_deterministic_algorithms(before["torch deterministic algorithms"])
    pyro.settings.set(**{name: before[f"pyro.settings {name}"] for name in pyro.settings.get()})
    torch.distributions.Distribution.set_default_validate_args(before["torch.distributions validation"])
    _PYRO_STACK[:] = before["Pyro handler stack"]
    rc = {name.removeprefix("matplotlib "): v for name, v in before.items() if name.startswith("matplotlib ")}
    dict.update(matplotlib.rcParams, rc)


@pytest.fixture(autouse=True)
def seeded_and_clean():
    """Seeds torch, numpy and python, empties the parameter store, and fails the test that leaks."""
    pyro.set_rng_seed(0)  # seeds all three
    if threading.current_thread() is threading.main_thread():  # Ray and others leave a handler of theirs
        signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_flush_denormal(False)  # the command line's own, and no state that can be read back
    pyro.clear_param_store()
    before = global_state()
    yield
    leaked = leaks(before, global_state())
    pyro.clear_param_store()
    if leaked:
        restore(before)
        pytest.fail("global state leaked: " + "; ".join(leaked))


@pytest.fixture
def compiling():
    """For a test that compiles: torch's compiler switches the validation of distributions off for good."""
    before = global_state()
    yield
    restore(before)
