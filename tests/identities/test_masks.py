"""Masks of a network, all 2^10 of them enumerated: evidence, posterior, and the gradient of the log-variance loss."""

import itertools

import pyro
import pytest
import torch

from guides import AmortisedMeanFieldGuide, BernoulliMaskGuide
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset, MaskedNetwork

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


PROPOSALS = [
    {},
    {"exploration": 0.5},
    {"temperature": 4.0},
    {"exploration": 1.0},
    {"exploration": 0.1, "temperature": 0.5},
]


@pytest.mark.parametrize("proposal", PROPOSALS[1:])
def test_draws_of_a_proposal_give_the_gradient_of_the_variance_under_it(pair, proposal):
    """½ Var_r[log p - log q] with r held fixed, and means under q for the bound and the model."""
    model, guide, data = pair
    log_p, log_q = enumerated(*pair)
    epsilon, temperature = proposal.get("exploration", 0.0), proposal.get("temperature", 1.0)
    with torch.no_grad():  # r, layer by layer and bit by bit
        seen, weight = guide.encoder(data).expand(len(MASKS), -1), torch.ones(len(MASKS)).double()
        for part, head in zip((MASKS[:, :5], MASKS[:, 5:]), guide.heads, strict=True):
            on = (1 - epsilon) * torch.sigmoid(head(seen) / temperature) + epsilon / 2
            weight = weight * torch.where(part == 1, on, 1 - on).prod(-1)
            seen = torch.cat([seen, part], -1)
    torch.testing.assert_close(weight.sum().item(), 1.0)
    log_w = log_p.detach() - log_q
    exact = gradient(0.5 * (weight * (log_w - (weight * log_w).sum()).square()).sum(), guide)
    bound = (log_q.exp() * (log_p - log_q)).sum()
    of_model = torch.autograd.grad((log_q.exp().detach() * log_p).sum(), list(model.parameters()), retain_graph=True)
    found, bounds, models = [], [], []
    for seed in range(40):
        torch.manual_seed(seed)
        terms = make("log-variance", num_particles=500, **proposal).terms(model, guide, data)
        bounds.append(terms.bound.detach())
        found.append(gradient(-terms.bound, guide))
        models.append(torch.cat([g.flatten() for g in torch.autograd.grad(terms.bound, list(model.parameters()))]))
    found, bounds, models = torch.stack(found), torch.stack(bounds), torch.stack(models)
    error = found.std(0) / 40**0.5
    assert float(((found.mean(0) - exact).abs() / (error + 1e-9)).square().mean()) < 2
    assert abs(bounds.mean() - bound) < 5 * bounds.std() / 40**0.5 + 0.02
    wanted = torch.cat([g.flatten() for g in of_model])
    assert (models.mean(0) - wanted).norm() < 0.1 * wanted.norm()
    evidence = torch.logsumexp(log_p, 0)
    assert abs(torch.logsumexp(terms.log_weights, 0) - torch.tensor(500.0).log() - evidence) < 0.3  # p / r is proper


def test_a_proposal_finds_what_the_guide_never_draws():
    """The guide starts on the wrong side with probability 1 - 6e-6: its draws hold no other; three times at once."""
    prior = torch.tensor([0.0, 3.0]).double()
    posterior, reached = torch.softmax(prior, -1)[1], {}

    def sites(bit, state, y=None):
        with pyro.plate("tasks", 3):
            a = pyro.sample("bit", pyro.distributions.Bernoulli(logits=bit[..., 1] - bit[..., 0]))
            b = pyro.sample("state", pyro.distributions.Categorical(logits=state))
            if y is not None:
                pyro.sample("y", pyro.distributions.Normal(0.0 * a + 0.0 * b, 1.0), obs=y)

    def model(y):
        sites(prior.expand(3, 2), prior.expand(3, 2), y)

    for exploration in (0.0, 0.3):
        torch.manual_seed(0)
        logits = torch.tensor([6.0, -6.0]).double().repeat(2, 3, 1).requires_grad_()

        def guide(y, logits=logits):
            sites(*logits)

        optimizer = torch.optim.Adam([logits], 0.2)
        objective = make("log-variance", num_particles=8, exploration=exploration, max_plate_nesting=1)
        for _ in range(150):
            optimizer.zero_grad()
            objective.differentiable_loss(model, guide, torch.zeros(3).double()).backward()
            optimizer.step()
        reached[exploration] = torch.softmax(logits.detach(), -1)[..., 1]
    assert bool((reached[0.0] < 0.01).all()) and bool(((reached[0.3] - posterior).abs() < 0.03).all()), reached


def test_without_exploration_it_is_as_it_was_and_with_it_tasks_may_be_ragged():
    torch.manual_seed(0)
    model = MaskedNetwork([1, 4, 1], noise_scale=0.7)
    guide = BernoulliMaskGuide(model, 8)
    batch = Dataset.pad([Dataset(torch.randn(n, 1), torch.randn(n, 1)) for n in (5, 2, 0)])
    found = []
    for options in ({}, {"exploration": 0.0, "temperature": 1.0}):
        torch.manual_seed(1)
        found.append(make("log-variance", **options).terms(model, guide, batch).bound)
    assert torch.equal(*found)
    terms = make("log-variance", num_particles=16, exploration=0.2, temperature=2.0).terms(model, guide, batch)
    assert terms.bound.shape == (3,) and terms.ess.shape == (3,)
    (-terms.bound.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.parameters() if p.grad is not None)
    assert set(terms.kl_by_site) == {"mask_0"}


def test_a_guide_without_discrete_sites_has_nothing_to_explore():
    model = BayesianNetwork([1, 3, 2], likelihood="gaussian-head")
    data = Dataset(torch.randn(4, 1), torch.randn(4, 1))
    with pytest.raises(ValueError, match=r"^exploration, temperature: got 0.1, 1.0, and the guide draws no Bernoulli"):
        make("log-variance", exploration=0.1).terms(model, AmortisedMeanFieldGuide(model, 4), data)
    with pytest.raises(ValueError, match=r"^temperature: got 0; it must be positive"):
        make("log-variance", temperature=0)


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_at_the_posterior_the_guides_loss_is_zero_draw_by_draw(proposal):
    """One mask bit and no hidden dependence: the guide can be the posterior, and any proposal may draw."""
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
    terms = make("log-variance", num_particles=50, **proposal).terms(model, guide, data)
    assert float(gradient(-terms.bound, guide).abs().max()) < 1e-10
    torch.testing.assert_close(terms.bound.detach(), torch.logsumexp(torch.stack(parts), 0).detach())


def test_it_needs_two_particles_and_its_own_family():
    with pytest.raises(ValueError, match="num_particles: got 1; a variance needs at least 2"):
        make("log-variance", num_particles=1)
    with pytest.raises(TypeError, match="BernoulliMaskGuide is a guide for a MaskedNetwork"):
        BernoulliMaskGuide(torch.nn.Linear(1, 1))
