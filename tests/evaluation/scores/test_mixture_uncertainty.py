"""Closed forms of a Dirichlet's uncertainty against Monte-Carlo, typicality and AUROC against counting."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from evaluation.scores.mixture_uncertainty import (
    auroc,
    concentration_of,
    context_typicality,
    differential_entropy,
    entropy_of_mean,
    expected_entropy,
    mixture_uncertainty,
    mutual_information,
)
from pp_models import Dataset
from pp_models.task_plates import task_plates

ALPHA = torch.tensor(
    [[0.3, 0.3, 0.3, 0.3], [5.0, 1.0, 0.5, 0.2], [40.0, 30.0, 20.0, 10.0], [1.0, 1.0, 1.0, 1.0]]
).double()


def test_closed_forms_are_the_monte_carlo_ones():
    draws = torch.distributions.Dirichlet(ALPHA).sample((200_000,))
    found = mixture_uncertainty(ALPHA)
    entropy = -torch.special.xlogy(draws, draws).sum(-1)
    torch.testing.assert_close(found.expected_entropy, entropy.mean(0), rtol=0, atol=4e-3)
    mean = draws.mean(0)
    torch.testing.assert_close(found.entropy_of_mean, -(mean * mean.log()).sum(-1), rtol=0, atol=4e-3)
    log_density = torch.distributions.Dirichlet(ALPHA).log_prob(draws.clamp_min(1e-300))
    torch.testing.assert_close(found.differential_entropy, -log_density.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(found.total_concentration, ALPHA.sum(-1))
    reference = torch.distributions.Dirichlet(ALPHA).entropy()
    torch.testing.assert_close(found.differential_entropy, reference)


def test_mutual_information_is_what_one_assignment_tells():
    """I(z; c) = E_c KL(Dir(α + e_c) ‖ Dir(α)), the same number by another road."""
    ones = torch.eye(4).double()
    after = torch.distributions.Dirichlet(ALPHA.unsqueeze(-2) + ones)
    before = torch.distributions.Dirichlet(ALPHA.unsqueeze(-2).expand(4, 4, 4))
    mean = ALPHA / ALPHA.sum(-1, keepdim=True)
    expected = (mean * torch.distributions.kl_divergence(after, before)).sum(-1)
    torch.testing.assert_close(mutual_information(ALPHA), expected)


def test_limits():
    sure, sparse = torch.full((8,), 1e6).double(), torch.full((8,), 1e-3).double()
    assert float(mutual_information(sure)) == pytest.approx(0, abs=1e-5)
    assert float(entropy_of_mean(sure)) == pytest.approx(math.log(8)) == float(entropy_of_mean(sparse))
    assert float(expected_entropy(sparse)) < 0.02 < 2 < float(expected_entropy(sure))
    # of no use as a sign of ambiguity: low at both ends
    assert float(differential_entropy(sure)) < -40 and float(differential_entropy(sparse)) < -1000
    vertex = torch.tensor([1e4, 1e-3, 1e-3]).double()
    assert float(entropy_of_mean(vertex)) < 1e-4
    with pytest.raises(ValueError, match="alpha: got -1 as its least entry; a concentration must be positive"):
        mixture_uncertainty(torch.tensor([1.0, -1.0]))


class Follows(torch.nn.Module):
    """y ~ N(m, 1), m the mean of the context."""

    def forward(self, data):
        with task_plates(data.batch_shape, data.x.device):
            flat = dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1).mask(False)
            mean = pyro.sample("representation", flat).unsqueeze(-2)
            pyro.sample("y", dist.Normal(mean.expand(data.x.shape), 1.0).to_event(1).to_event(1), obs=data.y)


class Mean(torch.nn.Module):
    def forward(self, data):
        with task_plates(data.batch_shape, data.x.device):
            exists = data.full_mask().unsqueeze(-1)
            mean = (data.y * exists).sum(-2) / exists.sum(-2).clamp_min(1)
            pyro.sample("representation", dist.Delta(mean, event_dim=1))


def test_typicality_is_the_log_density_of_the_context_under_its_own_prediction():
    y = torch.tensor([[0.0, 2.0, 4.0, 6.0], [1.0, 1.0, 1.0, 1.0]]).unsqueeze(-1)
    data = Dataset(torch.zeros(2, 4, 1), y)
    constant = -0.5 * math.log(2 * math.pi)
    own = context_typicality(Follows(), Mean(), data)
    torch.testing.assert_close(own, torch.tensor([constant - 0.5 * 5.0, constant]))
    # points 0 and 2 given points 1 and 3, whose mean is 4: squared errors 16 and 0
    held_out = context_typicality(Follows(), Mean(), data, held_out=True)
    torch.testing.assert_close(held_out, torch.tensor([constant - 0.5 * 8.0, constant]))
    masked = Dataset(data.x, y, torch.tensor([[True, True, False, False], [True] * 4]))
    torch.testing.assert_close(context_typicality(Follows(), Mean(), masked)[0], torch.tensor(constant - 0.5))
    with pytest.raises(ValueError, match=r"data: got 1 point\(s\); at least 2 are needed"):
        context_typicality(Follows(), Mean(), data.points(slice(0, 1)), held_out=True)


def test_auroc_counts_pairs():
    inside, outside = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0])
    assert auroc(inside, outside) == pytest.approx((1 + 0.5 + 1 + 1 + 1) / 6)
    assert auroc(outside, inside) == pytest.approx(1 - auroc(inside, outside))
    with pytest.raises(ValueError, match="outside: got 0 scores; there must be some, all finite"):
        auroc(inside, torch.empty(0))
    with pytest.raises(ValueError, match="inside: got 1 scores"):
        auroc(torch.tensor([math.nan]), outside)


def test_concentrations_of_plain_and_refined_guides():
    from guides import ConjugateRefinement, DeterministicGateGuide, DirichletMixtureGuide
    from pp_models import MixtureDensityNetwork, tasks

    model = MixtureDensityNetwork(3, experts="strict", width=8)
    guide, data = DirichletMixtureGuide(model, 8), tasks.gp(batch_size=2, **tasks.TNP_COUNTS).batch(0).context
    torch.testing.assert_close(concentration_of(guide, data), guide.concentration(data))
    refined = concentration_of(ConjugateRefinement(model, guide), data)
    extra = refined.sum(-1) - guide.concentration(data).sum(-1)
    torch.testing.assert_close(extra, data.counts, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="guide: its weights are Delta; these scores need a Dirichlet"):
        concentration_of(DeterministicGateGuide(model, 8), data)
