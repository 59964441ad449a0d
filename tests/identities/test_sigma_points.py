"""Sigma points: exact on quadratics, without noise, of several sites, and refused where they are not defined."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from guides import AmortisedNormalGuide, BernoulliExpertGuide
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset, NeuralProcess, tasks

torch.manual_seed(0)
MAP = torch.randn(4, 3, dtype=torch.float64)
Y = torch.randn(5, 4, dtype=torch.float64)


def model(y):
    with pyro.plate("tasks", len(y)):
        a = pyro.sample("a", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(torch.zeros(1, dtype=torch.float64), 2.0).to_event(1))
        pyro.sample("y", dist.Normal(torch.cat([a, b], -1) @ MAP.mT, 0.5).to_event(1), obs=y)


class Guide(nn.Module):
    """One site correlated, the other given the first."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(0.3 * torch.randn(5, 2, dtype=torch.float64))
        self.tril = nn.Parameter(torch.tensor([[0.7, 0.0], [0.4, 0.5]], dtype=torch.float64))

    def forward(self, y):
        with pyro.plate("tasks", len(y)):
            a = pyro.sample("a", dist.MultivariateNormal(self.loc, scale_tril=self.tril.tril()))
            pyro.sample("b", dist.Normal(0.5 * a.sum(-1, keepdim=True) + 0.2, 0.3).to_event(1))


def value_and_gradient(objective, guide, seed):
    guide.zero_grad()
    torch.manual_seed(seed)
    loss = objective.differentiable_loss(model, guide, Y)
    loss.backward()
    return torch.cat([loss.detach().reshape(1), *(p.grad.flatten() for p in guide.parameters())])


def test_they_are_exact_on_quadratics_and_have_no_noise():
    guide = Guide()
    objective = make("elbo", num_particles=6, estimator="sigma-points")
    found = value_and_gradient(objective, guide, 0)
    assert torch.equal(found, value_and_gradient(objective, guide, 1))
    drawn = torch.stack([value_and_gradient(make("elbo", num_particles=2_000), guide, s) for s in range(30)])
    error = drawn.std(0) / 30**0.5
    assert ((drawn.mean(0) - found).abs() <= 4.5 * error + 1e-9).all()
    # in closed form: E‖y - M z‖² of a Gaussian
    loc = torch.cat([guide.loc, 0.5 * guide.loc.sum(-1, keepdim=True) + 0.2], -1)
    lift = torch.cat([torch.eye(2), 0.5 * torch.ones(1, 2)]).double() @ guide.tril.tril()
    covariance = lift @ lift.mT + torch.diag(torch.tensor([0.0, 0.0, 0.09]).double())
    spread = ((Y - loc @ MAP.mT).square().sum(-1) + (MAP @ covariance @ MAP.mT).trace()) / 0.25
    likelihood = -0.5 * spread - 4 * (torch.tensor(0.5).log() + 0.5 * torch.tensor(2 * torch.pi).log())
    terms = objective.terms(model, guide, Y)
    torch.testing.assert_close(terms.log_likelihood.detach(), likelihood.detach())


def test_an_amortised_guide_of_a_neural_process_is_trained_without_noise():
    model, guide = (m := NeuralProcess(1, 1, width=8, latent_dim=3)), None
    guide = AmortisedNormalGuide(m, 8)
    objective = make("elbo", num_particles=6, estimator="sigma-points")
    batch = tasks.gp("rbf", 3).batch(0)
    losses = [objective.differentiable_loss(model, guide, batch) for _ in range(2)]
    assert torch.equal(*[loss.detach() for loss in losses])
    losses[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.parameters() if p.grad is not None)


def test_what_they_are_not_defined_for_is_refused():
    with pytest.raises(ValueError, match=r"^num_particles: got 4; the sigma points of 3 latent dimensions are 6$"):
        make("elbo", num_particles=4, estimator="sigma-points").terms(model, Guide(), Y)
    network = BayesianNetwork([1, 2, 1], noise_scale=0.3)
    with pytest.raises(ValueError, match=r"^estimator: got 'sigma-points', and site 'layer_0.weight' is Drop"):
        make("elbo", num_particles=14, estimator="sigma-points").terms(
            network, BernoulliExpertGuide(network, 8), Dataset(torch.randn(2, 3, 1), torch.randn(2, 3, 1))
        )
