"""The mixture guide: K = 1 is the independent Gaussian, two modes are both held, the bound is below the evidence."""

import pyro
import pyro.distributions as dist
import torch

from guides import AmortisedMixtureNormalGuide, AmortisedNormalGuide
from inference.objectives import make


def two_modes(y):
    """z's first entry is seen by its size alone: the posterior has modes near ±1."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z[..., 0].abs(), 0.1), obs=y)


Y = torch.tensor(1.0)
#: log p(y) by a grid
GRID = torch.linspace(-6, 6, 20_001)
EVIDENCE = float(
    torch.logsumexp(dist.Normal(0.0, 1.0).log_prob(GRID) + dist.Normal(GRID.abs(), 0.1).log_prob(Y), 0)
    + torch.log(GRID[1] - GRID[0])
)


def fitted(guide):
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.03)
    objective = make("elbo", num_particles=16)
    for _ in range(400):
        optimizer.zero_grad()
        objective.differentiable_loss(two_modes, guide, Y).backward()
        optimizer.step()
    with torch.no_grad():
        return float(make("elbo", num_particles=4000).terms(two_modes, guide, Y).bound)


def test_one_component_is_the_independent_gaussian():
    one = AmortisedMixtureNormalGuide(two_modes, components=1, encoder=None, example=(Y,))
    plain = AmortisedNormalGuide(two_modes, encoder=None, example=(Y,))
    with torch.no_grad():
        plain.numbers.copy_(torch.randn(4))
        one.numbers.copy_(plain.numbers)
    a, b = one.vector_distribution(Y), plain.vector_distribution(Y)
    value = torch.randn(7, 2)
    torch.testing.assert_close(a.log_prob(value), b.log_prob(value))
    torch.testing.assert_close(a.mean, b.mean)
    torch.testing.assert_close(a.variance, b.variance)


def test_two_components_hold_both_modes_and_stay_below_the_evidence():
    pyro.set_rng_seed(0)
    guide = AmortisedMixtureNormalGuide(two_modes, components=2, encoder=None, example=(Y,))
    with torch.no_grad():  # one on either side, as draws of the start may not be
        guide.numbers[:4] = torch.tensor([0.5, 0.0, -0.5, 0.0])
    both, one = fitted(guide), fitted(AmortisedNormalGuide(two_modes, encoder=None, example=(Y,)))
    assert one < EVIDENCE - 0.5 and EVIDENCE - 0.15 < both < EVIDENCE + 0.03  # one mode lacks log 2
    draws = guide.vector_distribution(Y).sample((1000,))[:, 0]
    assert 0.2 < float((draws > 0).float().mean()) < 0.8
