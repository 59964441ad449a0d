"""Distributions on the simplex: draws and densities near its edges, broken sticks, mixtures of experts."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pp_models import ExpertMixture, LogSpaceDirichlet, StickBreaking
from pp_models.mixtures.simplex_distributions import log_dirichlet_density, sample_log_dirichlet


def test_sparse_draws_stay_finite_and_reach_where_float32_ends():
    """docs/papers/nmdp.md, eq. 17, at α = 0.05 and L = 16."""
    torch.manual_seed(0)
    alpha = torch.full((16,), 0.05)
    log_z = sample_log_dirichlet(alpha, (4096,))
    assert log_z.shape == (4096, 16) and torch.isfinite(log_z).all()
    assert torch.isfinite(log_dirichlet_density(log_z.float(), alpha)).all()
    assert log_z.min() < -88
    assert (log_z.exp().mean(0) - 1 / 16).abs().max() < 0.012
    torch.manual_seed(0)
    z = LogSpaceDirichlet(alpha).sample((4096,))
    assert z.dtype == torch.float64 and (z > 0).all() and z.log().min() < -88
    torch.testing.assert_close(z.sum(-1), torch.ones(4096, dtype=torch.float64))
    log_prob = LogSpaceDirichlet(alpha).log_prob(z)
    assert log_prob.dtype == torch.float32 and torch.isfinite(log_prob).all()
    # what a float32 weight would have lost: E log z_l = ψ(α) - ψ(α₀), and torch's own draws end at -87
    expected = (alpha.digamma() - alpha.sum().digamma()).mean().item()
    assert z.log().mean().item() == pytest.approx(expected, abs=0.3)
    clamped = dist.Dirichlet(alpha).sample((4096,)).log()
    assert clamped.min() > -88 and (z.log() < -88).double().mean() > 0.01


def test_the_density_is_torchs_where_both_are_exact():
    torch.manual_seed(1)
    alpha = torch.rand(5, 4, dtype=torch.float64) * 3 + 0.2
    z = dist.Dirichlet(alpha).sample()
    torch.testing.assert_close(LogSpaceDirichlet(alpha).log_prob(z), dist.Dirichlet(alpha).log_prob(z))
    other = torch.rand(5, 4, dtype=torch.float64) + 0.5
    torch.testing.assert_close(
        kl_divergence(LogSpaceDirichlet(alpha), LogSpaceDirichlet(other)),
        kl_divergence(dist.Dirichlet(alpha), dist.Dirichlet(other)),
    )


def test_gradients_of_draws_are_those_of_the_expectation():
    """d E[z_1²] / dα against its closed form α_1 (α_1 + 1) / (α_0 (α_0 + 1))."""
    torch.manual_seed(2)
    alpha = torch.tensor([0.4, 1.5, 0.8], dtype=torch.float64, requires_grad=True)
    drawn = LogSpaceDirichlet(alpha).rsample((400_000,))[:, 0].square().mean()
    found = torch.autograd.grad(drawn, alpha)[0]
    total = alpha.sum()
    exact = torch.autograd.grad(alpha[0] * (alpha[0] + 1) / (total * (total + 1)), alpha)[0]
    assert exact.abs().max() > 0.1
    torch.testing.assert_close(found, exact, atol=3e-3, rtol=0)


def test_a_dirichlet_is_a_stick():
    torch.manual_seed(3)
    alpha = torch.rand(6, 5, dtype=torch.float64) * 2 + 0.1
    z = dist.Dirichlet(alpha).sample()
    stick = StickBreaking.from_dirichlet(alpha)
    torch.testing.assert_close(stick.log_prob(z), dist.Dirichlet(alpha).log_prob(z))
    torch.testing.assert_close(stick.mean, dist.Dirichlet(alpha).mean)
    torch.testing.assert_close(stick.variance, dist.Dirichlet(alpha).variance)
    other = dist.Dirichlet(torch.rand(6, 5, dtype=torch.float64) + 0.3)
    for p, q in ((stick, other), (dist.Dirichlet(alpha), StickBreaking.from_dirichlet(other.concentration))):
        torch.testing.assert_close(kl_divergence(p, q), kl_divergence(dist.Dirichlet(alpha), other))


def test_sticks_by_monte_carlo():
    torch.manual_seed(4)
    a, b = torch.tensor([0.3, 2.0, 0.7]), torch.tensor([1.2, 0.4, 3.0])
    stick, other = StickBreaking(a, b), StickBreaking(a + 0.5, b + 0.2)
    z = stick.sample((200_000,))
    assert z.dtype == torch.float64 and z.shape == (200_000, 4)
    torch.testing.assert_close(z.mean(0).float(), stick.mean, atol=4e-3, rtol=0)
    torch.testing.assert_close(z.var(0).float(), stick.variance, atol=4e-3, rtol=0)
    monte_carlo = (stick.log_prob(z) - other.log_prob(z)).mean()
    assert kl_divergence(stick, other).item() > 0.2
    torch.testing.assert_close(kl_divergence(stick, other), monte_carlo, atol=1e-2, rtol=0)
    # the density integrates to one: importance weights against a Dirichlet average to 1
    flat = LogSpaceDirichlet(torch.full((4,), 0.25))
    draws = flat.sample((200_000,))
    assert (stick.log_prob(draws) - flat.log_prob(draws)).exp().mean().item() == pytest.approx(1, abs=0.05)
    assert stick.expand((3, 2)).sample().shape == (3, 2, 4)


def mixture(batch=(), draws=()):
    torch.manual_seed(5)
    weights = torch.log_softmax(torch.randn(*draws, *batch, 1, 3), -1)
    experts = dist.Normal(3 * torch.randn(*batch, 4, 3, 2), 0.1 + torch.rand(*batch, 4, 3, 2)).to_event(1)
    return ExpertMixture(weights, experts)


def test_a_mixture_is_pyros_mixture():
    ours = mixture((2,), (5,))
    assert ours.batch_shape == (5, 2, 4) and ours.event_shape == (2,)
    theirs = dist.MixtureSameFamily(
        dist.Categorical(logits=ours.log_weights.expand(5, 2, 4, 3)), ours.experts.expand((5, 2, 4, 3))
    )
    y = torch.randn(2, 4, 2)
    torch.testing.assert_close(ours.log_prob(y), theirs.log_prob(y))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    wide = ours.expand((7, 5, 2, 4))
    torch.testing.assert_close(wide.log_prob(y), theirs.log_prob(y).expand(7, 5, 2, 4))
    assert wide.sample((3,)).shape == (3, 7, 5, 2, 4, 2)


def test_draws_of_a_mixture_have_its_moments():
    ours = mixture()
    draws = ours.sample((100_000,))
    torch.testing.assert_close(draws.mean(0), ours.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(draws.var(0), ours.variance, atol=0.15, rtol=0.02)


def test_quantiles_undo_the_distribution_function():
    ours = mixture((2,))
    levels = torch.tensor([0.025, 0.5, 0.9])
    found = ours.quantile(levels)
    assert found.shape == (3, 2, 4, 2)
    for level, value in zip(levels, found, strict=True):
        torch.testing.assert_close(ours.cdf(value), torch.full((2, 4, 2), float(level)), atol=1e-4, rtol=0)
    one = ExpertMixture(torch.zeros(1, 1), dist.Normal(torch.zeros(1, 1), torch.ones(1, 1)).to_event(0))
    assert one.quantile(0.975).item() == pytest.approx(1.959964, abs=1e-4)
    student = ExpertMixture(torch.zeros(1, 1), dist.StudentT(torch.full((1, 1), 4.0)))
    with pytest.raises(NotImplementedError):
        student.quantile(0.5)


def test_many_draws_of_the_weights_cost_one_evaluation_of_the_experts():
    ours = mixture((2,), (64,))
    calls = []
    normal = ours.experts.base_dist
    original = normal.log_prob
    normal.log_prob = lambda value: (calls.append(value.shape), original(value))[1]
    assert ours.log_prob(torch.randn(2, 4, 2)).shape == (64, 2, 4)
    assert calls == [torch.Size([2, 4, 1, 2])]
    assert math.prod(normal.loc.shape) == 2 * 4 * 3 * 2
