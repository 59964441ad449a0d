"""Scores, verdicts and ArviZ containers count the outputs that are known, and no others."""

import numpy as np
import pytest
import torch

from evaluation import to_arviz
from evaluation.scores.metrics import calibration_error, crps, interval_coverage, log_likelihoods, rmse, sigma_coverage
from evaluation.scores.scoring import score_tasks
from evaluation.sharpness import references
from evaluation.simulation_calibration import pit_by_context_size
from evaluation.trust import verdict
from guides import AmortisedMeanFieldGuide
from inference import predict
from pp_models import BayesianNetwork, Dataset, TaskBatch


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model = BayesianNetwork([1, 6, 4], likelihood="gaussian-head", missing_outputs=True)
    return model, AmortisedMeanFieldGuide(model, 8)


def batch(observed, seed=0, tasks=4):
    gen = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(2):
        x = torch.rand(tasks, 6, 1, generator=gen)
        y = torch.cat([x, x.square()], -1) + 0.1 * torch.randn(tasks, 6, 2, generator=gen)
        parts.append(Dataset(x, y, observed=observed))
    return TaskBatch(*parts)


def pattern(seed=1, tasks=4):
    observed = torch.rand(tasks, 6, 2, generator=torch.Generator().manual_seed(seed)) < 0.7
    observed[..., 0, :] = True
    return observed


def test_every_score_of_a_task_is_that_of_its_known_outputs(pair):
    observed = pattern()
    whole = batch(observed)
    found = predict(*pair, whole.context, whole.full, 50, seed=0)
    scores, y = log_likelihoods(found, whole), whole.full.y
    base = found.likelihood.base_dist
    each = torch.where(whole.full.observed, base.log_prob(y), 0.0).sum(-1)
    point = torch.logsumexp(each, 0) - np.log(50)
    known = whole.full.observed
    torch.testing.assert_close(scores.pll, point[:, 6:].sum(-1) / known[:, 6:].sum((-1, -2)))
    joint = torch.logsumexp(each[..., 6:].sum(-1), 0) - np.log(50)
    torch.testing.assert_close(scores.joint_pll, joint / known[:, 6:].sum((-1, -2)))
    for task in range(4):
        errors = (y - found.mean)[task][known[task]]
        torch.testing.assert_close(rmse(found, y, known)[task], errors.square().mean().sqrt())
        within = (errors.abs() <= found.std[task][known[task]]).float().mean()
        torch.testing.assert_close(sigma_coverage(found, y, known, (1.0,))[0, task], within)
    wild = torch.where(known, y, torch.full_like(y, torch.nan))
    for score in (rmse, crps, interval_coverage, calibration_error):
        torch.testing.assert_close(score(found, wild, known), score(found, y, known))
    everything = torch.ones_like(known)
    for score in (rmse, crps, interval_coverage, calibration_error):
        torch.testing.assert_close(score(found, y, everything), score(found, y))
    table = score_tasks(*pair, [whole])
    assert not table.isna().any(axis=None)


def test_references_and_transforms_leave_missing_outputs_out(pair):
    missing = batch(pattern(2))
    found = references(*pair, [missing], 10, 0)
    assert bool(torch.isfinite(found.marginal).all()) and bool(torch.isfinite(found.own_explained).all())
    plain, everything = batch(None), batch(torch.ones(4, 6, 2, dtype=torch.bool))
    for own, other in zip(
        (references(*pair, [b], 10, 0) for b in (plain,)), (references(*pair, [everything], 10, 0),), strict=True
    ):
        torch.testing.assert_close(own.gp, other.gp)
        torch.testing.assert_close(own.marginal, other.marginal)
    by_size = pit_by_context_size(*pair, [missing], num_samples=20)
    assert sum(map(len, by_size.values())) == int(missing.target.observed.sum())


def test_a_verdict_is_given(pair):
    batches = [batch(pattern(seed), seed) for seed in range(4)]
    found = verdict(*pair, batches, objective="elbo", num_simulations=50, num_samples=50)
    assert found.level in ("trust", "caution", "distrust") or found.sentence


def test_arviz_holds_what_is_known(pair):
    whole = batch(pattern())
    idata = to_arviz(*pair, whole, num_samples=8)
    y = idata["observed_data"]["y"].values
    known = whole.target.observed.numpy()
    assert np.isnan(y[~known]).all() and np.isfinite(y[known]).all()
    points = idata["log_likelihood"]["y"]
    assert np.isfinite(points.values).all() and points.sizes["observation" if "observation" in points.dims else "point"]
