"""Neural posterior estimation: its optimum on a known posterior, what is simulated, and what is refused."""

import logging

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from benchmarks import simulators
from guides import (
    AmortisedMultivariateNormalGuide,
    AmortisedNormalGuide,
    BernoulliExpertGuide,
    DirichletMixtureGuide,
    FlowGuide,
    NeuralProcessGuide,
)
from inference import fit
from inference.objectives import NPE, Simulations, make
from pp_models import BayesianNetwork, Dataset, LearnedGaussianPrior, MixtureDensityNetwork, NeuralProcess
from tests.guides.any_model.linear_gaussian import DESIGN, NOISE, PRIOR, draw, posterior


def single(y):
    w = pyro.sample("w", dist.Normal(torch.zeros_like(PRIOR), PRIOR).to_event(1))
    pyro.sample("y", dist.Normal(w @ DESIGN.mT, NOISE).to_event(1), obs=y)


Y = torch.zeros(4, dtype=torch.float64)


def guide_of_single():
    return AmortisedMultivariateNormalGuide(single, 8, example=(Y,), encoder=lambda y: y)


def divergence(guide, y):
    with torch.no_grad():
        q = guide.vector_distribution(y)
        return kl_divergence(posterior(y), MultivariateNormal(q.loc, q.covariance_matrix))


def train(guide, objective, steps=300, rate=0.05):
    optimizer = torch.optim.Adam(guide.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        objective.differentiable_loss(single, guide, Y).backward()
        optimizer.step()


def test_the_optimum_is_the_posterior_of_every_data_set():
    guide, y = guide_of_single(), draw(20)
    before = divergence(guide, y)
    train(guide, NPE(128))
    assert float(divergence(guide, y).mean()) < 0.05 < 0.5 < float(before.mean())


def test_simulations_that_were_made_once_serve_too():
    known = Simulations.drawn(single, (Y,), 2_000, batch_size=128)
    assert known.latents["w"].shape == (2_000, 3) and known.args[0].shape == (2_000, 4) and len(known[:5]) == 5
    guide, y = guide_of_single(), draw(20)
    before = divergence(guide, y)
    train(guide, NPE(1, simulate=known))
    assert float(divergence(guide, y).mean()) < 0.3 * float(before.mean())


def test_the_loss_is_minus_the_density_of_what_was_simulated():
    guide = guide_of_single()
    torch.manual_seed(4)
    loss = NPE(50).loss(single, guide, Y)
    torch.manual_seed(4)
    w = torch.randn(50, 3, dtype=torch.float64)  # as the objective draws: latents first, then data
    w = w * PRIOR
    y = w @ DESIGN.mT + NOISE * torch.randn(50, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = -guide.vector_distribution(y).log_prob(w).mean()
    assert loss == pytest.approx(float(expected))


@pytest.mark.parametrize("kind", [FlowGuide, AmortisedNormalGuide, BernoulliExpertGuide])
def test_tasks_of_a_dataset_are_simulated_at_its_inputs(kind):
    net = BayesianNetwork([1, 3, 1], noise_scale=0.3)
    guide, d = kind(net, 8), Dataset(torch.randn(2, 5, 1), torch.randn(2, 5, 1))
    terms = NPE(6).terms(net, guide, d)
    assert terms.bound.shape == (2,)


def test_fit_knows_it_by_name_and_trains_the_guide_alone():
    net = BayesianNetwork([1, 3, 1], noise_scale=0.3, prior=LearnedGaussianPrior("layer"))
    guide = AmortisedNormalGuide(net, 8)
    d = Dataset(torch.randn(4, 5, 1), torch.randn(4, 5, 1), torch.arange(5) < torch.tensor([[5], [3], [1], [0]]))
    before = [p.detach().clone() for p in net.parameters()]
    row = fit(net, guide, d, "npe", steps=150, learning_rate=1e-2, progress=False).history
    assert row[-1]["loss"] < row[0]["loss"] and not {"log_likelihood", "kl", "ess"} & row[-1].keys()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_mixture_of_strict_experts_is_simulated():
    model = MixtureDensityNetwork(3, 1, 1, "strict", width=8)
    terms = make("npe", num_particles=5).terms(model, DirichletMixtureGuide(model, 8), Dataset(torch.randn(2, 4, 1)))
    assert terms.bound.shape == (2,) and terms.log_weights is None


def test_a_point_mass_is_refused():
    model = NeuralProcess(1, 1, latent_dim=0, representation_dim=4, width=8)
    with pytest.raises(ValueError, match=r"^guide: it draws nothing, and a point mass has no density"):
        make("npe").terms(model, NeuralProcessGuide(model, 8), Dataset(torch.randn(2, 4, 1)))


def tied(x):
    t = pyro.sample("t", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(t.cumsum(0) if t.dim() else t, 1.0), obs=x)


def test_a_simulator_that_mixes_simulations_is_run_one_by_one(caplog):
    guide = AmortisedNormalGuide(tied, 8, example=(torch.tensor(0.0),))
    with caplog.at_level(logging.WARNING, logger="guidebook"):
        NPE(5).loss(tied, guide, torch.tensor(0.0))
    assert "particles of this model and guide are run one by one, for site 'x'" in caplog.text


def renamed(data):
    pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=data)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: NPE(2).loss(renamed, guide_of_single(), Y[0]),
            r"^model: site 'y' is observed, and no argument is call",
        ),
        (lambda: NPE(0), r"^num_particles: got 0; it must be at least 1$"),
        (lambda: Simulations({"z": Y}, (Y[:2],)), r"^latents, args: got \[2, 4\] simulations; it must be one number"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_exact_posterior_of_two_moons_is_the_one_that_its_density_gives():
    torch.manual_seed(0)
    x = torch.tensor([-0.3, 0.2])
    draws = simulators.two_moons_posterior(x, 4_000)
    side = torch.linspace(-1, 1, 801)
    grid = torch.cartesian_prod(side, side)
    total, gap = grid.sum(-1), grid[:, 1] - grid[:, 0]
    density = simulators.Crescent(torch.stack([-total.abs(), gap], -1) / 2**0.5).log_prob(x).exp()
    weight = (density / density.sum()).unsqueeze(-1)
    for power in (1, 2):
        torch.testing.assert_close(draws.pow(power).mean(0), (weight * grid.pow(power)).sum(0), rtol=0.05, atol=0.02)


def test_the_table_of_simulators_at_a_small_scale(monkeypatch):
    monkeypatch.setattr(simulators, "SIMULATORS", {"two moons": simulators.SIMULATORS["two moons"]})
    (row,) = simulators.main(1_000, 1, 300, most_epochs=12)
    assert row["FlowGuide, npe"] < row["prior"] - 0.05
    assert "| two moons | " in simulators.printed([row])


def test_weights_of_a_guide_that_npe_trained_are_good():
    guide = guide_of_single()
    train(guide, NPE(128), steps=200)
    y = draw(1)[0]
    log_weights = make("iwae", num_particles=500).terms(single, guide, y).log_weights
    weights = torch.softmax(log_weights.squeeze(), 0)
    assert float(1 / weights.square().sum()) > 200
