"""Resampled draws against closed forms, by task and by plate."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import guidebook as gb
from tests.arviz_versions import CONTAINERS, NATIVE, elpd
from tests.normal_mean import exact, model

Y = torch.randn(12, generator=torch.Generator().manual_seed(0)) + 1.0


def wide(y):
    loc, scale = exact(y)
    pyro.sample("mean", dist.Normal(loc + 0.5 * scale, 1.6 * scale))


def test_resampled_draws_have_the_posteriors_moments_and_its_loo():
    raw = gb.from_pyro_svi(model, wide, Y, num_samples=3_000, seed=0, container=NATIVE)
    found = gb.resample(raw, seed=1)
    assert type(found) is type(raw) and "log_weight" not in found["sample_stats"]
    loc, scale = exact(Y)
    draws = found["posterior"]["mean"]
    assert draws.dims == ("chain", "draw") and draws.shape == (1, 3_000)
    assert abs(float(draws.mean()) - loc) < 0.15 * scale < abs(float(raw["posterior"]["mean"].mean()) - loc)
    assert float(draws.std()) == pytest.approx(scale, rel=0.08)
    assert float(raw["posterior"]["mean"].std()) > 1.4 * scale
    # leave one out in closed form: y_i | y_-i is normal
    total = 0.0
    for i in range(len(Y)):
        rest = torch.cat([Y[:i], Y[i + 1 :]])
        centre, spread = exact(rest)
        total += float(dist.Normal(centre, math.sqrt(1 + spread**2)).log_prob(Y[i]))
    assert abs(elpd(found) - total) < 0.12 < abs(elpd(raw) - total)
    for group in ("prior", "observed_data"):
        assert found[group].equals(raw[group])
    assert gb.resample(raw, 50)["posterior"].sizes["draw"] == 50
    with pytest.raises(ValueError, match=r"^idata: it has no sample_stats/log_weight, so its draws are equal already"):
        gb.resample(found)


@pytest.mark.parametrize("container", CONTAINERS)
def test_each_element_of_an_independent_plate_is_resampled_by_its_own_weights(container):
    def by_datum(y, seen):
        with pyro.plate("task", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.mask(mask=seen):
                pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y, seen):
        with pyro.plate("task", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 1.2))

    seen = torch.tensor([True, False] * 6)
    raw = gb.from_pyro_svi(by_datum, guide, Y, seen, num_samples=2_000, seed=0, container=container)
    found = gb.resample(raw)
    z = found["posterior"]["z"]
    assert z.dims == ("chain", "draw", "task")
    expected = torch.where(seen, Y / 2, torch.zeros(()))
    spread = torch.where(seen, torch.tensor(math.sqrt(0.5)), torch.tensor(1.0))
    np.testing.assert_allclose(z.mean(("chain", "draw")), expected, atol=0.12)
    np.testing.assert_allclose(z.std(("chain", "draw")), spread, rtol=0.12)
    each = found["log_likelihood"]["y"]  # six of twelve exist
    again = dist.Normal(torch.as_tensor(z.values[..., seen.numpy()]), 1.0).log_prob(Y[seen])
    np.testing.assert_allclose(each.values, again.numpy(), rtol=1e-4, atol=1e-5)  # the draw of its own element


def test_ragged_tasks_of_the_library(tmp_path):
    torch.manual_seed(0)
    stream = gb.tasks.gp("rbf", 3, 0)
    network = gb.BayesianNetwork([1, 3, 1], noise_scale=1.0)
    guide = gb.guides.AmortisedMeanFieldGuide(network, 8)
    data = stream.batch(0).context
    data = gb.Dataset(data.x, data.y, torch.rand(data.x.shape[:2]) < 0.7)
    raw = gb.to_arviz(network, guide, data, num_samples=400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gb.resample(raw)
    for group in ("posterior", "log_likelihood", "posterior_predictive"):
        assert dict(found[group].sizes) == dict(raw[group].sizes), group
    # each entry of the stacked log-likelihood is of a draw of its own task
    where = {float(v) for v in np.unique(raw["log_likelihood"]["y"].values[..., 0])}
    assert {float(v) for v in np.unique(found["log_likelihood"]["y"].values[..., 0])} <= where


def test_bad_weights_are_said():
    def narrow(y):
        loc, scale = exact(y)
        pyro.sample("mean", dist.Normal(loc, 0.1 * scale))

    raw = gb.from_pyro_svi(model, narrow, Y, num_samples=400, seed=0)
    with pytest.warns(UserWarning, match=r"^k-hat is above 0.6\d for 1 of 1 \(largest"):
        gb.resample(raw)
    with pytest.raises(ValueError, match="^idata: got int; it must be an InferenceData or a DataTree"):
        gb.resample(3)
