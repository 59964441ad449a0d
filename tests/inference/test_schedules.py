"""Learning rates over a fit, and when a curve has settled."""

import itertools
import math
import random

import pytest
import torch

from guides import AmortisedMeanFieldGuide
from inference import fit, settled
from inference.schedules import LearningRates, factor, warmup_steps
from pp_models import BayesianNetwork, tasks


def test_a_cosine_is_a_half_wave_after_its_warm_up():
    rates = [factor(step, 103, "cosine", warmup=3) for step in range(103)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[53 - 1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 49 / 99)))
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(rates[3:]))


def test_a_line_ends_at_its_floor_and_a_constant_stays():
    assert [factor(step, 5, "linear", floor=0.2) for step in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert [factor(step, 4, "constant", 2) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert factor(0, 1, "cosine") == 1.0


@pytest.mark.parametrize(
    ("warmup", "steps", "found"), [(0, 10, 0), (0.03, 1000, 30), (0.5, 3, 2), (7, 10, 7), (0.03, 1, 0), (0.99, 4, 3)]
)
def test_a_warm_up_is_a_share_or_a_number_of_steps(warmup, steps, found):
    assert warmup_steps(warmup, steps) == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": -0.1}, r"^warmup: got -0.1; it must be finite and not negative$"),
        ({"warmup": 2.5}, r"^warmup: got 2.5; "),
        ({"warmup": math.nan}, r"^warmup: got nan; "),
        ({"warmup": 10}, r"^warmup: got 10, 10 steps; the fit has 10$"),
        ({"schedule": "cosin"}, r"^schedule: got 'cosin'; it must be one of constant, linear, cosine, or a function"),
        ({"schedule": 3}, r"^schedule: got int; it must be one of constant, linear, cosine, or a function"),
        (
            {"schedule": "constant", "final_learning_rate": 1e-4},
            r"^final_learning_rate: schedule='constant' never falls",
        ),
        ({"schedule": lambda o: None, "warmup": 2}, r"^warmup, final_learning_rate: a scheduler of torch has its own"),
        ({"max_grad_norm": -1.0}, r"^max_grad_norm: got -1.0; it must be positive and finite, or None$"),
        ({"learning_rate": math.inf}, r"^learning_rate: got inf; it must be positive and finite$"),
        ({"stop": "plato"}, r"^stop: got 'plato'; it must be 'plateau' or a module or a function, or None$"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        fit(*pair(), tasks.gp(batch_size=2), steps=10, progress=False, **options)
    assert "\n" not in str(caught.value)


def pair():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
        return model, AmortisedMeanFieldGuide(model, width=8)


def seen_rates(**options):
    """The learning rate of every step of a fit of six, relative to the first that the optimizer had."""
    used = []

    class Watched(torch.optim.SGD):
        def step(self, *args, **kwargs):
            used.append(self.param_groups[0]["lr"] / 1e-6)
            return super().step(*args, **kwargs)

    fit(*pair(), tasks.gp(batch_size=2), steps=6, progress=False, device="cpu", **options,
        optimizer=lambda p: Watched(p, lr=1e-6))  # fmt: skip
    return used


def test_a_fit_follows_its_schedule():
    assert seen_rates() == pytest.approx([1.0] * 6)
    assert seen_rates(final_learning_rate=5e-7) == pytest.approx([1 - 0.1 * i for i in range(6)])
    assert seen_rates(schedule="cosine", warmup=2) == pytest.approx(
        [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * i / 3)) for i in range(4))]
    )
    assert seen_rates(schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.1)) == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize("schedule", ["cosine", lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)])
def test_a_schedule_goes_on_where_a_killed_fit_stopped(schedule, tmp_path):
    options = {"progress": False, "device": "cpu", "schedule": schedule, "checkpoint_every": 3}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(*pair(), tasks.gp(batch_size=2), "elbo", 9, checkpoint_dir=whole, **options)

    def kill(row):
        if row["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(*pair(), tasks.gp(batch_size=2), "elbo", 9, checkpoint_dir=parts, callbacks=[kill], log_every=1, **options)
    fit(*pair(), tasks.gp(batch_size=2), "elbo", 9, checkpoint_dir=parts, resume=True, **options)
    for name in ("weights-00000009.safetensors", "weights-00000006.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def curve(rows, rate, noise, seed=0, correlation=0.0):
    """An exponential fall from 10 to 0 with (correlated) noise."""
    draws, last = random.Random(seed), 0.0
    found = []
    for step in range(rows):
        last = correlation * last + math.sqrt(1 - correlation**2) * draws.gauss(0, noise)
        found.append({"step": step, "loss": 10 * math.exp(-rate * step) + last})
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_a_flat_curve_has_settled_and_a_falling_or_too_noisy_one_has_not(seed, correlation):
    assert settled(curve(400, 0.05, 0.03, seed, correlation))
    assert not settled(curve(400, 0.004, 0.03, seed, correlation))
    assert not settled(curve(60, 0.05, 2.0, seed, correlation))


def test_a_short_or_rising_curve_has_not_settled():
    assert not settled([])
    assert not settled(curve(19, 5.0, 0.0))
    assert settled(curve(40, 5.0, 0.0) + curve(40, 50.0, 0.0)[1:])
    assert not settled([{"loss": float(i)} for i in range(100)])
    assert not settled([{"kl": 1.0}] * 100)
    with pytest.raises(ValueError, match=r"^tolerance: got 0; it must be positive and finite$"):
        settled([], tolerance=0)


def test_a_fit_stops_when_it_is_done_and_stays_stopped(tmp_path):
    asked = []

    def enough(history):
        asked.append(len(history))
        return len(history) >= 3

    options = {"progress": False, "device": "cpu", "log_every": 2, "checkpoint_dir": tmp_path, "stop": enough}
    first = fit(*pair(), tasks.gp(batch_size=2), "elbo", 50, **options)
    assert first.steps == 6 and asked == [1, 2, 3]
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    again = fit(*pair(), tasks.gp(batch_size=2), "elbo", 50, resume=True, **options)
    assert again.steps == 6 and {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_learning_rates_of_several_groups_fall_together():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.01}])
    rates = LearningRates(optimizer, "linear", 11, final=0.01)
    rates.before(5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.055, 0.01])
