"""BNNP's experiments at smoke scale, and what they claim judged on made-up results."""

import math

import pytest
import torch

from evaluation.experiments import bnnp_elbo_quality, reproduce
from evaluation.experiments.bnnp_elbo_quality import data_set, log_evidence, network
from pp_models import BayesianNetwork, Dataset


def test_elbo_quality_writes_its_files(tmp_path):
    outcome = reproduce("bnnp/elbo-quality", "smoke", out=tmp_path, progress=False)
    folder = tmp_path / "bnnp" / "elbo-quality-smoke"
    assert {p.name for p in folder.iterdir()} == {"results.json", "table.csv", "bounds.png", "report.html"}
    assert [check.holds for check in outcome.checks] == [None] * 3
    assert outcome.table[["log_evidence", "bnnp", "mean_field"]].map(math.isfinite).all(axis=None)


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


def test_data_sets_are_drawn_from_the_model_and_seeded():
    assert torch.equal(data_set(3).y, data_set(3).y) and not torch.equal(data_set(3).y, data_set(4).y)
    assert data_set(0).x.abs().max() <= 4 and data_set(0).x.shape == (10, 1)
    assert network(0.3).likelihood.noise_scale == 0.3


def test_claims_are_judged_at_small_scale(tmp_path, monkeypatch):
    monkeypatch.setitem(bnnp_elbo_quality.SCALES, "small", ((0.1,), 5, 5, 2_000, 200))
    monkeypatch.setattr(bnnp_elbo_quality, "MIN_EFFECTIVE", 0)
    outcome = reproduce("bnnp/elbo-quality", "small", [0], tmp_path, progress=False)
    assert [check.holds for check in outcome.checks] == [False, True, True]


def test_against_nuts_writes_its_files(tmp_path):
    outcome = reproduce("bnnp/against-nuts", "smoke", out=tmp_path, progress=False)
    folder = tmp_path / "bnnp" / "against-nuts-smoke"
    assert {p.name for p in folder.iterdir()} == {"results.json", "table.csv", "functions.png", "report.html"}
    assert [check.holds for check in outcome.checks] == [None] * 3
    columns = ["bnnp_mean_error", "mean_field_mean_error", "bnnp_sd_ratio", "mean_field_sd_ratio"]
    assert outcome.table[columns].map(math.isfinite).all(axis=None)
