"""Ranks by sorted integers against ranks by values, and sequences that end early against all lags."""

import pytest
import torch
from scipy.stats import norm, rankdata

from evaluation.diagnostics import convergence, ess, rhat
from evaluation.diagnostics.ranks import _by_value, in_order, normal_scores, scores_and_median

ROWS, SIZE = 40, 300


def rows(kind, dtype=torch.float64):
    noise = torch.randn(ROWS, SIZE, dtype=torch.float64)
    made = {
        "noise": noise,
        "large and small": noise * 10 ** torch.linspace(-300, 300, ROWS, dtype=torch.float64).unsqueeze(-1),
        "ties": (2 * noise).round(),
        "pairs": torch.cat([noise[:, : SIZE // 2], noise[:, : SIZE // 2]], -1)[:, torch.randperm(SIZE)],
        "one pair": torch.cat([noise[:, 1:], noise[:, 7:8]], -1),
        "distances from the median": (noise - noise.quantile(0.5, -1, keepdim=True, interpolation="midpoint")).abs(),
        "threes": torch.cat([noise[:, : SIZE // 3]] * 3, -1),
        "constant": noise[:, :1].expand(ROWS, SIZE),
        "two values": (noise > 0).double(),
        "zeros of both signs": torch.where(noise > 1, noise, torch.copysign(torch.zeros_like(noise), noise)),
        "a last bit apart": 1 + 2.0**-52 * torch.randperm(SIZE).double().expand(ROWS, SIZE),
        "denormal": noise * 1e-310,
        "infinite": torch.where(noise.abs() > 2, torch.inf * noise.sign(), noise),
    }[kind]
    return made.to(dtype)


KINDS = ("noise", "large and small", "pairs", "one pair", "distances from the median", "threes", "ties", "constant",
         "two values", "zeros of both signs", "a last bit apart",
         "denormal", "infinite")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_ranks_by_value(kind):
    x = rows(kind)
    scores, median = scores_and_median(x)
    expected, its_median = _by_value(x, x.shape)
    assert torch.equal(scores, expected)
    assert torch.equal(median, its_median)
    by_scipy = norm.ppf((rankdata(x.numpy(), axis=-1) - 0.375) / (SIZE + 0.25))
    torch.testing.assert_close(scores, torch.from_numpy(by_scipy), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["noise", "ties", "constant", "zeros of both signs"])
def test_scores_in_single_precision(kind):
    x = rows(kind, torch.float32)
    assert torch.equal(normal_scores(x), _by_value(x, x.shape)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_sorted_rows(kind):
    x = rows(kind)
    assert torch.equal(in_order(x), x.sort(-1).values)


def chains(kind, draws=250):
    """``[2, draws, 60]``."""
    noise = torch.randn(2, draws, 60, dtype=torch.float64)
    if kind in ("anticorrelated", "sticky", "drifting"):
        share = {"anticorrelated": -0.9, "sticky": 0.95, "drifting": 0.999}[kind]
        for i in range(1, draws):
            noise[:, i] = share * noise[:, i - 1] + (1 - share**2) ** 0.5 * noise[:, i]
    if kind == "ties":
        noise = (2 * noise).round()
    if kind == "constant":
        noise = noise[:, :1].expand(2, draws, 60).clone()
    if kind == "one stuck chain":
        noise[0] = noise[0, :1]
    if kind == "stuck for a while":
        noise[:, 50:150] = noise[:, 50:51]
    return noise


@pytest.mark.parametrize("method", convergence.ESS_METHODS[:4])
@pytest.mark.parametrize("kind", ["noise", "anticorrelated", "sticky", "drifting", "ties", "constant",
                                  "one stuck chain", "stuck for a while"])  # fmt: skip
def test_sequences_that_end_early_give_what_all_lags_give(kind, method, monkeypatch):
    draws = chains(kind)
    found = ess(draws, method)
    monkeypatch.setattr(convergence, "SHORT_LAGS", ())
    torch.testing.assert_close(found, ess(draws, method), rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("draws", [4, 5, 31, 33, 127, 129])
def test_few_draws(draws, monkeypatch):
    x = chains("sticky", draws)
    found, r = ess(x), rhat(x)
    monkeypatch.setattr(convergence, "SHORT_LAGS", ())
    torch.testing.assert_close(found, ess(x), rtol=1e-9, atol=1e-9, equal_nan=True)
    assert r.shape == (60,)
