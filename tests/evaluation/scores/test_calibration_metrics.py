"""Scores of class probabilities against numbers worked out by hand or by scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import matthews_corrcoef

from evaluation.scores.calibration_metrics import (
    accuracy,
    average_draws,
    brier_score,
    entropy,
    expected_calibration_error,
    fit_temperature,
    matthews_correlation,
    mutual_information,
    negative_log_likelihood,
    score_classes,
)

PROBS = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
LABELS = torch.tensor([0, 0, 1, 1])


def test_scores_by_hand():
    assert accuracy(PROBS, LABELS) == 0.5
    expected = -(math.log(0.9) + math.log(0.4) + math.log(0.8) + math.log(0.3)) / 4
    assert negative_log_likelihood(PROBS, LABELS) == pytest.approx(expected, abs=1e-6)
    assert brier_score(PROBS, LABELS) == pytest.approx(2 * (0.01 + 0.36 + 0.04 + 0.49) / 4, abs=1e-6)
    # the four confidences fall into four bins of width 1 / 15
    assert expected_calibration_error(PROBS, LABELS) == pytest.approx((0.1 + 0.6 + 0.2 + 0.7) / 4, abs=1e-6)
    assert expected_calibration_error(PROBS, LABELS, bins=1) == pytest.approx(0.75 - 0.5, abs=1e-6)


def test_matthews_is_that_of_scikit_learn_also_for_three_classes():
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 3):
        probs = torch.rand(50, classes, generator=generator).softmax(-1)
        labels = torch.randint(classes, (50,), generator=generator)
        assert matthews_correlation(probs, labels) == pytest.approx(matthews_corrcoef(labels, probs.argmax(-1)))
    assert matthews_correlation(PROBS[:1].expand(4, 2), LABELS) == 0.0


def test_a_right_but_impossible_class_costs_a_finite_number():
    assert 700 < negative_log_likelihood(torch.tensor([[1.0, 0.0]]), torch.tensor([1])) < 710


def test_mutual_information_is_what_draws_disagree_about():
    agree = PROBS.expand(5, 4, 2)
    torch.testing.assert_close(mutual_information(agree), torch.zeros(4, dtype=torch.float64), atol=1e-7, rtol=0)
    sides = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert float(mutual_information(sides)) == pytest.approx(math.log(2))
    assert float(entropy(average_draws(sides))) == pytest.approx(math.log(2))


def test_probabilities_are_averaged_not_logits():
    draws = torch.stack([PROBS, PROBS.flip(-1)])
    torch.testing.assert_close(average_draws(draws), torch.full((4, 2), 0.5, dtype=torch.float64))
    assert score_classes(draws, LABELS).nll == pytest.approx(math.log(2))
    assert set(score_classes(draws, LABELS).as_dict()) == {"acc", "matthews", "nll", "ece", "brier"}


def test_the_temperature_that_made_the_labels_is_found():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3.0, rel=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy(PROBS, LABELS[:2]), "probs: got shape"),
        (lambda: average_draws(PROBS), "draws: got shape"),
        (lambda: expected_calibration_error(PROBS, LABELS, bins=0), "bins: got 0"),
        (lambda: fit_temperature(PROBS[:0], LABELS[:0]), "labels: got none"),
    ],
)
def test_bad_input_gets_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
