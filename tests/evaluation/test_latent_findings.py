"""Findings on latents and tasks: what does not exist or is masked out changes nothing, nor how tasks are batched."""

import pytest
import torch
from torch.nn.functional import pad

from evaluation.findings import Evidence
from evaluation.latent_findings import judge_activity, judge_likeness, judge_rates
from guides import AmortisedMeanFieldGuide, BernoulliExpertGuide
from pp_models import BayesianNetwork, Dataset, TaskBatch


def tasks(count, seed, classes=False, scale=1.0, most=7):
    """Ragged tasks: what lies beyond a task's points is NaN-free rubbish."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, most, 1, generator=generator)
    mask = torch.arange(most) < torch.randint(2, most + 1, (count, 1), generator=generator)
    values = scale * torch.sin(3 * x) + 0.1 * torch.randn(count, most, 1, generator=generator)
    y = (values.squeeze(-1) > 0).long() if classes else values
    return Dataset(x, y, mask)


def with_rubbish(data, fill):
    """The same with another value where no point is, and more of such places."""
    mask = data.full_mask()
    extra = torch.zeros(len(data), 3, dtype=torch.bool)
    x = torch.where(mask.unsqueeze(-1), data.x, torch.full_like(data.x, 1e3))
    y = torch.where(mask, data.y, fill) if data.y.dim() == 2 else torch.where(mask.unsqueeze(-1), data.y, fill)
    width = (0, 3) if y.dim() == 2 else (0, 0, 0, 3)
    return Dataset(pad(x, (0, 0, 0, 3), value=-1e3), pad(y, width, value=fill), torch.cat([mask, extra], 1))


def found(judge, *args):
    evidence = Evidence("posterior")
    judge(evidence, *args)
    return evidence.numbers


@pytest.mark.parametrize("fill", [-1, -100, 0, 1])
def test_masked_labels_of_any_value_do_not_change_the_likeness(fill):
    training, held_out = tasks(60, 0, classes=True), tasks(40, 1, classes=True)
    usual = found(judge_likeness, [held_out], [training])
    assert set(usual) == {"unlike_training"}
    both = found(judge_likeness, [with_rubbish(held_out, fill)], [with_rubbish(training, fill)])
    assert both == pytest.approx(usual)
    one = found(judge_likeness, [with_rubbish(held_out, fill)], [training])
    assert one == pytest.approx(usual)


@pytest.mark.parametrize("classes", [False, True])
def test_ragged_tasks_in_one_batch_or_several_or_as_halves_are_the_same(classes):
    training, held_out = tasks(60, 0, classes), tasks(40, 1, classes)
    usual = found(judge_likeness, [held_out], [training])
    several = found(judge_likeness, [held_out[:7], held_out[7:]], [training[:30], training[30:]])
    assert several == pytest.approx(usual)
    trimmed = [held_out[i : i + 1] for i in range(40)]
    trimmed = [Dataset(*(v[:, : int(one.mask.sum())] for v in (one.x, one.y))) for one in trimmed]
    assert found(judge_likeness, trimmed, [training]) == pytest.approx(usual)


def test_ragged_tasks_of_another_scale_are_unlike_and_those_of_the_same_are_not():
    training = tasks(60, 0)
    assert found(judge_likeness, [tasks(40, 1)], [training])["unlike_training"] < 0.25
    assert found(judge_likeness, [tasks(40, 1, scale=50.0)], [training])["unlike_training"] > 0.9


def test_empty_tasks_and_empty_contexts_are_judged_with_finite_numbers():
    training, held_out = tasks(60, 0), tasks(40, 1)
    none = Dataset(held_out.x, held_out.y, torch.zeros_like(held_out.mask))
    assert 0 <= found(judge_likeness, [none], [training])["unlike_training"] <= 1
    empty = TaskBatch(Dataset(torch.zeros(40, 0, 1), torch.zeros(40, 0, 1)), held_out)
    assert 0 <= found(judge_likeness, [empty], [training])["unlike_training"] <= 1


@pytest.mark.parametrize(("classes", "fill"), [(False, 1e3), (True, -1), (True, -100)])
def test_rubbish_where_no_point_is_changes_neither_rates_nor_activity(classes, fill):
    torch.manual_seed(0)
    model = BayesianNetwork([1, 4, 2], likelihood="categorical" if classes else "gaussian-head")
    data = tasks(6, 2, classes)
    padded = with_rubbish(data, fill)
    for guide in (AmortisedMeanFieldGuide(model, 4), BernoulliExpertGuide(model, 4)):
        rates = found(judge_rates, guide, [data]), found(judge_rates, guide, [padded])
        assert rates[0] == pytest.approx(rates[1], abs=1e-5)
        moves = [found(judge_activity, model, guide, [one], 50, 0) for one in (data, padded)]
        assert moves[0] == pytest.approx(moves[1], abs=1e-5)
    assert set(rates[0]) == {"rate_mean", "rate_spread"} and set(moves[0]) == {"active_latents"}
