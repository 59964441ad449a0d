"""Models and guides in plain Pyro: its ELBOs, its AutoGuides, Predictive and NUTS take them as they are."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from torch.distributions import kl_divergence

from guides import AmortisedMeanFieldGuide, BernoulliExpertGuide, MCDropoutGuide
from pp_models import BayesianNetwork, tasks

SHAPES = {"layer_0.weight": (8, 2), "layer_1.weight": (8, 9), "layer_2.weight": (1, 9)}


@pytest.fixture
def model():
    return BayesianNetwork([1, 8, 8, 1])


@pytest.fixture
def batch():
    return tasks.gp("rbf", 4, 0).batch(0)


def step(model, guide, data, loss):
    return SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss).step(data)


@pytest.mark.parametrize("guide_class", [BernoulliExpertGuide, AmortisedMeanFieldGuide, MCDropoutGuide])
@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(num_particles=3, vectorize_particles=True),
        TraceMeanField_ELBO(num_particles=2),
        TraceGraph_ELBO(),
        RenyiELBO(alpha=0.5, num_particles=2),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_pyros_objectives_take_every_guide(model, batch, guide_class, loss):
    """Without points the bound on the evidence, which is 1, is minus the KL: from any objective, up to its noise."""
    guide = guide_class(model, width=8)
    before = [p.detach().clone() for p in guide.parameters()]
    assert math.isfinite(step(model, guide, batch.full, loss))
    assert any(not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))
    empty = batch.full.points(slice(0, 0))
    nodes = poutine.trace(guide).get_trace(empty).nodes
    kl = sum(kl_divergence(nodes[s]["fn"], model.prior.layer(i, [])).sum() for i, s in enumerate(SHAPES))
    found = torch.tensor([loss.loss(model, guide, empty) for _ in range(40)])
    if isinstance(loss, RenyiELBO):  # tighter than the ELBO, and still a bound
        assert 0 < float(found.mean()) < float(kl.detach())
    else:
        torch.testing.assert_close(found.mean(), kl.detach(), rtol=1e-4, atol=4 * float(found.std()) / 40**0.5)


@pytest.mark.parametrize("guide_class", [BernoulliExpertGuide, AmortisedMeanFieldGuide, MCDropoutGuide])
def test_predictive_draws_latents_and_outputs(model, batch, guide_class):
    drawn = Predictive(model, guide=guide_class(model, width=8), num_samples=5, parallel=True)(batch.full)
    assert {site: tuple(drawn[site].shape) for site in SHAPES} == {s: (5, 4, *shape) for s, shape in SHAPES.items()}
    assert drawn["y"].shape == (5, *batch.full.y.shape)


@pytest.mark.parametrize("guide_class", [AutoNormal, AutoDelta, AutoMultivariateNormal, AutoLowRankMultivariateNormal])
def test_pyros_autoguides_take_one_data_set(model, batch, guide_class):
    guide, data = guide_class(model), batch.full[0]
    assert math.isfinite(step(model, guide, data, Trace_ELBO()))
    pyro.set_rng_seed(3)
    found = Trace_ELBO().loss(model, guide, data)
    pyro.set_rng_seed(3)
    drawn = poutine.trace(guide).get_trace(data)
    scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(data)
    assert found == pytest.approx(float((drawn.log_prob_sum() - scored.log_prob_sum()).detach()), rel=1e-5)


def test_nuts_runs_on_one_data_set(model, batch):
    sampler = MCMC(NUTS(model), num_samples=3, warmup_steps=2, disable_progbar=True)
    sampler.run(batch.context[0])
    assert {site: tuple(v.shape) for site, v in sampler.get_samples().items()} == {
        s: (3, *v) for s, v in SHAPES.items()
    }
