"""The energy distance against its closed form and its own invariances."""

import math

import pytest
import torch

from evaluation.scores.two_sample import energy_distance


def test_it_is_the_closed_form_of_two_normals():
    """E|N(m, s²)| = s √(2/π) exp(-m²/2s²) + m erf(m / s√2), with s² the sum of the variances."""
    torch.manual_seed(0)
    a, b = torch.randn(4000, 1), 1.5 + 2 * torch.randn(4000, 1)

    def mean_distance(m, s):
        return s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(m / (s * math.sqrt(2)))

    exact = 2 * mean_distance(1.5, math.sqrt(5)) - mean_distance(0, math.sqrt(2)) - mean_distance(0, math.sqrt(8))
    assert energy_distance(a, b) == pytest.approx(exact, abs=0.06)


def test_equal_laws_are_at_distance_zero_and_grids_do_not_matter():
    torch.manual_seed(0)
    a, b = torch.randn(2000, 3), torch.randn(2000, 3)
    assert abs(energy_distance(a, b)) < 0.01
    far = b + 1.0
    assert energy_distance(a, far) > 0.3
    wide = energy_distance(a.repeat_interleave(4, 1), far.repeat_interleave(4, 1))
    assert wide == pytest.approx(energy_distance(a, far), rel=1e-9)
    assert energy_distance(far, a) == pytest.approx(energy_distance(a, far), rel=1e-9)


def test_bad_draws():
    with pytest.raises(ValueError, match=r"^a, b: got shapes \[3, 2\] and \[3, 1\]; it must be two draws or more each"):
        energy_distance(torch.zeros(3, 2), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"^a, b: got shapes \[1, 2\] and \[3, 2\]; "):
        energy_distance(torch.zeros(1, 2), torch.zeros(3, 2))
