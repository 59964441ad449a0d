"""The likelihood ratio between levels of latents: nothing named, closed form, and planted shifts."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import guidebook as gb
from pp_models import Dataset

NOISE = 0.4


def two_levels(x):
    with pyro.plate("data", len(x)):
        upper = pyro.sample("upper", dist.Normal(torch.zeros(len(x)).double(), 1.0))
        lower = pyro.sample("lower", dist.Normal(upper, 1.0))
        pyro.sample("x", dist.Normal(lower, NOISE), obs=x)


def posterior(x):
    """Of (upper, lower) given x, exact."""
    with pyro.plate("data", len(x)):
        variance = 1 - 1 / (2 + NOISE**2)
        upper = pyro.sample("upper", dist.Normal(x / (2 + NOISE**2), math.sqrt(variance)))
        gain = 1 / (1 + NOISE**2)
        pyro.sample("lower", dist.Normal(upper + gain * (x - upper), math.sqrt(gain * NOISE**2)))


X = torch.tensor([0.1, -1.0, 4.0]).double()


def test_with_no_site_it_is_zero():
    assert torch.equal(gb.likelihood_ratio(two_levels, posterior, X, sites=[]), torch.zeros(3).double())


def test_of_two_gaussian_levels_it_is_the_closed_form():
    evidence = dist.Normal(torch.zeros(3).double(), math.sqrt(2 + NOISE**2)).log_prob(X)
    mean, variance = X / (2 + NOISE**2), 1 - 1 / (2 + NOISE**2)
    fit = -0.5 * math.log(2 * math.pi * NOISE**2) - ((X - mean).square() + variance + 1) / (2 * NOISE**2)
    kl = 0.5 * (variance + mean.square() - 1 - math.log(variance))
    found = gb.likelihood_ratio(two_levels, posterior, X, sites=["lower"], num_samples=40_000)
    torch.testing.assert_close(found, evidence - (fit - kl), rtol=0.05, atol=0.1)
    assert bool((found[2] > found[:2]).all())


def test_tasks_unlike_those_of_training_score_higher():
    torch.manual_seed(0)
    model = gb.NeuralProcess(1, 1, latent_dim=8, width=32, depth=3)
    guide = gb.guides.NeuralProcessGuide(model, 32)
    gb.fit(model, guide, gb.tasks.gp("rbf", 16), "elbo", steps=100, learning_rate=3e-3, progress=False)
    tasks = gb.tasks.gp("rbf", 60, seed=9).batch(0).full
    scores = [
        gb.likelihood_ratio(model, guide, data, sites=["z"], num_samples=16) / data.num_points
        for data in (tasks, Dataset(tasks.x, 3 * tasks.y))
    ]
    area = (scores[1].unsqueeze(-1) > scores[0]).double().mean()  # the area under the curve of the two
    assert float(area) > 0.8


def test_of_a_network_layers_may_be_named_and_others_are_refused():
    model = gb.BayesianNetwork([1, 6, 2], likelihood="gaussian-head")
    guide = gb.guides.AmortisedMeanFieldGuide(model, 8)
    data = gb.tasks.gp("rbf", 3).batch(0).full
    found = gb.likelihood_ratio(model, guide, data, sites=["layer_0.weight"])
    assert found.shape == (3,) and bool(torch.isfinite(found).all())
    with pytest.raises(
        ValueError, match=r"^sites: got 'z'; it must be among those that the guide draws: layer_0.weight"
    ):
        gb.likelihood_ratio(model, guide, data, sites=["z"])
