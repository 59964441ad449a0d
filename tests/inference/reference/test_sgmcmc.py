"""Stochastic-gradient samplers: moments of a linear regression, and of the product of marginals when broken apart."""

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import sgmcmc
from pp_models import BayesianNetwork, Dataset


def regression():
    torch.manual_seed(0)
    x = torch.randn(20, 1).double()
    data = Dataset(x, 0.7 * x + 0.3 + 0.5 * torch.randn(20, 1).double())
    model = BayesianNetwork([1, 1], likelihood="gaussian", noise_scale=0.5).double()
    phi = torch.cat([x, torch.ones_like(x)], -1)
    precision = phi.mT @ phi / 0.25 + 2 * torch.eye(2).double()  # prior N(0, 1 / (k_in + 1))
    return model, data, torch.linalg.solve(precision, phi.mT @ data.y / 0.25).squeeze(-1), torch.linalg.inv(precision)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sgld", {"step_size": 2e-3}),
        ("sghmc", {"step_size": 0.01, "friction": 10.0}),
        ("sghmc", {"step_size": 0.01, "friction": 8.0, "batch_size": 10}),
    ],
)
def test_moments_of_a_linear_regression(method, options):
    model, data, mean, covariance = regression()
    options = {"num_warmup": 100, "num_samples": 400, "num_chains": 24, "thin": 1} | options
    draws = sgmcmc(model, data, method=method, **options).draws["layer_0.weight"].reshape(-1, 2)
    assert draws.shape == (9600, 2)
    scale = covariance.diagonal().sqrt()
    wide = 1.35 if "batch_size" in options else 1.12  # a minibatch's noise heats the chain
    assert bool(((draws.mean(0) - mean).abs() < 0.2 * scale).all())
    ratio = draws.std(0) / scale
    assert bool((ratio > 0.88).all() and (ratio < wide).all())


def two_sites(y):
    """A Gaussian posterior of precision [[1 + 4, 4], [4, 1 + 4]]: correlation -0.8."""
    a = pyro.sample("a", dist.Normal(torch.zeros(()).double(), 1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(()).double(), 1.0))
    pyro.sample("y", dist.Normal(a + b, 0.5), obs=y)


def test_broken_dependence_is_the_mean_field_fixed_point():
    y = torch.tensor(1.0).double()
    options = {"method": "sgld", "step_size": 0.02, "num_warmup": 100, "num_samples": 200, "num_chains": 64}
    for structure, variance in (("joint", 5 / 9), ("sites", 1 / 5)):
        found = sgmcmc(two_sites, y, structure=structure, **options).draws
        a, b = found["a"], found["b"]
        assert float(a.mean()) == pytest.approx(4 / 9, abs=0.08)
        assert float(a.var() / variance) == pytest.approx(1, abs=0.3)
        correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
        assert (correlation < -0.6) if structure == "joint" else (abs(correlation) < 0.15)


def test_constrained_latents_are_drawn_in_their_own_space():
    def scale_of(y):
        s = pyro.sample("s", dist.LogNormal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(torch.zeros(len(y)), s).to_event(1), obs=y)

    found = sgmcmc(scale_of, 2 * torch.randn(30), step_size=0.002, num_warmup=150, num_samples=50, num_chains=2)
    assert bool((found.draws["s"] > 0).all()) and 1 < float(found.draws["s"].mean()) < 4
    assert found.by_chain()["s"].shape == (2, 50)


def test_predictions_ragged_tasks_and_refusals(monkeypatch):
    model, data, _, _ = regression()
    short = {"num_warmup": 2, "num_samples": 3, "num_chains": 2}
    assert sgmcmc(model, data, **short).predict(torch.zeros(4, 1)).samples.shape == (6, 4, 1)
    ragged = Dataset.pad([data.points(slice(0, 5)), data.points(slice(0, 3))])
    assert sgmcmc(model, ragged, **short).draws["layer_0.weight"].shape == (6, 2, 1, 2)
    for wrong, line in (
        ({"batch_size": 99}, "batch_size: got 99; it must lie in 1..20"),
        ({"structure": "sites", "num_chains": 1}, "num_chains: got 1; structure='sites' averages"),
        ({"step_size": 100.0, "num_warmup": 800}, "step_size: got 100.0; a chain left the finite numbers"),
        ({"method": "nuts"}, "method: got 'nuts'"),
    ):
        with pytest.raises(ValueError, match=line):
            sgmcmc(model, data, **(short | wrong))
    with pytest.raises(ValueError, match="batch_size: got 2 on ragged tasks"):
        sgmcmc(model, ragged, **short, batch_size=2)
    monkeypatch.setitem(sys.modules, "posteriors", None)
    with pytest.raises(ImportError, match="the package posteriors is missing; pip install guidebook"):
        sgmcmc(model, data, **short)
