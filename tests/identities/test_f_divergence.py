"""The class of f-divergences: its members are the library's other objectives, and the exact guide has no gradient."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from inference.objectives import FDivergence, alpha_divergence, make
from inference.objectives.f_divergence import WEIGHTS

Y = torch.tensor(0.7, dtype=torch.float64)


class Guide(nn.Module):
    """A Gaussian, which is the posterior at its default parameters."""

    def __init__(self, loc=0.35, scale=0.5**0.5):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64).log())

    def forward(self, y):
        pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))


def model(y):
    z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def gradient(objective, guide, seed=0):
    guide.zero_grad()
    torch.manual_seed(seed)
    terms = objective.terms(model, guide, Y)
    (-objective.reduce(terms)).backward()
    return torch.stack([p.grad for p in guide.parameters()]), terms


@pytest.mark.parametrize("divergence", [*WEIGHTS, alpha_divergence(0.3)])
def test_the_exact_guide_has_no_gradient(divergence):
    found, _ = gradient(FDivergence(16, divergence=divergence), Guide())
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


def test_members_that_are_objectives_here():
    guide = Guide(0.1, 1.1)
    rws, _ = gradient(make("rws", num_particles=32), guide)
    torch.testing.assert_close(gradient(FDivergence(32, divergence="forward-kl", baseline=False), guide)[0], rws)
    chi2, terms = gradient(make("chi2", num_particles=32), guide)
    found, _ = gradient(FDivergence(32, divergence="chi2", baseline=False), guide)
    torch.testing.assert_close(found * terms.ess / 32, chi2)
    # elbo takes the KL in closed form, which changes the noise and not the mean
    both = FDivergence(32, divergence="reverse-kl"), make("elbo", num_particles=32, estimator="score")
    many = [torch.stack([gradient(objective, guide, seed)[0] for seed in range(300)]) for objective in both]
    error = (many[0].var(0) / 300 + many[1].var(0) / 300).sqrt()
    assert ((many[0].mean(0) - many[1].mean(0)).abs() < 4 * error).all()


def exact(divergence, loc, scale):
    """The divergence of the posterior from N(loc, scale²) on a grid."""
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    p, q = dist.Normal(0.35, torch.tensor(0.5, dtype=torch.float64).sqrt()), dist.Normal(loc, scale)
    w = (p.log_prob(grid) - q.log_prob(grid)).exp()
    f = {
        "forward-kl": w * w.log(), "reverse-kl": -w.log(), "chi2": (w - 1) ** 2, "hellinger": (w.sqrt() - 1) ** 2,
        "jensen-shannon": 0.5 * (w * w.log() - (1 + w) * ((1 + w) / 2).log()),
        "alpha": (1 - w**0.7) / (0.3 * 0.7),
    }[divergence]  # fmt: skip
    return torch.trapezoid(q.log_prob(grid).exp() * f, grid)


@pytest.mark.parametrize("divergence", [*WEIGHTS, "alpha"])
def test_the_gradient_is_that_of_the_divergence(divergence):
    guide = Guide(0.1, 1.0)
    given = alpha_divergence(0.3) if divergence == "alpha" else divergence
    found = torch.stack([gradient(FDivergence(2_000, divergence=given), guide, seed)[0] for seed in range(40)])
    guide.zero_grad()
    exact(divergence, guide.loc, guide.log_scale.exp()).backward()
    wanted = -torch.stack([p.grad for p in guide.parameters()])
    error = found.std(0) / 40**0.5
    assert ((found.mean(0) - wanted).abs() < 4 * error + 0.02 * wanted.abs()).all()
    assert (wanted.abs() > 3 * error).all()


def test_alpha_is_renyi_but_for_a_factor():
    guide, alpha = Guide(0.1, 1.0), 0.4
    found = torch.stack(
        [gradient(FDivergence(4_000, divergence=alpha_divergence(alpha)), guide, s)[0] for s in range(30)]
    )
    renyi = torch.stack([gradient(make("renyi", alpha=alpha, num_particles=4_000), guide, s)[0] for s in range(30)])
    torch.manual_seed(0)
    log_w = make("iwae", num_particles=100_000).terms(model, guide, Y).log_weights
    powered = (log_w - log_w.logsumexp(0) + torch.tensor(1e5).log()).mul(1 - alpha).exp().mean()
    torch.testing.assert_close(found.mean(0) * alpha / powered, renyi.mean(0), rtol=0.05, atol=0.003)


def test_an_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match=r"^divergence: got 'wasserstein'; it must be"):
        FDivergence(divergence="wasserstein")
