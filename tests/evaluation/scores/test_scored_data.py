"""What scores and diagnostics do with outputs, masks, labels, probabilities and draws that cannot be scored."""

import math

import pytest
import torch

from evaluation import diagnostics
from evaluation.scores import metrics
from evaluation.scores.calibration_metrics import (
    accuracy,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    matthews_correlation,
    negative_log_likelihood,
    score_classes,
)
from inference.prediction import Prediction
from pp_models import BayesianNetwork, DataError, Dataset, MixtureDensityNetwork
from pp_models.likelihoods import BernoulliLikelihood

SCORES = {
    "rmse": metrics.rmse,
    "crps": metrics.crps,
    "crps gaussian": lambda p, y, mask=None: metrics.crps(p, y, mask, "gaussian"),
    "sigma coverage": metrics.sigma_coverage,
    "interval coverage": metrics.interval_coverage,
    "calibration error": metrics.calibration_error,
}
every_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)


def predicted(draws=20, tasks=3, points=4, outputs=2):
    normal = torch.distributions.Normal(torch.randn(draws, tasks, points, outputs), torch.ones(()))
    return Prediction(torch.distributions.Independent(normal, 1), normal.sample())


@every_score
def test_nothing_is_broadcast(score):
    prediction, y = predicted(), torch.randn(3, 4, 2)
    for other in (y[0], y[..., :1], y.mT, y.unsqueeze(0), y[:1], torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"^y: got shape \[.*\]; the prediction has shape \[3, 4, 2\]$"):
            score(prediction, other)


@every_score
def test_a_mask_is_bool_and_of_the_points(score):
    prediction, y = predicted(), torch.randn(3, 4, 2)
    mask = torch.ones(3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"^mask: got torch.int64; it must be a tensor of dtype torch.bool"):
        score(prediction, y, mask)
    for other in (mask.bool()[0], mask.bool().T, torch.ones(3, 4, 3).bool()):
        with pytest.raises(
            ValueError, match=r"^mask: got shape \[.*\]; it must be that of the points, \[3, 4\], or of the outputs"
        ):
            score(prediction, y, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@every_score
def test_outputs_that_are_not_finite_are_refused_where_they_are_scored(score, bad):
    prediction, y = predicted(), torch.randn(3, 4, 2)
    spoilt = y.clone()
    spoilt[1, 2, 0] = bad
    with pytest.raises(ValueError, match=r"^y: 1 value\(s\) are NaN or infinite; every scored output must be finite"):
        score(prediction, spoilt)
    mask = torch.ones(3, 4).bool()
    mask[1, 2] = False
    torch.testing.assert_close(score(prediction, spoilt, mask), score(prediction, y, mask))


@every_score
def test_a_prediction_that_is_nan_scores_nan(score):
    prediction, y = predicted(), torch.randn(3, 4, 2)
    prediction.likelihood.base_dist.loc[:, 1] = math.nan
    prediction.samples[:, 1] = math.nan
    found = score(prediction, y)
    if score is metrics.calibration_error:  # of all tasks together
        assert bool(found.isnan())
    else:
        assert found.isnan().tolist() in ([False, True, False], [[False, True, False]] * 2)


def test_class_indices_have_no_error():
    with pytest.raises(ValueError, match=r"^y: got torch.int64; this score needs a floating-point tensor of outputs$"):
        metrics.rmse(predicted(), torch.zeros(3, 4, 2).long())


def test_a_joint_density_takes_no_integer_mask():
    prediction, y = predicted(), torch.randn(3, 4, 2)
    with pytest.raises(DataError, match=r"^mask: got torch.int64 of shape \[3, 4\]; it must be torch.bool"):
        prediction.joint_log_prob(y, torch.full((3, 4), 2))


def test_shapes_of_the_elementwise_scores():
    mean = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"^y: got shape \[4\] with mean \[3, 4\] and std \[3, 4\]; all three must"):
        metrics.gaussian_crps(mean, mean + 1, mean[0])
    with pytest.raises(ValueError, match=r"^y: got shape \[4\]; a draw has shape \[3, 4\]$"):
        metrics.sample_crps(torch.zeros(5, 3, 4), mean[0])
    with pytest.raises(ValueError, match=r"^y: got shape \[4\]; the mixtures have shape \[3\]$"):
        metrics.mixture_crps(mean + 0.25, mean, mean + 1, mean[0])
    with pytest.raises(ValueError, match=r"^y: got shape \[4, 2\]; the prediction has shape \[3, 4, 2\]$"):
        metrics.pit(predicted(), torch.zeros(4, 2))


# -- classes -----------------------------------------------------------------------------------------------------------

CLASS_SCORES = [accuracy, brier_score, expected_calibration_error, matthews_correlation, negative_log_likelihood]
PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.5, 0.25, 0.25]])
LABELS = torch.tensor([0, 1, 0, 2])


@pytest.mark.parametrize("score", [*CLASS_SCORES, fit_temperature])
def test_ignored_labels_are_left_out(score):
    values = PROBS.log() if score is fit_temperature else PROBS
    ignored = torch.tensor([0, -100, 0, 2])
    kept = [0, 2, 3]
    assert score(values, ignored) == score(values[kept], LABELS[kept])
    spoilt = values.clone()
    spoilt[1] = math.nan  # of an item that is not scored
    assert score(spoilt, ignored) == score(values[kept], LABELS[kept])
    with pytest.raises(
        ValueError, match=r"^labels: got none to score; at least one must be a class index and not -100"
    ):
        score(values, torch.full((4,), -100))


@pytest.mark.parametrize("score", [*CLASS_SCORES, fit_temperature])
def test_labels_of_no_class_are_refused(score):
    for labels, message in (
        (
            torch.tensor([0, 1, 0, 3]),
            r"^labels: got indices from 0 to 3; with 3 classes they lie in 0..2 \(-100 is ign",
        ),
        (torch.tensor([0, 1, 0, -1]), r"^labels: got indices from -1 to 1; with 3 classes they lie in 0..2 "),
        (LABELS + 0.5, r"^labels: got dtype torch.float32; they must be class indices, integers$"),
    ):
        with pytest.raises(ValueError, match=message):
            score(PROBS, labels)


@pytest.mark.parametrize("score", CLASS_SCORES)
def test_rows_that_are_no_probabilities_are_refused(score):
    for bad, message in (
        (math.nan, r"^probs: 1 row\(s\) of scored items hold NaN or infinity; all must be finite$"),
        (math.inf, r"^probs: 1 row\(s\) of scored items hold NaN or infinity; all must be finite$"),
        (-0.2, r"^probs: 1 row\(s\) are no probabilities, such as \[.*\]; a row sums to 1$"),
        (2.0, r"^probs: 1 row\(s\) are no probabilities, such as \[.*\]; a row sums to 1$"),
    ):
        spoilt = PROBS.clone()
        spoilt[2, 0] = bad
        with pytest.raises(ValueError, match=message):
            score(spoilt, LABELS)


def test_all_scores_of_draws_leave_ignored_items_out():
    draws = PROBS.expand(5, -1, -1)
    assert score_classes(draws, torch.tensor([0, 1, 0, -100])) == score_classes(draws[:, :3], LABELS[:3])


@pytest.mark.parametrize("low", [-1.0, 1.0])
def test_a_bernoulli_likelihood_takes_values_between_0_and_1(low):
    labels = torch.tensor([[low], [low + 1], [low]])
    x = torch.randn(3, 1)
    models = [BayesianNetwork([1, 1], likelihood="bernoulli"), MixtureDensityNetwork(2, likelihood="bernoulli")]
    for model in models:
        with pytest.raises(
            DataError, match=rf"^y: got values from {low:g} to {low + 1:g}; a BernoulliLikelihood needs"
        ):
            model.check(Dataset(x, labels))
        model.check(Dataset(x, (labels - low) / 2))  # grey values are good
        hidden = torch.cat([(labels - low), labels + 7])
        model.check(Dataset(torch.cat([x, x]), hidden, torch.arange(6) < 3))
    assert BernoulliLikelihood()(torch.zeros(3, 1)).log_prob(labels - low).max() <= 0


# -- draws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_draws_that_are_not_finite_are_told_apart_from_nothing(bad):
    a, b = torch.randn(60, 2, 3), torch.randn(60, 2, 3) + 5
    b[0, 1, 0] = bad
    found = diagnostics.c2st(a, b, steps=60)
    assert found[0] > 0.95 and bool(found[1].isnan())


@pytest.mark.parametrize("scale", [1e-30, 1e-14, 1.0, 1e30])
def test_no_spread_is_too_small_to_tell_draws_apart(scale):
    a, b = torch.randn(60, 1), torch.randn(60, 1) + 5
    assert diagnostics.c2st(a * scale, b * scale, steps=60) > 0.95
    assert diagnostics.c2st(torch.zeros(60, 1), torch.zeros(60, 1), steps=5) == 0.5


def test_arguments_of_diagnostics():
    weights = torch.randn(1, 50, 2)
    for value in (0, -3):
        with pytest.raises(ValueError, match=rf"^num_draws: got {value}; it must be at least 1$"):
            diagnostics.khat_threshold(value)
    for reff in (math.nan, 0.0, -1.0, math.inf, torch.tensor([1.0, math.nan])):
        for call in (diagnostics.psis, diagnostics.psis_weights, diagnostics.loo):
            with pytest.raises(
                ValueError,
                match=r"^reff: got .*; (a relative efficiency is|it must be( a number that is)?) positive and finite",
            ):
                call(weights, reff=reff)
    for bandwidth in (-1.0, 0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^bandwidth: got .*; it must be positive and finite, or None$"):
            diagnostics.mmd(weights[0], weights[0], bandwidth=bandwidth)
