"""from_pyro_svi on Pyro models that are not ours, with guides written by hand and AutoGuides, in both containers."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from pyro.optim import Adam

import evaluation
from tests.arviz_versions import CONTAINERS, elpd, group_names, statistics

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SPREADS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(spreads, effects=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(spreads)):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        value = pyro.deterministic("effect", mu + tau * theta)
        return pyro.sample("y", dist.Normal(value, spreads), obs=effects)


def fitted(guide, steps=300):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(eight_schools, guide, Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(steps):
        svi.step(SPREADS, EFFECTS)
    return guide


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("container", CONTAINERS)
def test_auto_guides(kind, container):
    guide = fitted(kind(eight_schools))
    data = evaluation.from_pyro_svi(
        eight_schools, guide, SPREADS, EFFECTS, num_samples=200, seed=0, container=container,
        coords={"school": list("ABCDEFGH")},
    )  # fmt: skip
    posterior = data["posterior"]
    assert set(posterior.data_vars) == {"mu", "tau", "theta", "effect"}
    assert posterior["theta"].dims == ("chain", "draw", "school") and posterior["theta"].shape == (1, 200, 8)
    assert posterior["effect"].dims == data["prior"]["effect"].dims == ("chain", "draw", "school")
    assert posterior["mu"].dims == ("chain", "draw")
    assert list(posterior["school"].values) == list("ABCDEFGH")
    for group in ("posterior_predictive", "log_likelihood", "prior_predictive"):
        assert data[group]["y"].dims == ("chain", "draw", "school")
    assert data["observed_data"]["y"].dims == ("school",)
    expected = dist.Normal(torch.tensor(posterior["effect"].values[0]), SPREADS).log_prob(EFFECTS)
    torch.testing.assert_close(torch.tensor(data["log_likelihood"]["y"].values[0]), expected, rtol=1e-4, atol=1e-4)
    stats = data["sample_stats"]
    assert set(stats.data_vars) == {"log_p", "log_q", "log_weight"} and stats["log_weight"].shape == (1, 200)
    torch.testing.assert_close(stats["log_p"].values - stats["log_q"].values, stats["log_weight"].values)
    assert "mu" in statistics(data).summary(data).index
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few draws: some k-hat are large
        assert elpd(data) < 0


def test_the_weights_are_those_of_the_joint_and_the_guide():
    def model(x):
        with pyro.plate("n", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("n", 3):
            pyro.sample("z", dist.Normal(0.5, 2.0))

    data = evaluation.from_pyro_svi(model, guide, torch.tensor(1.0), num_samples=20, seed=0)
    z = torch.tensor(data["posterior"]["z"].values[0])
    log_p = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(z.sum(-1), 1.0).log_prob(torch.tensor(1.0))
    log_q = dist.Normal(0.5, 2.0).log_prob(z).sum(-1)
    found = torch.tensor(data["sample_stats"]["log_weight"].values[0])
    torch.testing.assert_close(found, (log_p - log_q).double(), rtol=1e-5, atol=1e-5)


SEEN = torch.arange(6) < 4
VALUES = torch.where(SEEN, torch.linspace(-1, 1, 6), torch.full((), 1000.0))  # 1000 stands for "missing"


def by_handler(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", 6), pyro.poutine.mask(mask=SEEN):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def by_distribution(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Normal(mu, 1.0).mask(SEEN), obs=y)


def by_obs_mask(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=SEEN)


def by_event(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", 6), pyro.poutine.mask(mask=SEEN):
        pyro.sample("y", dist.Normal(mu, 1.0).expand([6, 1]).to_event(1), obs=y.unsqueeze(-1))


@pytest.mark.parametrize("model", [by_handler, by_distribution, by_obs_mask, by_event])
def test_what_a_mask_takes_out_scores_nothing(model):
    guide = AutoNormal(model)
    data = evaluation.from_pyro_svi(model, guide, VALUES, num_samples=30, seed=0, coords={"data": list("abcdef")})
    (name,) = data["log_likelihood"].data_vars
    found = torch.tensor(data["log_likelihood"][name].values[0])
    mu = torch.tensor(data["posterior"]["mu"].values[0]).unsqueeze(-1)
    expected = dist.Normal(mu, 1.0).log_prob(VALUES)
    torch.testing.assert_close(found, expected[..., SEEN], rtol=1e-5, atol=1e-5)
    assert list(data["log_likelihood"][f"{name}_data"].values) == list("abcd")
    observed = torch.tensor(data["observed_data"][name].values).flatten()
    assert torch.equal(observed.isnan(), ~SEEN) and torch.equal(observed[SEEN], VALUES[SEEN])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an untrained guide
        assert elpd(data) > -20  # -5e6 where 1000 counts


def test_a_factor_is_no_observation():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -z.square())
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def alone():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("likelihood", dist.Normal(z, 1.0).log_prob(torch.tensor(0.5)))

    def guide(*_):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    data = evaluation.from_pyro_svi(model, guide, torch.tensor(0.5), num_samples=9, seed=0)
    for group in ("log_likelihood", "observed_data", "posterior_predictive", "prior_predictive"):
        assert list(data[group].data_vars) == ["y"]
    assert list(data["posterior"].data_vars) == list(data["prior"].data_vars) == ["z"]
    z = torch.tensor(data["posterior"]["z"].values[0])
    expected = dist.Normal(z, 1.0).log_prob(torch.tensor(0.5)) - z.square()
    found = torch.tensor(data["sample_stats"]["log_weight"].values[0])
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)
    data = evaluation.from_pyro_svi(alone, guide, num_samples=9, seed=0)
    assert not {"log_likelihood", "observed_data"} & group_names(data)
    found = torch.tensor(data["sample_stats"]["log_weight"].values[0])
    expected = dist.Normal(torch.tensor(data["posterior"]["z"].values[0]), 1.0).log_prob(torch.tensor(0.5))
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)


def test_independent_data_have_weights_of_their_own():
    def model(y):
        pyro.deterministic("scale", torch.tensor(1.0))  # which ties nothing
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(y / 2, 0.5**0.5))

    y = torch.tensor([0.0, 1.0, -2.0])
    data = evaluation.from_pyro_svi(model, guide, y, num_samples=7, seed=0)
    weights = data["sample_stats"]["log_weight"]
    assert weights.dims == ("chain", "draw", "data")
    # the guide is the posterior: every weight is the evidence of its datum
    expected = dist.Normal(0.0, 2**0.5).log_prob(y).double().expand(7, 3)
    torch.testing.assert_close(torch.tensor(weights.values[0]), expected, rtol=1e-5, atol=1e-5)


def test_names_of_event_dimensions():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))

    data = evaluation.from_pyro_svi(
        model, guide, torch.tensor(0.0), num_samples=5, seed=0, dims={"w": ["unit", "input"]}
    )
    assert data["posterior"]["w"].dims == ("chain", "draw", "unit", "input")
    with pytest.raises(ValueError, match=r"^dims: got \['unit'\] for site 'w'; it has 2 event dimensions$"):
        evaluation.from_pyro_svi(model, guide, torch.tensor(0.0), num_samples=5, dims={"w": ["unit"]})


def test_refusals():
    def subsampled(x):
        with pyro.plate("n", len(x), subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def its_guide(x):
        with pyro.plate("n", len(x), subsample_size=2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"^model: plate 'n' is subsampled \(2 of 5\)"):
        evaluation.from_pyro_svi(subsampled, its_guide, torch.zeros(5), num_samples=2)
    with pytest.raises(ValueError, match=r"^guide: it lacks site 'mu', which the model samples$"):
        evaluation.from_pyro_svi(eight_schools, lambda *_: None, SPREADS, EFFECTS, num_samples=2)
    with pytest.raises(ValueError, match=r"^model: it observes nothing with these arguments"):
        evaluation.from_pyro_svi(eight_schools, AutoNormal(eight_schools), SPREADS, num_samples=2)
    with pytest.raises(ValueError, match=r"^num_samples: got 0; it must be at least 1$"):
        evaluation.from_pyro_svi(eight_schools, AutoNormal(eight_schools), SPREADS, EFFECTS, num_samples=0)
