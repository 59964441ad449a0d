"""Predictions for a table: units undone exactly, densities by the Jacobian, rows where they belong."""

import math

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import guidebook as gb
from inference.frame_prediction import query
from inference.prediction import Prediction
from inference.prediction_units import in_units
from pp_models import DataError, Dataset
from pp_models.mixtures.simplex_distributions import ExpertMixture
from tests.sensor_table import sensor_table

MEAN, SCALE = torch.tensor([1e6, -2.0], dtype=torch.float64), torch.tensor([0.01, 30.0], dtype=torch.float64)


def normal() -> dist.TorchDistribution:
    return dist.Normal(torch.randn(5, 2, 3, 2), torch.rand(5, 2, 3, 2) + 0.1).to_event(1)


def mixture() -> ExpertMixture:
    experts = dist.Normal(torch.randn(2, 3, 4, 2), torch.rand(2, 3, 4, 2) + 0.1).to_event(1)  # shared by all draws
    return ExpertMixture(torch.randn(5, 2, 3, 4).log_softmax(-1), experts)


def student() -> dist.TorchDistribution:
    return dist.StudentT(torch.full((5, 2, 3, 2), 4.0), torch.randn(5, 2, 3, 2), torch.ones(5, 2, 3, 2)).to_event(1)


@pytest.mark.parametrize("make", [normal, mixture, student])
def test_densities_moments_and_quantiles_of_scaled_outputs_are_those_of_the_outputs(make):
    scaled = Prediction(make(), torch.randn(5, 2, 3, 2))
    found = scaled.in_units(MEAN, SCALE)
    y = torch.randn(2, 3, 2, dtype=torch.float64)
    jacobian = SCALE.log().sum()
    reference = Prediction(in_units(scaled.likelihood, MEAN * 0, SCALE * 0 + 1), scaled.samples.double())
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(found.log_prob(MEAN + SCALE * y), reference.log_prob(y) - jacobian, **close)
    joint = reference.joint_log_prob(y) - 3 * jacobian
    torch.testing.assert_close(found.joint_log_prob(MEAN + SCALE * y), joint, **close)
    torch.testing.assert_close(found.mean, MEAN + SCALE * reference.mean, rtol=1e-12, atol=1e-6)
    torch.testing.assert_close(found.std, SCALE * reference.std, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.samples, MEAN + SCALE * scaled.samples.double())
    torch.testing.assert_close(found.quantile(0.3), MEAN + SCALE * reference.quantile(0.3), rtol=1e-12, atol=1e-6)
    if make is not student:
        torch.testing.assert_close(found.cdf(MEAN + SCALE * y), reference.cdf(y), **close)


@pytest.mark.parametrize("make", [normal, mixture])
def test_densities_in_units_integrate_to_one(make):
    likelihood = make()
    found = in_units(likelihood, MEAN[:1] * 1e-4, SCALE[:1], lambda t: t[..., :1] if t.shape[-1] == 2 else t)
    one = Prediction(found, torch.zeros(5, 2, 3, 1, dtype=torch.float64))
    grid = MEAN[:1] * 1e-4 + SCALE[:1] * torch.linspace(-9, 9, 4001, dtype=torch.float64)
    densities = torch.stack([one.log_prob(y.expand(2, 3, 1)).exp() for y in grid])
    torch.testing.assert_close(torch.trapezoid(densities, grid, dim=0), torch.ones(2, 3, dtype=torch.float64))


def test_outputs_without_units_are_refused():
    bernoulli = Prediction(dist.Bernoulli(torch.full((1, 2, 1), 0.5)).to_event(1), torch.zeros(1, 2, 1))
    with pytest.raises(ValueError, match="its likelihood is Bernoulli, whose outputs have no units"):
        bernoulli.in_units([0.0], [1.0])
    with pytest.raises(ValueError, match="scale: got"):
        Prediction(normal(), torch.zeros(5, 2, 3, 2)).in_units([0.0, 0.0], [1.0, 0.0])


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    tasks = gb.tasks.from_dataframe(sensor_table().dropna(), "id", ["x1", "x2", "site"], ["y1", "y2"], batch_size=4)
    model = gb.BayesianNetwork([tasks.dim_x, 16, 4], likelihood="gaussian-head")
    guide = gb.guides.AmortisedMeanFieldGuide(model, 16)
    gb.fit(model, guide, tasks, "elbo", steps=20, progress=False)
    return model, guide, tasks


def asked() -> pd.DataFrame:
    table = sensor_table(seed=1).dropna().reset_index(drop=True)
    table.loc[table.index % 2 == 0, ["y1", "y2"]] = np.nan
    return table.sample(frac=1, random_state=0)  # rows of a task need not stand together


def test_every_row_is_predicted_where_it_stands_and_densities_are_the_scaled_ones_by_the_jacobian(fitted):
    model, guide, tasks = fitted
    table = asked()
    prediction = gb.predict_frame(model, guide, table, tasks, num_samples=7, seed=0)
    frame = prediction.to_dataframe([0.1, 0.9])
    rows = table.reset_index(drop=True)[lambda t: t["y1"].isna()]
    pd.testing.assert_frame_equal(frame[["id", "x1", "x2", "site"]], rows[["id", "x1", "x2", "site"]])
    assert list(frame.columns[4:]) == [f"{y}_{what}" for y in ("y1", "y2") for what in ("mean", "std", "q0.1", "q0.9")]
    assert frame["y1_mean"].between(800, 1200).all() and frame["y2_mean"].abs().max() < 0.1
    assert ((frame["y1_q0.1"] < frame["y1_q0.9"]) & (frame["y1_std"] > 0)).all()

    # one task by itself, by hand
    name = frame["id"].iloc[0]
    own, columns = table.reset_index(drop=True)[lambda t: t["id"] == name], tasks.columns
    given, wanted = own[own["y1"].notna()], own[own["y1"].isna()]

    def x(part: pd.DataFrame) -> Tensor:
        return torch.from_numpy(columns.inputs(part)).float()

    y = torch.from_numpy((given[["y1", "y2"]].to_numpy() - columns.y_mean) / columns.y_scale).float()
    by_hand = gb.predict(model, guide, Dataset(x(given), y), x(wanted), weights="mean")
    mean = gb.predict_frame(model, guide, own, tasks, weights="mean")
    scaled = torch.from_numpy(columns.y_mean) + torch.from_numpy(columns.y_scale) * by_hand.mean.double()
    torch.testing.assert_close(mean.mean, scaled, rtol=1e-5, atol=1e-5)
    truth = torch.randn(len(wanted), 2)
    units = torch.from_numpy(columns.y_mean) + torch.from_numpy(columns.y_scale) * truth.double()
    expected = by_hand.log_prob(truth).double() - math.log(columns.y_scale[0]) - math.log(columns.y_scale[1])
    torch.testing.assert_close(mean.log_prob(units), expected, rtol=1e-4, atol=1e-4)


def test_joint_densities_are_of_tasks(fitted):
    prediction = gb.predict_frame(*fitted[:2], asked(), fitted[2], num_samples=5, seed=0)
    y = prediction.mean
    joint = prediction.joint_log_prob(y)
    scores = prediction.likelihood.log_prob(y)
    first = scores[:, prediction.task == 0].sum(-1).logsumexp(0) - math.log(5)
    torch.testing.assert_close(joint[0], first)
    assert joint.shape == (prediction.rows["id"].nunique(),)


def test_xarray_has_named_dimensions_and_the_rows_inputs(fitted):
    prediction = gb.predict_frame(*fitted[:2], asked(), fitted[2], num_samples=5, seed=0)
    found = prediction.to_xarray()
    assert dict(found.sizes) == {"draw": 5, "row": len(prediction.rows), "output": 2}
    assert found["samples"].dims == ("draw", "row", "output") and list(found["output"].values) == ["y1", "y2"]
    assert list(found["id"].values) == list(prediction.rows["id"])
    np.testing.assert_allclose(found["mean"].sel(output="y1").values, prediction.to_dataframe()["y1_mean"])


def test_predictions_of_data_sets_are_tables_too():
    model = gb.BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
    guide = gb.guides.AmortisedMeanFieldGuide(model, 4)
    x = torch.randn(2, 3, 1)
    prediction = gb.predict(model, guide, Dataset(x, torch.randn(2, 3, 1)), x, 5)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    frame = prediction.to_dataframe([0.5], mask)
    assert frame[["task", "point"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0]]
    assert list(frame.columns[2:]) == ["y1_mean", "y1_std", "y1_q0.5"]
    assert dict(prediction.to_xarray().sizes) == {"draw": 5, "row": 6, "output": 1}
    with pytest.raises(DataError, match=r"mask: got shape \[3\]"):
        prediction.to_dataframe(mask=mask[0, :3])
    single = gb.predict(model, guide, Dataset(x[0], torch.randn(3, 1)), x[0], 2).to_dataframe()
    assert list(single["point"]) == [0, 1, 2] and "task" not in single


def test_tasks_without_a_context_are_predicted_by_the_prior_and_outputs_may_be_absent(fitted):
    table = asked()[["id", "x1", "x2", "site"]]
    assert len(gb.predict_frame(*fitted[:2], table, fitted[2], seed=0).rows) == len(table)
    assert query(fitted[2].columns, table).context.num_points == 0


def test_what_cannot_be_predicted_is_refused_in_one_line(fitted):
    model, guide, tasks = fitted
    for table, line in [
        (sensor_table().dropna(), "frame: every row has y1, y2; rows to predict must be there with y1, y2 left empty"),
        (
            asked().assign(site="east"),
            r"hold 'east' in column 'site'; it must be one of those of the training",
        ),
        (asked().drop(columns="x1"), "x: got 'x1'; it must be a column of the table"),
        (asked().drop(columns="id"), "task: got 'id'; it must be a column of the table"),
        (asked().assign(x2="high"), "hold 'high' in column 'x2'; it must be a number"),
        (asked().assign(x2=np.nan), "lack a value in x2"),
    ]:
        with pytest.raises(DataError, match=line) as caught:
            gb.predict_frame(model, guide, table, tasks)
        assert "\n" not in str(caught.value)
    table = asked()
    table.loc[table["y1"].notna(), "y2"] = np.nan
    assert len(gb.predict_frame(model, guide, table, tasks).rows) == len(table)


def test_a_row_with_some_outputs_is_context_and_its_others_are_predicted():
    table = sensor_table(40).drop(index=[3, 5, 17])
    tasks = gb.tasks.from_dataframe(table.assign(y2=3 * table["y1"]), "id", ["x1", "x2"], ["y1", "y2"])
    model = gb.BayesianNetwork([2, 2], likelihood="gaussian", noise_scale=0.01, missing_outputs=True)
    guide = gb.guides.BNNWeightGuide(model, 8, final_noise="real")
    new = sensor_table(4, seed=1).drop(index=[3, 5, 17])
    new["y2"] = 3 * new["y1"]
    truth = new.copy()
    new["y1"] = np.nan  # of y1 nothing is known: the guide's prior; of y2 every row, which it goes through
    found = gb.predict_frame(model, guide, new, tasks, num_samples=200, seed=0)
    assert (
        len(found.rows) == len(new)
        and gb.tasks.from_dataframe(
            new.assign(y1=truth["y1"].where(truth.index % 2 == 0)), "id", ["x1", "x2"], ["y1", "y2"], split=(1, 0, 0)
        ).missing_outputs
    )
    spread = found.std.mean(0) / torch.as_tensor(tasks.columns.y_scale)
    assert spread[1] < 0.5 * spread[0]
    score = found.log_prob(
        torch.as_tensor(new[["y1", "y2"]].to_numpy()), torch.as_tensor(new.notna()[["y1", "y2"]].to_numpy())
    )
    assert bool(torch.isfinite(score).all())


def test_classes_are_predicted_with_their_names_and_probabilities():
    table = sensor_table()
    tasks = gb.tasks.from_dataframe(table, "id", ["x1"], "site", batch_size=4)
    model = gb.BayesianNetwork([1, 8, 3], likelihood="categorical")
    guide = gb.guides.AmortisedMeanFieldGuide(model, 8)
    table.loc[::2, "site"] = None
    frame = gb.predict_frame(model, guide, table, tasks, num_samples=4).to_dataframe()
    probabilities = frame[[f"site_p_{name}" for name in tasks.classes]]
    assert set(frame["site"]) <= set(tasks.classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    found = gb.predict_frame(model, guide, table, tasks, num_samples=4).to_xarray()
    assert found["mean"].dims == ("row", "class") and found["samples"].dims == ("draw", "row")
    wrong = gb.BayesianNetwork([1, 8, 2], likelihood="gaussian-head")
    with pytest.raises(ValueError, match="GaussianHeadLikelihood needs floating-point outputs|take likelihood="):
        gb.predict_frame(wrong, gb.guides.AmortisedMeanFieldGuide(wrong, 8), table, tasks)
