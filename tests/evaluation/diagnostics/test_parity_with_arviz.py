"""Diagnostics against ArviZ on the same draws: ordinary and awkward ones, float64, to 1e-6 (they agree to 1e-12)."""

import logging
import warnings

import numpy as np
import pytest
import torch
import xarray
from arviz_stats.base import array_stats

from evaluation.diagnostics import ess, loo, mcse, psis, psis_weights, rhat
from inference.pareto_smoothing import _sum_log1p
from tests import arviz_versions

if arviz_versions.NATIVE == "inferencedata":
    import arviz
    from arviz.stats import diagnostics as reference

SHAPES = [(4, 250), (2, 100), (1, 50), (2, 7), (2, 4), (2, 3), (3, 11)]
KINDS = ["independent", "sticky", "antithetic", "ties", "constant", "one chain constant", "nan", "heavy"]
#: how the installed ArviZ rounds the size of a tail, which moves its k-hat
ROUNDING = "up" if arviz_versions.NATIVE == "inferencedata" else "down"
#: name: ArviZ below 1's function of one entry, ArviZ 1's, ours
STATISTICS = {
    "bulk": ("_ess_bulk", lambda x: array_stats.ess(x, method="bulk"), lambda x: ess(x, "bulk")),
    "tail": ("_ess_tail", lambda x: array_stats.ess(x, method="tail", prob=(0.05, 0.95)), lambda x: ess(x, "tail")),
    "mean": ("_ess_mean", lambda x: array_stats.ess(x, method="mean"), lambda x: ess(x, "mean")),
    "sd": ("_ess_sd", lambda x: array_stats.ess(x, method="sd"), lambda x: ess(x, "sd")),
    "quantile": (
        "_ess_quantile",
        lambda x: array_stats.ess(x, method="quantile", prob=0.3),
        lambda x: ess(x, "quantile", 0.3),
    ),
    "rhat": ("_rhat_rank", lambda x: array_stats.rhat(x, method="rank"), rhat),
    "mcse of the mean": ("_mcse_mean", lambda x: array_stats.mcse(x, method="mean"), lambda x: mcse(x, "mean")),
    "mcse of the sd": ("_mcse_sd", lambda x: array_stats.mcse(x, method="sd"), lambda x: mcse(x, "sd")),
    "mcse of a quantile": (
        "_mcse_quantile",
        lambda x: array_stats.mcse(x, method="quantile", prob=0.3),
        lambda x: mcse(x, "quantile", 0.3),
    ),
}


def arvizs(name):
    """What the installed ArviZ makes of draws ``[chain, draw]``."""
    before, since, _ = STATISTICS[name]
    if arviz_versions.NATIVE == "datatree":
        return since
    function = getattr(reference, before)
    return (lambda x: function(x, 0.3)) if "quantile" in name else function


def smoothed(log_weights, reff=1.0):
    """ArviZ's smoothed log-weights ``[draw]`` and k-hat of one entry."""
    if arviz_versions.NATIVE == "datatree":
        weights, khat = array_stats.psislw(-log_weights, r_eff=reff)  # it takes log-likelihoods
        return weights, float(khat)
    weights, khat = arviz.psislw(log_weights[None], reff=reff)
    return np.asarray(weights)[0], np.asarray(khat)[0]


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
    theirs, ours = arvizs(statistic), STATISTICS[statistic][-1]
    for shape in SHAPES:
        x = draws(shape, kind)
        expected = torch.tensor([float(theirs(x[:, :, i].numpy())) for i in range(x.shape[-1])], dtype=torch.float64)
        found = ours(x)
        assert found.shape == (12,) and found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
        grid = ours(x.reshape(*shape, 3, 4))
        torch.testing.assert_close(grid.reshape(-1), found, equal_nan=True)


#: ArviZ 1.x counts ties with the cutoff in a tail, refuses constants, and has no k-hat of a tail of five to seven
DEFINED = {"inferencedata": (["normal", "heavy", "ties", "constant"], [5, 25, 100, 1000])}
DEFINED["datatree"] = (["normal", "heavy"], [100, 1000])


@pytest.mark.parametrize("count", DEFINED[arviz_versions.NATIVE][1])
@pytest.mark.parametrize("kind", DEFINED[arviz_versions.NATIVE][0])
def test_pareto_smoothing(count, kind):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, count, 30, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 5, 30)
    if kind == "heavy":
        x = x / torch.rand(x.shape, generator=generator, dtype=torch.float64)
    if kind == "ties":
        x = (2 * x).round() / 2
    if kind == "constant":
        x = torch.zeros_like(x)
    weights, khat = psis_weights(x, rounding=ROUNDING)
    found = [smoothed(x[0, :, i].numpy().copy()) for i in range(30)]
    expected_k = torch.tensor([k for _, k in found], dtype=khat.dtype)
    expected = torch.as_tensor(np.stack([each for each, _ in found], -1))
    # where fewer than five weights of a heavy tail differ from zero, ArviZ 1.x has none
    known = ~expected_k.isnan()
    assert known.sum() > 10
    torch.testing.assert_close(khat[known], expected_k[known], rtol=1e-6, atol=1e-6)
    # among equal weights it is the sort that decides which gets which smoothed value
    ours, theirs = weights[0].sort(0).values[:, known], expected.sort(0).values[:, known]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.logsumexp(weights[0], 0), torch.zeros(30, dtype=torch.float64))


def test_psis_with_an_efficiency_for_each_entry():
    x = torch.randn(2, 300, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rates = [0.3, 1.0, 0.7]
    weights, khat = psis_weights(x, torch.tensor(rates), rounding=ROUNDING)
    for i, rate in enumerate(rates):
        expected, k = smoothed(x[..., i].reshape(-1).numpy().copy(), rate)
        assert khat[i].item() == pytest.approx(float(k), abs=1e-9)
        torch.testing.assert_close(weights[..., i].reshape(-1), torch.as_tensor(expected))


def test_leave_one_out_as_arviz_loo():
    generator = torch.Generator().manual_seed(3)
    log_likelihood = -0.5 * torch.randn(1, 500, 4, 15, generator=generator, dtype=torch.float64).square() - 1
    found = loo(log_likelihood, rounding=ROUNDING)
    for task in range(4):
        points = (("chain", "draw", "point"), log_likelihood[:, :, task].numpy())
        data = arviz_versions.container_of(
            arviz_versions.NATIVE,
            posterior=xarray.Dataset({"mu": (("chain", "draw"), np.zeros((1, 500)))}),
            log_likelihood=xarray.Dataset({"y": points}),
        )
        expected = arviz_versions.loo(data)
        assert found.total[task].item() == pytest.approx(arviz_versions.elpd(data), abs=1e-6)
        se = float(expected.se)
        if arviz_versions.NATIVE == "inferencedata":  # which divides by n, not by n - 1
            se *= (15 / 14) ** 0.5
        assert found.standard_error[task].item() == pytest.approx(se, abs=1e-6)
        p_loo = expected.p_loo if arviz_versions.NATIVE == "inferencedata" else expected.p
        assert found.p_loo[task].sum().item() == pytest.approx(float(p_loo), abs=1e-6)
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
        (lambda: psis(torch.zeros(1, 9), rounding="even"), r"^rounding: got 'even'; it must be 'up' or"),
        (lambda: psis(torch.zeros(1, 9), -1.0), r"^reff: got -1"),
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


def test_k_hat_is_that_of_the_smoothed_weights_also_where_products_overflow():
    torch.manual_seed(0)
    x = torch.randn(2, 100, 3, dtype=torch.float64) * torch.tensor([1.0, 30.0, 300.0]).double()
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(psis(x.to(dtype)), psis_weights(x.to(dtype))[1], rtol=0, atol=0, equal_nan=True)
    excess = torch.rand(4, 21, dtype=torch.float64).sort(-1).values
    b = torch.tensor([[0.5, -0.9], [3.0, 0.0], [1e300, -0.5], [1e-12, 1e60]], dtype=torch.float64)
    exact = torch.log1p(b.unsqueeze(-1) * excess.unsqueeze(-2)).sum(-1)
    torch.testing.assert_close(_sum_log1p(b, excess), exact, rtol=1e-12, atol=1e-13)
    b = b[:2].requires_grad_()
    (found,) = torch.autograd.grad(_sum_log1p(b, excess[:2]).sum(), b)
    (expected,) = torch.autograd.grad(torch.log1p(b.unsqueeze(-1) * excess[:2].unsqueeze(-2)).sum(), b)
    torch.testing.assert_close(found, expected)
