"""Scores against closed forms, numeric integration, and predictions that are calibrated by construction."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from evaluation import metrics
from guides import AmortisedMeanFieldGuide, DirichletMixtureGuide
from inference import predict
from pp_models import BayesianNetwork, Dataset, MixtureDensityNetwork, TaskBatch


@dataclass
class NormalDraws:
    """S equally likely functions ``[S, *B, N, Dy]`` seen through Gaussian noise: the simplest honest prediction."""

    functions: Tensor
    noise: float

    @property
    def mean(self):
        return self.functions.mean(0)

    @property
    def std(self):
        return (self.functions.var(0, correction=0) + self.noise**2).sqrt()

    @property
    def samples(self):
        return self.functions + self.noise * torch.randn_like(self.functions)

    def log_prob(self, y):
        return self._points(y).logsumexp(0) - math.log(len(self.functions))

    def joint_log_prob(self, y, mask=None):
        points = self._points(y)
        if mask is not None:
            points = points * mask
        return points.sum(-1).logsumexp(0) - math.log(len(self.functions))

    def _points(self, y):
        return Normal(self.functions, self.noise).log_prob(y).sum(-1)


@dataclass
class Calibrated:
    mean: Tensor
    std: Tensor
    samples: Tensor


def calibrated(num_draws=99, shape=(4, 500, 2)):
    """y and draws from the same Gaussian, with a different mean and scale at every point."""
    mean, std = torch.randn(shape).double(), torch.rand(shape).double() + 0.5
    y = mean + std * torch.randn(shape).double()
    return Calibrated(mean, std, mean + std * torch.randn(num_draws, *shape).double()), y


def tasks(num_tasks=3, n_context=4, n_target=6, dim_y=2):
    def points(n):
        return Dataset(torch.rand(num_tasks, n, 1), torch.randn(num_tasks, n, dim_y))

    return TaskBatch(points(n_context), points(n_target))


def test_log_likelihoods_are_means_over_points_and_outputs():
    batch = tasks()
    prediction = NormalDraws(torch.zeros(1, 3, 10, 2), 1.0)
    scores = metrics.log_likelihoods(prediction, batch)
    points = Normal(0.0, 1.0).log_prob(batch.full.y)
    torch.testing.assert_close(scores.ll, points.mean((-1, -2)))
    torch.testing.assert_close(scores.rll, points[:, :4].mean((-1, -2)))
    torch.testing.assert_close(scores.pll, points[:, 4:].mean((-1, -2)))
    # a single draw has independent points, so the joint per point is the marginal
    torch.testing.assert_close(scores.joint_pll, scores.pll)
    torch.testing.assert_close(scores.joint_rll, scores.rll)
    assert scores.mean()["ll"] == pytest.approx(float(points.mean()), abs=1e-6)


def test_joint_sees_the_coherence_that_the_marginal_does_not():
    batch = tasks(num_tasks=1, dim_y=1)
    offsets = torch.tensor([-2.0, 2.0]).reshape(2, 1, 1, 1).expand(2, 1, 10, 1)
    y = torch.full((1, 10, 1), 2.0)
    batch = TaskBatch(Dataset(batch.context.x, y[:, :4]), Dataset(batch.target.x, y[:, 4:]))
    scores = metrics.log_likelihoods(NormalDraws(offsets, 0.1), batch)
    peak = -math.log(0.1) - 0.5 * math.log(2 * math.pi)
    assert scores.ll.item() == pytest.approx(peak - math.log(2), abs=1e-4)  # half the mass at every point
    assert scores.joint_ll.item() == pytest.approx(peak - math.log(2) / 10, abs=1e-4)  # half the mass once


def test_log_likelihoods_ignore_padding_and_leave_empty_contexts_nan():
    batch = tasks(num_tasks=2)
    context_mask = torch.tensor([[True, True, False, False], [False] * 4])
    target_mask = torch.tensor([[True] * 6, [True] * 5 + [False]])
    context_y = batch.context.y.masked_fill(~context_mask[..., None], torch.nan)
    masked = TaskBatch(
        Dataset(batch.context.x, context_y, context_mask), Dataset(batch.target.x, batch.target.y, target_mask)
    )
    scores = metrics.log_likelihoods(NormalDraws(torch.zeros(5, 2, 10, 2), 1.0), masked)
    points = Normal(0.0, 1.0).log_prob(batch.full.y)
    torch.testing.assert_close(scores.ll[0], points[0, [0, 1, 4, 5, 6, 7, 8, 9]].mean())
    torch.testing.assert_close(scores.pll[1], points[1, 4:9].mean())
    torch.testing.assert_close(scores.joint_ll[1], points[1, 4:9].mean())
    torch.testing.assert_close(scores.rll[0], points[0, :2].mean())
    assert scores.rll.isnan().tolist() == [False, True]
    assert scores.joint_rll.isnan().tolist() == [False, True]
    assert math.isfinite(scores.mean()["rll"])


def test_log_likelihoods_refuse_unknown_targets_and_other_points():
    batch = tasks()
    with pytest.raises(ValueError, match=r"target\.y is None"):
        metrics.log_likelihoods(
            NormalDraws(torch.zeros(1, 3, 10, 2), 1.0), TaskBatch(batch.context, batch.target.without_y())
        )

    class TargetOnly(NormalDraws):
        def log_prob(self, y):
            return super().log_prob(y)[:, :6]

    with pytest.raises(ValueError, match=r"batch\.full\.x"):
        metrics.log_likelihoods(TargetOnly(torch.zeros(1, 3, 10, 2), 1.0), batch)


def test_sigma_coverage_of_a_calibrated_gaussian():
    prediction, y = calibrated()
    covered = metrics.sigma_coverage(prediction, y, sigmas=(1.0, 2.0))
    assert covered.shape == (2, 4)
    error = (0.683 * 0.317 / y.numel()) ** 0.5
    assert covered[0].mean().item() == pytest.approx(math.erf(1 / math.sqrt(2)), abs=4 * error)
    assert covered[1].mean().item() == pytest.approx(math.erf(2 / math.sqrt(2)), abs=4 * error)


def test_sigma_coverage_flags_an_overconfident_prediction():
    prediction, y = calibrated()
    prediction.std = prediction.std / 2
    assert metrics.sigma_coverage(prediction, y)[0].mean().item() < 0.45


def test_interval_coverage_is_the_level_when_calibrated_and_below_it_when_overconfident():
    prediction, y = calibrated()
    levels = (0.5, 0.8, 0.9)
    covered = metrics.interval_coverage(prediction, y, levels=levels)
    assert covered.shape == (3, 4)
    for level, value in zip(levels, covered.mean(-1).tolist(), strict=True):
        assert value == pytest.approx(level, abs=0.03)
    prediction.samples = prediction.mean + 0.5 * (prediction.samples - prediction.mean)
    assert metrics.interval_coverage(prediction, y, levels=(0.9,)).mean().item() < 0.65
    with pytest.raises(
        ValueError, match=r"^levels: got \(1\.0,\); it must hold levels, and each must lie in \(0, 1\)$"
    ):
        metrics.interval_coverage(prediction, y, levels=(1.0,))


def test_pit_is_uniform_when_calibrated_and_one_half_when_all_tie():
    prediction, y = calibrated()
    u = metrics.pit(prediction, y)
    assert u.mean().item() == pytest.approx(0.5, abs=0.02)
    assert u.var().item() == pytest.approx(1 / 12, abs=0.005)
    assert u.min().item() > 0 and u.max().item() < 1
    prediction.samples = y.expand(5, *y.shape)
    assert (metrics.pit(prediction, y) == 0.5).all()


@pytest.mark.parametrize(("mean", "std", "y"), [(0.0, 1.0, 0.0), (0.3, 0.5, -1.2), (-2.0, 2.0, 5.0)])
def test_gaussian_crps_is_the_integral_of_its_definition(mean, std, y):
    grid = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    step = (grid >= y).double()
    integral = torch.trapezoid((Normal(mean, std).cdf(grid) - step) ** 2, grid).item()
    value = metrics.gaussian_crps(*(torch.tensor(v, dtype=torch.float64) for v in (mean, std, y))).item()
    assert value == pytest.approx(integral, abs=1e-4)


def test_the_crps_of_a_mixture_is_that_of_its_draws():
    torch.manual_seed(0)
    weights = torch.softmax(torch.randn(5, 3, dtype=torch.float64), -1)
    means, scales = 2 * torch.randn(5, 3, dtype=torch.float64), 0.1 + torch.rand(5, 3, dtype=torch.float64)
    y = torch.randn(5, dtype=torch.float64)
    which = torch.multinomial(weights, 20_000, replacement=True).T
    draws = means.gather(-1, which.T).T + scales.gather(-1, which.T).T * torch.randn(20_000, 5, dtype=torch.float64)
    closed = metrics.mixture_crps(weights, means, scales, y)
    torch.testing.assert_close(closed, metrics.sample_crps(draws, y), atol=0.03, rtol=0)
    one = metrics.mixture_crps(torch.ones(5, 1), means[:, :1], scales[:, :1], y)
    torch.testing.assert_close(one, metrics.gaussian_crps(means[:, 0], scales[:, 0], y))


def test_the_crps_of_a_predicted_mixture_needs_mean_weights():
    model = MixtureDensityNetwork(3, 1, 2, "strict", width=8)
    guide = DirichletMixtureGuide(model, width=8)
    context = Dataset(torch.randn(4, 5, 1), torch.randn(4, 5, 2))
    x, y = torch.randn(4, 6, 1), torch.randn(4, 6, 2)
    exact = metrics.crps(predict(model, guide, context, x, weights="mean"), y, method="mixture")
    drawn = predict(model, guide, context, x, 4_000, seed=0)
    torch.testing.assert_close(exact, metrics.crps(drawn, y), atol=0.05, rtol=0.02)
    with pytest.raises(ValueError, match=r"^method: 'mixture' needs weights='mean'; this prediction has 4000 draws$"):
        metrics.crps(drawn, y, method="mixture")
    network = BayesianNetwork([1, 4, 2])
    other = predict(network, AmortisedMeanFieldGuide(network, 8), context, x, 3)
    with pytest.raises(ValueError, match=r"^method: 'mixture' needs the prediction of a mixture of Gaussian experts$"):
        metrics.crps(other, y, method="mixture")


def test_sample_crps_is_the_double_sum_it_stands_for():
    samples, y = torch.randn(7, 3, 2).double(), torch.randn(3, 2).double()
    spread = (samples[:, None] - samples[None]).abs().sum((0, 1)) / (2 * 7 * 6)
    torch.testing.assert_close(metrics.sample_crps(samples, y), (samples - y).abs().mean(0) - spread)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.sample_crps(samples[:1], y)


def test_sample_crps_is_unbiased_even_from_two_draws():
    mean, std, y = torch.tensor(0.2), torch.tensor(0.7), torch.tensor(1.0)
    draws = mean + std * torch.randn(2, 200_000)
    estimate = metrics.sample_crps(draws, y.expand(200_000))
    error = estimate.std().item() / 200_000**0.5
    assert estimate.mean().item() == pytest.approx(metrics.gaussian_crps(mean, std, y).item(), abs=4 * error)


def test_crps_by_both_methods_agrees_and_averages_over_existing_points():
    prediction, y = calibrated(num_draws=400, shape=(3, 20, 2))
    mask = torch.rand(3, 20) < 0.5
    closed = metrics.crps(prediction, y, mask, method="gaussian")
    elementwise = metrics.gaussian_crps(prediction.mean, prediction.std, y)
    torch.testing.assert_close(closed[1], elementwise[1][mask[1]].mean())
    torch.testing.assert_close(metrics.crps(prediction, y, mask), closed, rtol=0.05, atol=0.0)
    with pytest.raises(ValueError, match="method: got 'quantile'"):
        metrics.crps(prediction, y, method="quantile")


def test_rmse_over_existing_points():
    y = torch.tensor([[[3.0], [4.0], [100.0]]])
    prediction = NormalDraws(torch.zeros(1, 1, 3, 1), 1.0)
    assert metrics.rmse(prediction, y, torch.tensor([[True, True, False]])).item() == pytest.approx(12.5**0.5)


def test_paired_difference_is_sharper_than_the_scores_and_drops_tasks_without_one():
    common = 10 * torch.randn(400)
    a, b = common + 0.1 * torch.randn(400) + 0.05, common.clone()
    b[0] = torch.nan
    result = metrics.paired_difference(a, b)
    assert result.num_tasks == 399
    assert result.mean == pytest.approx(float((a - b)[1:].mean()), abs=1e-5)
    assert result.standard_error == pytest.approx(0.1 / 399**0.5, rel=0.15)
    assert str(result).endswith("(399 tasks)")
    with pytest.raises(ValueError, match="the same tasks"):
        metrics.paired_difference(a, b[1:])
    with pytest.raises(ValueError, match="no task"):
        metrics.paired_difference(torch.tensor([torch.nan]), torch.tensor([0.0]))
    assert math.isnan(metrics.paired_difference(torch.ones(1), torch.zeros(1)).standard_error)


def test_rate_spread_separates_weights_from_biases():
    class Guide:
        def rates(self, data):
            rates = torch.zeros(2, 3, 5)
            rates[0, :, :-1], rates[1, :, :-1] = 0.2, 0.4
            rates[..., -1] = 0.7
            return {"layer_0.weight": rates}

    data = Dataset(torch.rand(2, 4, 1), torch.randn(2, 4, 1))
    spread = metrics.rate_spread(Guide(), data)["layer_0.weight"]
    assert spread.weight_mean == pytest.approx(0.3)
    assert spread.weight_spread == pytest.approx(0.1 * 2**0.5)
    assert (spread.bias_mean, spread.bias_spread) == (pytest.approx(0.7), pytest.approx(0.0, abs=1e-6))

    class OneTask:
        def rates(self, data):
            return {"layer_0.weight": torch.rand(3, 5)}

    with pytest.raises(ValueError, match="at least 2"):
        metrics.rate_spread(OneTask(), data)


def test_the_calibration_error_is_near_zero_for_honest_and_large_for_sure_predictions():
    prediction, y = calibrated()
    assert float(metrics.calibration_error(prediction, y)) < 0.02
    sure = Calibrated(prediction.mean, prediction.std, prediction.mean + 0.2 * (prediction.samples - prediction.mean))
    assert float(metrics.calibration_error(sure, y)) > 0.1
    above = Calibrated(prediction.mean, prediction.std, prediction.samples - 100)
    # every PIT is above every level: the share below is 0, and the error the mean level
    assert float(metrics.calibration_error(above, y)) == pytest.approx(0.5)
    mask = torch.zeros(y.shape[:-1], dtype=torch.bool)
    mask[0] = True
    shifted = prediction.samples.clone()
    shifted[:, 1:] -= 100
    partly = Calibrated(prediction.mean, prediction.std, shifted)
    assert float(metrics.calibration_error(partly, y, mask)) < 0.03
    with pytest.raises(ValueError, match="levels: got 0; it must be at least 1"):
        metrics.calibration_error(prediction, y, levels=0)
