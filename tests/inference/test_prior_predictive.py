"""Functions from the prior: their law, their coherence, and any inputs."""

import pytest
import torch

from guides import BNNWeightGuide
from inference import predict, prior_predictive
from pp_models import BayesianNetwork, DataError, Dataset, LearnedGaussianPrior, LogUniformPrior


def test_a_linear_network_has_the_prior_of_a_linear_model():
    """f(x) = w x + b with w, b ~ N(0, 1/2): covariance (x x' + 1) / 2."""
    model = BayesianNetwork([1, 1], noise_scale=0.3).double()
    x = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    drawn = prior_predictive(model, x, 200_000, seed=0)
    found = drawn.function_samples.squeeze(-1).T.cov()
    expected = (x @ x.T + 1) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
    noise = (drawn.samples - drawn.function_samples).std()
    assert float(noise) == pytest.approx(0.3, rel=0.01)


def test_the_same_functions_at_a_finer_grid_and_nothing_global():
    """Super-resolution: a seed's draws are functions, whatever the inputs."""
    model = BayesianNetwork([2, 8, 1], prior=LearnedGaussianPrior("unit"), likelihood="bernoulli")
    coarse, fine = torch.rand(4, 2), torch.rand(9, 2)
    state = torch.get_rng_state()
    a = prior_predictive(model, coarse, 5, seed=3).function_samples
    b = prior_predictive(model, torch.cat([fine, coarse]), 5, seed=3).function_samples
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(a, b[:, 9:])
    assert prior_predictive(model, coarse.expand(3, 4, 2), 5).function_samples.shape == (5, 3, 4, 1)


def test_it_is_what_a_guide_predicts_from_nothing():
    torch.manual_seed(0)
    model = BayesianNetwork([1, 5, 1], prior=LearnedGaussianPrior("layer")).double()
    guide = BNNWeightGuide(model).double()
    x = torch.linspace(-1, 1, 4, dtype=torch.float64).unsqueeze(-1)
    empty = Dataset(torch.zeros(0, 1, dtype=torch.float64), torch.zeros(0, 1, dtype=torch.float64))
    prior = prior_predictive(model, x, 20_000, seed=0).function_samples.squeeze(-1)
    guided = predict(model, guide, empty, x, 20_000, seed=1).function_samples.squeeze(-1)
    torch.testing.assert_close(prior.T.cov(), guided.T.cov(), rtol=0.08, atol=0.03)


def test_any_prior_that_can_be_drawn():
    model = BayesianNetwork([1, 4, 1], prior=LogUniformPrior())
    assert prior_predictive(model, torch.zeros(3, 1), 7).samples.shape == (7, 3, 1)


def test_bad_arguments():
    model = BayesianNetwork([1, 4, 1])
    with pytest.raises(ValueError, match=r"^num_samples: got 0; it must be at least 1$"):
        prior_predictive(model, torch.zeros(3, 1), 0)
    with pytest.raises(DataError, match=r"^x: got input width 2; this model was built for 1$"):
        prior_predictive(model, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"^model: its representation or path is supplied by a guide"):
        prior_predictive(BayesianNetwork([1, 4, 1], representation_dim=2), torch.zeros(3, 1))
