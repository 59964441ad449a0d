"""One-dimensional families: their formulas, counts and seeds."""

import math

import pytest
import torch

from pp_models import oracle_log_likelihood, oracle_predict, tasks
from pp_models.tasks.point_counts import ShareCounts
from pp_models.tasks.task_table import TEST_SEED, task_stream

FAMILIES = ("sawtooth", "heaviside", "squared-exponential", "network-draws", "ecg-simulated", "ecg200", "ecg5000")

pytestmark = pytest.mark.usefixtures("recorded_files")


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


@pytest.mark.parametrize("name", ["sawtooth", "heaviside", "squared-exponential", "network-draws"])
def test_a_test_stream_shows_a_whole_grid(name):
    stream = task_stream(name, 3, 5, test=True)
    assert stream.seed == 5 + TEST_SEED
    batch = stream.batch(0)
    assert batch.full.x.shape == (3, 400, 1) and 4 <= batch.context.num_points <= 50
    expected = torch.linspace(*stream.x_range, 400, dtype=torch.float64).float()
    for x in batch.full.x.squeeze(-1):
        torch.testing.assert_close(x.sort().values, expected, rtol=0, atol=0)
    assert not torch.equal(batch.context.x[0], batch.context.x[1])


def test_a_sawtooth_by_hand():
    """Two values of 1.33 ((x mod 0.75) - 0.375) + a x / 3 + b / 4 determine a and b, the others must follow."""
    batch = tasks.sawtooth(4, noise_scale=0.0, dtype=torch.float64).batch(0)
    x, f = batch.full.x.squeeze(-1), batch.full.y.squeeze(-1)
    assert torch.equal(batch.full.y, batch.truth["f"])
    line = f - 1.33 * (x - 0.75 * (x / 0.75).floor() - 0.375)
    slope = (line[:, 1] - line[:, 0]) / (x[:, 1] - x[:, 0])
    expected = line[:, :1] + slope.unsqueeze(-1) * (x - x[:, :1])
    torch.testing.assert_close(line, expected, rtol=0, atol=1e-10)


def test_the_oracle_knows_the_gp_and_beats_the_prior():
    batch = tasks.squared_exponential(8, num_context=30, grid=200).batch(0)
    mean, scale = oracle_predict(batch, batch.target.x)
    z = (batch.target.y - mean) / scale
    assert float(z.std()) == pytest.approx(1.0, abs=0.1)
    prior = torch.distributions.Normal(0.0, (1 + 0.05**2) ** 0.5).log_prob(batch.target.y).mean()
    assert float(oracle_log_likelihood(batch).mean()) > float(prior) + 1
    assert "kernel" not in tasks.heaviside(2).batch(0).truth


def test_a_given_number_of_context_points_and_none_at_all():
    assert tasks.sawtooth(2, num_context=0).batch(0).context.num_points == 0
    assert {tasks.sawtooth(2, num_context=7).batch(i).context.num_points for i in range(5)} == {7}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ShareCounts((1, 5)),
            r"^num_points: got \(1, 5\); it must be \(low, high\) with low <= high, and each must be at least 2$",
        ),
        (
            lambda: ShareCounts(context_share=(0.5, 1.0)),
            r"^context_share: got \(0.5, 1.0\); it must be \(low, high\) .*, and each must lie in \[0, 1\)$",
        ),
        (lambda: ShareCounts((5, 9), num_context=5), r"^num_context: got 5; it must lie in 0..4, below num_points$"),
        (lambda: tasks.sawtooth(x_range=(1.0, 1.0)), r"^x_range: got \(1.0, 1.0\); "),
        (lambda: tasks.sawtooth(noise_scale=-1), r"^noise_scale: got -1; it must be finite and not negative$"),
        (lambda: tasks.heaviside(grid=99), r"^grid: got 99; it must be at least the most points a task, 100$"),
        (lambda: tasks.squared_exponential(lengthscale=0), r"^lengthscale: got 0; it must be positive and finite$"),
        (
            lambda: tasks.network_draws(activation="sin"),
            r"^activation: got 'sin'; it must be one of relu, tanh, silu, ",
        ),
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
