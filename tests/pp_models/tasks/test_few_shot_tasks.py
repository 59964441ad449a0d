"""Few-shot tasks: classes are divided into splits, and renumbered in every task."""

import numpy as np
import pytest
import torch
from PIL import Image

import guidebook as gb
from pp_models import DataError


def examples(classes=10, each=6):
    """Examples whose first number tells the class."""
    labels = np.repeat(np.arange(classes), each)
    x = np.random.default_rng(0).normal(size=(len(labels), 2, 2))
    x[:, 0, 0] = 100 * labels
    return x, labels


def test_tasks_hold_each_of_their_classes_as_often_as_asked_and_number_them_anew():
    x, labels = examples()
    tasks = gb.tasks.from_few_shot(x, labels, ways=3, shots=2, queries=4, batch_size=5)
    batch, again = tasks.batch(3), tasks.batch(3)
    assert torch.equal(batch.target.x, again.target.x)
    assert batch.context.x.shape == (5, 6, 4) and batch.target.y.shape == (5, 12)
    for task in range(5):
        assert torch.bincount(batch.context.y[task]).tolist() == [2, 2, 2]
        assert torch.bincount(batch.target.y[task]).tolist() == [4, 4, 4]
        for number, of in enumerate(batch.truth["classes"][task].tolist()):
            expected = tasks.examples[of]
            for part in (batch.context, batch.target):
                found = part.x[task][part.y[task] == number]
                assert bool((found[:, :1] == expected[0, 0]).all())
        points = torch.cat([batch.context.x[task], batch.target.x[task]])
        assert len(points.unique(dim=0)) == 18
    splits = [set(gb.tasks.from_few_shot(x, labels, ways=2, split=s).names) for s in ("train", "validation", "test")]
    assert [len(s) for s in splits] == [6, 2, 2] and len(set.union(*splits)) == 10


def test_a_model_learns_to_tell_classes_that_it_never_saw():
    x, labels = examples(20, 8)
    options = {"ways": 2, "shots": 3, "queries": 3, "batch_size": 8}
    tasks = gb.tasks.from_few_shot(x, labels, **options)
    model = gb.NeuralProcess(tasks.dim_x, 2, 0, 16, width=16, depth=3, likelihood="categorical")
    guide = gb.guides.NeuralProcessGuide(model, 16)
    result = gb.fit(model, guide, tasks, "conditional-prior", steps=150, learning_rate=1e-2, progress=False)
    assert result.history[-1]["log_likelihood"] > result.history[0]["log_likelihood"]
    test = gb.tasks.from_few_shot(x, labels, split="test", **options).batch(0)
    prediction = gb.predict(model, guide, test.context, test.target, 1)
    assert float((prediction.mean.argmax(-1) == test.target.y).float().mean()) > 0.6


def test_folders_are_classes_and_what_does_not_fit_is_refused(tmp_path):
    for name in "abcde":
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full((4, 4), 50 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    tasks = gb.tasks.from_few_shot(tmp_path, ways=2, shots=1, queries=2, grey=True, size=2)
    assert tasks.dim_x == 4 and set(tasks.names) < set("abcde")
    x, labels = examples()
    for call, line in [
        (lambda: gb.tasks.from_few_shot(tmp_path, ways=4), "ways: got 4; the split has 3 classes"),
        (lambda: gb.tasks.from_few_shot(tmp_path, ways=2, queries=9), "class '.' has 3 examples, and must have 10"),
        (lambda: gb.tasks.from_few_shot(x), "labels: they must be given with an array"),
        (lambda: gb.tasks.from_few_shot(tmp_path, labels), "labels: they must be given with an array, and not with"),
        (lambda: gb.tasks.from_few_shot(x, labels[:3]), r"labels: got shape \[3\] for examples \[60, 2, 2\]"),
        (lambda: gb.tasks.from_few_shot(x * np.nan, labels), r"source: 60 example\(s\) hold NaN"),
        (lambda: gb.tasks.from_few_shot(x, labels, shares=(1, 1, 0)), "shares: got"),
        (lambda: gb.tasks.from_few_shot(tmp_path / "a"), "holds no folders of pictures"),
    ]:
        with pytest.raises(ValueError, match=line) as caught:
            call()
        assert isinstance(caught.value, DataError) or "shares" in line
