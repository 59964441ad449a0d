"""Diagnostics against ArviZ on the same draws: ordinary and awkward ones, float64, to 1e-6 (they agree to 1e-12)."""

import logging
import warnings

import arviz
import numpy as np
import pytest
import torch
from arviz.stats import diagnostics as reference
from arviz_stats.base import array_stats

from evaluation.diagnostics import ess, loo, mcse, psis_weights, rhat

SHAPES = [(4, 250), (2, 100), (1, 50), (2, 7), (2, 4), (2, 3), (3, 11)]
KINDS = ["independent", "sticky", "antithetic", "ties", "constant", "one chain constant", "nan", "heavy"]
STATISTICS = {
    "bulk": (reference._ess_bulk, lambda x: ess(x, "bulk")),
    "tail": (reference._ess_tail, lambda x: ess(x, "tail")),
    "mean": (reference._ess_mean, lambda x: ess(x, "mean")),
    "sd": (reference._ess_sd, lambda x: ess(x, "sd")),
    "quantile": (lambda x: reference._ess_quantile(x, 0.3), lambda x: ess(x, "quantile", 0.3)),
    "rhat": (reference._rhat_rank, rhat),
    "mcse of the mean": (reference._mcse_mean, lambda x: mcse(x, "mean")),
    "mcse of the sd": (reference._mcse_sd, lambda x: mcse(x, "sd")),
    "mcse of a quantile": (lambda x: reference._mcse_quantile(x, 0.3), lambda x: mcse(x, "quantile", 0.3)),
}


def draws(shape, kind, entries=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, entries, generator=generator, dtype=torch.float64)
    if kind in ("sticky", "antithetic"):
        for i in range(1, shape[1]):
            x[:, i] += (0.95 if kind == "sticky" else -0.7) * x[:, i - 1]
    if kind == "ties":
        x = x.round()
    if kind == "constant":
        x = torch.ones_like(x)
    if kind == "one chain constant":
        x[0] = 1.0
    if kind == "nan":
        x[0, 0, ::2] = torch.nan
    if kind == "heavy":
        x = x / torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return x


@pytest.fixture(autouse=True)
def quiet():
    """ArviZ logs and warns about what it answers NaN to."""
    logger = logging.getLogger("arviz")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("kind", KINDS)
def test_convergence_statistics(kind, statistic):
    theirs, ours = STATISTICS[statistic]
    for shape in SHAPES:
        x = draws(shape, kind)
        expected = torch.tensor([float(theirs(x[:, :, i].numpy())) for i in range(x.shape[-1])], dtype=torch.float64)
        found = ours(x)
        assert found.shape == (12,) and found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
        grid = ours(x.reshape(*shape, 3, 4))
        torch.testing.assert_close(grid.reshape(-1), found, equal_nan=True)


@pytest.mark.parametrize("count", [5, 25, 100, 1000])
@pytest.mark.parametrize("kind", ["normal", "heavy", "ties", "constant"])
def test_pareto_smoothing(count, kind):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, count, 30, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 5, 30)
    if kind == "heavy":
        x = x / torch.rand(x.shape, generator=generator, dtype=torch.float64)
    if kind == "ties":
        x = (2 * x).round() / 2
    if kind == "constant":
        x = torch.zeros_like(x)
    weights, khat = psis_weights(x)
    expected, expected_k = arviz.psislw(x[0].T.numpy().copy())
    torch.testing.assert_close(khat, torch.as_tensor(np.asarray(expected_k)), rtol=1e-6, atol=1e-6)
    expected = torch.as_tensor(np.asarray(expected)).T
    # among equal weights it is the sort that decides which gets which smoothed value
    torch.testing.assert_close(weights[0].sort(0).values, expected.sort(0).values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.logsumexp(weights[0], 0), torch.zeros(30, dtype=torch.float64))


def test_psis_with_an_efficiency_for_each_entry():
    x = torch.randn(2, 300, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rates = [0.3, 1.0, 0.7]
    weights, khat = psis_weights(x, torch.tensor(rates))
    for i, rate in enumerate(rates):
        expected, k = arviz.psislw(x[..., i].reshape(1, -1).numpy().copy(), reff=rate)
        assert khat[i].item() == pytest.approx(float(np.asarray(k)[0]), abs=1e-9)
        torch.testing.assert_close(weights[..., i].reshape(-1), torch.as_tensor(np.asarray(expected)[0]))


def test_leave_one_out_as_arviz_loo():
    generator = torch.Generator().manual_seed(3)
    log_likelihood = -0.5 * torch.randn(1, 500, 4, 15, generator=generator, dtype=torch.float64).square() - 1
    found = loo(log_likelihood)
    for task in range(4):
        data = arviz.from_dict(
            posterior={"mu": np.zeros((1, 500))}, log_likelihood={"y": log_likelihood[:, :, task].numpy()}
        )
        expected = arviz.loo(data, pointwise=True)
        assert found.total[task].item() == pytest.approx(float(expected.elpd_loo), abs=1e-6)
        assert found.standard_error[task].item() == pytest.approx(float(expected.se), abs=1e-6)
        assert found.p_loo[task].sum().item() == pytest.approx(float(expected.p_loo), abs=1e-6)
        torch.testing.assert_close(found.khat[task], torch.as_tensor(expected.pareto_k.values), rtol=1e-6, atol=1e-6)


def test_leave_one_out_of_a_guide_as_arviz_stats():
    generator = torch.Generator().manual_seed(4)
    log_likelihood = -0.5 * torch.randn(1, 1000, 6, generator=generator, dtype=torch.float64).square() - 1
    log_p, log_q = (torch.randn(1, 1000, generator=generator, dtype=torch.float64) for _ in range(2))
    found = loo(log_likelihood, log_p, log_q, rounding="down")  # as ArviZ 1.x rounds the size of a tail
    for point in range(6):
        elpd, khat, _ = array_stats._loo_approximate_posterior(
            log_likelihood[0, :, point].numpy().copy(), log_p[0].numpy(), log_q[0].numpy()
        )
        assert found.elpd[point].item() == pytest.approx(float(elpd), abs=1e-9)
        assert found.khat[point].item() == pytest.approx(float(khat), abs=1e-9)
    assert (found.elpd - loo(log_likelihood).elpd).abs().max() > 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ess(torch.zeros(3)), r"^draws: got shape \[3\]; it must be \[chain, draw, \*batch\]$"),
        (lambda: ess(torch.zeros(1, 9), "median"), r"^method: got 'median'; it must be one of bulk, tail,"),
        (lambda: ess(torch.zeros(1, 9), "quantile"), r"^prob: got None; method 'quantile' needs a number"),
        (lambda: mcse(torch.zeros(1, 9), "mode"), r"^method: got 'mode'; it must be one of mean, sd, quantile$"),
        (lambda: psis_weights(torch.zeros(5)), r"^log_weights: got shape \[5\]; it must be"),
        (lambda: psis_weights(torch.zeros(1, 9), rounding="even"), r"^rounding: got 'even'; it must be 'up' or"),
        (lambda: psis_weights(torch.full((1, 9), torch.nan)), r"^log_weights: some are NaN$"),
        (lambda: loo(torch.zeros(1, 9, 2), torch.zeros(1, 9)), r"^log_p, log_q: got one of them; .* both$"),
        (
            lambda: loo(torch.zeros(1, 9, 2), torch.zeros(9), torch.zeros(9)),
            r"^log_p, log_q: got shapes \[9\] and \[9\]; they must be \[1, 9\]",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
