"""Sparse subspaces and spike-and-slab: density 1 is mean field, 2^p models are enumerated, a support is found."""

import itertools

import pyro
import pytest
import torch
from torch.distributions import kl_divergence

import guidebook as gb
from guides import BNNWeightGuide, GaussianVIGuide, SparseVIGuide
from guides.networks.sparse_vi import SparseNormal
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset, LearnedGaussianPrior, SpikeAndSlabPrior, StudentTPrior


def test_density_one_is_mean_field_bit_for_bit():
    data = Dataset(torch.randn(2, 6, 1), torch.randn(2, 6, 1))
    found = []
    for cls, options in ((GaussianVIGuide, {}), (SparseVIGuide, {"density": 1.0})):
        torch.manual_seed(0)
        model = BayesianNetwork([1, 5, 1], likelihood="gaussian")
        guide = cls(model, batch_shape=(2,), **options)
        torch.manual_seed(1)
        loss = make("elbo", num_particles=2).differentiable_loss(model, guide, data)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in guide.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_divergence_and_density_are_those_of_the_active_weights():
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3, 2), 0.7), 2)
    loc, scale, active = torch.randn(3, 2), torch.rand(3, 2) + 0.1, torch.rand(3, 2) < 0.5
    active[0, 0] = True
    q = SparseNormal(loc, scale, active, prior)
    each = kl_divergence(torch.distributions.Normal(loc, scale), prior.base_dist)
    torch.testing.assert_close(kl_divergence(q, prior), each[active].sum())
    draws = q.expand((40_000,)).rsample()
    assert bool((draws[:, ~active] == 0).all())
    ratio = q.log_prob(draws) - prior.log_prob(draws)
    assert abs(float(ratio.mean() - each[active].sum())) < 5 * float(ratio.std()) / 200


def test_a_planted_support_is_found():
    torch.manual_seed(0)
    support = [1, 4, 11]
    x = torch.randn(80, 15)
    data = Dataset(x, x[:, support].sum(-1, keepdim=True) + 0.1 * torch.randn(80, 1))
    model = BayesianNetwork([15, 1], likelihood="gaussian", noise_scale=0.1)
    guide = SparseVIGuide(model, density=4 / 16)
    gb.fit(
        model, guide, itertools.repeat(data), "elbo", steps=500, learning_rate=0.03, progress=False,
        callbacks=[lambda row: guide.update_subspace(0.3)],
    )  # fmt: skip
    weights = guide.posterior.loc[0].detach()[0] * guide.active[0][0]
    assert int(guide.active[0].sum()) == 4
    assert sorted(weights.abs().topk(3).indices.tolist()) == support
    with pytest.raises(ValueError, match="is not of independent Gaussian entries"):
        SparseVIGuide(BayesianNetwork([2, 1], prior=LearnedGaussianPrior("unit")))


def evidence_by_enumeration(prior, x, y, noise):
    """log Σ over the 2^p models of p(γ) N(y; 0, noise² I + Φ V_γ Φᵀ)."""
    phi = torch.cat([x, torch.ones_like(x[:, :1])], -1)
    p = phi.shape[-1]
    parts = []
    for gamma in itertools.product((True, False), repeat=p):
        chosen = torch.tensor(gamma)
        scale = torch.where(chosen, prior.slab, prior.spike) / (p**0.5 if prior.scale_by_fan_in else 1)
        share = torch.where(chosen, prior.inclusion, 1 - prior.inclusion).log().sum()
        covariance = noise**2 * torch.eye(len(x)).double() + (phi * scale.double() ** 2) @ phi.mT
        of_y = torch.distributions.MultivariateNormal(torch.zeros(len(x)).double(), covariance)
        parts.append(share + of_y.log_prob(y.squeeze(-1)))
    return torch.logsumexp(torch.stack(parts), 0)


def test_the_evidence_of_a_linear_model_is_that_of_the_enumerated_models():
    torch.manual_seed(0)
    prior = SpikeAndSlabPrior(inclusion=0.3, slab=1.0, spike=0.1)
    model = BayesianNetwork([1, 1], prior=prior, likelihood="gaussian", noise_scale=0.5).double()
    x = torch.randn(6, 1).double()
    data = Dataset(x, 0.8 * x + 0.2 * torch.randn(6, 1).double())
    line = torch.linspace(-4, 4, 801).double()
    a, b = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([a.flatten(), b.flatten()], -1).unsqueeze(-2)  # [G, 1, 2]
    with pyro.plate("grid", len(grid), dim=-1):
        trace = pyro.poutine.trace(pyro.poutine.condition(model, data={"layer_0.weight": grid})).get_trace(data)
    trace.compute_log_prob()
    joint = trace.nodes["layer_0.weight"]["log_prob"] + trace.nodes["y"]["log_prob"]
    by_grid = torch.logsumexp(joint.flatten(), 0) + 2 * torch.log(line[1] - line[0])
    torch.testing.assert_close(by_grid, evidence_by_enumeration(prior, x, data.y, 0.5), rtol=1e-4, atol=1e-4)


def test_a_mean_field_guide_stays_below_the_evidence_and_near_it():
    torch.manual_seed(0)
    prior = SpikeAndSlabPrior(inclusion=0.3, slab=1.0, spike=0.1)
    model = BayesianNetwork([2, 1], prior=prior, likelihood="gaussian", noise_scale=0.5).double()
    x = torch.randn(20, 2).double()
    data = Dataset(x, x[:, :1] + 0.5 * torch.randn(20, 1).double())
    guide = GaussianVIGuide(model).double()
    gb.fit(
        model, guide, itertools.repeat(data), "elbo", steps=300, learning_rate=0.03, progress=False, precision="64-true"
    )
    bound = float(make("elbo", num_particles=4000).terms(model, guide, data).bound.detach())
    exact = float(evidence_by_enumeration(prior, x, data.y, 0.5))
    assert exact - 2.0 < bound < exact + 0.1
    with pytest.raises(ValueError, match="spike: got 2; it must be below the slab"):
        SpikeAndSlabPrior(spike=2)


def test_the_evidence_under_heavy_tails_is_a_mixture_of_gaussian_ones():
    """A Student-t is a Gaussian whose precision is Gamma: the evidence of a linear model by either."""
    torch.manual_seed(0)
    df, scale, noise = 3.0, 0.8, 0.5
    model = BayesianNetwork(
        [1, 1], prior=StudentTPrior(df, scale, scale_by_fan_in=False), likelihood="gaussian", noise_scale=noise
    ).double()
    x = torch.randn(6, 1).double()
    data = Dataset(x, 2.5 * x + noise * torch.randn(6, 1).double())
    line = torch.linspace(-25, 25, 1201).double()
    a, b = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([a.flatten(), b.flatten()], -1).unsqueeze(-2)
    with pyro.plate("grid", len(grid), dim=-1):
        trace = pyro.poutine.trace(pyro.poutine.condition(model, data={"layer_0.weight": grid})).get_trace(data)
    trace.compute_log_prob()
    joint = trace.nodes["layer_0.weight"]["log_prob"] + trace.nodes["y"]["log_prob"]
    by_grid = torch.logsumexp(joint.flatten(), 0) + 2 * torch.log(line[1] - line[0])
    log_precision = torch.linspace(-9, 3, 241).double()
    gamma = torch.distributions.Gamma(torch.tensor(df / 2).double(), torch.tensor(df / 2).double())
    weight = gamma.log_prob(log_precision.exp()) + log_precision + torch.log(log_precision[1] - log_precision[0])
    p, q = torch.meshgrid(log_precision, log_precision, indexing="ij")
    variances = scale**2 / torch.stack([p.flatten(), q.flatten()], -1).exp()
    phi = torch.cat([x, torch.ones(6, 1).double()], -1)
    covariance = noise**2 * torch.eye(6).double() + (phi * variances.unsqueeze(-2)) @ phi.mT
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(data.y.squeeze(-1))
    mixture = torch.logsumexp(gaussian + (weight[:, None] + weight[None]).flatten(), 0)
    torch.testing.assert_close(by_grid, mixture, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"^df: got 0; it must be positive and finite"):
        StudentTPrior(df=0)
    with pytest.raises((TypeError, ValueError), match="prior"):
        BNNWeightGuide(model)
