"""Points as one dimension, priors' densities, approximate leave-one-out: what ArviZ 1.x's functions of data need."""

import warnings

import arviz_stats
import numpy as np
import pytest
import torch
import xarray
from torch.distributions import biject_to, constraints

import guidebook as gb
from evaluation.arviz.arviz_container import write_netcdf
from pp_models import BayesianNetwork, Dataset, MixtureDensityNetwork
from tests.arviz_versions import CONTAINERS, NATIVE, as_dataset, group_names


@pytest.fixture(autouse=True)
def calm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # untrained guides have weights that ArviZ warns about
        yield


def ragged():
    mask = torch.arange(7) < torch.tensor([4, 7, 5]).unsqueeze(-1)
    return Dataset(torch.randn(3, 7, 1), torch.randn(3, 7, 1), mask)


def pair(name="network"):
    torch.manual_seed(0)
    if name == "network":
        model = BayesianNetwork([1, 3, 1], noise_scale=0.5)
        return model, gb.guides.AmortisedMeanFieldGuide(model, 8, initial_scale=0.3)
    model = MixtureDensityNetwork(3, 1, 1, "strict", width=8)
    return model, gb.guides.DirichletMixtureGuide(model, 8)


def converted(name="network", data=None, **options):
    return gb.to_arviz(*pair(name), ragged() if data is None else data, 200, seed=1, **options)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("whole", [True, False])
def test_every_group_holds_the_points_that_exist(whole, container):
    data = ragged()
    if whole:
        data = Dataset(data.x, data.y)
    coords = {"task": ["a", "b", "c"]}
    stacked = converted(data=data, layout="observation", coords=coords, container=container)
    by_task = converted(data=data, coords=coords, container=container)
    keep = data.full_mask().numpy()
    for group in ("posterior_predictive", "prior_predictive"):
        found = as_dataset(stacked[group])["y"]
        assert found.dims == ("chain", "draw", "observation")
        np.testing.assert_array_equal(found.values, as_dataset(by_task[group])["y"].values[:, :, keep, 0])
    assert as_dataset(stacked["log_likelihood"])["y"].dims == ("chain", "draw", "observation")
    assert as_dataset(stacked["observed_data"])["y"].dims == ("observation",)
    np.testing.assert_array_equal(as_dataset(stacked["observed_data"])["y"].values, data.y.numpy()[keep][:, 0])
    assert as_dataset(stacked["constant_data"])["x"].dims == ("observation", "input")
    assert "mask" not in as_dataset(stacked["constant_data"])
    tasks = [coords["task"][t] for t in keep.nonzero()[0]]
    for group in ("observed_data", "log_likelihood", "posterior_predictive", "constant_data"):
        assert list(as_dataset(stacked[group])["task"].values) == tasks
    assert as_dataset(stacked["posterior"])["layer_0.weight"].dims[2] == "task"


def test_a_batch_of_tasks_and_an_unknown_target():
    data = ragged()
    batch = gb.TaskBatch(data, Dataset(torch.randn(3, 4, 1)))
    stacked = converted(data=batch, layout="observation")
    assert as_dataset(stacked["predictions"])["y"].dims == ("chain", "draw", "observation")
    assert as_dataset(stacked["predictions_constant_data"])["x"].shape == (12, 1)
    assert as_dataset(stacked["constant_data"])["context_x"].dims == ("task", "context_point", "input")


def test_arviz_reads_what_is_of_points():
    tree = converted(layout="observation", container="datatree")
    assert np.isfinite(arviz_stats.loo(tree).elpd)
    assert np.isfinite(arviz_stats.loo_pit(tree)["y"].values).all()
    assert np.isfinite(arviz_stats.metrics(tree, kind="rmse").mean)
    table = arviz_stats.psense_summary(tree, var_names=["layer_0.weight"], coords={"task": [0]})
    assert {"prior", "likelihood"} <= set(table.columns) and len(table) == 6
    constrained = converted("mixture", layout="observation", container="datatree")
    assert np.isfinite(arviz_stats.loo_pit(constrained)["y"].values).all()


def test_the_priors_density_is_in_log_p():
    model, guide = pair()
    data = Dataset(torch.randn(2, 5, 1), torch.randn(2, 5, 1))
    found = gb.to_arviz(model, guide, data, 30, seed=0)
    prior = as_dataset(found["log_prior"]).to_array().sum("variable")
    likelihood = as_dataset(found["log_likelihood"])["y"].sum("point")
    stats = as_dataset(found["sample_stats"])
    np.testing.assert_allclose((prior + likelihood).values, stats["log_p"].values, rtol=1e-5)
    np.testing.assert_array_equal(stats["lp"].values, stats["log_p"].values)
    site = as_dataset(found["posterior"])["layer_1.weight"]
    expected = torch.distributions.Normal(0.0, 0.5).log_prob(torch.as_tensor(site.values)).sum((-1, -2))
    np.testing.assert_allclose(as_dataset(found["log_prior"])["layer_1.weight"].values, expected.numpy(), rtol=1e-5)
    assert "unconstrained_posterior" not in group_names(found)


def test_constrained_draws_on_the_real_line():
    found = converted("mixture")
    free = torch.as_tensor(as_dataset(found["unconstrained_posterior"])["mixture_weights"].values)
    weights = torch.as_tensor(as_dataset(found["posterior"])["mixture_weights"].values)
    assert free.shape == (1, 200, 3, 2)
    torch.testing.assert_close(biject_to(constraints.simplex)(free), weights, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("container", CONTAINERS)
def test_one_dimension_of_draws(container, tmp_path):
    found = converted(sample_dims=["sample"], container=container, layout="observation")
    usual = converted(container=container, layout="observation")
    assert as_dataset(found["posterior"])["layer_0.weight"].dims[0] == "sample"
    np.testing.assert_array_equal(
        as_dataset(found["log_likelihood"])["y"].values, as_dataset(usual["log_likelihood"])["y"].values[0]
    )
    assert as_dataset(found["sample_stats"])["khat"].dims == ("task",)
    assert found.attrs["sample_dims"] == ["sample"] and found.attrs["created_at"].startswith("20")
    write_netcdf(found, tmp_path / "draws.nc")
    again = xarray.open_dataset(tmp_path / "draws.nc", group="posterior")
    assert list(np.atleast_1d(again.attrs["sample_dims"])) == ["sample"]


@pytest.mark.parametrize("kind", ["whole", "ragged", "one"])
@pytest.mark.parametrize("layout", ["task", "observation"])
def test_approximate_loo_is_arvizs_task_by_task(layout, kind):
    data = {"ragged": ragged(), "whole": Dataset(ragged().x, ragged().y), "one": Dataset(ragged().x[0], ragged().y[0])}[
        kind
    ]
    tree = converted(data=data, container="datatree", layout=layout)
    found = gb.approximate_loo(tree)
    total = 0.0
    for task in range(3) if kind != "one" else [None]:
        part = data if task is None else data[task]
        part = part if part.mask is None else part.points(part.mask.nonzero().squeeze(-1))
        part = Dataset(part.x, part.y)
        where = {} if task is None else {"task": task}
        stats = tree["sample_stats"].to_dataset().sel(where)
        points = tree["log_likelihood"].to_dataset()["y"]
        if "observation" in points.dims:
            points = points.isel(observation=np.flatnonzero(points.task.values == task)) if where else points
        else:
            points = points.sel(where)
        single = xarray.DataTree.from_dict(
            {
                "posterior": xarray.Dataset({"z": stats["log_p"]}),
                "log_likelihood": xarray.Dataset({"y": points.drop_vars(["task", "point"], errors="ignore")}),
            }
        )
        total += arviz_stats.loo_approximate_posterior(single, stats["log_p"], stats["log_q"]).elpd
    assert found.elpd == pytest.approx(float(total), rel=1e-6)
    assert found.pointwise.size == found.khat.size == int(data.counts.sum()) and found.se > 0


def test_approximate_loo_of_an_exact_posterior_is_loo():
    torch.manual_seed(0)
    module = torch.nn.Linear(1, 1).double()
    model = gb.BayesianModule(module, likelihood="gaussian", noise_scale=0.5)
    x = torch.randn(12, 1).double()
    data = Dataset(x, x + 0.5 * torch.randn(12, 1).double())
    guide = gb.guides.LastLayerGuide(model).fit(data)
    tree = gb.to_arviz(model, guide, data, 4000, seed=0, container="datatree", layout="observation")
    exact = arviz_stats.loo(tree).elpd
    assert gb.approximate_loo(tree).elpd == pytest.approx(float(exact), abs=1e-3)
    with torch.no_grad():
        guide.tril.mul_(1.5)
    wide = gb.to_arviz(model, guide, data, 4000, seed=0, container="datatree", layout="observation")
    assert abs(gb.approximate_loo(wide).elpd - exact) < 0.1 < abs(arviz_stats.loo(wide).elpd - exact)


def test_what_cannot_be_is_one_line():
    with pytest.raises(ValueError, match=r"^layout: got 'points'; it must be 'task' or 'observation'$"):
        converted(layout="points")
    with pytest.raises(
        ValueError, match=r"^sample_dims: got \['draw'\]; it must be \['chain', 'draw'\] or \['sample'\]$"
    ):
        converted(sample_dims=["draw"])
    tree = converted(container="datatree")
    with pytest.raises(ValueError, match="^var_name: got 'z'; it must be one of y$"):
        gb.approximate_loo(tree, "z")
    with pytest.raises(ValueError, match=r"^idata: it has no sample_stats/log_weight, .*: use az.loo$"):
        gb.approximate_loo(gb.resample(tree))
    with pytest.raises(ValueError, match="^idata: it has no group log_likelihood"):
        gb.approximate_loo(xarray.DataTree.from_dict({"posterior": tree["posterior"].to_dataset()}))
    assert NATIVE in CONTAINERS
