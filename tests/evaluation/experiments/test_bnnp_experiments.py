"""BNNP's experiments at smoke scale, and what they claim judged on made-up results."""

import math

import pandas as pd
import pytest
import torch

from evaluation.experiments import (
    bnnp_elbo_quality,
    bnnp_good_prior,
    bnnp_objectives,
    bnnp_prior_learning,
    bnnp_sequences,
    reproduce,
)
from evaluation.experiments.bnnp_elbo_quality import data_set, log_evidence, network
from inference import Prediction
from pp_models import BayesianNetwork, Dataset, tasks

pytestmark = pytest.mark.usefixtures("coarse_pictures")

FAMILIES = ("sawtooth", "heaviside", "squared-exponential", "network-draws", "ecg-simulated", "ecg200", "ecg5000")
FIGURES = {
    "bnnp/abalone": {"proportions"},
    "bnnp/against-nuts": {"functions"},
    "bnnp/elbo-quality": {"bounds"},
    "bnnp/good-prior-ecg200": {"methods"},
    "bnnp/good-prior-era5": {"methods"},
    "bnnp/images-digits": {"completions", "super_resolution"},
    "bnnp/images-mnist": {"completions", "super_resolution"},
    "bnnp/limits": {"together"},
    "bnnp/prior-families": {"scores"},
    "bnnp/sequences": {"scores"},
    "bnnp/objectives": {"predictions"},
    "bnnp/sweeps": {"sweeps"},
    **{f"bnnp/prior-{name}": {"priors", "posteriors"} for name in FAMILIES},
}


@pytest.mark.parametrize("name", FIGURES)
def test_an_experiment_at_smoke_scale_writes_its_files(out, recorded_files, name):
    outcome = reproduce(name, "smoke", out=out, progress=False)
    folder = out / f"{name}-smoke"
    pictures = {f"{stem}.png" for stem in FIGURES[name]}
    further = {p.name for p in folder.glob("*.csv")} - {"table.csv"}
    assert len(further) == len(outcome.tables)
    assert {p.name for p in folder.iterdir()} - further == {
        "results.json",
        "table.csv",
        "report.html",
        ".written.json",
        *pictures,
    }
    assert outcome.checks and all(check.holds is None for check in outcome.checks)
    numbers = outcome.table.select_dtypes("number").drop(columns="proportion", errors="ignore")
    # what the untrained prior is not asked for stays empty
    assert numbers.apply(lambda column: column.dropna().map(math.isfinite).all()).all()
    assert numbers.notna().mean().min() > 0.4


def test_the_evidence_by_prior_draws_is_the_exact_one():
    """A linear model, where it is known; the network of the experiment has no closed form."""
    torch.manual_seed(0)
    model = BayesianNetwork([1, 1], noise_scale=1.0)
    data = Dataset(torch.randn(4, 1), torch.randn(4, 1))
    phi = torch.cat([data.x, torch.ones(4, 1)], -1)
    exact = torch.distributions.MultivariateNormal(torch.zeros(4), phi @ phi.T / 2 + torch.eye(4)).log_prob(
        data.y[:, 0]
    )
    found, effective = log_evidence(model, data, 100_000, seed=1)
    assert found == pytest.approx(exact.item(), abs=0.02)
    assert 1_000 < effective < 100_000


def test_the_gaussian_of_the_training_series_is_conditioned_exactly():
    torch.manual_seed(0)
    train = torch.randn(300, 4, dtype=torch.float64) @ torch.randn(4, 96, dtype=torch.float64)
    train = train + 0.3 * torch.randn_like(train)
    stream = bnnp_sequences.series("test", 2, 0, "next", (12, 12))
    batch = stream.batch(0)
    assert bool((batch.context.x.amax(1) <= batch.target.x.amin(1)).all())  # what came first is the context
    found = bnnp_sequences.RIVALS[bnnp_sequences.GAUSSIAN](train, [batch])
    covariance = torch.cov(train.T)
    covariance = 0.9 * covariance + 0.1 * covariance.diag().diag()
    expected = []
    for t in range(2):
        places = [((p.x[t, :, 0].double() + 3) / 6 * 95).round().long() for p in (batch.context, batch.target)]
        y = [p.y[t, :, 0].double() for p in (batch.context, batch.target)]

        def density(index, values):
            mean, matrix = train.mean(0)[index], covariance[index][:, index]
            return torch.distributions.MultivariateNormal(mean, matrix).log_prob(values)

        for i in range(len(places[1])):
            both = torch.cat([places[0], places[1][i : i + 1]]), torch.cat([y[0], y[1][i : i + 1]])
            expected.append(density(*both) - density(places[0], y[0]))
    assert found["lpd"] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-6)


def test_data_sets_are_drawn_from_the_model_and_seeded():
    assert torch.equal(data_set(3).y, data_set(3).y) and not torch.equal(data_set(3).y, data_set(4).y)
    assert data_set(0).x.abs().max() <= 4 and data_set(0).x.shape == (10, 1)
    assert network(0.3).likelihood.noise_scale == 0.3


def test_claims_are_judged_at_small_scale(tmp_path, monkeypatch):
    short = bnnp_elbo_quality.SCALES["smoke"]._replace(bnnp_steps=(5, 5), other_steps=(5, 5))
    monkeypatch.setitem(bnnp_elbo_quality.SCALES, "small", short)
    monkeypatch.setattr(bnnp_elbo_quality, "MIN_EFFECTIVE", 0)
    outcome = reproduce("bnnp/elbo-quality", "small", [0], tmp_path, progress=False)
    assert [check.holds for check in outcome.checks][:3] == [False, True, True]


# -- claims ------------------------------------------------------------------------------------------------------------


def test_objectives_are_judged_by_their_numbers():
    """Made-up scores: a claim holds where they say so, in every seed, and not where one seed misses it."""
    rows = []
    for seed in (0, 1):
        for prior in ("fixed", "learned"):
            for name in (*bnnp_objectives.OBJECTIVES, "untrained"):
                base = {"avi": -1.0, "pp-avi": 0.5}.get(name, 0.0) + (1.0 if prior == "learned" else 0.0)
                base = -50.0 if name == "untrained" else base
                row = {"objective": name, "prior": prior, "seed": seed}
                row |= {f"lpd_{c}": base + c / 100 for c in (5, 15, 30)} | {"coverage_30": 0.93}
                rows.append(row | {"energy": 1.0 if prior == "fixed" else 0.4})
    table = pd.DataFrame(rows)
    checks = bnnp_objectives._checks("small", table, [0, 1])
    assert all(check.holds in (True, None) for check in checks)
    assert sum(check.holds is True for check in checks) == 7
    table.loc[(table.objective == "pp-avi") & (table.prior == "fixed") & (table.seed == 1), "lpd_30"] = -0.9
    worse = bnnp_objectives._checks("small", table, [0, 1])
    missed = [check.name for check in worse if check.holds is False]
    assert missed == ["fixed prior: PP-AVI above AVI at 30 points"] or len(missed) == 2


def test_a_prior_that_does_not_come_nearer_is_a_miss():
    rows = [
        {"model": m, "seed": 0, "energy": e, "lpd_1": -3.0, "lpd_4": -2.0, "lpd_16": -1.0}
        for m, e in (("pp-avi", 0.8), ("avi", 0.3), ("N(0, 1/k), untrained", 1.0))
    ]
    checks = bnnp_prior_learning._checks("small", pd.DataFrame(rows), [0])
    assert [check.holds for check in checks] == [False, True, True, True]


def test_growing_contexts_are_the_first_points_of_one_task():
    batch = tasks.sawtooth(2, num_context=6).batch(0)
    grown = bnnp_prior_learning.growing_contexts(batch)
    assert grown.context.counts.tolist() == [1, 2, 3, 4] and len(grown) == 4
    assert torch.equal(grown.context.x[3], batch.context.x[0, :4])
    assert all(torch.equal(grown.target.y[i], batch.target.y[0]) for i in range(4))


def test_ppd_is_the_log_of_an_average_density_and_lpd_the_average_log():
    y = torch.tensor([[[0.0], [3.0]]])
    likelihood = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1, 1, 2, 1), 1.0), 1)
    found = bnnp_good_prior.scores(Prediction(likelihood, torch.zeros(1, 1, 2, 1)), y)
    each = likelihood.log_prob(y.unsqueeze(0)).flatten().double()
    assert found["lpd"] == pytest.approx(each.mean().item())
    assert found["ppd"] == pytest.approx(each.exp().mean().log().item())
    assert found["mae"] == pytest.approx(1.5)


def test_nuts_predicts_every_task_from_its_own_context():
    size = bnnp_good_prior.SCALES["smoke"]._replace(warmup=150, draws=150)
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 8).reshape(1, 8, 1).repeat(2, 1, 1)
    data = Dataset(x, torch.cat([x[:1], -x[1:]]))
    model = BayesianNetwork([1, 4, 1], activation="tanh", noise_scale=0.1)
    found = bnnp_good_prior.methods(model, None, data, x, size, 0)["NUTS"]()
    assert found.samples.shape == (150, 2, 8, 1)
    assert float((found.mean - data.y).abs().mean()) < 0.1
