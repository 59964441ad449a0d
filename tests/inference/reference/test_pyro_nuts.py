"""NUTS for any Pyro model: known posteriors, chains, graphs that lie, and ArviZ containers of the draws."""

import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

import guidebook as gb
from evaluation.diagnostics import ess, rhat
from pp_models import Dataset, NeuralProcess
from tests import normal_mean


def test_moments_are_the_posterior_s_and_chains_agree():
    y = torch.randn(6, dtype=torch.float64) + 1
    result = gb.nuts(normal_mean.model, y, num_warmup=100, num_samples=250, num_chains=2, seed=1)
    mean, sd = normal_mean.exact(y)
    draws = result.by_chain()["mean"]
    assert draws.shape == (2, 250) and result.draws["mean"].shape == (500,) and result.divergent.shape == (2, 250)
    error = sd / math.sqrt(float(ess(draws)))
    assert abs(float(draws.mean()) - mean) < 4 * error and abs(float(draws.std()) / sd - 1) < 0.25
    assert float(rhat(draws)) < 1.05 and not torch.equal(draws[0], draws[1])
    again = gb.nuts(normal_mean.model, y, num_warmup=100, num_samples=250, num_chains=2, seed=1)
    assert torch.equal(again.draws["mean"], result.draws["mean"])


def branching(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 0.2 if z > 0 else 3.0), obs=y)


def test_a_graph_that_holds_one_branch_alone_is_not_used(caplog):
    y = torch.tensor(0.3)
    with caplog.at_level(logging.WARNING, logger="guidebook"):
        draws = gb.nuts(branching, y, num_warmup=100, num_samples=400).draws["z"]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and lines[0].startswith("nuts: the potential is not compiled (") and "\n" not in lines[0]
    grid = torch.linspace(-4, 4, 4001)
    scale = torch.where(grid > 0, 0.2, 3.0)
    weight = (dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid, scale).log_prob(y)).exp()
    below = float(weight[grid < 0].sum() / weight.sum())
    assert abs(float((draws < 0).double().mean()) - below) < 0.15


def test_an_own_model_without_a_twin_is_sampled_and_its_parameters_stay_trainable(caplog):
    model = NeuralProcess(1, 1, width=8, latent_dim=2)
    data = Dataset(torch.randn(4, 1), torch.randn(4, 1))
    with caplog.at_level(logging.WARNING, logger="guidebook"):
        result = gb.nuts(model, data, num_warmup=5, num_samples=5)
    assert result.draws["z"].shape == (5, 2) and not caplog.records
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match=r"^data: y is None; a posterior needs observed points$"):
        gb.nuts(model, data.without_y())
    with pytest.raises(ValueError, match=r"^model: got NeuralProcess, which no inputs are known of"):
        result.predict(data.x)


def mixture(y):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(locs[k], 0.5), obs=y)


def test_discrete_sites_that_are_enumerated_are_summed_out():
    y = torch.tensor([-2.0, -2.1, 2.0, 2.2])
    draws = gb.nuts(mixture, y, num_warmup=80, num_samples=40).draws
    assert set(draws) == {"locs"} and abs(float(draws["locs"].abs().mean()) - 2.0) < 0.4


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: None, {}, r"^model: it has no continuous latent"),
        (
            lambda: pyro.sample("z", dist.Normal(0.0, 1.0)).log() and None,
            {"num_chains": 0},
            r"^num_chains: got 0; it mu",
        ),
        (
            lambda: pyro.factor("f", pyro.sample("z", dist.Normal(0.0, 1.0)) * 0 - torch.inf),
            {},
            r"^model: .*initial params",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_line(model, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        gb.nuts(model, **options)
    assert "\n" not in str(caught.value)


def schools(y, errors):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("schools", len(y)):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + offset)
        pyro.sample("y", dist.Normal(theta, errors), obs=y)


def test_draws_become_a_container_by_chain_and_draw():
    y, errors = torch.tensor([3.0, 1.0, -2.0]), torch.tensor([1.0, 2.0, 3.0])
    result = gb.nuts(schools, y, errors=errors, num_warmup=20, num_samples=10, num_chains=2)
    idata = gb.from_pyro_mcmc(result, seed=0, coords={"schools": ["a", "b", "c"]})
    assert dict(idata.posterior.sizes) == {"chain": 2, "draw": 10, "schools": 3}
    torch.testing.assert_close(torch.from_numpy(idata.posterior["mu"].values), result.by_chain()["mu"])
    found = torch.from_numpy(idata.posterior["theta"].values)
    torch.testing.assert_close(found, result.by_chain()["mu"][..., None] + result.by_chain()["offset"])
    log_likelihood = torch.from_numpy(idata.log_likelihood["y"].values)
    torch.testing.assert_close(log_likelihood, dist.Normal(found, errors).log_prob(y))
    prior = dist.Normal(0.0, 5.0).log_prob(result.by_chain()["mu"])
    prior = prior + dist.Normal(0.0, 1.0).log_prob(result.by_chain()["offset"]).sum(-1)
    lp = torch.from_numpy(idata.sample_stats["lp"].values)
    torch.testing.assert_close(lp, (prior + log_likelihood.sum(-1)).double(), rtol=1e-5, atol=1e-5)
    assert idata.sample_stats["diverging"].values.dtype == bool and set(idata.prior.data_vars) >= {"mu", "offset"}


def test_pyro_s_own_mcmc_is_taken_with_its_model():
    y = torch.randn(4)
    mcmc = MCMC(NUTS(normal_mean.model), num_samples=6, warmup_steps=5, disable_progbar=True)
    mcmc.run(y)
    idata = gb.from_pyro_mcmc(mcmc, normal_mean.model, y)
    assert dict(idata.log_likelihood.sizes) == {"chain": 1, "draw": 6, "data": 4}
    with pytest.raises(ValueError, match=r"^model: got None; Pyro's MCMC does not say which model it sampled"):
        gb.from_pyro_mcmc(mcmc)

    def another(y):
        pyro.sample("other", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"^mcmc: it lacks site 'other', which the model samples$"):
        gb.from_pyro_mcmc(mcmc, another, y)


def with_a_parameter(y):
    spread = pyro.param("spread", torch.tensor(1.0, dtype=torch.float64))
    mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, spread), obs=y)


def test_chains_in_processes_have_the_draws_of_one_after_the_other():
    pyro.clear_param_store()
    pyro.param("spread", torch.tensor(0.3, dtype=torch.float64))  # what the processes must know of
    y = torch.linspace(-1, 1, 5, dtype=torch.float64)
    offset = 2.0  # a closure, which only some ways of sending know

    def shifted(y):
        with_a_parameter(y - offset)

    options = {"num_warmup": 20, "num_samples": 20, "num_chains": 2, "seed": 3}
    found = gb.nuts(shifted, y, chain_method="parallel", **options)
    expected = gb.nuts(shifted, y, **options)
    assert torch.equal(found.draws["mean"], expected.draws["mean"])
    assert torch.equal(found.divergent, expected.divergent) and found.num_chains == 2
    assert abs(float(found.draws["mean"].mean()) + 2) < 0.5
    pyro.clear_param_store()


def test_what_a_sampler_has_not_is_refused():
    with pytest.raises(
        ValueError, match=r"^chain_method: got 'vectorized'; of a function, which Pyro samples one chain"
    ):
        gb.nuts(normal_mean.model, torch.zeros(3), num_chains=2, chain_method="vectorized")
    network = gb.BayesianNetwork([1, 2, 1], likelihood="gaussian")
    data = Dataset(torch.randn(1, 3, 1), torch.randn(1, 3, 1))
    with pytest.raises(ValueError, match=r"^chain_method: got 'parallel'; of a BayesianNetwork, which NumPyro samples"):
        gb.nuts(network, data, 5, 5, chain_method="parallel")


def test_chains_side_by_side_of_a_twin():
    network = gb.BayesianNetwork([1, 1], likelihood="gaussian", noise_scale=0.5)
    data = Dataset(torch.randn(1, 6, 1), torch.randn(1, 6, 1))
    together = gb.nuts(network, data, 50, 50, num_chains=2, chain_method="vectorized")
    assert together.by_chain()["layer_0.weight"].shape == (2, 50, 1, 1, 2)
    draws = together.by_chain()["layer_0.weight"]
    assert not torch.equal(draws[0], draws[1])


def funnel():
    scale = pyro.sample("scale", dist.Normal(0.0, 3.0))
    pyro.sample("z", dist.Normal(0.0, (scale / 2).exp()).expand([9]).to_event(1))


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_draws_too_few_for_r_hat_are_draws(draws):
    y = torch.tensor([0.5])
    result = gb.nuts(normal_mean.model, y, num_warmup=2, num_samples=draws)
    assert result.divergent.shape == (1, draws)
    mcmc = MCMC(NUTS(normal_mean.model), num_samples=draws, warmup_steps=2, disable_progbar=True)
    mcmc.run(y)
    idata = gb.from_pyro_mcmc(mcmc, normal_mean.model, y)
    assert idata.sample_stats["diverging"].shape == idata.posterior["mean"].shape == (1, draws)


def test_divergent_draws_are_those_that_pyro_counts():
    torch.manual_seed(0)
    mcmc = MCMC(
        NUTS(funnel, step_size=1.0, adapt_step_size=False), num_samples=60, warmup_steps=1, disable_progbar=True
    )
    mcmc.run()
    expected = torch.zeros(1, 60, dtype=torch.bool)
    expected[0, mcmc.diagnostics()["divergences"]["chain 0"]] = True
    assert 0 < expected.sum() < 60
    found = gb.from_pyro_mcmc(mcmc, funnel, seed=0).sample_stats["diverging"].values
    assert torch.equal(torch.from_numpy(found), expected)
    assert 0 < gb.nuts(funnel, num_warmup=5, num_samples=100).divergent.sum() < 100
