"""SWAG: the moments of a path, and draws with those moments."""

import pytest
import torch

from evaluation import to_arviz
from guides import SWAGGuide
from inference import predict, sample_posterior, swag
from pp_models import BayesianNetwork, DataError, Dataset


def linear_data(*batch):
    torch.manual_seed(0)
    x = torch.rand(*batch, 40, 1, dtype=torch.float64) * 2 - 1
    return Dataset(x, 0.8 * x + 0.3 * torch.randn_like(x))


def test_draws_have_the_moments_it_holds():
    torch.manual_seed(0)
    model = BayesianNetwork([1, 2, 1]).double()
    size = 7
    mean, variance = torch.randn(size, dtype=torch.float64), torch.rand(size, dtype=torch.float64)
    deviations = torch.randn(size, 3, dtype=torch.float64)
    guide = SWAGGuide(model, mean, variance, deviations)
    drawn = sample_posterior(model, guide, linear_data(), 100_000, seed=0)
    flat = torch.cat([drawn[s].flatten(-2) for s in guide.sites], -1)
    expected = torch.diag(variance / 2) + deviations @ deviations.mT / 4
    torch.testing.assert_close(flat.T.cov(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(flat.mean(0), mean, rtol=0, atol=0.03)


def test_its_mean_is_the_mode_of_a_linear_model():
    """A Gaussian posterior's mode is its mean: ridge regression."""
    model = BayesianNetwork([1, 1], noise_scale=0.3).double()
    data = linear_data()
    guide = swag(model, data, 400, warmup=1500, learning_rate=1e-2, batch_size=20, path_learning_rate=1e-3)
    phi = torch.cat([data.x, torch.ones_like(data.x)], -1)
    expected = torch.linalg.solve(phi.mT @ phi / 0.09 + 2 * torch.eye(2), phi.mT @ data.y / 0.09).flatten()
    torch.testing.assert_close(guide.mean, expected, rtol=0, atol=0.02)
    assert bool((guide.variance > 0).all()) and guide.deviations.shape == (2, 20)
    full = swag(model, data, 400, warmup=1500, path_learning_rate=1e-3)
    assert float(full.variance.mean()) < 0.1 * float(guide.variance.mean())


def test_tasks_are_fitted_apart_and_the_process_is_left_alone():
    one = linear_data()
    data = Dataset(one.x.expand(2, 40, 1), torch.stack([one.y, -one.y]))
    model = BayesianNetwork([1, 8, 1], activation="tanh", noise_scale=0.3).double()
    state = torch.get_rng_state()
    guide = swag(model, data, 100, warmup=800, batch_size=20)
    assert torch.equal(state, torch.get_rng_state())
    mean = predict(model, guide, data, data.x, 100, seed=0).mean
    slopes = (mean * data.x).sum((1, 2)) / data.x.square().sum((1, 2))
    assert float(slopes[0]) > 0.5 and float(slopes[1]) < -0.5
    assert to_arviz(model, guide, data, num_samples=10).posterior["layer_0.weight"].shape[:3] == (1, 10, 2)
    again = swag(model, data, 100, warmup=800, batch_size=20)
    assert torch.equal(guide.mean, again.mean)


def test_bad_arguments():
    model, data = BayesianNetwork([1, 2, 1]).double(), linear_data()
    for options, message in (
        ({"steps": 30}, r"^steps: got 30; with every=20 it must be at least 40, two positions$"),
        ({"rank": 1}, r"^rank: got 1; it must be at least 2$"),
        ({"batch_size": 41}, r"^batch_size: got 41; it must lie in 1..40, the number of points$"),
    ):
        with pytest.raises(ValueError, match=message):
            swag(model, data, **options)
    with pytest.raises(DataError, match=r"^data: it has no observed points$"):
        swag(model, Dataset(data.x))
    with pytest.raises(DataError, match=r"^data: got task dimensions \[\]; this guide was made for tasks \[3\]$"):
        SWAGGuide(model, torch.zeros(3, 7), torch.ones(3, 7), torch.ones(3, 7, 2))(data)
