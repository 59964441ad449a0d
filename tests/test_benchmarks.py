"""The benchmarks run at a small scale, and what they claim holds there."""

import pytest
import torch

from benchmarks import objectives_vs_pyro as versus


@pytest.fixture(scope="module")
def tables():
    torch.manual_seed(0)
    return [{row.name: row for row in rows} for rows in versus.main(repeats=3)]


@pytest.mark.parametrize("name", versus.CLAIMED)
def test_weights_per_task_lose_less_than_two_nats_in_all(tables, name):
    whole, sampled = tables
    assert abs(whole[name].gap) < 2
    assert abs(sampled[name].gap) < 4  # two repeats, each a mean of four scaled quarters
    assert whole[name].ess[0] > 35


def test_one_weight_for_the_whole_batch_loses_tens(tables):
    whole, _ = tables
    assert whole["Pyro ReweightedWakeSleep"].gap < -20
    assert max(whole["Pyro ReweightedWakeSleep"].ess) < 10


def test_a_scale_inside_the_logarithm_is_above_the_evidence(tables):
    _, sampled = tables
    assert sampled["Pyro RenyiELBO(0)"].gap > 20


def test_a_discrete_guide_gets_no_gradient_from_pyro_and_the_exact_one_from_ours():
    for theirs, ours, error, exact in versus.discrete_table(4, 200).values():
        assert theirs == 0.0
        assert abs(ours - exact) < 4 * error < exact
