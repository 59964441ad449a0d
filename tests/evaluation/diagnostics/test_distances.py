"""Distances between sets of draws: against SciPy, closed forms, and what a distance must do."""

import pytest
import torch
from scipy.stats import wasserstein_distance

from evaluation.diagnostics import c2st, energy_distance, mmd, wasserstein
from evaluation.scores import two_sample


def draws(shift=0.0, scale=1.0, count=400, seed=0, shape=(3, 2)):
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(count, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("counts", [(50, 50), (50, 70), (7, 3)])
def test_wasserstein_is_scipys(counts):
    a, b = draws(count=counts[0]), draws(0.5, 2.0, counts[1], 1)
    found = wasserstein(a, b)
    expected = [[wasserstein_distance(a[:, i, j], b[:, i, j]) for j in range(2)] for i in range(3)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_energy_distance_is_the_one_for_a_single_pair():
    a, b = draws(count=80), draws(0.5, 2.0, 60, 1)
    found = energy_distance(a, b)
    for task in range(3):
        one = two_sample.energy_distance(a[:, task], b[:, task])
        assert found[task].item() == pytest.approx(one * 2**0.5, rel=1e-9)


def test_mmd_against_its_expectation():
    """Gaussian kernel, N(0, 1) and N(m, 1): 2 c (1 - exp(-m² / (2 (s² + 2)))), c = s / √(s² + 2)."""
    shift, bandwidth = 1.0, 1.5
    a, b = draws(count=1000, shape=(4, 1)), draws(shift, count=1000, seed=1, shape=(4, 1))
    factor = bandwidth / (bandwidth**2 + 2) ** 0.5
    expected = 2 * factor * (1 - torch.exp(torch.tensor(-(shift**2) / (2 * (bandwidth**2 + 2)))))
    torch.testing.assert_close(mmd(a, b, bandwidth), expected.double().expand(4), atol=0.04, rtol=0)


@pytest.mark.parametrize("distance", [energy_distance, mmd, c2st])
def test_a_distance_grows_with_the_shift_and_is_nothing_for_one_distribution(distance):
    base = draws(count=200)
    same, near, far = (distance(base, draws(shift, count=200, seed=1)) for shift in (0.0, 0.7, 2.0))
    assert same.shape == (3,)
    assert (near > same).all() and (far > near).all()
    if distance is c2st:
        assert (same - 0.5).abs().max() < 0.1 and far.min() > 0.9
    else:
        assert same.abs().max() < 0.25 * near.min()


def test_c2st_is_repeatable_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    first, again = (c2st(draws(count=60), draws(1.0, count=60, seed=1)) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wasserstein(torch.zeros(3, 2), torch.zeros(3, 4)), r"^a, b: got shapes \[3, 2\] and \[3, 4\]"),
        (lambda: mmd(torch.zeros(3, 2), torch.zeros(3, 4)), r"^a, b: got shapes \[3, 2\] and \[3, 4\]"),
        (lambda: energy_distance(torch.zeros(1, 2), torch.zeros(3, 2)), r"^a, b: got 1 and 3 draws; at least 2"),
        (lambda: c2st(torch.zeros(4, 2), torch.zeros(3, 2)), r"^a, b: got 4 and 3 draws; .* equally many$"),
        (lambda: c2st(torch.zeros(4, 2), torch.zeros(4, 2)), r"^folds: got 5; it must lie in 2..4"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
