"""to_arviz against direct computation, on models small enough to write down, in both containers."""

from contextlib import ExitStack

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray

from evaluation import to_arviz
from evaluation.arviz.arviz_conversion import pointwise_log_prob
from guides import AmortisedMeanFieldGuide
from pp_models import BayesianNetwork, Dataset, TaskBatch
from tests.arviz_versions import CONTAINERS, as_dataset, elpd, group_names, loo, statistics

S = 7  # draws; not a multiple of the chunk sizes below


def location_model(data):
    """One location for each task: mu ~ N(0, 1), y ~ N(mu, 0.5)."""
    with pyro.plate("tasks", data.batch_shape[0], dim=-1):
        mu = pyro.sample("mu", dist.Normal(data.x.new_zeros(()), 1.0))
        mean = mu[..., None, None].expand(*mu.shape, data.num_points, 1)
        likelihood = dist.Normal(mean, 0.5).mask(data.full_mask()[..., None]).to_event(2)
        return pyro.sample("y", likelihood, obs=data.y)


def location_posterior(data):
    """The exact posterior of location_model, by conjugacy."""
    precision = 1 + data.counts / 0.25
    total = (data.y[..., 0] * data.full_mask()).nansum(-1) / 0.25
    return total / precision, precision**-0.5


def exact_guide(data):
    mean, std = location_posterior(data)
    with pyro.plate("tasks", data.batch_shape[0], dim=-1):
        pyro.sample("mu", dist.Normal(mean, std))


def network_model(data):
    """A two-layer network with a weight matrix for each task, for any number of task dimensions."""
    plates = [pyro.plate(f"tasks_{k}", size, dim=k - len(data.batch_shape)) for k, size in enumerate(data.batch_shape)]
    with contexts(plates):
        w0 = pyro.sample("layer_0.weight", dist.Normal(data.x.new_zeros(3, 3), 1.0).to_event(2))
        w1 = pyro.sample("layer_1.weight", dist.Normal(data.x.new_zeros(2, 4), 1.0).to_event(2))
        hidden = torch.tanh(with_bias(data.x) @ w0.mT)
        mean = with_bias(hidden) @ w1.mT
        return pyro.sample("y", dist.Normal(mean, 0.1).to_event(2), obs=data.y)


def network_guide(data):
    plates = [pyro.plate(f"tasks_{k}", size, dim=k - len(data.batch_shape)) for k, size in enumerate(data.batch_shape)]
    with contexts(plates):
        pyro.sample("layer_0.weight", dist.Normal(data.x.new_zeros(3, 3), 0.1).to_event(2))
        pyro.sample("layer_1.weight", dist.Normal(data.x.new_ones(2, 4), 0.1).to_event(2))


def contexts(plates):
    stack = ExitStack()
    for plate in plates:
        stack.enter_context(plate)
    return stack


def with_bias(x):
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def location_data(num_tasks=3, num_points=5, dtype=torch.float32):
    y = torch.randn(num_tasks, 1, 1) + 0.5 * torch.randn(num_tasks, num_points, 1)
    return Dataset(torch.rand(num_tasks, num_points, 1, dtype=dtype), y.to(dtype))


def network_data(*batch_shape, num_points=4):
    return Dataset(torch.randn(*batch_shape, num_points, 2), torch.randn(*batch_shape, num_points, 2))


def draws(variable):
    """A variable's values without its single chain, as a tensor."""
    return torch.from_numpy(np.asarray(variable.values))[0]


def test_the_exact_posterior_has_the_same_log_weight_in_every_draw():
    data = location_data(dtype=torch.float64)
    idata = to_arviz(location_model, exact_guide, data, S, chunk_size=3)
    weight = draws(idata.sample_stats["log_weight"])
    assert weight.shape == (S, 3)
    assert weight.std(0).max().item() < 1e-10
    # and that number is the log evidence, here from the dense Gaussian
    covariance = 0.25 * torch.eye(5) + torch.ones(5, 5)
    evidence = dist.MultivariateNormal(torch.zeros(5).double(), covariance.double()).log_prob(data.y[..., 0])
    torch.testing.assert_close(weight[0], evidence)


def test_log_p_and_log_q_are_those_of_a_direct_computation():
    data = network_data(3)
    idata = to_arviz(network_model, network_guide, data, S, chunk_size=3)
    w0, w1 = (draws(idata.posterior[f"layer_{i}.weight"]) for i in (0, 1))
    mean = with_bias(torch.tanh(with_bias(data.x) @ w0.mT)) @ w1.mT
    points = dist.Normal(mean, 0.1).log_prob(data.y).sum(-1)
    prior = sum(dist.Normal(0.0, 1.0).log_prob(w).sum((-1, -2)) for w in (w0, w1))
    log_q = sum(dist.Normal(m, 0.1).log_prob(w).sum((-1, -2)) for m, w in ((0.0, w0), (1.0, w1)))
    stats = idata.sample_stats
    torch.testing.assert_close(draws(idata.log_likelihood["y"]), points)
    torch.testing.assert_close(draws(stats["log_p"]), (prior + points.sum(-1)).double(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(draws(stats["log_q"]), log_q.double(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(draws(stats["log_weight"]), draws(stats["log_p"]) - draws(stats["log_q"]))
    assert stats["log_p"].dtype == np.float64


def test_dimensions_and_coordinates_have_real_names():
    idata = to_arviz(network_model, network_guide, network_data(3), S, coords={"task": ["a", "b", "c"]})
    first, second = idata.posterior["layer_0.weight"], idata.posterior["layer_1.weight"]
    assert first.dims == ("chain", "draw", "task", "layer_0_unit", "layer_0_input")
    assert first.shape == (1, S, 3, 3, 3)
    assert second.shape == (1, S, 3, 2, 4)
    assert first["layer_0_input"].values.tolist() == ["x0", "x1", "bias"]
    assert second["layer_1_input"].values.tolist() == ["unit 0", "unit 1", "unit 2", "bias"]
    assert second["layer_1_unit"].values.tolist() == [0, 1]
    assert first["task"].values.tolist() == ["a", "b", "c"]
    assert idata.posterior_predictive["y"].dims == ("chain", "draw", "task", "point", "output")
    assert idata.log_likelihood["y"].dims == ("chain", "draw", "task", "point")
    assert idata.observed_data["y"].dims == ("task", "point", "output")
    assert idata.constant_data["x"].dims == ("task", "point", "input")
    assert idata.prior["layer_0.weight"].dims == first.dims
    assert idata.attrs["model"] == "network_model"
    assert idata.attrs["inference_library_version"] == pyro.__version__


@pytest.mark.parametrize("batch_shape", [(), (2,), (2, 3), (1,)])
def test_any_number_of_task_dimensions(batch_shape):
    idata = to_arviz(network_model, network_guide, network_data(*batch_shape), S)
    tasks = ("task", "task_1")[: len(batch_shape)]
    assert idata.posterior["layer_1.weight"].dims == ("chain", "draw", *tasks, "layer_1_unit", "layer_1_input")
    assert idata.posterior["layer_1.weight"].shape == (1, S, *batch_shape, 2, 4)
    assert idata.sample_stats["log_weight"].shape == (1, S, *batch_shape)
    assert idata.posterior_predictive["y"].shape == (1, S, *batch_shape, 4, 2)
    assert idata.log_likelihood["y"].shape == (1, S, *batch_shape, 4)


@pytest.mark.parametrize("container", CONTAINERS)
def test_groups_of_a_task_batch_split_context_and_target(container):
    full = location_data(num_points=8, dtype=torch.float64)
    batch = full.split(3)
    idata = to_arviz(location_model, exact_guide, batch, 4000, container=container, seed=1)
    assert group_names(idata) == {
        *("posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood"),
        *("observed_data", "constant_data", "sample_stats", "log_prior"),
    }
    mean, std = location_posterior(batch.context)  # the guide saw the context alone
    mu = draws(idata.posterior["mu"])
    assert ((mu.mean(0) - mean).abs() < 5 * std / 4000**0.5).all()
    torch.testing.assert_close(torch.from_numpy(idata.observed_data["y"].values), batch.target.y)
    torch.testing.assert_close(torch.from_numpy(idata.constant_data["context_y"].values), batch.context.y)
    expected = dist.Normal(mu[..., None], 0.5).log_prob(batch.target.y[..., 0])
    torch.testing.assert_close(draws(idata.log_likelihood["y"]), expected)
    assert draws(idata.sample_stats["log_weight"]).std(0).max().item() < 1e-10  # exact on what the guide saw
    predictive = draws(idata.posterior_predictive["y"])
    torch.testing.assert_close(
        predictive.std(0)[..., 0], (std**2 + 0.25).sqrt()[:, None].expand(3, 5), rtol=0.06, atol=0
    )
    prior = draws(idata.prior_predictive["y"])
    assert prior.std().item() == pytest.approx(1.25**0.5, rel=0.06)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_target_without_y_is_predicted_and_not_scored(container):
    batch = location_data().split(2)
    asked = TaskBatch(batch.context, batch.target.without_y())
    idata = to_arviz(location_model, exact_guide, asked, S, container=container)
    assert idata.predictions["y"].shape == (1, S, 3, 3, 1)
    assert set(idata.predictions_constant_data.data_vars) == {"x", "mask"}
    assert set(idata.constant_data.data_vars) == {"context_x", "context_y", "context_mask"}
    assert group_names(idata) == {
        *("posterior", "predictions", "predictions_constant_data", "prior", "prior_predictive"),
        *("constant_data", "sample_stats", "log_prior"),
    }


def test_an_empty_context_gives_the_prior():
    data = location_data()
    batch = TaskBatch(data.points(slice(0, 0)), data)
    idata = to_arviz(location_model, exact_guide, batch, S)
    assert idata.sample_stats["log_weight"].values == pytest.approx(np.zeros((1, S, 3)), abs=1e-6)


def test_ragged_tasks_score_their_existing_points_alone():
    data = Dataset.pad([Dataset(torch.rand(n, 1), torch.randn(n, 1)) for n in (2, 4)])
    idata = to_arviz(location_model, exact_guide, data, S, chunk_size=3, coords={"task": ["a", "b"]})
    assert idata.constant_data["mask"].values.tolist() == [[True, True, False, False], [True] * 4]
    assert np.isnan(idata.observed_data["y"].values).sum() == 2
    points = idata.log_likelihood["y"]
    assert points.dims == ("chain", "draw", "observation")
    assert points["task"].values.tolist() == ["a"] * 2 + ["b"] * 4
    assert points["point"].values.tolist() == [0, 1, 0, 1, 2, 3]
    mu, scores = draws(idata.posterior["mu"]), draws(points)
    torch.testing.assert_close(scores[:, 2:], dist.Normal(mu[:, 1:], 0.5).log_prob(data.y[1, :, 0]))
    expected = dist.Normal(0.0, 1.0).log_prob(mu[:, 0]) + scores[:, :2].sum(-1)
    torch.testing.assert_close(draws(idata.sample_stats["log_p"])[:, 0].float(), expected)


def test_padded_points_of_a_single_dataset_are_left_out():
    data = network_data(num_points=4)
    masked = Dataset(data.x, data.y, torch.tensor([True, False, True, True]))
    idata = to_arviz(network_model, network_guide, masked, S)
    assert idata.log_likelihood["y"].shape == (1, S, 3)
    assert idata.constant_data["x"].values == pytest.approx(data.x[[0, 2, 3]].numpy())


def shared_model(data):
    """A scale shared by all tasks, and an offset for each."""
    scale = pyro.sample("scale", dist.LogNormal(data.x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("tasks", data.batch_shape[0], dim=-1):
        offset = pyro.sample("offset", dist.Normal(data.x.new_zeros(()), 1.0))
        mean = data.x * scale[..., None, :1] + offset[..., None, None]
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(2), obs=data.y)


def shared_guide(data):
    pyro.sample("scale", dist.LogNormal(data.x.new_zeros(2), 0.1).to_event(1))
    with pyro.plate("tasks", data.batch_shape[0], dim=-1):
        pyro.sample("offset", dist.Normal(data.x.new_zeros(()), 0.1))


def test_a_latent_shared_between_tasks_has_no_task_dim_and_sums_the_weights():
    data = location_data()
    idata = to_arviz(shared_model, shared_guide, data, S)
    assert idata.posterior["scale"].dims == ("chain", "draw", "scale_dim_0")
    assert idata.posterior["scale"].shape == (1, S, 2)
    assert idata.posterior["offset"].shape == (1, S, 3)
    assert idata.sample_stats["log_weight"].shape == (1, S)
    scale, offset = draws(idata.posterior["scale"]), draws(idata.posterior["offset"])
    expected = dist.LogNormal(0.0, 0.1).log_prob(scale).sum(-1) + dist.Normal(0.0, 0.1).log_prob(offset).sum(-1)
    torch.testing.assert_close(draws(idata.sample_stats["log_q"]).float(), expected)


def test_an_improper_prior_counts_zero_and_has_no_draws():
    def model(data):
        with pyro.plate("tasks", data.batch_shape[0], dim=-1):
            mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
            mean = mu[..., None, None].expand(*mu.shape, data.num_points, 1)
            pyro.sample("y", dist.Normal(mean, 0.5).to_event(2), obs=data.y)

    idata = to_arviz(model, exact_guide, location_data(), S)
    assert "prior" not in group_names(idata)
    likelihood = idata.log_likelihood["y"].values.sum(-1)
    assert idata.sample_stats["log_p"].values == pytest.approx(likelihood, rel=1e-5)


def test_a_masked_prior_counts_zero():
    def model(data):
        with pyro.poutine.mask(mask=False):
            mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        mean = mu[..., :, None, None].expand(*mu.shape, 5, 1)
        pyro.sample("y", dist.Normal(mean[..., 0, :, :], 0.5).to_event(2), obs=data.y)

    def guide(data):
        pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    data = location_data()
    idata = to_arviz(model, guide, Dataset(data.x[0], data.y[0]), S)
    assert idata.sample_stats["log_p"].values == pytest.approx(idata.log_likelihood["y"].values.sum(-1), rel=1e-5)


def test_class_indices_have_no_output_dimension():
    def model(data):
        with pyro.plate("tasks", data.batch_shape[0], dim=-1):
            logits = pyro.sample("logits", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            likelihood = dist.Categorical(logits=logits[..., None, :].expand(*logits.shape[:-1], data.num_points, 4))
            pyro.sample("y", likelihood.to_event(1), obs=data.y)

    def guide(data):
        with pyro.plate("tasks", data.batch_shape[0], dim=-1):
            pyro.sample("logits", dist.Normal(torch.zeros(4), 0.5).to_event(1))

    data = Dataset(torch.rand(3, 5, 1), torch.randint(4, (3, 5)))
    idata = to_arviz(model, guide, data, S)
    assert idata.posterior_predictive["y"].dims == ("chain", "draw", "task", "point")
    logits = draws(idata.posterior["logits"]).log_softmax(-1)
    expected = logits[:, torch.arange(3)[:, None], data.y]
    torch.testing.assert_close(draws(idata.log_likelihood["y"]), expected)


@pytest.mark.parametrize("container", CONTAINERS)
def test_round_trip_through_netcdf(container, tmp_path):
    idata = to_arviz(network_model, network_guide, network_data(2), S, container=container)
    path = str(tmp_path / "posterior.nc")
    idata.to_netcdf(path)
    if container == "inferencedata":
        back = arviz.from_netcdf(path)
    else:
        back = xarray.open_datatree(path)
    assert len(group_names(idata)) == 9
    for name in group_names(idata):
        xarray.testing.assert_identical(as_dataset(back[name]).load(), as_dataset(idata[name]))
    back.close()


@pytest.mark.parametrize("container", CONTAINERS)
def test_round_trip_through_zarr(container, tmp_path):
    idata = to_arviz(network_model, network_guide, network_data(2), S, container=container)
    tree = idata.to_datatree() if container == "inferencedata" else idata  # ArviZ 0.23 writes no Zarr 3 itself
    tree.to_zarr(tmp_path / "posterior.zarr", consolidated=False)
    back = xarray.open_datatree(tmp_path / "posterior.zarr", engine="zarr", consolidated=False)
    if container == "inferencedata":
        back = arviz.from_datatree(back)
    for name in tree.children:
        xarray.testing.assert_identical(as_dataset(back[name]).load(), as_dataset(idata[name]))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_summary_and_loo_run(container, ragged):
    data = location_data(num_points=6)
    if ragged:
        data = Dataset(data.x, data.y, torch.arange(6) < torch.tensor([[6], [4], [5]]))
    idata = to_arviz(location_model, exact_guide, data, 500, container=container, seed=0)
    summary = statistics(idata).summary(idata, var_names=["mu"])
    mean, _ = location_posterior(data)
    assert [float(value) for value in summary["mean"]] == pytest.approx(mean.tolist(), abs=0.1)
    assert elpd(idata) == pytest.approx(exact_loo(data), abs=0.15)
    assert float(np.nanmax(loo(idata).pareto_k)) < 0.7


def exact_loo(data):
    """Leave-one-out log predictive density of location_model by conjugacy, summed over existing points."""
    total = 0.0
    mask = data.full_mask()
    for t, i in mask.nonzero().tolist():
        rest = mask[t].clone()
        rest[i] = False
        mean, std = location_posterior(Dataset(data.x[t : t + 1], data.y[t : t + 1], rest[None]))
        total += dist.Normal(mean, (std**2 + 0.25).sqrt()).log_prob(data.y[t, i]).item()
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_keep_the_precision_of_the_data(dtype):
    idata = to_arviz(location_model, exact_guide, location_data(dtype=dtype), S)
    expected = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    assert idata.posterior["mu"].dtype == expected
    assert idata.log_likelihood["y"].dtype == expected


def test_a_seed_fixes_the_draws_and_leaves_the_global_generator():
    data = location_data()
    state = torch.get_rng_state()
    first, second = (to_arviz(location_model, exact_guide, data, S, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    xarray.testing.assert_identical(first.posterior, second.posterior)
    xarray.testing.assert_identical(first.prior_predictive, second.prior_predictive)
    other = to_arviz(location_model, exact_guide, data, S, seed=4)
    assert not np.array_equal(first.posterior["mu"], other.posterior["mu"])


def test_a_pyro_autoguide_on_one_dataset():
    data = network_data()
    guide = pyro.infer.autoguide.AutoNormal(network_model)
    guide(data)
    idata = to_arviz(network_model, guide, data, S)
    assert idata.posterior["layer_0.weight"].dims == ("chain", "draw", "layer_0_unit", "layer_0_input")
    assert idata.attrs["guide"] == "AutoNormal"
    assert np.isfinite(idata.sample_stats["log_weight"].values).all()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: d.to_event(2),
        lambda d: d.to_event(1).mask(torch.ones(2, 3, 4, dtype=torch.bool)).to_event(1),
        lambda d: d.to_event(2).mask(torch.ones(2, 3, dtype=torch.bool)),
        lambda d: d.mask(True).to_event(2).mask(True),
        lambda d: dist.torch_distribution.ExpandedDistribution(d.to_event(2), torch.Size([2, 3])),
    ],
    ids=["independent", "mask over points", "mask over tasks", "mask True", "expanded"],
)
def test_pointwise_log_prob_looks_through_every_wrapping(wrap):
    base, value = dist.Normal(torch.randn(2, 3, 4, 5), 0.5), torch.randn(2, 3, 4, 5)
    wrapped = wrap(base)
    points = pointwise_log_prob(wrapped, value, 2)
    torch.testing.assert_close(points, base.log_prob(value).sum(-1))
    torch.testing.assert_close(points.sum(-1), wrapped.log_prob(value))


def test_pointwise_log_prob_applies_masks_where_they_stand():
    base, value = dist.Normal(torch.zeros(2, 3, 4, 5), 1.0), torch.randn(2, 3, 4, 5)
    tasks = torch.tensor([[True, False, True]] * 2)
    points = pointwise_log_prob(base.to_event(2).mask(tasks), value, 2)
    assert (points[:, 1] == 0).all() and (points[:, 0] != 0).all()
    cells = torch.rand(2, 3, 4, 5) < 0.5
    points = pointwise_log_prob(base.mask(cells).to_event(2), value, 2)
    torch.testing.assert_close(points, (base.log_prob(value) * cells).sum(-1))


def test_a_likelihood_that_couples_points_is_refused():
    def model(data):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        mean = mu[..., None].expand(*mu.shape, data.num_points)
        pyro.sample("y", dist.MultivariateNormal(mean, torch.eye(data.num_points)), obs=data.y)

    def guide(data):
        pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))

    data = Dataset(torch.rand(4, 1), torch.randn(4, 1))
    coupled = data.map(lambda t: t)
    object.__setattr__(coupled, "y", data.y[..., 0])
    with pytest.raises(ValueError, match="points must be independent"):
        to_arviz(model, guide, coupled, S)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"container": "pandas"}, "container: got 'pandas'; it must be"),
        ({"num_samples": 0}, "num_samples: got 0; it must be at least 1"),
        ({"chunk_size": 0}, "chunk_size: got 0; it must be at least 1"),
        ({"coords": {"layer": [1]}}, "coords: got dimension 'layer'; the dimensions are"),
        ({"coords": {"task": ["a"]}}, "coords: got 1 values for dimension 'task'; it has length 3"),
    ],
)
def test_bad_options_get_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        to_arviz(location_model, exact_guide, location_data(), **{"num_samples": S, **options})
    assert "\n" not in str(error.value)


def test_data_without_y_is_refused():
    with pytest.raises(ValueError, match="data: y is None"):
        to_arviz(location_model, exact_guide, location_data().without_y(), S)


def test_inferencedata_is_refused_where_arviz_has_none(monkeypatch):
    from evaluation.arviz import pyro_converter

    monkeypatch.setattr(pyro_converter, "version", lambda name: "1.2.0")
    assert pyro_converter.choose_container("auto") == "datatree"
    with pytest.raises(ValueError, match=r"ArviZ 1\.2\.0 no longer has"):
        pyro_converter.choose_container("inferencedata")


class ByHandler(BayesianNetwork):
    """Observes under ``poutine.mask``, over its points or over its tasks."""

    seen = torch.tensor([True, False, True])

    def forward(self, data):
        with pyro.poutine.mask(mask=self.seen):
            return super().forward(data)


def test_what_a_handler_masks_scores_nothing():
    plain, masked = BayesianNetwork([1, 4, 1]), ByHandler([1, 4, 1])
    data = Dataset(torch.randn(3, 5, 1), torch.randn(3, 5, 1))
    guide = AmortisedMeanFieldGuide(plain, width=8)
    found, expected = (
        torch.tensor(to_arviz(m, guide, data, 6, seed=0)["log_likelihood"]["y"].values) for m in (masked, plain)
    )
    torch.testing.assert_close(found, torch.where(masked.seen.unsqueeze(-1), expected, torch.zeros(())))


def test_points_under_a_plate_can_be_masked():
    mask = torch.tensor([[True, False]])
    values = torch.tensor([[[1.0], [1000.0]]])
    fn = dist.Normal(torch.zeros(1, 2, 1), 1.0).to_event(1)
    found = pointwise_log_prob(fn, values, 1, mask)
    assert found[0].tolist() == pytest.approx([-1.4189385, 0.0])


def test_an_obs_mask_is_refused():
    class Split(BayesianNetwork):
        def forward(self, data):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            fn = dist.Normal(w * data.x, 1.0).to_event(2)
            pyro.sample("y", fn, obs=data.y, obs_mask=torch.tensor(True))

    def guide(data):
        fn = dist.Normal(torch.zeros_like(data.x), 1.0).to_event(2)
        pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y_unobserved", fn)

    with pytest.raises(ValueError, match=r"^model: its site 'y' is made of an observed and an unobserved part"):
        to_arviz(Split([1, 1]), guide, Dataset(torch.randn(5, 1), torch.randn(5, 1)), 4)
