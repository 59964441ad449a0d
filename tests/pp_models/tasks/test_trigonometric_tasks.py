import math

import numpy as np
import pytest
import torch

from pp_models import tasks
from pp_models.tasks.trigonometric_tasks import FAMILIES


def test_outputs_are_the_named_functions():
    batch = tasks.trigonometric(batch_size=40, seed=1, dtype=torch.float64).batch(0)
    for i in range(40):
        g = getattr(np, FAMILIES[batch.truth["family"][i]])
        a, b = batch.truth["amplitude"][i].item(), batch.truth["shift"][i].item()
        assert 1 <= a <= 2 and -0.1 <= b <= 0.1
        expected = a * g(2 * batch.full.x[i].numpy() - b * math.pi)
        np.testing.assert_allclose(batch.full.y[i].numpy(), expected, atol=1e-12)
    assert batch.truth["family"].bincount(minlength=3).min() > 4


def test_points_are_distinct_and_on_the_grid():
    batch = tasks.trigonometric(batch_size=4, num_context=(1, 3), max_points=90, dtype=torch.float64).batch(2)
    assert batch.context.num_points in (1, 2, 3) and batch.full.num_points <= 90
    line = np.linspace(-np.pi, np.pi, 200)
    for x in batch.full.x.squeeze(-1):
        assert len(x.unique()) == len(x)
        assert np.abs(x.numpy()[:, None] - line).min(-1).max() < 1e-12
    assert not torch.equal(batch.context.x[0], batch.context.x[1])


def test_full_grid_makes_every_other_point_a_target():
    batch = tasks.trigonometric(full_grid=True, batch_size=2).batch(0)
    assert batch.full.x.shape == (2, 200, 1) and 4 <= batch.context.num_points <= 96
    assert torch.equal(batch.full.x[0].flatten().sort().values, batch.full.x[1].flatten().sort().values)


def test_the_stream_is_seeded_and_resumes():
    whole, cut = tasks.trigonometric(seed=7), tasks.trigonometric(seed=7)
    first = next(whole)
    next(cut)
    resumed = tasks.trigonometric()
    resumed.load_state_dict(cut.state_dict())
    second = next(whole)
    assert torch.equal(second.full.y, next(resumed).full.y)
    assert not torch.equal(first.truth["amplitude"], second.truth["amplitude"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"grid": 50}, "grid: got 50; it must be at least 100"),
        ({"amplitude": (2.0, 1.0)}, "amplitude: got"),
        ({"num_context": (4, 100)}, "max_points: got 100; it must be at least 101"),
        ({"full_grid": True, "grid": 90}, "max_points: got 90"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        tasks.trigonometric(**options)
