"""The cost of a step: measured on a copy, by the clock of the CPU."""

import pytest
import torch

import guidebook as gb
from inference import step_cost as measured
from inference.step_cost import step_cost, steps_within


@pytest.fixture
def pair():
    torch.manual_seed(0)
    model = gb.BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
    return model, gb.guides.AmortisedMeanFieldGuide(model, 4), gb.tasks.gp("rbf", 2)


def test_the_pair_and_the_random_state_are_as_they_were(pair):
    model, guide, tasks = pair
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    state = torch.get_rng_state()
    assert step_cost(model, guide, tasks, "elbo", max_grad_norm=1.0) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())


@pytest.mark.parametrize(("cost", "asked", "found"), [(0.5, [2, 8], 0.5), (0.025, [2, 8, 40], 0.025)])
def test_a_cheap_step_is_timed_longer(pair, monkeypatch, cost, asked, found):
    spent, steps = [0.0], []

    def fit(model, guide, tasks, objective, count, **options):
        steps.append(count)
        spent[0] += count * cost

    monkeypatch.setattr(measured, "fit", fit)
    monkeypatch.setattr(measured.time, "process_time", lambda: spent[0])
    assert step_cost(*pair, "elbo") == pytest.approx(found) and steps == asked


def test_seconds_buy_steps():
    assert steps_within(30, 0.02) == 1500 and steps_within(0.01, 0.02) == measured.LEAST_STEPS
