import pytest
import torch
from torch.distributions import kl_divergence

import guidebook as gb
from guides import BernoulliExpertGuide
from guides.networks.dropout_normal import dropout_kl
from pp_models import BayesianNetwork, Dataset, TaskBatch


def _few_shot(classes=4, points=9, dim=3, tasks=2):
    torch.manual_seed(1)
    x = torch.randn(tasks, points, dim)
    return Dataset(x, torch.arange(points).remainder(classes).expand(tasks, -1).contiguous())


def _by_class(depth=2, classes=4, dim=3):
    torch.manual_seed(0)
    model = BayesianNetwork([dim, *[6] * (depth - 1), classes], likelihood="categorical")
    return model, BernoulliExpertGuide(model, 8, rates="class", temperature=0.5)


@pytest.mark.parametrize("depth", [1, 2])
def test_rates_by_class_follow_the_classes_when_these_are_renumbered(depth):
    _, guide = _by_class(depth)
    data, order = _few_shot(), torch.tensor([2, 0, 3, 1])
    last = guide.sites[-1]
    before = guide.rates(data)[last]
    after = guide.rates(Dataset(data.x, order[data.y]))[last]
    torch.testing.assert_close(after[:, order], before)
    assert before.std(1).max() > 1e-3  # classes differ
    weight = guide.layer_distributions(data)[-1].mean / (1 - before)
    torch.testing.assert_close(weight, weight[:, :1].expand_as(weight), rtol=1e-4, atol=1e-5)  # one row for all


def test_rates_of_a_class_are_those_of_its_own_examples_alone():
    _, guide = _by_class(1)
    data = _few_shot()
    moved = Dataset(torch.where((data.y == 2).unsqueeze(-1), data.x + 1, data.x), data.y)
    same = torch.tensor([0, 1, 3])
    before, after = guide.rates(data)[guide.sites[0]], guide.rates(moved)[guide.sites[0]]
    torch.testing.assert_close(after[:, same], before[:, same])
    assert (after[:, 2] - before[:, 2]).abs().max() > 1e-4


def test_rates_by_class_mind_masks_and_empty_classes():
    model, guide = _by_class(2)
    data = _few_shot(points=8)
    mask = torch.tensor([[True] * 5 + [False] * 3] * 2)
    wide = Dataset(torch.where(mask.unsqueeze(-1), data.x, torch.full_like(data.x, 7.0)), data.y, mask)
    short = Dataset(data.x[:, :5], data.y[:, :5])
    for site, rates in guide.rates(short).items():
        torch.testing.assert_close(guide.rates(wide)[site], rates)
    empty = guide.rates(Dataset(data.x[:, :0], data.y[:, :0]))[guide.sites[-1]]
    torch.testing.assert_close(empty, empty[:, :1].expand_as(empty))
    loss = gb.objectives.make("conditional-prior").differentiable_loss(model, guide, TaskBatch(wide, short))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in guide.parameters() if p.grad is not None)


def test_rates_by_class_need_classes():
    model = BayesianNetwork([1, 4, 1])
    with pytest.raises(ValueError, match=r"^rates: got 'class', which needs a model with likelihood='categorical'$"):
        BernoulliExpertGuide(model, rates="class")


def test_the_kl_of_rates_by_class_is_that_of_shared_weights():
    _, guide = _by_class(2)
    guide.double()
    data = _few_shot()
    data = Dataset(data.x.double(), data.y)
    for p, q in zip(guide.layer_distributions(data), guide.layer_distributions(data, (-4.0, 4.0)), strict=True):
        torch.testing.assert_close(kl_divergence(p, q), dropout_kl(p.rate, q.rate).sum((-1, -2)), rtol=1e-12, atol=0)
