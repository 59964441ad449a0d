"""KLs to the proper priors of LRVD: integrals, Monte Carlo, gradients, and planted ranks under them."""

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.integrate
import torch
from torch.distributions import kl_divergence

from evaluation.adapters.planted_rank import PlantedTask, fit_planted
from guides.adapters.rank_normal import RankNormal
from pp_models.adapters.low_rank_priors import RANK_PRIORS, ard_kl, half_cauchy_kl, rank_prior_kl


def grid(low=-10.0, high=8.0, n=19):
    return torch.linspace(low, high, n, dtype=torch.float64)


def half_cauchy_by_quadrature(log_alpha, scale):
    sd = math.exp(log_alpha / 2)

    def integrand(z):
        density = math.exp(-0.5 * ((z - 1) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
        return density * math.log1p((z / scale) ** 2)

    near = [p for p in (-10 * scale, -scale, 0.0, scale, 10 * scale) if abs(p - 1) < 12 * sd]
    ends = sorted({1 - 12 * sd, 1 - 3 * sd, 1.0, 1 + 3 * sd, 1 + 12 * sd, *near})
    expected = sum(
        scipy.integrate.quad(integrand, a, b, epsabs=1e-13, epsrel=1e-13, limit=300)[0]
        for a, b in itertools.pairwise(ends)
    )
    return expected + math.log(math.pi * scale) - 0.5 * math.log(2 * math.pi * math.e) - 0.5 * log_alpha


@pytest.mark.parametrize(("scale", "tolerance"), [(1.0, 1e-9), (3.0, 1e-9), (0.3, 1e-8)])
def test_the_half_cauchy_s_kl_is_the_integral(scale, tolerance):
    expected = [half_cauchy_by_quadrature(v, scale) for v in grid().tolist()]
    np.testing.assert_allclose(half_cauchy_kl(grid(), scale), expected, atol=tolerance)
    np.testing.assert_allclose(half_cauchy_kl(grid().float(), scale), expected, atol=1e-5)


@pytest.mark.parametrize("log_alpha", [-3.0, 0.0, 2.0])
def test_kls_are_expectations_of_log_densities(log_alpha):
    torch.manual_seed(0)
    at = torch.tensor([log_alpha], dtype=torch.float64)
    q = RankNormal(torch.ones_like(at), at)
    z = q.sample((1_000_000,))
    half_cauchy = q.log_prob(z) - (dist.HalfCauchy(z.new_tensor(1.0)).log_prob(z.abs()) - math.log(2))
    best = dist.Normal(torch.zeros_like(at), (1 + at.exp()).sqrt())
    ard = q.log_prob(z) - best.log_prob(z)
    for prior, found in (("half-cauchy", half_cauchy), ("ard", ard)):
        error = float(found.std() / 1000)
        assert abs(float(found.mean()) - float(rank_prior_kl(at, prior))) < 4 * error


def test_the_ard_scale_is_the_best_one():
    at = grid(n=7)
    q = RankNormal(torch.full_like(at, 1.7), at)
    second_moment = q.mean.square() + q.variance
    for factor in (0.9, 1.0, 1.1):
        found = kl_divergence(q, dist.Normal(torch.zeros_like(at), factor * second_moment.sqrt()))
        if factor == 1.0:
            torch.testing.assert_close(found, ard_kl(at))
        else:
            assert bool((found > ard_kl(at) + 1e-3).all())


def test_the_cauchy_s_kl_of_other_means():
    at = grid(-4.0, 2.0, 5)
    mean = torch.full_like(at, -2.0)
    found = kl_divergence(RankNormal(mean, at), dist.Cauchy(torch.zeros_like(at), torch.ones_like(at)))
    torch.testing.assert_close(found, half_cauchy_kl(at, 0.5))
    with pytest.raises(NotImplementedError):
        kl_divergence(RankNormal(mean, at), dist.Cauchy(torch.ones_like(at), torch.ones_like(at)))


@pytest.mark.parametrize("prior", RANK_PRIORS)
def test_gradients(prior):
    log_alpha = grid().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: rank_prior_kl(v, prior), log_alpha)


def test_where_noise_without_signal_ends():
    at = grid(-10, 8, 1801)
    assert bool((ard_kl(at).diff() < 0).all()) and float(ard_kl(at)[-1]) < 2e-4
    cauchy = half_cauchy_kl(at)
    assert abs(float(at[cauchy.argmin()]) - 1.56) < 0.02 and float(cauchy.min()) > 0


def test_an_unknown_prior_is_refused():
    with pytest.raises(ValueError, match=r"^prior: got 'flat'; it must be one of log-uniform, half-cauchy, ard$"):
        rank_prior_kl(grid(), "flat")


@pytest.mark.parametrize("prior", ["half-cauchy", "ard"])
def test_planted_ranks_are_found_under_proper_priors(prior):
    found = fit_planted(PlantedTask(prior=prior, steps=1200), 2)
    assert found.kept().tolist() == [4, 4]
    assert float(found.error().max()) < 0.08
