import pytest
import torch

from evaluation.scores.selective_prediction import area_under_risk_coverage, risk_coverage


def test_by_hand():
    doubt, wrong = torch.tensor([0.3, 0.1, 0.2, 0.4]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    coverage, risk = risk_coverage(doubt, wrong)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])
    assert area_under_risk_coverage(doubt, wrong) == pytest.approx((1 / 3 + 0.5) / 4)


def test_ties_count_their_mean_whatever_their_order():
    wrong = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    doubt = torch.tensor([1.0, 1.0, 0.0, 2.0, 1.0])
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    found = risk_coverage(doubt, wrong)[1]
    assert torch.equal(risk_coverage(doubt[order], wrong[order])[1], found)
    assert found.tolist() == pytest.approx([0, 1 / 6, 2 / 9, 1 / 4, 2 / 5])
    assert area_under_risk_coverage(torch.zeros(5), wrong) == pytest.approx(wrong.mean().item())


def test_no_order_beats_the_oracles_nor_is_worse_than_its_reverse():
    torch.manual_seed(0)
    loss, doubt = torch.rand(50), torch.rand(50)
    best, worst = area_under_risk_coverage(loss, loss), area_under_risk_coverage(-loss, loss)
    assert best < area_under_risk_coverage(doubt, loss) < worst


@pytest.mark.parametrize(
    ("doubt", "loss", "line"),
    [
        (torch.zeros(3), torch.zeros(2), r"loss: got shape \[2\]; it must be \[n\] as doubt is, \[3\]"),
        (torch.zeros(0), torch.zeros(0), "n > 0"),
        (torch.tensor([0.0, float("nan")]), torch.zeros(2), "doubt: it has NaNs"),
    ],
)
def test_what_is_refused(doubt, loss, line):
    with pytest.raises(ValueError, match=line):
        risk_coverage(doubt, loss)
