"""Masks of a network, all 2^10 of them enumerated: evidence, posterior, and the gradient of the log-variance loss."""

import itertools

import pyro
import pytest
import torch

from guides import BernoulliMaskGuide
from inference.objectives import make
from pp_models import Dataset, MaskedNetwork

MASKS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=10))).double()  # of two layers of five units


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model = MaskedNetwork([1, 5, 5, 1], noise_scale=0.7).double()
    data = Dataset(torch.randn(6, 1).double(), torch.randn(6, 1).double())
    return model, BernoulliMaskGuide(model, 8).double(), data


def enumerated(model, guide, data):
    """log p(y, m) and log q(m | D) of every mask ``[1024]``."""
    values = {"mask_0": MASKS[:, :5], "mask_1": MASKS[:, 5:]}
    found = []
    for program in (model, guide):
        with pyro.plate("masks", len(MASKS), dim=-1):
            trace = pyro.poutine.trace(pyro.poutine.condition(program, data=values)).get_trace(data)
        trace.compute_log_prob()
        sites = {name: s["log_prob"] for name, s in trace.nodes.items() if name in values or name == "y"}
        found.append(sum(sites.values()))
    return found


def gradient(loss, guide):
    parts = torch.autograd.grad(loss, list(guide.parameters()), allow_unused=True, retain_graph=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


def test_the_gradient_of_the_variance_is_twice_that_of_the_divergence(pair):
    log_p, log_q = enumerated(*pair)
    torch.testing.assert_close(log_q.exp().sum().item(), 1.0)
    weight = log_q.exp().detach()
    centred = (log_p.detach() - log_q) - (weight * (log_p.detach() - log_q)).sum()
    variance = (weight * centred.square()).sum()
    kl = (log_q.exp() * (log_q - torch.log_softmax(log_p.detach(), 0))).sum()
    torch.testing.assert_close(gradient(variance, pair[1]), 2 * gradient(kl, pair[1]))


def test_the_loss_has_that_gradient_on_average_and_reports_the_elbo(pair):
    model, guide, data = pair
    log_p, log_q = enumerated(*pair)
    elbo = (log_q.exp() * (log_p - log_q)).sum()
    exact = gradient(-elbo, guide)
    found, bounds = [], []
    for seed in range(40):
        torch.manual_seed(seed)
        terms = make("log-variance", num_particles=500).terms(model, guide, data)
        bounds.append(terms.bound.item())
        found.append(gradient(-terms.bound, guide))
    found, bounds = torch.stack(found), torch.tensor(bounds)
    error = found.std(0) / 40**0.5
    assert float(((found.mean(0) - exact).abs() / (error + 1e-9)).square().mean()) < 2
    assert abs(bounds.mean().item() - elbo.item()) < 5 * float(bounds.std()) / 40**0.5
    evidence = torch.logsumexp(log_p, 0).item()
    assert bounds.mean().item() < evidence


def test_at_the_posterior_the_guides_loss_is_zero_draw_by_draw():
    """One mask bit and no hidden dependence: the guide can be the posterior."""
    model = MaskedNetwork([1, 1, 1], noise_scale=0.5).double()
    guide = BernoulliMaskGuide(model, 4).double()
    data = Dataset(torch.randn(4, 1).double(), torch.randn(4, 1).double())
    parts = []
    for bit in (0.0, 1.0):
        value = torch.tensor([bit]).double()
        trace = pyro.poutine.trace(pyro.poutine.condition(model, data={"mask_0": value})).get_trace(data)
        parts.append(trace.log_prob_sum())
    with torch.no_grad():
        guide.heads[0][-1].weight.zero_()
        guide.heads[0][-1].bias.fill_((parts[1] - parts[0]).item())
    terms = make("log-variance", num_particles=50).terms(model, guide, data)
    assert float(gradient(-terms.bound, guide).abs().max()) < 1e-10
    torch.testing.assert_close(terms.bound.detach(), torch.logsumexp(torch.stack(parts), 0).detach())


def test_it_needs_two_particles_and_its_own_family():
    with pytest.raises(ValueError, match="num_particles: got 1; a variance needs at least 2"):
        make("log-variance", num_particles=1)
    with pytest.raises(TypeError, match="BernoulliMaskGuide is a guide for a MaskedNetwork"):
        BernoulliMaskGuide(torch.nn.Linear(1, 1))
