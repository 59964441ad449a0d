"""Gaussians without an optimizer: exact on Gaussian targets, a KL that never rises, latents that are constrained."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

import guidebook as gb
from inference.gaussian_vi import gaussian_vi
from tests.guides.any_model.linear_gaussian import DESIGN, NOISE, PRIOR, draw, posterior


def linear(y):
    w = pyro.sample("w", dist.Normal(torch.zeros_like(PRIOR), PRIOR).to_event(1))
    pyro.sample("y", dist.Normal(w @ DESIGN.mT, NOISE).to_event(1), obs=y)


def distance(guide, y):
    with torch.no_grad():
        q = guide.vector_distribution(y)
        return float(kl_divergence(MultivariateNormal(q.loc, q.covariance_matrix), posterior(y.unsqueeze(0))))


Y = draw(1)[0]


def test_bures_wasserstein_is_exact_on_a_gaussian_and_the_kl_never_rises():
    found = [distance(gaussian_vi(linear, Y, steps=steps), Y) for steps in (1, 2, 4, 8, 200)]
    assert found == sorted(found, reverse=True) and found[0] > 0.1
    assert found[-1] < 1e-8
    small = [distance(gaussian_vi(linear, Y, steps=steps, step_size=0.3), Y) for steps in (1, 4, 16)]
    assert small == sorted(small, reverse=True)


def test_one_step_of_batch_and_match_is_exact_on_a_gaussian():
    assert distance(gaussian_vi(linear, Y, method="batch-and-match", steps=1, step_size=1e9), Y) < 1e-8
    several = [
        distance(gaussian_vi(linear, Y, method="batch-and-match", steps=s, step_size=1.0), Y) for s in (1, 4, 30)
    ]
    assert several == sorted(several, reverse=True) and several[-1] < 1e-6


@pytest.mark.parametrize("method", ["bures-wasserstein", "batch-and-match"])
def test_draws_serve_in_place_of_sigma_points(method):
    found = gaussian_vi(linear, Y, method=method, steps=60, num_points=64, seed=1)
    assert distance(found, Y) < 0.05


def scaled(y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


@pytest.mark.parametrize("method", ["bures-wasserstein", "batch-and-match"])
def test_a_constrained_latent_goes_through_its_bijection(method):
    y = 1.5 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    guide = gaussian_vi(scaled, y, method=method, steps=60)
    grid = torch.linspace(0.3, 6, 5_000).double()
    log_p = dist.HalfNormal(2.0).log_prob(grid) + dist.Normal(0.0, grid).log_prob(y.double().unsqueeze(-1)).sum(0)
    weight = (log_p - log_p.max()).exp()
    mean = float((weight * grid).sum() / weight.sum())
    draws = torch.stack([guide(y)["scale"] for _ in range(2_000)]).detach()
    assert abs(float(draws.mean()) - mean) < 0.03
    verdict = gb.verdict(scaled, guide, y, num_samples=300, nuts_seconds=0)
    assert verdict.numbers["efficiency"] > 0.8


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"^step_size: got 3.0; that of 'bures-wasserstein' must be at most 1$"):
        gaussian_vi(linear, Y, step_size=3.0)
    with pytest.raises(ValueError, match=r"^method: got 'newton'; it must be "):
        gaussian_vi(linear, Y, method="newton")
