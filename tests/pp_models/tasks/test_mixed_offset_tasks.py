"""The bimodal process and its exact mixture of two Gaussian processes, against a dense one in NumPy's terms."""

import math

import pytest
import torch

from pp_models import TaskBatch, oracle_joint_log_likelihood, oracle_log_likelihood, tasks
from pp_models.tasks.mixed_offset_tasks import (
    mixed_offset_joint_log_likelihood,
    mixed_offset_log_likelihood,
    mixed_offset_predict,
    sign_log_probabilities,
)


def rbf(a, b, lengthscale=0.5, scale=0.3):
    return scale**2 * torch.exp(-0.5 * ((a - b.T) / lengthscale) ** 2)


def by_hand(x, y, noise=0.05, offset=2.0):
    """ln p(y) of the process at the inputs ``[N, 1]``: two Gaussians with equal weights."""
    cov = rbf(x, x) + noise**2 * torch.eye(len(x), dtype=x.dtype)
    parts = []
    for sign in (-1, 1):
        mean = sign * offset / 2 * (x[:, 0] > 0)
        parts.append(torch.distributions.MultivariateNormal(mean, cov).log_prob(y[:, 0]))
    return torch.logsumexp(torch.stack(parts), 0) - math.log(2)


@pytest.mark.parametrize("sides", [(-2.0, 0.0), (-2.0, 2.0)])
def test_the_oracle_is_the_conditional_of_the_dense_mixture(sides):
    batch = tasks.mixed_offset(5, 3, num_context=(4, 4), num_target=(6, 6), context_range=sides).batch(0)
    joint, marginal = mixed_offset_joint_log_likelihood(batch), mixed_offset_log_likelihood(batch)
    for task in range(5):
        x, y = (getattr(batch.full, name)[task].double() for name in ("x", "y"))
        known = by_hand(x[:4], y[:4])
        assert float(joint[task]) * 6 == pytest.approx(float(by_hand(x, y) - known), abs=1e-3)
        for i in range(6):
            rows = [0, 1, 2, 3, 4 + i]
            assert float(marginal[task, i]) == pytest.approx(float(by_hand(x[rows], y[rows]) - known), abs=1e-3)


def test_a_context_on_the_left_cannot_tell_the_sign_and_one_on_the_right_does():
    left = tasks.mixed_offset(32, 0).batch(0)
    torch.testing.assert_close(sign_log_probabilities(left).exp(), torch.full((2, 32), 0.5).double())
    right = tasks.mixed_offset(32, 0, context_range=(0.0, 2.0), num_context=(3, 3)).batch(0)
    probability = sign_log_probabilities(right).exp()
    found = torch.where(probability[1] > 0.5, 1.0, -1.0).double()
    assert torch.equal(found, right.truth["sign"]) and float(probability.max(0).values.min()) > 0.9
    empty = TaskBatch(left.context.points(slice(0, 0)), left.target, left.truth)
    torch.testing.assert_close(sign_log_probabilities(empty).exp(), torch.full((2, 32), 0.5).double())


def test_without_an_offset_it_is_the_gp_oracle():
    batch = tasks.mixed_offset(4, 1, offset=0.0).batch(0)
    torch.testing.assert_close(mixed_offset_log_likelihood(batch), oracle_log_likelihood(batch))
    torch.testing.assert_close(mixed_offset_joint_log_likelihood(batch), oracle_joint_log_likelihood(batch))
    floored = mixed_offset_log_likelihood(batch, min_scale=0.5)
    assert float(floored.max()) <= -math.log(0.5) - 0.5 * math.log(2 * math.pi)


def test_the_joint_score_sees_the_mode_that_all_points_share():
    """Point by point the sign costs ln 2 each time; jointly it is paid once."""
    batches = [tasks.mixed_offset(64, 2, num_target=(20, 20), target_range=(0.0, 2.0)).batch(i) for i in range(3)]
    joint = torch.cat([mixed_offset_joint_log_likelihood(b) for b in batches])
    marginal = torch.cat([mixed_offset_log_likelihood(b).mean(-1) for b in batches])
    assert float((joint - marginal).mean()) > math.log(2) * 19 / 20
    given = torch.cat([_one_gaussian(b) for b in batches])
    assert float((marginal - given).mean()) > 0.3  # what one Gaussian a point loses, with the best mean and scale


def _one_gaussian(batch):
    """Log-density of the moment-matched Gaussian of each point: the best that one Gaussian can be."""
    weight, mean, sd = mixed_offset_predict(batch, batch.target.x)
    weight = weight[..., None, None]
    middle = (weight * mean).sum(0)
    variance = (weight * (sd**2 + (mean - middle) ** 2)).sum(0)
    return torch.distributions.Normal(middle, variance.sqrt()).log_prob(batch.target.y.double()).squeeze(-1).mean(-1)


def test_the_predictive_has_its_modes_an_offset_apart():
    batch = tasks.mixed_offset(4, 0, offset=3.0).batch(0)
    x = torch.linspace(-2, 2, 21)[:, None]
    weight, mean, sd = mixed_offset_predict(batch, x)
    assert weight.shape == (2, 4) and mean.shape == sd.shape == (2, 4, 21, 1)
    gap = (mean[1] - mean[0])[..., 0]
    expected = torch.where(x[:, 0] > 0, 3.0, 0.0).double().expand(4, -1)
    torch.testing.assert_close(gap, expected, rtol=0, atol=1e-6)


def test_streams_are_seeded_and_stay_in_their_ranges():
    stream, again = (tasks.mixed_offset(6, 9) for _ in range(2))
    again.load_state_dict({"seed": 9, "position": 2})
    batches = [next(stream) for _ in range(30)]
    assert torch.equal(next(again).full.y, batches[2].full.y)
    for batch in batches:
        assert 1 <= batch.context.num_points <= 16 and 3 <= batch.target.num_points <= 24
        assert float(batch.context.x.max()) <= 0 and float(batch.context.x.min()) >= -2
        assert batch.full.x.shape[-1] == batch.full.y.shape[-1] == 1
    signs = torch.cat([b.truth["sign"] for b in batches])
    assert signs.abs().eq(1).all() and abs(float(signs.mean())) < 0.25
    grid = tasks.mixed_offset(2, 9, grid=11).batch(0).target.x[1, :, 0]
    torch.testing.assert_close(grid, torch.linspace(-2, 2, 11))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offset": -1.0}, "offset: got -1.0; it must be finite and not negative"),
        ({"context_range": (1.0, 1.0)}, r"context_range: got \(1.0, 1.0\); it must be \(low, high\)"),
        ({"target_range": (1.0, 0.0)}, r"target_range: got \(1.0, 0.0\)"),
        ({"grid": 0}, "grid: got 0; it must be at least 1"),
    ],
)
def test_ranges_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.mixed_offset(**options)


def test_the_oracle_needs_its_own_tasks():
    with pytest.raises(ValueError, match="batch.truth: it lacks offset"):
        mixed_offset_log_likelihood(tasks.gp().batch(0))
    with pytest.raises(ValueError, match="points: got 'all'; it must be one of target, context, full"):
        mixed_offset_joint_log_likelihood(tasks.mixed_offset().batch(0), "all")
