"""A prior of weights from functions alone: a planted one is recovered, and what cannot be matched is refused."""

import itertools
import sys

import pytest
import torch

import guidebook as gb
from pp_models import Dataset


def planted(seed, tasks=800):
    """Lines whose weights are N((1, -0.5), diag(0.6², 0.2²)), seen at five inputs with noise 0.05."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(tasks, 5, 1, generator=gen) * 2 - 1
    slope = 1.0 + 0.6 * torch.randn(tasks, 1, 1, generator=gen)
    offset = -0.5 + 0.2 * torch.randn(tasks, 1, 1, generator=gen)
    return Dataset(x, slope * x + offset + 0.05 * torch.randn(tasks, 5, 1, generator=gen))


def test_a_planted_prior_is_recovered():
    torch.manual_seed(0)
    prior = gb.LearnedGaussianPrior(scale_by_fan_in=False)
    model = gb.BayesianNetwork([1, 1], prior=prior, likelihood="gaussian", noise_scale=0.05)
    history = gb.match_prior(model, map(planted, itertools.count()), steps=300, num_projections=32, learning_rate=0.02)
    loc, scale = prior.moments(0)
    torch.testing.assert_close(loc.detach(), torch.tensor([[1.0, -0.5]]), rtol=0, atol=0.1)
    torch.testing.assert_close(scale.detach(), torch.tensor([[0.6, 0.2]]), rtol=0, atol=0.1)
    assert sum(history[-20:]) < 0.3 * sum(history[:20])
    # missing outputs and padding are left out of both
    data = planted(0, 8)
    y = data.y.clone()
    y[0, 0] = torch.nan
    ragged = Dataset(data.x, y, observed=~y.isnan())
    assert gb.match_prior(model, itertools.repeat(ragged), steps=2)[0] > 0


def test_what_cannot_be_matched_is_refused(monkeypatch):
    fixed = gb.BayesianNetwork([1, 1], likelihood="gaussian")
    with pytest.raises(ValueError, match="model: its prior, FixedGaussianPrior, has nothing to train"):
        gb.match_prior(fixed, [planted(0)], steps=1)
    model = gb.BayesianNetwork([1, 1], prior=gb.LearnedGaussianPrior(), likelihood="gaussian")
    with pytest.raises(ValueError, match="tasks: the iterable ended at step 1"):
        gb.match_prior(model, [planted(0)], steps=2)
    with pytest.raises(gb.DataError, match="tasks: a batch must hold at least two tasks"):
        gb.match_prior(model, [planted(0)[0]], steps=1)
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match="the package POT is missing; pip install guidebook"):
        gb.match_prior(model, [planted(0)], steps=1)
