"""Guides of any model on a linear Gaussian one: amortised over data sets, each is the best of its family."""

import math

import pytest
import torch
from torch.distributions import kl_divergence

from guides import (
    AmortisedLowRankNormalGuide,
    AmortisedMultivariateNormalGuide,
    AmortisedNormalGuide,
    FlowGuide,
)
from inference.objectives import make
from tests.guides.any_model.linear_gaussian import DESIGN, NOISE, PRIOR, draw, model, posterior


def linear(y):
    """Features in which the posterior mean is linear."""
    return y


def train(guide, steps, objective="elbo", rate=0.05, **options):
    loss = make(objective, **options)
    optimizer = torch.optim.Adam(guide.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss.differentiable_loss(model, guide, draw(32)).backward()
        optimizer.step()
        schedule.step()
    return guide


def of(kind, **options):
    return kind(model, 8, example=(draw(2),), encoder=linear, plates="tasks", **options)


@pytest.mark.parametrize(
    ("kind", "options"), [(AmortisedMultivariateNormalGuide, {}), (AmortisedLowRankNormalGuide, {"rank": 2})]
)
def test_a_gaussian_with_correlations_becomes_the_posterior_of_every_data_set(kind, options):
    guide = train(of(kind, **options), 400, num_particles=2, estimator="stl")
    y = draw(20)
    with torch.no_grad():
        q = guide.vector_distribution(y)
        kl = kl_divergence(torch.distributions.MultivariateNormal(q.loc, q.covariance_matrix), posterior(y))
        start = of(kind, **options).vector_distribution(y)
        before = kl_divergence(torch.distributions.MultivariateNormal(start.loc, start.covariance_matrix), posterior(y))
    assert float(kl.max()) < 0.01 < 1 < float(before.mean())


def test_a_diagonal_one_becomes_the_best_of_the_diagonal_ones():
    guide = train(of(AmortisedNormalGuide), 400, num_particles=2, estimator="stl")
    y = draw(20)
    precision = torch.diag(PRIOR**-2) + DESIGN.mT @ DESIGN / NOISE**2
    with torch.no_grad():
        q = guide.vector_distribution(y)
    torch.testing.assert_close(q.stddev, precision.diagonal().rsqrt().expand(20, 3), rtol=0.05, atol=0.0)
    torch.testing.assert_close(q.mean, posterior(y).mean, rtol=0.05, atol=0.1)


def test_a_flow_comes_nearer_to_every_posterior_than_the_best_diagonal_gaussian():
    guide = train(of(FlowGuide, transforms=2, hidden=[16]), 200, rate=0.02, num_particles=2, estimator="stl")
    y = draw(20)
    with torch.no_grad():
        q = guide.vector_distribution(y)
        z = q.rsample((400,))
        kl = (q.log_prob(z) - posterior(y).log_prob(z)).mean(0)
    precision = torch.diag(PRIOR**-2) + DESIGN.mT @ DESIGN / NOISE**2
    best_diagonal = 0.5 * (precision.diagonal().log().sum() - torch.linalg.slogdet(precision).logabsdet)
    assert float(kl.mean()) < 0.5 * float(best_diagonal)


def test_a_flow_starts_near_its_affine_part_and_has_the_density_of_its_draws():
    guide = of(FlowGuide, transforms=1, hidden=[8])
    y = draw(1)
    with torch.no_grad():
        q = guide.vector_distribution(y)
        grid = torch.cartesian_prod(*[torch.linspace(-7, 7, 57, dtype=torch.float64)] * 3)
        z = q.loc + q.scale * grid
        cell = (14 / 56) ** 3 * q.scale.prod()
        total = q.log_prob(z).exp().sum() * cell
        mean = (q.log_prob(z).exp().unsqueeze(-1) * z).sum(0) * cell
    assert math.isclose(float(total), 1.0, abs_tol=0.02)
    torch.testing.assert_close(q.mean[0], mean, rtol=0.02, atol=0.02)
    torch.testing.assert_close(q.rsample((20_000,)).mean(0)[0], mean, rtol=0.05, atol=0.05)
