import pytest
import torch
from torch import nn

import guidebook as gb
from guides import ContextPointsGuide
from pp_models import ConvEmbedding, Dataset, PrototypicalNetwork


def _pair(embedding=None, classes=3, dim=4):
    torch.manual_seed(0)
    model = PrototypicalNetwork(dim, classes, embedding or nn.Sequential(nn.Linear(dim, 5), nn.Tanh()))
    return model, ContextPointsGuide(model)


def _probabilities(model, guide, context, x):
    return gb.predict(model, guide, context, x, num_samples=1).mean


def test_logits_are_distances_to_the_means_of_a_class():
    model, guide = _pair()
    x, y, asked = torch.randn(2, 7, 4), torch.tensor([[0, 1, 2, 0, 1, 2, 2]] * 2), torch.randn(2, 5, 4)
    found = _probabilities(model, guide, Dataset(x, y), asked)
    for t in range(2):
        means = torch.stack([model.embedding(x[t][y[t] == c]).mean(0) for c in range(3)])
        distance = torch.cdist(model.embedding(asked[t]), means).square()
        torch.testing.assert_close(found[t], torch.softmax(-distance, -1), rtol=1e-4, atol=1e-5)


def test_absent_examples_count_for_nothing_whatever_they_hold():
    model, guide = _pair()
    x, y = torch.randn(1, 4, 4), torch.tensor([[0, 1, 2, 0]])
    asked = torch.randn(1, 5, 4)
    mask = torch.tensor([[True] * 4 + [False] * 2])
    wide = Dataset(torch.cat([x, torch.full((1, 2, 4), 1e3)], 1), torch.cat([y, torch.tensor([[1, 2]])], 1), mask)
    torch.testing.assert_close(
        _probabilities(model, guide, wide, asked), _probabilities(model, guide, Dataset(x, y), asked)
    )


def test_a_class_without_an_example_has_the_learned_logit_and_gradients_are_finite():
    model, guide = _pair()
    x, y = torch.randn(1, 2, 4), torch.tensor([[0, 0]])
    found = _probabilities(model, guide, Dataset(x, y), torch.randn(1, 5, 4))
    torch.testing.assert_close(found[..., 1], found[..., 2])
    empty = _probabilities(model, guide, Dataset(x[:, :0], y[:, :0]), torch.randn(1, 5, 4))
    torch.testing.assert_close(empty, torch.full((1, 5, 3), 1 / 3))
    objective = gb.objectives.make("npml", num_particles=1, score="target")
    batch = gb.TaskBatch(Dataset(x, y), Dataset(torch.randn(1, 3, 4), torch.tensor([[0, 1, 2]])))
    objective.differentiable_loss(model, guide, batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_pictures_are_read_row_by_row():
    embedding = ConvEmbedding((8, 12), channels=3, width=8, blocks=2)
    assert embedding.dim_out == 8 * 2 * 3
    pictures = torch.randn(2, 5, 8 * 12 * 3)
    found = embedding(pictures)
    assert found.shape == (2, 5, embedding.dim_out)
    by_hand = embedding.layers(pictures[1, 2].reshape(8, 12, 3).permute(2, 0, 1).unsqueeze(0)).flatten()
    torch.testing.assert_close(found[1, 2], by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10, "groups": 4}, r"^groups: got 4; they must divide the width, 10$"),
        ({"blocks": 4}, r"^blocks: got 4; pictures of \(8, 8\) can be halved fewer times$"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConvEmbedding((8, 8), **options)


def test_new_classes_are_told_apart_after_training():
    torch.manual_seed(0)
    centres = torch.randn(40, 1, 6)
    x = (centres + 0.3 * torch.randn(40, 10, 6)).flatten(0, 1)
    labels = torch.arange(40).repeat_interleave(10)
    train = gb.tasks.from_few_shot(x, labels, ways=3, shots=2, queries=3)
    test = gb.tasks.from_few_shot(x, labels, split="test", ways=3, shots=2, queries=5, batch_size=32).batch(0)
    model, guide = _pair(nn.Linear(6, 8), 3, 6)
    gb.fit(
        model, guide, train, gb.objectives.make("npml", num_particles=1, score="target"), steps=60, learning_rate=1e-2,
        progress=False,
    )  # fmt: skip
    right = _probabilities(model, guide, test.context, test.target.x).argmax(-1) == test.target.y
    assert right.float().mean() > 0.8
