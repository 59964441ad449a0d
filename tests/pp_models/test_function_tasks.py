"""One-dimensional families: their formulas, counts and seeds."""

import math

import pytest
import torch

from pp_models import tasks
from pp_models.point_counts import ShareCounts
from pp_models.task_names import task_stream

FAMILIES = ("sawtooth", "heaviside", "squared-exponential", "network-draws", "ecg-simulated", "ecg200", "ecg5000")


@pytest.mark.parametrize("name", FAMILIES)
def test_streams_are_seeded_and_resume(name):
    first, again, other = task_stream(name, 3, 7), task_stream(name, 3, 7), task_stream(name, 3, 8)
    batches = [next(first) for _ in range(3)]
    assert torch.equal(batches[2].full.y, again.batch(2).full.y)
    again.load_state_dict({"seed": 7, "position": 1})
    assert torch.equal(next(again).full.x, batches[1].full.x)
    assert batches[0].full.y.shape != other.batch(0).full.y.shape or not torch.equal(
        batches[0].full.y, other.batch(0).full.y
    )
    test = task_stream(name, 3, 7, test=True)
    assert test.batch(0).full.y.shape != batches[0].full.y.shape or not torch.equal(
        test.batch(0).full.y, batches[0].full.y
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_counts_are_in_range_and_points_are_distinct(name):
    stream = task_stream(name, 4, 0)
    low, high = stream.counts.num_points
    few, many = stream.counts.context_share
    for i in range(20):
        batch = stream.batch(i)
        n, m = batch.full.num_points, batch.context.num_points
        assert low <= n <= high
        assert max(1, math.floor(few * n) - 1) <= m <= max(1, math.ceil(many * n))
        assert all(len(set(row.flatten().tolist())) == n for row in batch.full.x)
        assert batch.truth["f"].shape == batch.full.y.shape


def test_a_sawtooth_rises_by_its_slope_and_falls_by_one():
    x, f = tasks.sawtooth().on_grid(500, 401, seed=0)
    x, f = x.double().flatten(), f.double().squeeze(-1)
    steps = f.diff(dim=-1)
    rise = 1.33 * 0.01
    falls = steps < -0.5
    assert bool((falls.sum(-1) == 5).all())  # at -1.5, -0.75, 0, 0.75 and 1.5
    slopes = (steps[:, 10] - rise) / 0.01 * 3
    assert abs(float(slopes.std()) - 1) < 0.1 and abs(float(slopes.mean())) < 0.15
    drop = -(steps[falls] - rise) + (slopes.unsqueeze(-1).expand_as(steps) / 3 * 0.01)[falls]
    torch.testing.assert_close(drop, torch.full_like(drop, 1.33 * 0.75), rtol=0, atol=1e-4)
    level = f[:, 200] - 1.33 * (0 - 0.375)
    assert abs(float(level.std()) - 0.25) < 0.03


def test_heaviside_has_two_levels_and_both_in_every_task():
    batch = tasks.heaviside(16).batch(0)
    f = batch.truth["f"]
    assert set(f.flatten().tolist()) == {-1.0, 1.0}
    assert bool((f.mean(1).abs() < 1).all())
    assert float((batch.full.y - f).std()) == pytest.approx(0.01, rel=0.1)


def test_the_gp_has_its_covariance():
    stream = tasks.squared_exponential(lengthscale=0.7)
    x, f = stream.on_grid(20_000, 6, seed=1)
    f = f.squeeze(-1).double()
    x = x.double()
    expected = torch.exp(-0.5 * ((x - x.T) / 0.7) ** 2)
    torch.testing.assert_close(f.T @ f / len(f), expected, rtol=0, atol=0.04)


def test_network_draws_have_the_variance_of_one_layer():
    """With linear features the last layer alone is random: variance (|h|² + 1) / k in expectation over the first."""
    stream = tasks.network_draws(hidden=(400,), activation="tanh", x_range=(-1.0, 1.0))
    x, f = stream.on_grid(4000, 3, seed=0)
    generator = torch.Generator().manual_seed(1)
    pre = (torch.randn(200_000, 2, generator=generator) / 2**0.5) @ torch.stack([x.flatten(), torch.ones(3)])
    expected = (400 * pre.tanh().square().mean(0) + 1) / 401
    torch.testing.assert_close(f.squeeze(-1).var(0), expected, rtol=0.08, atol=0)


def test_a_given_number_of_context_points_and_none_at_all():
    assert tasks.sawtooth(2, num_context=0).batch(0).context.num_points == 0
    assert {tasks.sawtooth(2, num_context=7).batch(i).context.num_points for i in range(5)} == {7}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShareCounts((1, 5)), r"^num_points: got \(1, 5\); it must be \(low, high\) with 2 <= low <= high$"),
        (
            lambda: ShareCounts(context_share=(0.5, 1.0)),
            r"^context_share: got \(0.5, 1.0\); it must be \(low, high\), 0 <= low <= high < 1$",
        ),
        (lambda: ShareCounts((5, 9), num_context=5), r"^num_context: got 5; it must lie in 0..4, below num_points$"),
        (lambda: tasks.sawtooth(x_range=(1.0, 1.0)), r"^x_range: got \(1.0, 1.0\); "),
        (lambda: tasks.sawtooth(noise_scale=-1), r"^noise_scale: got -1; it must not be negative$"),
        (lambda: tasks.squared_exponential(lengthscale=0), r"^lengthscale: got 0; it must be positive$"),
        (lambda: tasks.network_draws(activation="silu"), r"^activation: got 'silu'; it must be 'relu' or 'tanh'$"),
        (lambda: tasks.network_draws(hidden=()), r"^hidden: got \(\); it must hold at least one positive width$"),
        (lambda: tasks.ecg("mitbih"), r"^kind: got 'mitbih'; it must be one of simulated, ecg200, ecg5000$"),
        (lambda: tasks.ecg("ecg200", "dev"), r"^split: got 'dev'; it must be 'train' or 'test'$"),
        (lambda: tasks.ecg("ecg200", num_points=(5, 97)), r"^num_points: got \(5, 97\); a recording has 96 samples$"),
        (lambda: tasks.abalone("dev"), r"^split: got 'dev'; it must be 'train' or 'test'$"),
        (lambda: tasks.abalone(num_points=(5, 9999)), r"^num_points: got \(5, 9999\); a sex of this split has only "),
    ],
)
def test_bad_arguments_in_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()
