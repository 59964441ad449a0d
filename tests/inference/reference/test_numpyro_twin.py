"""The NumPyro twin: the same log-joint, and a sampler that finds the exact posterior of a linear model."""

import jax
import numpy as np
import pytest
import torch
from pyro import poutine

import inference
from inference.reference.numpyro_twin import numpyro_twin
from pp_models import (
    BayesianNetwork,
    Dataset,
    FixedGaussianPrior,
    GaussianLikelihood,
    LearnedGaussianPrior,
    LogUniformPrior,
)
from tests.twin_log_joint import twin_log_joint

PRIORS = {
    "fixed": FixedGaussianPrior,
    **{g: (lambda g=g: LearnedGaussianPrior(g)) for g in ("weight", "unit", "layer", "network")},
    "partly": lambda: LearnedGaussianPrior("unit", trainable=0.5),
    "unscaled": lambda: LearnedGaussianPrior("network", scale_by_fan_in=False),
}
WIDTHS = {"gaussian": 2, "gaussian-head": 4, "bernoulli": 2, "categorical": 3}


def small(prior="unit", likelihood="gaussian", dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = BayesianNetwork([2, 4, 3, WIDTHS[likelihood]], prior=PRIORS[prior](), likelihood=likelihood, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype)


def points(likelihood="gaussian", batch=(2,), masked=True, dtype=torch.float64):
    x = torch.randn(*batch, 5, 2, dtype=dtype)
    y = torch.randn(*batch, 5, 2, dtype=dtype)
    if likelihood == "bernoulli":
        y = (y > 0).to(dtype)
    if likelihood == "categorical":
        y = torch.randint(3, (*batch, 5))
    mask = torch.rand(*batch, 5) > 0.3 if masked else None
    return Dataset(x, y, mask)


def both(model, data):
    """log-joint of the same weights under torch and under JAX."""
    trace = poutine.trace(model).get_trace(data.without_y())
    weights = {name: trace.nodes[name]["value"] for name in map(model.site, range(model.num_layers))}
    ours = poutine.trace(poutine.condition(model, data=weights)).get_trace(data).log_prob_sum().item()
    return ours, twin_log_joint(model, numpyro_twin(model), data, weights)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("prior", PRIORS)
def test_the_log_joint_is_the_same_for_every_prior(prior, dtype, tolerance):
    ours, theirs = both(small(prior, dtype=dtype), points(dtype=dtype))
    assert theirs == pytest.approx(ours, rel=tolerance)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
@pytest.mark.parametrize("likelihood", WIDTHS)
def test_the_log_joint_is_the_same_for_every_likelihood(likelihood, batch):
    ours, theirs = both(small(likelihood=likelihood), points(likelihood, batch))
    assert theirs == pytest.approx(ours, rel=1e-10)


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "gelu"])
def test_the_log_joint_is_the_same_for_every_activation(activation):
    ours, theirs = both(small(activation=activation), points(masked=False))
    assert theirs == pytest.approx(ours, rel=1e-10)


def test_a_trained_noise_is_read():
    model = small()
    model.likelihood = GaussianLikelihood(0.4, learn_noise=True).double()
    with torch.no_grad():
        model.likelihood.raw_noise_scale.add_(0.3)
    ours, theirs = both(model, points())
    assert theirs == pytest.approx(ours, rel=1e-10)


def test_jax_is_left_as_it_was():
    before = jax.config.jax_enable_x64
    both(small(), points())
    assert jax.config.jax_enable_x64 == before


def test_nuts_finds_the_posterior_of_a_linear_model():
    torch.manual_seed(0)
    model = BayesianNetwork([1, 1], noise_scale=0.5).double()
    data = Dataset(torch.randn(6, 1).double(), torch.randn(6, 1).double())
    result = inference.nuts(model, data, num_warmup=300, num_samples=1500, seed=1)
    phi = torch.cat([data.x, torch.ones(6, 1).double()], -1)
    precision = phi.T @ phi / 0.25 + 2 * torch.eye(2).double()
    covariance = torch.linalg.inv(precision)
    mean = covariance @ phi.T @ data.y[:, 0] / 0.25
    draws = result.draws["layer_0.weight"]
    assert draws.shape == (1500, 1, 2) and draws.dtype == torch.float64 and result.diverging == 0
    error = covariance.diagonal().sqrt() / np.sqrt(300)  # an effective sample of at least 300
    assert ((draws.mean(0)[0] - mean).abs() < 4 * error).all()
    torch.testing.assert_close(draws[:, 0].T.cov(), covariance, rtol=0.25, atol=0.01)
    prediction = result.predict(torch.zeros(1, 1).double())
    assert prediction.mean.shape == (1, 1)
    assert abs(prediction.mean.item() - mean[1].item()) < 4 * error[1]


def test_several_tasks_and_chains_together():
    model, data = small("weight"), points(masked=True)
    result = inference.nuts(model, data, num_warmup=20, num_samples=10, num_chains=2)
    again = inference.nuts(model, data, num_warmup=20, num_samples=10, num_chains=2)
    assert torch.equal(result.draws["layer_0.weight"], again.draws["layer_0.weight"])
    assert result.draws["layer_1.weight"].shape == (20, 2, 3, 5)
    assert result.predict(data.x).mean.shape == (2, 5, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_warmup": 0}, r"^num_warmup: got 0; it must be at least 1$"),
        ({"target_accept": 1.0}, r"^target_accept: got 1.0; it must lie in \(0, 1\)$"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        inference.nuts(small(), points(), **options)


def test_models_without_a_twin_are_refused():
    with pytest.raises(ValueError, match=r"^data: y is None; a posterior needs observed points$"):
        inference.nuts(small(), points().without_y())
    with pytest.raises(ValueError, match=r"^model: its representation or path is supplied by a guide"):
        numpyro_twin(BayesianNetwork([1, 4, 1], representation_dim=2))
    with pytest.raises(ValueError, match=r"^model: its prior is a LogUniformPrior, which has no NumPyro twin$"):
        numpyro_twin(BayesianNetwork([1, 4, 1], prior=LogUniformPrior()))
