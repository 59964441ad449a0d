import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_models import tasks
from pp_models.tasks.gp_kernels import HYPERPARAMETERS, KERNELS, MIX, HyperParameters, covariance
from pp_models.tasks.point_counts import PointCounts


def same(a, b):
    keys = a.truth.keys() == b.truth.keys() and all(torch.equal(a.truth[k], b.truth[k]) for k in a.truth)
    return keys and all(
        torch.equal(getattr(getattr(a, part), name), getattr(getattr(b, part), name))
        for part in ("context", "target")
        for name in ("x", "y")
    )


def test_same_seed_gives_the_same_stream_and_other_batches_differ():
    first, second, other = tasks.gp("mix", seed=3), tasks.gp("mix", seed=3), tasks.gp("mix", seed=4)
    a = [next(first) for _ in range(3)]
    assert all(same(batch, next(second)) for batch in a)
    assert not same(a[0], a[1])
    assert not same(a[0], next(other))


def test_a_resumed_stream_equals_an_uninterrupted_one():
    whole, cut = tasks.gp("matern52", seed=9), tasks.gp("matern52", seed=9)
    for _ in range(2):
        next(whole), next(cut)
    resumed = tasks.gp("matern52")
    resumed.load_state_dict(cut.state_dict())
    assert all(same(next(whole), next(resumed)) for _ in range(2))


def test_sampling_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    next(tasks.gp())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtypes_and_ranges(dtype):
    batch = next(tasks.gp(batch_size=5, dtype=dtype))
    m, t = batch.context.num_points, batch.target.num_points
    assert batch.context.x.shape == batch.context.y.shape == (5, m, 1)
    assert batch.target.x.shape == batch.target.y.shape == (5, t, 1)
    assert batch.context.x.dtype == batch.target.y.dtype == dtype
    assert batch.full.x.abs().max() <= 2
    assert batch.truth["kernel"].dtype == torch.long
    assert all(value.shape == (5,) for value in batch.truth.values())
    assert set(batch.truth) == {"kernel", "lengthscale", "scale", "period", "noise"}


def test_counts_cover_their_ranges():
    stream = tasks.gp(batch_size=1, num_context=(0, 3), max_points=5)
    seen = {(b.context.num_points, b.target.num_points) for b in (next(stream) for _ in range(150))}
    assert seen == {(m, t) for m in range(4) for t in range(1, 6 - m)}


def test_tnp_counts():
    generator = torch.Generator().manual_seed(0)
    counts = PointCounts(**tasks.TNP_COUNTS)
    draws = [counts.draw(generator) for _ in range(2000)]
    assert min(m for m, _ in draws) == 3 and max(m for m, _ in draws) == 46
    assert min(t for _, t in draws) == 3 and max(m + t for m, t in draws) == 49


@settings(max_examples=50, deadline=None)
@given(
    low=st.integers(0, 20),
    width=st.integers(0, 20),
    few=st.integers(1, 9),
    extra=st.integers(0, 30),
    seed=st.integers(0, 99),
)
def test_counts_stay_within_any_bounds(low, width, few, extra, seed):
    high, most = low + width, low + width + few + extra
    m, t = PointCounts((low, high), (few, None), most).draw(torch.Generator().manual_seed(seed))
    assert low <= m <= high and t >= few and m + t <= most
    m, t = PointCounts((low, high), (few, few + extra), None).draw(torch.Generator().manual_seed(seed))
    assert low <= m <= high and few <= t <= few + extra


def test_grid_protocol_uses_every_grid_point_once_with_a_subset_of_its_own_for_each_task():
    batch = next(tasks.gp_test(batch_size=3, num_context=(10, 20)))
    line = torch.linspace(-2, 2, 400, dtype=torch.float64).float()
    assert batch.full.num_points == 400 and 10 <= batch.context.num_points <= 20
    for task in batch.full.x.squeeze(-1):
        assert torch.equal(task.sort().values, line)
    assert not torch.equal(batch.context.x[0], batch.context.x[1])


def test_mix_draws_each_of_its_kernels_and_a_joined_name_its_own():
    drawn = tasks.gp("mix", batch_size=200, max_points=97).batch(0).truth["kernel"]
    assert {KERNELS[i] for i in drawn.tolist()} == set(MIX)
    assert drawn.bincount(minlength=4)[[0, 1, 3]].min() > 40
    joined = tasks.gp("rbf+periodic", batch_size=64).batch(0).truth["kernel"]
    assert {KERNELS[i] for i in joined.tolist()} == {"rbf", "periodic"}
    assert tasks.gp(("rbf", "periodic")).kernels == tasks.gp("rbf + periodic").kernels


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_hyperparameters_lie_in_their_ranges(name):
    ranges = HYPERPARAMETERS[name]
    truth = tasks.gp("rbf+weakly-periodic", batch_size=100, hyperparameters=name).batch(1).truth
    weak = truth["kernel"] == KERNELS.index("weakly-periodic")

    def inside(value, bounds):
        return bool(((value >= bounds[0] - 1e-12) & (value <= bounds[1] + 1e-12)).all())

    assert inside(truth["lengthscale"][~weak], ranges.lengthscale)
    assert inside(truth["lengthscale"][weak], ranges.decay_lengthscale)
    assert inside(truth["period"][~weak], ranges.period) and inside(truth["period"][weak], ranges.decay_period)
    assert inside(truth["scale"], ranges.scale)


def test_fixed_is_the_papers_fixed_kernel():
    truth = tasks.gp(hyperparameters="fixed").batch(0).truth
    assert torch.allclose(truth["lengthscale"], torch.tensor(0.6, dtype=torch.float64))
    assert truth["scale"].eq(1).all() and truth["noise"].eq(0.02).all()


def test_outputs_have_the_kernels_covariance():
    # 4000 draws of one function at 3 inputs close together: sample moments of y against s^2 k + noise^2
    own = HyperParameters(lengthscale=(0.5, 0.5), scale=(2.0, 2.0))
    stream = tasks.gp(batch_size=4000, hyperparameters=own, num_context=(2, 2), max_points=3, noise_scale=0.5)
    batch = stream.batch(0)
    assert batch.full.y.square().mean().item() == pytest.approx(4.25, rel=0.05)
    x, y = batch.full.x.double().squeeze(-1), batch.full.y.double().squeeze(-1)
    near = (x[:, 0] - x[:, 1]).abs() < 0.2
    expected = (4 * torch.exp(-2 * (x[:, 0] - x[:, 1]) ** 2))[near].mean()
    assert (y[:, 0] * y[:, 1])[near].mean().item() == pytest.approx(expected.item(), rel=0.2)


def test_kernels_by_hand():
    x1, x2 = torch.zeros(4, 1, 1, dtype=torch.float64), torch.full((4, 1, 1), 0.3, dtype=torch.float64)
    half, two, fifth = (torch.full((4,), v, dtype=torch.float64) for v in (0.5, 2.0, 0.2))
    k = covariance(torch.arange(4), half, two, fifth, x1, x2).flatten().tolist()
    root = math.sqrt(5) * 0.6
    assert k == pytest.approx(
        [
            4 * math.exp(-0.18),
            4 * (1 + root + root**2 / 3) * math.exp(-root),
            4 * math.exp(-8),
            4 * math.exp(-0.18 - 2),
        ]
    )


def test_noise_free_tasks_can_be_drawn():
    """Neighbours on a smooth function have nearly one value; with noise they have not."""

    def roughness(noise_scale):
        full = next(tasks.gp_test(noise_scale=noise_scale, hyperparameters="fixed", batch_size=2)).full
        x, order = full.x[..., 0].sort(-1)
        y = full.y[..., 0].gather(-1, order)
        near = x.diff() < 0.02
        return float((y.diff()[near]).abs().max())

    assert roughness(0.0) < 0.1 < roughness(0.2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kernel": "rfb"}, "kernel: got 'rfb'; it must be one of rbf, matern52, periodic, weakly-periodic, mix"),
        ({"kernel": ()}, "kernel: got no name"),
        ({"hyperparameters": "variable"}, "hyperparameters: got 'variable'; it must be one of random, fixed"),
        ({"noise_scale": -1.0}, "noise_scale: got -1.0"),
        ({"x_range": (1.0, 1.0)}, "x_range: got"),
        ({"num_context": (5, 4)}, "num_context: got"),
        ({"num_target": (0, None)}, "num_target: got"),
        ({"max_points": None}, "num_target: its upper end is None"),
        ({"max_points": 96}, "max_points: got 96; it must be at least 97"),
        ({"grid": 96}, "grid: got 96; it must exceed the most context points, 96"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_bad_options_get_one_clear_line(options, match):
    with pytest.raises(ValueError) as error:
        tasks.gp(**options)
    assert match in str(error.value) and "\n" not in str(error.value)


def test_bad_hyperparameter_range():
    with pytest.raises(ValueError, match=r"scale: got \(0.0, 1.0\)"):
        HyperParameters(scale=(0.0, 1.0))
