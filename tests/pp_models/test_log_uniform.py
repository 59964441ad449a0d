"""The KL to the log-uniform prior against SciPy's integrals and the table of reference values."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch

from guides.adapters.lrvd_families import FAMILIES, family_kl, initial_parameters
from pp_models import log_uniform_kl
from pp_models.log_uniform import LogUniform, dawson

TABLE = {-8: 4.63501, -4: 2.62575, -2: 1.54415, -1: 0.91453, 0: 0.42669, 1: 0.17319, 2: 0.06617, 3: 0.02469, 4: 0.00913}
APPROXIMATE = [4.6359, 2.63421, 1.54053, 0.91387, 0.43124, 0.17797, 0.06842, 0.02542, 0.00933]
SLOPES = {-4: -0.50971, -2: -0.61123, 0: -0.36239, 2: -0.06470, 3: -0.02448, 4: -0.00910}


def grid(low=-8.0, high=8.0, n=1601, dtype=torch.float64):
    return torch.linspace(low, high, n, dtype=dtype)


def test_reference_values():
    log_alpha = torch.tensor(list(TABLE), dtype=torch.float64)
    np.testing.assert_allclose(log_uniform_kl(log_alpha), list(TABLE.values()), atol=6e-6)
    np.testing.assert_allclose(log_uniform_kl(log_alpha, approximate=True), APPROXIMATE, atol=6e-5)


def test_the_value_is_twice_the_integral_of_dawson():
    log_alpha = grid(-12, 12, 97)
    expected = [
        2 * scipy.integrate.quad(scipy.special.dawsn, 0, math.exp(-0.5 * (v + math.log(2))), epsabs=1e-13, limit=400)[0]
        for v in log_alpha.tolist()
    ]
    np.testing.assert_allclose(log_uniform_kl(log_alpha), expected, atol=1e-11)
    np.testing.assert_allclose(log_uniform_kl(log_alpha.float()), expected, rtol=3e-6)


def test_the_value_is_the_expectation_of_the_log_densities():
    torch.manual_seed(0)
    for log_alpha in (-3.0, 0.0, 2.0):
        e = 1 + math.exp(log_alpha / 2) * torch.randn(2_000_000, dtype=torch.float64)
        entropy = 0.5 * math.log(2 * math.pi * math.e) + 0.5 * log_alpha
        limit = 0.5 * math.log(2 * math.pi * math.e) + 0.5 * (math.log(2) + float(torch.digamma(torch.tensor(0.5))))
        found = e.abs().log().mean() - entropy + limit - math.log(2) - torch.digamma(torch.tensor(0.5))
        assert abs(float(found) - float(log_uniform_kl(torch.tensor(log_alpha)))) < 4e-3


def test_dawson_against_scipy():
    u = torch.linspace(1e-3, 60, 6001, dtype=torch.float64)
    np.testing.assert_allclose(dawson(u), scipy.special.dawsn(u.numpy()), atol=1e-14)


def test_the_gradient_is_exact():
    log_alpha = grid(-9, 9, 181).requires_grad_()
    assert torch.autograd.gradcheck(log_uniform_kl, log_alpha)
    (slope,) = torch.autograd.grad(log_uniform_kl(log_alpha).sum(), log_alpha)
    u = np.exp(-0.5 * (log_alpha.detach().numpy() + math.log(2)))
    np.testing.assert_allclose(slope, -u * scipy.special.dawsn(u), atol=1e-13)
    for at, expected in SLOPES.items():
        x = torch.tensor(float(at), requires_grad=True)
        log_uniform_kl(x).backward()
        assert abs(float(x.grad) - expected) < 1e-5


def test_the_sigmoid_fit_is_as_close_as_it_is_said_to_be():
    log_alpha = grid().requires_grad_()
    exact, fit = log_uniform_kl(log_alpha), log_uniform_kl(log_alpha, approximate=True)
    assert 0.009 < float((exact - fit).detach().abs().max()) < 0.0095
    slopes = [torch.autograd.grad(v.sum(), log_alpha)[0] for v in (exact, fit)]
    assert float((slopes[0] - slopes[1]).abs().max()) < 0.014


def test_it_falls_to_zero_and_has_its_asymptotes():
    log_alpha = grid(-30, 30, 1201)
    kl = log_uniform_kl(log_alpha)
    assert bool((kl.diff() < 0).all()) and bool((kl > 0).all())
    assert abs(float(kl[0]) - (0.635181 + 15)) < 1e-6
    assert abs(float(kl[-1]) / (0.5 * math.exp(-30)) - 1) < 1e-9


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not:DeprecationWarning")
def test_vmap_and_compile(compiling):
    log_alpha = grid(-5, 5, 12).reshape(3, 4)
    torch.testing.assert_close(torch.vmap(log_uniform_kl)(log_alpha), log_uniform_kl(log_alpha))
    compiled = torch.compile(lambda v: log_uniform_kl(v).sum(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(log_alpha), log_uniform_kl(log_alpha).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kl_of_a_layer_does_not_depend_on_the_scale_of_tied_weights(family):
    torch.manual_seed(0)
    A, B = torch.randn(3, 5), torch.randn(4, 3)
    own = initial_parameters(family, A, B)
    first, scaled = (family_kl(family, c * A, B / c, own) for c in (1.0, 7.0))
    changed = abs(float(first - scaled)) > 1e-4
    assert changed == (family not in ("rank", "weight_tied"))  # the ratios of those two are parameters themselves


def test_counting_weights_multiplies_by_their_number():
    A, B = torch.randn(3, 5), torch.randn(4, 3)
    for family, per_rank in {"rank": 9, "weight_tied": 9, "shared_sigma": 9, "asym": 5, "untied": 9}.items():
        own = initial_parameters(family, A, B)
        ratio = family_kl(family, A, B, own, "weights") / family_kl(family, A, B, own, "rank")
        assert abs(float(ratio) - per_rank) < 1e-4
    own = initial_parameters("rank", A, B)
    assert abs(float(family_kl("rank", A, B, own)) - 3 * 2.62575) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_holds_the_density(dtype):
    """A ratio of magnitudes of 1e6 and a value of 0 are beyond 16 bits; their logarithms are not."""
    fn = LogUniform(torch.tensor(1e-3, dtype=dtype), torch.tensor(1e3, dtype=dtype))
    exact = LogUniform(torch.tensor(1e-3), torch.tensor(1e3))
    values = torch.tensor([-2.0, 0.5, 0.0])
    found = fn.log_prob(values.to(dtype)).float()
    torch.testing.assert_close(found, exact.log_prob(values), rtol=0.02, atol=0.02)
    assert bool(torch.isfinite(fn.sample((1000,))).all())
