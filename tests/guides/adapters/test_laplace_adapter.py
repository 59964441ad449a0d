"""The curvature that Laplace's approximation of adapters rests on, against dense algebra."""

import pyro
import pytest
import torch
from torch import nn

from guides import LaplaceAdapterGuide
from pp_models import Dataset, LowRankAdapted
from tests.guides.adapters.test_adapter_guides import adapted


def test_laplace_is_exact_for_a_linear_gaussian_layer_in_one_factor():
    model = LowRankAdapted(nn.Sequential(nn.Linear(3, 1)), ["0"], rank=1, lora_alpha=1, likelihood="gaussian")
    layer = model.backbone[0]
    with torch.no_grad():
        nn.init.normal_(layer.lora_B)
    d = Dataset(torch.randn(400, 3), torch.randn(400, 1))
    guide = LaplaceAdapterGuide(model, prior_precision=2.0).fit_curvature(d, num_data=800)
    with torch.no_grad():
        hidden = d.x @ layer.lora_A.T
        expected = 2 * hidden.square().sum() / 0.1**2
    assert abs(float(guide.fisher[1]) / float(expected) - 1) < 0.15
    guide.eval()
    nodes = pyro.poutine.trace(guide).get_trace(d).nodes
    assert abs(float(nodes["0.lora_B"]["fn"].variance) * (2.0 + float(guide.fisher[1])) - 1) < 1e-5


def dense_curvature(model, x, factor):
    """The generalised Gauss-Newton matrix of one factor ``[mn, mn]``, from Jacobians and the likelihood's Hessian."""
    total = 0
    for row in x.split(1):
        outputs = model.outputs(row)
        jacobian = torch.stack([torch.autograd.grad(o, factor, retain_graph=True)[0].flatten() for o in outputs[0]])
        at = outputs.detach()
        label = model.likelihood(at).sample()
        hessian = torch.autograd.functional.hessian(lambda o, y=label: -model.likelihood(o).log_prob(y).sum(), at)
        total = total + jacobian.T @ hessian[0, :, 0] @ jacobian
    return total


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_kronecker_factors_are_exact_for_one_point(likelihood):
    model = adapted(likelihood=likelihood).double()
    guide = LaplaceAdapterGuide(model, 0.7, "kronecker").double()
    x = torch.randn(1, 5).double()
    guide.fit_curvature(Dataset(x)).eval()
    for number, factor in enumerate(guide._factors()):
        dense = dense_curvature(model, x, factor)
        torch.testing.assert_close(torch.kron(guide.gradients[number].data, guide.inputs[number].data), dense)
        posterior = guide.posterior(number, factor.detach())
        precision = dense + 0.7 * torch.eye(len(dense)).double()
        covariance = torch.linalg.inv(precision)
        torch.testing.assert_close(posterior.covariance_logdet(), torch.linalg.slogdet(covariance)[1])
        torch.testing.assert_close(posterior.variance.flatten(), covariance.diagonal())
        value = factor.detach() + 0.1 * torch.randn_like(factor)
        expected = pyro.distributions.MultivariateNormal(factor.detach().flatten(), precision_matrix=precision)
        torch.testing.assert_close(posterior.log_prob(value), expected.log_prob(value.flatten()))


def test_kronecker_is_exact_for_all_points_where_gradients_do_not_vary():
    model = LowRankAdapted(nn.Sequential(nn.Linear(3, 2)), ["0"], rank=2, likelihood="gaussian", noise_scale=0.3)
    model = model.double()
    with torch.no_grad():
        nn.init.normal_(model.backbone[0].lora_B)
    guide = LaplaceAdapterGuide(model, 1.0, "kronecker").double()
    x = torch.randn(90, 3).double()
    guide.fit_curvature(Dataset(x), num_data=180)
    for number, factor in enumerate(guide._factors()):
        dense = 2 * dense_curvature(model, x, factor)
        torch.testing.assert_close(torch.kron(guide.gradients[number].data, guide.inputs[number].data), dense)
    guide.prior_precision = 3e4
    posterior = guide.posterior(0, model.backbone[0].lora_A.detach())
    covariance = torch.linalg.inv(2 * dense_curvature(model, x, guide._factors()[0]) + 3e4 * torch.eye(6).double())
    torch.manual_seed(0)
    draws = (posterior.rsample((200_000,)) - posterior.mean).flatten(1)
    assert float((draws.T @ draws / len(draws) - covariance).norm() / covariance.norm()) < 0.01


def test_kronecker_of_other_likelihoods_draws_labels():
    model = LowRankAdapted(nn.Sequential(nn.Linear(3, 2)), ["0"], rank=2, likelihood="gaussian-head")
    with torch.no_grad():
        nn.init.normal_(model.backbone[0].lora_B)
    guide, d = LaplaceAdapterGuide(model, structure="kronecker"), Dataset(torch.randn(40, 3))
    state = torch.get_rng_state()
    first = [p.clone() for p in guide.fit_curvature(d).gradients]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, guide.fit_curvature(d).gradients, strict=True))
    assert all(float(torch.linalg.eigvalsh(p)[-1]) > 0 for p in first)


class WithPositions(nn.Module):
    """One layer called twice: on every point, and on positions that all points share."""

    def __init__(self):
        super().__init__()
        self.layer, self.positions = nn.Linear(3, 2), torch.randn(1, 4, 3)

    def forward(self, x):
        return self.layer(x) + self.layer(self.positions).sum((0, 1))


def test_kronecker_counts_every_call_of_a_layer_and_what_points_share_once_for_each():
    model = LowRankAdapted(WithPositions(), ["layer"], rank=2, lora_alpha=2, likelihood="gaussian", noise_scale=0.5)
    layer = model.backbone.layer
    with torch.no_grad():
        nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 3)
    guide = LaplaceAdapterGuide(model, structure="kronecker").fit_curvature(Dataset(x))
    places = torch.cat([x, *(model.backbone.positions[0] for _ in x)])
    hidden = places @ layer.lora_A.detach().T
    torch.testing.assert_close(guide.inputs[0].data, places.T @ places)
    torch.testing.assert_close(guide.inputs[1].data, hidden.T @ hidden)
    torch.testing.assert_close(guide.gradients[1].data, torch.eye(2) / 0.5**2)  # the same at every place
    layer_B = layer.lora_B.detach()
    torch.testing.assert_close(guide.gradients[0].data, layer_B.T @ layer_B / 0.5**2)
