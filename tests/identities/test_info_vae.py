"""Penalties on the aggregated posterior: zero where the guide is the posterior, λ = 0 is the ELBO, moved guides pay."""

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

from guides import AmortisedMeanFieldGuide, MAMLGuide
from inference.objectives import make
from inference.objectives.info_vae import PENALTIES
from pp_models import BayesianNetwork, Dataset

TASKS, DIM, NOISE = 400, 2, 0.7
WEIGHT = 1 / (1 + NOISE**2)


def model(y):
    with pyro.plate("tasks", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 2.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 2 * NOISE).to_event(1), obs=y)


def guide(y, shift=0.0, narrow=1.0):
    """The exact posterior N(w y, 4 w noise²), moved and narrowed."""
    with pyro.plate("tasks", len(y)):
        pyro.sample("z", dist.Normal(WEIGHT * y + shift, narrow * 2 * NOISE * WEIGHT**0.5).to_event(1))


def penalty(name, seed, **options):
    torch.manual_seed(seed)
    z = 2 * torch.randn(TASKS, DIM)
    y = z + 2 * NOISE * torch.randn(TASKS, DIM)

    def moved(y):
        return guide(y, **options)

    losses = []
    for weight in (0.0, 1.0):
        pyro.set_rng_seed(1000 + seed)  # not the draws that made the data
        losses.append(make("info-vae", penalty=name, penalty_weight=weight).terms(model, moved, y).bound.mean())
    return float(losses[0] - losses[1])


@pytest.mark.parametrize("name", PENALTIES)
def test_it_is_zero_at_the_exact_posterior_and_not_elsewhere(name):
    exact = torch.tensor([penalty(name, seed) for seed in range(6)])
    error = exact.std() / 6**0.5
    if name != "sinkhorn":  # which is debiased, but not unbiased
        assert abs(float(exact.mean())) < 4 * float(error) + 1e-3
    narrow = torch.tensor([penalty(name, seed, narrow=0.1) for seed in range(6)])
    assert float((narrow - exact).mean()) > 4 * float((narrow - exact).std() / 6**0.5)
    if name != "dip":  # a covariance does not see where the mean is
        assert penalty(name, 0, shift=1.0) > float(exact.max()) + 0.01


def test_without_weight_it_is_the_elbo_bit_for_bit():
    net = BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
    pair = net, AmortisedMeanFieldGuide(net, 8)
    data = Dataset(torch.randn(5, 6, 1), torch.randn(5, 6, 1))
    found = []
    for name, options in (("elbo", {}), ("info-vae", {"penalty_weight": 0.0})):
        torch.manual_seed(0)
        loss = make(name, num_particles=3, **options).differentiable_loss(*pair, data)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in pair[1].parameters() if p.grad is not None)])
        pair[1].zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_of_the_penalty_are_finite_and_wasserstein_autoencoders_train(name):
    net = BayesianNetwork([1, 4, 2], likelihood="gaussian-head").double()
    pair = net, AmortisedMeanFieldGuide(net, 8).double()
    data = Dataset(torch.randn(5, 6, 1).double(), torch.randn(5, 6, 1).double(), torch.rand(5, 6) < 0.5)
    objective = make("info-vae", penalty=name, beta=0.0, num_particles=2, normalize=True)
    objective.differentiable_loss(*pair, data).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in pair[1].parameters() if p.grad is not None)


def test_what_has_no_aggregated_posterior_is_refused(monkeypatch):
    net = BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
    data = Dataset(torch.randn(6, 1), torch.randn(6, 1))
    with pytest.raises(ValueError, match="guide: a latent has one draw, of one task and particle"):
        make("info-vae").differentiable_loss(net, AmortisedMeanFieldGuide(net, 8), data)
    maml = MAMLGuide(net)  # all is a point mass: the ELBO
    tasks = Dataset(data.x[None], data.y[None])
    losses = [make(name).differentiable_loss(net, maml, tasks) for name in ("elbo", "info-vae")]
    assert torch.equal(*losses)
    monkeypatch.setitem(sys.modules, "geomloss", None)
    with pytest.raises(ImportError, match="needs the package geomloss; pip install guidebook"):
        make("info-vae", penalty="sinkhorn")
