"""A tempered bound of a minibatch stands for all N data, and so does the number that it is divided by."""

import math

import pytest
import torch
from torch import nn

import guidebook as gb
from guides import PointAdapterGuide, RankwiseGuide


def adapted():
    torch.manual_seed(0)
    return gb.LowRankAdapted(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), "all-linear", rank=2)


def data(points=10):
    return gb.Dataset(torch.randn(points, 3), torch.randint(2, (points,)))


@pytest.mark.parametrize("num_data", [10, 40])
def test_the_logged_likelihood_is_that_of_a_point_whatever_n_stands_for(num_data):
    model, batch = adapted(), data()
    guide = PointAdapterGuide(model)
    terms = gb.objectives.make("tempered-elbo", num_data=num_data).terms(model, guide, batch)
    expected = model.outputs(batch.x).detach().log_softmax(-1).gather(-1, batch.y.unsqueeze(-1)).mean()
    torch.testing.assert_close(terms.log_likelihood.sum() / terms.points.sum(), expected)
    found = gb.fit(
        model, guide, batch, gb.objectives.make("tempered-elbo", num_data=num_data), 1, progress=False, log_every=1
    )
    assert found.history[0]["log_likelihood"] == pytest.approx(float(expected), rel=1e-5)


def test_normalised_it_is_a_mean_likelihood_less_the_kl_over_n():
    model, batch = adapted(), data()
    guide = RankwiseGuide(model)
    losses = {}
    for normalize in (False, True):
        torch.manual_seed(1)
        objective = gb.objectives.make("tempered-elbo", num_data=40, temperature=3.0, normalize=normalize)
        losses[normalize] = float(objective.differentiable_loss(model, guide, batch).detach())
    assert math.isfinite(losses[True])
    assert losses[True] == pytest.approx(losses[False] / 40, rel=1e-5)
