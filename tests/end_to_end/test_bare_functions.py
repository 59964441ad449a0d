"""A bare function and an AutoGuide: what works on them works, and what does not says in one line what does."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import guidebook as gb
from pp_models import DataError


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.fixture
def guide():
    found = AutoNormal(model)
    found(torch.zeros(8))
    return found


CALLS = {
    "sample_posterior": (lambda guide, y: gb.sample_posterior(model, guide, y, 10), "data", "pyro.infer.Predictive"),
    "to_arviz": (lambda guide, y: gb.to_arviz(model, guide, y), "data", "from_pyro_svi"),
    "predict": (lambda guide, y: gb.predict(model, guide, y, y), "context", "pyro.infer.Predictive"),
    "grade": (lambda guide, y: gb.grade(model, guide, y, {}), "data", "from_pyro_svi"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_needs_data_sets_says_what_serves_instead(name, guide):
    call, argument, instead = CALLS[name]
    shape = r"a Tensor of shape \[8\] and dtype torch.float32"
    rule = r"it must be a Dataset( or a TaskBatch)?, such as Dataset\(x, y\)"
    with pytest.raises(DataError, match=rf"^{argument}: got {shape}; {rule}. .* there is {instead}") as caught:
        call(guide, torch.zeros(8))
    assert "\n" not in str(caught.value)


def test_a_fit_says_what_trains_a_function(guide):
    line = r"^model: got model; it must be a Module. A function is trained by pyro.infer.SVI\(model, guide, .*\)$"
    with pytest.raises(ValueError, match=line):
        gb.fit(model, guide, torch.zeros(8), steps=1)


def test_a_prior_of_another_model_says_what_serves_instead():
    with pytest.raises(
        TypeError, match=r"^model: got a function; it must be a BayesianNetwork. .* pyro.infer.Predictive"
    ):
        gb.prior_predictive(model, torch.zeros(3, 1))


def test_what_works_on_them_works(guide):
    y = torch.randn(8)
    table = gb.compare_objectives(model, guide, y, objectives=["elbo", "iwae"])
    assert set(table["objective"]) == {"elbo", "iwae"} and bool(table["bound"].notna().all())
    assert gb.verdict(model, guide, y, nuts_seconds=0).level in ("use with importance weights", "do not trust")
    assert gb.from_pyro_svi(model, guide, y).posterior["mean"].shape[0] == 1
