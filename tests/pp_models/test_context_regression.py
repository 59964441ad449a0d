"""Closed-form regressions of a context against dense Gaussian-process algebra in float64."""

import math

import pytest
import torch

from pp_models.context_path import PATHS, RegressionPath, make_path
from pp_models.context_regression import FEATURES, ContextRegression, FourierFeatures

T, N, M = 3, 9, 5  # tasks, context points, targets


def parts(kind="fourier", mean=True, dim_x=2, dim_y=2, seed=0):
    torch.manual_seed(seed)
    regression = ContextRegression(dim_x, dim_y, heads=3, features=6, kind=kind, width=8, mean=mean, noise=0.3).double()
    x, y = torch.randn(T, N, dim_x, dtype=torch.float64), torch.randn(T, N, dim_y, dtype=torch.float64)
    return regression, x, y, torch.randn(T, M, dim_x, dtype=torch.float64)


def dense(regression, x, y, at, head):
    """One task by a GP with the head's kernel: mean, variance, log evidence."""
    phi, star = regression.feature_map(x)[head], regression.feature_map(at)[head]
    shift = 0 if regression.mean(x) is None else regression.mean(x)
    own = 0 if regression.mean(at) is None else regression.mean(at)
    covariance = phi @ phi.T + regression.noise_variance[head] * torch.eye(len(x), dtype=torch.float64)
    gain = star @ phi.T @ torch.linalg.inv(covariance)
    variance = (star @ star.T - gain @ phi @ star.T).diagonal()
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(x), dtype=torch.float64), covariance)
    evidence = sum(normal.log_prob((y - shift)[:, k]) for k in range(y.shape[-1]))
    return own + gain @ (y - shift), variance, evidence


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("kind", FEATURES)
def test_it_is_the_gaussian_process_with_those_features(kind, mean):
    regression, x, y, at = parts(kind, mean)
    state = regression.fit(x, y)
    found, variance = regression.predict(at, state)
    assert found.shape == (T, 3, M, 2) and variance.shape == (T, 3, M)
    for task in range(T):
        for head in range(3):
            expected = dense(regression, x[task], y[task], at[task], head)
            torch.testing.assert_close(found[task, head], expected[0])
            torch.testing.assert_close(variance[task, head], expected[1])
            torch.testing.assert_close(state.log_evidence[task, head], expected[2])


@pytest.mark.parametrize("kind", FEATURES)
def test_points_one_by_one_are_all_at_once(kind):
    regression, x, y, _ = parts(kind)
    state = None
    for n in range(N):
        state = regression.fit(x[:, n : n + 1], y[:, n : n + 1], state=state)
    for found, expected in zip(state, regression.fit(x, y), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", FEATURES)
def test_padding_is_never_read_in_value_or_gradient(kind):
    regression, x, y, at = parts(kind)
    mask = torch.arange(N) < torch.tensor([[N], [4], [0]])
    padded = torch.where(mask.unsqueeze(-1), y, torch.nan)

    def answers(x, y, mask):
        state = regression.fit(x, y, mask)
        return *regression.predict(at[: len(x)], state), state.log_evidence

    whole = answers(x, padded, mask)
    for task, count in enumerate((N, 4, 0)):
        alone = regression.fit(x[task, :count], y[task, :count])
        mean, variance = regression.predict(at[task], alone)
        for found, expected in zip(whole, (mean, variance, alone.log_evidence), strict=True):
            torch.testing.assert_close(found[task], expected)
    assert whole[2][2].abs().max() == 0  # nothing was seen
    sum(part.sum() for part in whole).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in regression.parameters())


def test_repeated_inputs_and_any_number_of_task_dimensions():
    regression, x, y, at = parts()
    state = regression.fit(x[:, :1].expand(T, N, 2), y)
    assert all(bool(torch.isfinite(part).all()) for part in state)
    one = regression.predict(at, regression.fit(x, y))
    grid = regression.predict(at.expand(4, T, M, 2), regression.fit(x.expand(4, T, N, 2), y.expand(4, T, N, 2)))
    for found, expected in zip(grid, one, strict=True):
        torch.testing.assert_close(found[3], expected)
    single = regression.predict(at[0], regression.fit(x[0], y[0]))
    torch.testing.assert_close(single[0], one[0][0])


def test_fourier_features_of_one_head_approach_its_kernel():
    """Σ_k cos(w_k (x - x')) / K at normal quantiles is the RBF kernel."""
    regression = ContextRegression(1, 1, heads=1, features=400).double()
    x = torch.linspace(0, 0.5, 20, dtype=torch.float64).unsqueeze(-1)
    phi = regression.feature_map(x)[0]
    expected = torch.exp(-0.5 * (x - x.T).square() / 0.12**2)
    torch.testing.assert_close(phi @ phi.T, expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_data_are_solved_in_float64(dtype):
    regression, x, y, at = parts()
    regression = regression.to(dtype)
    state = regression.fit(x.to(dtype), y.to(dtype))
    assert state.cholesky.dtype == torch.float64 and regression.predict(at.to(dtype), state)[0].dtype == dtype


@pytest.mark.parametrize("kind", PATHS)
def test_a_path_reads_a_memory_at_any_x(kind):
    torch.manual_seed(0)
    path = make_path(kind, 2, 1, 16, 12)
    assert path.embeds == (kind == "attention") and path.representation_dim == 12
    memory = path.flat_prior(7, torch.zeros(()))
    assert memory.event_shape == (7, 2 + path.embedding_dim + 1)
    context = torch.randn(T, 7, memory.event_shape[-1])
    context[..., -1] = torch.arange(7) < torch.tensor([[7], [3], [0]])
    found = path(torch.randn(T, M, 2), context)
    assert found.shape == (T, M, 12) and bool(torch.isfinite(found).all())
    assert path(torch.randn(4, T, M, 2), context).shape == (4, T, M, 12)
    with pytest.raises(ValueError, match=r"^path: got 'road'; it must be one of attention, regression, learned-reg"):
        make_path("road", 1, 1, 8, 8)


def test_a_path_that_is_dropped_is_silent_for_whole_tasks_in_training_alone():
    torch.manual_seed(0)
    path = RegressionPath(1, 1, 8, 4, dropout=0.5)
    memory, x = torch.randn(200, 6, 3), torch.randn(200, 5, 1)
    silent = (path(x, memory) == 0).flatten(1)
    assert bool((silent.all(1) == silent.any(1)).all()) and 0.35 < float(silent.all(1).double().mean()) < 0.65
    assert not bool((path.eval()(x, memory) == 0).any())


def test_fourier_inputs():
    found = FourierFeatures(1, 4, 0.5)(torch.full((2, 3, 1), 0.3))
    assert found.shape == (2, 3, 9)
    first = float(torch.special.ndtri(torch.tensor(0.125))) / 0.5 * 0.3
    torch.testing.assert_close(found[0, 0, [0, 1, 5]], torch.tensor([0.3, math.sin(first), math.cos(first)]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, r"^heads: got 0; it must be at least 1$"),
        ({"features": 5}, r"^features: got 5; Fourier features come in pairs, take an even number$"),
        ({"kind": "splines"}, r"^kind: got 'splines'; it must be one of fourier, learned$"),
        ({"noise": 0.0}, r"^noise: got 0.0; it must be positive and finite$"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ContextRegression(1, 1, **options)
    with pytest.raises(ValueError, match=r"^dropout: got 1.0; a probability below 1"):
        RegressionPath(1, 1, 8, 8, dropout=1.0)
