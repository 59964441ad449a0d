"""Few-shot tasks mixed with one another, class by class."""

import numpy as np
import pytest
import torch

import guidebook as gb
from pp_models.tasks.interpolated_tasks import InterpolatedTasks


def tasks(seed=0):
    x, labels = np.random.default_rng(0).normal(size=(60, 3)), np.repeat(np.arange(10), 6)
    return gb.tasks.from_few_shot(x, labels, ways=3, shots=2, queries=3, batch_size=5, seed=seed)


def pair(index):
    """The two batches that are mixed: the stream's generator draws one after the other."""
    words = np.random.SeedSequence([0, index]).generate_state(2, np.uint64)
    generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
    return tasks().sample(generator), tasks().sample(generator)


def test_weight_one_is_the_first_task_to_the_bit():
    first, _ = pair(3)
    for options in ({"weight": 1.0, "share": 1.0}, {"share": 0.0}):
        found = gb.tasks.interpolated(tasks(), **options).batch(3)
        for part in ("context", "target"):
            assert torch.equal(getattr(found, part).x, getattr(first, part).x)
            assert torch.equal(getattr(found, part).y, getattr(first, part).y)
        assert torch.equal(found.truth["classes"], first.truth["classes"])
        assert bool((found.truth["weight"] == 1).all())


def test_weight_zero_is_the_second_task_in_the_order_of_the_first():
    first, second = pair(3)
    found = gb.tasks.interpolated(tasks(), share=1.0, weight=0.0).batch(3)
    assert torch.equal(found.context.y, first.context.y)
    for task in range(5):
        for label in range(3):
            of_label = found.target.x[task][found.target.y[task] == label]
            assert torch.equal(of_label, second.target.x[task][second.target.y[task] == label])


def test_a_mixed_example_lies_between_examples_of_its_two_classes():
    stream = InterpolatedTasks(tasks(), share=1.0)
    found, again = stream.batch(2), stream.batch(2)
    assert torch.equal(found.context.x, again.context.x)
    first, second = pair(2)
    for task in range(5):
        share = found.truth["weight"][task]
        assert 0 <= float(share) <= 1
        for label in range(3):
            mixed, a, b = (d.context.x[task][d.context.y[task] == label] for d in (found, first, second))
            torch.testing.assert_close(mixed, share * a + (1 - share) * b)
    shares = torch.cat([stream.batch(i).truth["weight"] for i in range(400)])
    assert abs(float(shares.mean()) - 0.5) < 0.03 and abs(float(shares.var()) - 0.125) < 0.02  # Beta(1/2, 1/2)


def test_a_stream_goes_on_where_it_stopped_and_half_of_its_tasks_are_as_they_were():
    stream = InterpolatedTasks(tasks())
    next(stream)
    other = InterpolatedTasks(tasks(7))
    other.load_state_dict(stream.state_dict())
    assert torch.equal(next(other).target.x, next(stream).target.x)
    whole = torch.cat([stream.batch(i).truth["weight"] == 1 for i in range(100)]).double().mean()
    assert 0.4 < float(whole) < 0.6
    assert (stream.ways, stream.dim_x) == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concentration": 0.0}, r"^concentration: got 0.0; it must be"),
        ({"share": 1.5}, r"^share: got 1.5; it must"),
        ({"weight": -0.1}, r"^weight: got -0.1; it must"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gb.tasks.interpolated(tasks(), **options)
    with pytest.raises(ValueError, match=r"^tasks: got .*GPTasks.*; it must be a FewShotTasks$"):
        gb.tasks.interpolated(gb.tasks.gp("rbf", 2))
