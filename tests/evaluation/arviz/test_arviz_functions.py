"""ArviZ's own functions on what each paper's method produces, and posteriors written piece by piece."""

import warnings

import arviz
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray

import evaluation
from evaluation.arviz.arviz_conversion import fit_attributes
from evaluation.arviz.arviz_store import write_zarr
from guides import BernoulliExpertGuide, BNNWeightGuide, DirichletMixtureGuide, RankwiseGuide
from inference import fit
from pp_models import BayesianNetwork, Dataset, LowRankAdapted, MixtureDensityNetwork, tasks
from tests.arviz_versions import CONTAINERS, NATIVE, elpd, group_names, loo, statistics

PAIRS = {
    "nvdp": lambda: (m := BayesianNetwork([1, 6, 2], likelihood="gaussian-head"), BernoulliExpertGuide(m, 8)),
    "bnnp": lambda: (m := BayesianNetwork([1, 6, 1], activation="tanh"), BNNWeightGuide(m, width=8)),
    "nmdp": lambda: (m := MixtureDensityNetwork(3, 1, 1, "strict", width=8), DirichletMixtureGuide(m, 8)),
}


def adapted():
    """LRVD on a small network: one data set, and latents that all of it shares."""
    network = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    model = LowRankAdapted(network, ["0", "2"], rank=2, likelihood="gaussian", noise_scale=0.3)
    return model, RankwiseGuide(model)


PAIRS["lrvd"] = adapted
SITES = {"lrvd": "0.rank_scale", "nvdp": "layer_1.weight", "bnnp": "layer_1.weight", "nmdp": "mixture_weights"}


def posterior(name, container, seed=0):
    torch.manual_seed(seed)
    model, guide = PAIRS[name]()
    data: Dataset = tasks.gp("rbf", 3, num_context=(6, 6), max_points=20).batch(0).full
    coords = {"task": ["a", "b", "c"]}
    if name == "lrvd":
        data, coords = Dataset(torch.randn(40, 1), torch.randn(40, 1)), {}
    result = fit(model, guide, data, "elbo", steps=20, learning_rate=1e-2, progress=False)
    attrs = fit_attributes(result.objective, result.steps, seed)
    return evaluation.to_arviz(model, guide, data, 100, seed=0, container=container, coords=coords, attrs=attrs)


@pytest.fixture(scope="module")
def found():
    return {name: posterior(name, NATIVE) for name in PAIRS}


@pytest.fixture(autouse=True)
def calm():
    """Untrained posteriors have weights that ArviZ warns about; figures are closed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    plt.close("all")


@pytest.mark.parametrize("name", PAIRS)
def test_tables(found, name):
    data, site = found[name], SITES[name]
    table = statistics(data).summary(data, var_names=[site])
    assert len(table) == data.posterior[site].size // 100 and table["mean"].notna().all()
    assert np.isfinite(elpd(data)) and loo(data).n_data_points == data.log_likelihood["y"].size // 100
    assert data.posterior.attrs["objective"] == "elbo" and data.posterior.attrs["steps"] == "20"
    assert {"model", "guide", "seed", "objective"} <= set(data.attrs)
    assert any("torch" in key for key in data.attrs)
    assert data.sample_stats["khat"].dims == data.sample_stats["bound"].dims
    assert data.sample_stats["khat"].dims == (("chain",) if name == "lrvd" else ("chain", "task"))


#: named dimensions of each method's posterior, and some of their coordinates
NAMED = {
    "nvdp": {"task": ["a", "b", "c"], "layer_0_unit": [0, 1, 2, 3], "layer_0_input": ["x0", "bias"]},
    "bnnp": {"task": ["a", "b", "c"], "layer_0_unit": [0, 1], "layer_0_input": ["x0", "bias"]},
    "nmdp": {"task": ["a", "b", "c"], "expert": [0, 1, 2]},
    "lrvd": {"0.rank": [0, 1], "2.rank": [0, 1]},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", PAIRS)
def test_groups_attributes_and_coordinates_follow_the_schema(found, name, container):
    data = found[name] if container == NATIVE else posterior(name, container)
    drawn = {"posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood", "sample_stats"}
    drawn |= {"log_prior"} | ({"unconstrained_posterior"} if name == "nmdp" else set())
    names = group_names(data)
    assert names == drawn | {"observed_data", "constant_data"}
    assert {"log_p", "lp", "log_q", "log_weight", "bound", "khat"} == set(data["sample_stats"].data_vars)
    told = {"model", "guide", "objective", "steps", "seed", "inference_library", "inference_library_version"}
    told |= {"torch_version", "creation_library", "creation_library_version", "created_at", "sample_dims"}
    for group in names:
        values = data[group]
        assert told <= set(values.attrs), group
        assert set(values.dims) == set(values.coords) & set(values.dims), "a dimension without coordinates"
        for variable in values.data_vars.values():
            if group == "sample_stats" and variable.name in ("bound", "khat"):
                assert variable.dims[0] == "chain" and "draw" not in variable.dims
            elif group in drawn:
                assert variable.dims[:2] == ("chain", "draw") and variable.shape[:2] == (1, 100)
            else:
                assert "chain" not in variable.dims and "draw" not in variable.dims
    for dim, labels in NAMED[name].items():
        assert list(data["posterior"][dim].values)[: len(labels)] == labels, dim


def test_comparison(found):
    compared = {name: data for name, data in found.items() if name != "lrvd"}  # the same points
    table = statistics(found["nvdp"]).compare(compared)
    assert set(table.index) == set(PAIRS) - {"lrvd"} and table["rank"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", PAIRS)
def test_plots(found, name):
    data, site = found[name], SITES[name]
    only = {"var_names": [site], "coords": {} if name == "lrvd" else {"task": ["a"]}}
    if name in ("nvdp", "bnnp"):
        only["coords"][f"{site.split('.')[0]}_unit"] = [0]
    pairs = {**only, "coords": {**only["coords"]}}
    if name in ("nvdp", "bnnp"):
        dim = data["posterior"][site].dims[-1]
        pairs["coords"][dim] = list(data["posterior"][dim].values[:2])
    if NATIVE == "inferencedata":
        assert len(arviz.plot_forest(data, **only)) == 1
        assert arviz.plot_trace(data, **only, compact=True).shape[1] == 2
        drawn = [arviz.plot_pair(data, **pairs), arviz.plot_ppc(data, num_pp_samples=10), arviz.plot_khat(loo(data))]
    else:
        drawn = [
            arviz.plot_forest(data, **only),
            arviz.plot_dist(data, **only),
            arviz.plot_trace_dist(data, **only),
            arviz.plot_pair(data, **pairs),
            arviz.plot_ppc_dist(data, num_samples=10),
            arviz.plot_khat(loo(data)),
        ]
    assert all(each is not None for each in drawn)


@pytest.mark.parametrize("name", PAIRS)
def test_a_data_tree_for_arviz_1(name, found):
    tree, site = posterior(name, "datatree"), SITES[name]
    summary = statistics(tree).summary(tree, var_names=[site], round_to="none")
    draws = found[name]["posterior"][site].values
    assert summary["mean"].to_numpy(float) == pytest.approx(draws.mean((0, 1)).ravel(), rel=1e-4, abs=1e-6)
    assert elpd(tree) == pytest.approx(elpd(found[name]), rel=0.02)


def test_draws_written_piece_by_piece(tmp_path):
    torch.manual_seed(0)
    model, guide = PAIRS["bnnp"]()
    batch = tasks.gp("rbf", 3).batch(0)
    path = write_zarr(model, guide, batch, tmp_path / "posterior.zarr", 25, chunk_size=10, attrs={"steps": 3})
    tree = xarray.open_datatree(path, engine="zarr", consolidated=False)
    whole = evaluation.to_arviz(model, guide, batch, 10, seed=0, container="datatree")
    assert tree["posterior"].sizes["draw"] == 25 and list(tree["posterior"]["draw"].values) == list(range(25))
    assert set(tree.children) == set(whole.children)
    for group in ("posterior", "log_likelihood"):
        for name, value in whole[group].data_vars.items():
            np.testing.assert_array_equal(tree[group][name].values[:, :10], value.values)
    assert tree["posterior"].attrs["steps"] == "3"
    with pytest.raises(ValueError, match=r"^path: .* is not empty; name a new store$"):
        write_zarr(model, guide, batch, path, 5)
    with pytest.raises(ValueError, match=r"^chunk_size: got 0; it must be at least 1$"):
        write_zarr(model, guide, batch, tmp_path / "other", 5, chunk_size=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["posterior.zarr"]
