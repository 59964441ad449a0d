"""The posterior as the next prior: in parts, a linear model is what it is at once."""

import pytest
import torch

from guides import GaussianVIGuide
from inference import fit
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset

NOISE = 0.5


def exact(data):
    """Mean and covariance of the weights of a linear model under N(0, I)."""
    features = torch.cat([data.x, torch.ones(len(data.x), 1).double()], -1)
    precision = torch.eye(3).double() + features.mT @ features / NOISE**2
    covariance = torch.linalg.inv(precision)
    return covariance @ features.mT @ data.y[:, 0] / NOISE**2, covariance


def fitted(prior, data, correlation):
    """A Gaussian whose gradients have no noise where it is the posterior."""
    options = {} if prior is None else {"prior": prior}
    model = BayesianNetwork([2, 1], likelihood="gaussian", noise_scale=NOISE, **options).double()
    if prior is None:
        model.prior.scale_by_fan_in = False
    guide = GaussianVIGuide(model, correlation).double()
    objective = make("elbo", num_particles=8, estimator="stl")
    options = {"steps": 700, "learning_rate": 0.05, "schedule": "cosine", "precision": "64-true"}
    fit(model, guide, data, objective, progress=False, **options)
    return guide


def test_of_a_linear_model_data_in_parts_are_data_at_once():
    torch.manual_seed(0)
    x = torch.randn(24, 2).double()
    data = Dataset(x, x @ torch.tensor([[1.0], [-0.5]]).double() + 0.3 + NOISE * torch.randn(24, 1).double())
    prior = None
    for part in (slice(0, 8), slice(8, 16), slice(16, 24)):
        guide = fitted(prior, Dataset(data.x[part], data.y[part]), "layer")
        prior = guide.as_prior()
    mean, covariance = exact(data)
    loc, lower = guide.posterior.moments(0)
    torch.testing.assert_close(loc, mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(lower @ lower.mT, covariance, rtol=1e-2, atol=1e-4)
    first_mean, _ = exact(Dataset(data.x[16:], data.y[16:]))
    assert float((first_mean - mean).abs().max()) > 0.01  # of the last part alone it is another


@pytest.mark.parametrize("correlation", ["weight", "unit", "layer", "network"])
def test_the_prior_is_the_posterior(correlation):
    model = BayesianNetwork([1, 3, 1], likelihood="gaussian", noise_scale=0.3).double()
    guide = GaussianVIGuide(model, correlation, initial_scale=0.4).double()
    for value in guide.parameters():
        value.data.add_(0.1 * torch.randn_like(value))
    later = BayesianNetwork([1, 3, 1], likelihood="gaussian", noise_scale=0.3, prior=guide.as_prior()).double()
    data = Dataset(torch.randn(4, 1).double(), torch.randn(4, 1).double())
    with torch.no_grad():
        terms = make("elbo", num_particles=2).terms(later, guide, data)
    assert all(float(kl.abs().max()) < 1e-9 for kl in terms.kl_by_site.values())
    several = GaussianVIGuide(model, batch_shape=(2,))
    with pytest.raises(ValueError, match=r"^batch_shape: got \(2,\); it must be \(\): a prior is one task's"):
        several.as_prior()
