"""Guides without amortisation: their densities, their KL, and the family that each can reach."""

import pyro
import pytest
import torch

from guides import BNNWeightGuide, GaussianVIGuide, GlobalInducingGuide
from inference import fit, predict
from inference.objectives import make
from pp_models import BayesianNetwork, DataError, Dataset, GivenGaussianPrior, LearnedGaussianPrior, LogUniformPrior
from pp_models.networks.priors import GRANULARITIES

SILENT = {"progress": False, "device": "cpu"}
CORRELATIONS = GRANULARITIES


def data(*batch, n=8):
    torch.manual_seed(1)
    x = torch.rand(*batch, n, 1, dtype=torch.float64) * 4 - 2
    return Dataset(x, (2 * x).sin() + 0.05 * torch.randn_like(x))


def randomised(guide):
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return guide


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_the_joint_density_is_the_dense_gaussian(correlation, batch):
    torch.manual_seed(0)
    model = BayesianNetwork([1, 3, 2]).double()
    guide = randomised(GaussianVIGuide(model, correlation, batch).double())
    d = Dataset(torch.zeros(*batch, 2, 1, dtype=torch.float64))
    trace = pyro.poutine.trace(guide).get_trace(d)
    trace.compute_log_prob()
    found = trace.nodes["layer_0.weight"]["unscaled_log_prob"] + trace.nodes["layer_1.weight"]["unscaled_log_prob"]
    flat = torch.cat([trace.nodes[s]["value"].flatten(-2) for s in guide.sites], -1)
    q = guide.posterior
    parts = [q.moments(i) for i in range(len(q.loc))]
    loc = torch.cat([m.reshape(*batch, -1) for m, _ in parts], -1)
    dense = torch.zeros(*batch, loc.shape[-1], loc.shape[-1], dtype=torch.float64)
    at = 0
    for _, factor in parts:
        blocks = [torch.diag_embed(factor.flatten(len(batch)))] if correlation == "weight" else [factor]
        if correlation == "unit":
            blocks = list(factor.unbind(-3))
        for block in blocks:
            n = block.shape[-1]
            dense[..., at : at + n, at : at + n] = block
            at += n
    expected = torch.distributions.MultivariateNormal(loc, scale_tril=dense).log_prob(flat)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_the_kl_is_exact_where_the_prior_is_as_fine(correlation, granularity):
    """The mean log-ratio over many draws is the KL that the objective takes."""
    torch.manual_seed(0)
    prior = LearnedGaussianPrior(granularity)
    model = BayesianNetwork([1, 3, 2], prior=prior).double()
    guide = randomised(GaussianVIGuide(model, correlation).double())
    d = data(n=3)
    d = Dataset(d.x, d.y.expand(3, 2))
    exact = make("elbo", num_particles=100).terms(model, guide, d).kl
    with pyro.plate("particles", 40_000, dim=-1), torch.no_grad():
        q = pyro.poutine.trace(guide).get_trace(d)
        p = pyro.poutine.trace(pyro.poutine.replay(model, trace=q)).get_trace(d)
    ratio = sum(
        q.nodes[s]["fn"].log_prob(q.nodes[s]["value"]) - p.nodes[s]["fn"].log_prob(q.nodes[s]["value"])
        for s in guide.sites
    )
    error = float(ratio.detach().std()) / 200
    assert abs(float(exact.detach()) - float(ratio.detach().mean())) < 4 * error


def evidence_gap(guide, model, d, exact, steps=600):
    fit(model, guide, d, make("elbo", num_particles=8), steps, learning_rate=1e-1, final_learning_rate=1e-3, **SILENT)
    with torch.no_grad():
        torch.manual_seed(0)
        return float(exact - make("elbo", num_particles=20_000).terms(model, guide, d).bound)


def test_what_is_correlated_decides_how_near_the_bound_comes():
    """One layer of two units: the exact posterior is Gaussian by unit, so UCVI and finer-grained kin reach it."""
    torch.manual_seed(0)
    model = BayesianNetwork([1, 1], noise_scale=0.3).double()
    x = torch.rand(12, 1, dtype=torch.float64) + 1.0
    d = Dataset(x, 0.7 * x)
    phi = torch.cat([x, torch.ones_like(x)], -1)
    covariance = phi @ phi.mT / 2 + 0.09 * torch.eye(12, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.zeros_like(x).squeeze(-1), covariance).log_prob(
        d.y.squeeze(-1)
    )
    gaps = {c: evidence_gap(GaussianVIGuide(model, c).double(), model, d, exact) for c in ("weight", "unit", "network")}
    assert gaps["weight"] > 0.3
    assert -0.02 < gaps["unit"] < 0.05 and -0.02 < gaps["network"] < 0.05
    inducing = evidence_gap(GlobalInducingGuide(model, d, 12).double(), model, d, exact)
    assert -0.02 < inducing < 0.1


def test_each_task_has_its_own_posterior():
    torch.manual_seed(0)
    d = data(2)
    d = Dataset(d.x, torch.stack([d.y[0], -d.y[0]]))
    model = BayesianNetwork([1, 10, 1], activation="tanh", noise_scale=0.1).double()
    for guide in (GaussianVIGuide(model, "weight", (2,)), GlobalInducingGuide(model, d, 8)):
        guide.double()
        fit(model, guide, d, make("elbo", num_particles=4), 500, learning_rate=1e-2, **SILENT)
        mean = predict(model, guide, d, d.x, 200, seed=0).mean
        assert float((mean - d.y).square().mean()) < 0.3 * float(d.y.square().mean())


def test_global_inducing_points_at_the_data_are_the_real_posterior():
    """With inducing inputs, targets and noise those of the data, one layer is Bayesian linear regression."""
    torch.manual_seed(0)
    model = BayesianNetwork([1, 1], noise_scale=0.3).double()
    d = data(n=6)
    guide = GlobalInducingGuide(model, d, 6, initial_noise=0.3).double()
    reference = BNNWeightGuide(model, final_targets="real", final_noise="real").double()
    found, expected = (pyro.poutine.trace(g).get_trace(d).nodes["layer_0.weight"]["fn"] for g in (guide, reference))
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.covariance(), expected.covariance(), rtol=1e-10, atol=1e-12)


def test_inducing_points_start_at_points_that_exist():
    torch.manual_seed(0)
    x = torch.arange(8.0).reshape(1, 8, 1).repeat(2, 1, 1)
    mask = torch.tensor([[True] * 8, [True] * 3 + [False] * 5])
    guide = GlobalInducingGuide(BayesianNetwork([1, 4, 1]), Dataset(x, x, mask), 5)
    assert set(guide.inputs[1].flatten().tolist()) == {0.0, 1.0, 2.0}
    assert torch.equal(guide.targets[-1], guide.inputs)


def test_bad_arguments():
    model = BayesianNetwork([1, 3, 1]).double()
    d = data()
    with pytest.raises(ValueError, match=r"^correlation: got 'row'; it must be one of weight, unit, layer, network$"):
        GaussianVIGuide(model, "row")
    with pytest.raises(ValueError, match=r"^initial_scale: got 0; it must be positive and finite$"):
        GaussianVIGuide(model, initial_scale=0)
    with pytest.raises(
        DataError, match=r"^data: got task dimensions \[2\]; this guide holds posteriors of tasks \[\] "
    ):
        GaussianVIGuide(model)(data(2))
    with pytest.raises(ValueError, match=r"^num_inducing: got 0; it must be at least 1$"):
        GlobalInducingGuide(model, d, 0)
    with pytest.raises(ValueError, match=r"^initial_noise: got 0; it must be positive and finite$"):
        GlobalInducingGuide(model, d, initial_noise=0)
    with pytest.raises(DataError, match=r"^data: a task has no point for inducing inputs to start at$"):
        GlobalInducingGuide(model, Dataset(d.x[:0], d.y[:0]))
    with pytest.raises(DataError, match=r"^data: y is None; inducing points start at observed points$"):
        GlobalInducingGuide(model, Dataset(d.x))
    with pytest.raises(DataError, match=r"^data: got task dimensions \[2\]; this guide was made for tasks \[\]$"):
        GlobalInducingGuide(model, d)(data(2))
    with pytest.raises(ValueError, match=r"^prior: got LogUniformPrior, which is not Gaussian; "):
        GlobalInducingGuide(BayesianNetwork([1, 3, 1], prior=LogUniformPrior()), d)
    for make_guide in (GaussianVIGuide, lambda m: GlobalInducingGuide(m, d)):
        with pytest.raises(ValueError, match=r"^model: it has a representation or path, which this guide cannot"):
            make_guide(BayesianNetwork([1, 3, 1], representation_dim=2))


def test_a_given_prior_can_be_the_start():
    means = [torch.full((3, 2), 5.0), torch.full((1, 4), -5.0)]
    model = BayesianNetwork([1, 3, 1], prior=GivenGaussianPrior(means, [torch.full_like(m, 1e-4) for m in means]))
    guide = GaussianVIGuide(model)
    assert float((guide.posterior.loc[0].detach() - 5.0).abs().max()) < 0.1
