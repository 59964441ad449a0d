"""A bank of kernels against dense Gaussian-process algebra in float64, and as an average over models."""

import pytest
import torch

from evaluation.methods import TaskShape, build
from evaluation.scores.scoring import score_oracle, score_tasks
from guides import DirichletMixtureGuide
from pp_models import MixtureDensityNetwork, tasks
from pp_models.context_path import RegressionPath, averaged
from pp_models.kernel_bank import JITTER, KernelBank

T, N, M, H = 3, 9, 5, 5  # tasks, context points, targets, heads


def parts(dim_x=2, dim_y=2, seed=0):
    torch.manual_seed(seed)
    bank = KernelBank(dim_x, dim_y, H, noise=0.3).double()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x, y = torch.randn(T, N, dim_x, dtype=torch.float64), torch.randn(T, N, dim_y, dtype=torch.float64)
    return bank, x, y, torch.randn(T, M, dim_x, dtype=torch.float64)


def kernel(bank, head, a, b):
    """k_head(a, b) of two inputs, as the docstring has it."""
    lengthscale, scale = bank.log_lengthscale[head].exp(), bank.log_scale[head].exp()
    r = (a - b).abs()
    plain = len(bank.smoothness)
    if head >= plain:
        period, wave = bank.log_period[head - plain].exp(), bank.log_wave[head - plain].exp()
        exponent = -(r**2 / (2 * lengthscale**2)).sum() - 2 * wave * (torch.pi * r / period).sin().square().sum()
        return scale**2 * exponent.exp()
    q = (r / lengthscale).norm()
    share = bank.smoothness[head].sigmoid()
    matern = (1 + 5**0.5 * q + 5 * q**2 / 3) * (-(5**0.5) * q).exp()
    return scale**2 * (share * (-(q**2) / 2).exp() + (1 - share) * matern)


def gram(bank, head, x1, x2):
    return torch.stack([torch.stack([kernel(bank, head, a, b) for b in x2]) for a in x1])


@torch.no_grad()
def test_each_head_is_the_gaussian_process_of_its_kernel():
    bank, x, y, at = parts()
    state = bank.fit(x, y)
    mean, variance = bank.predict(at, state)
    assert mean.shape == (T, H, M, 2) and variance.shape == (T, H, M)
    for head in range(H):
        own = bank.noise_variance[head] + JITTER * bank.log_scale[head].exp() ** 2
        covariance = gram(bank, head, x[0], x[0]) + own * torch.eye(N, dtype=torch.float64)
        cross = gram(bank, head, at[0], x[0])
        gain = cross @ torch.linalg.inv(covariance)
        torch.testing.assert_close(mean[0, head], gain @ y[0])
        expected = (gram(bank, head, at[0], at[0]) - gain @ cross.T).diagonal()
        torch.testing.assert_close(variance[0, head], expected, rtol=1e-5, atol=1e-8)
        normal = torch.distributions.MultivariateNormal(torch.zeros(N, dtype=torch.float64), covariance)
        torch.testing.assert_close(state.log_evidence[0, head], normal.log_prob(y[0].T).sum())


def test_points_one_by_one_are_all_at_once():
    bank, x, y, at = parts()
    state = None
    for n in range(N):
        state = bank.fit(x[:, n : n + 1], y[:, n : n + 1], state=state)
    whole = bank.fit(x, y)
    torch.testing.assert_close(state.log_evidence, whole.log_evidence)
    for found, expected in zip(bank.predict(at, state), bank.predict(at, whole), strict=True):
        torch.testing.assert_close(found, expected)


def test_padding_and_repeated_points_are_safe_in_value_and_gradient():
    bank, x, y, at = parts()
    x = x.requires_grad_()
    mask = torch.arange(N) < torch.tensor([[N], [4], [0]])
    state = bank.fit(x, torch.where(mask.unsqueeze(-1), y, torch.nan), mask)
    whole = (*bank.predict(at, state), state.log_evidence)
    for task, count in enumerate((N, 4, 0)):
        alone = bank.fit(x[task, :count], y[task, :count])
        for found, expected in zip(whole, (*bank.predict(at[task], alone), alone.log_evidence), strict=True):
            torch.testing.assert_close(found[task], expected)
    again = bank.fit(x[:, :1].expand(T, N, 2), y)
    sum(part.sum() for part in (*whole, *bank.predict(x[:, :2], again), again.log_evidence)).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in [x, *bank.parameters()])


def test_gradients_are_those_of_the_values():
    bank, x, y, at = parts(dim_x=1, dim_y=1)

    names = [name for name, _ in bank.named_parameters()]

    def total(*values):
        bank._parameters.update(zip(names, values, strict=True))
        state = bank.fit(x, y)
        found = bank.predict(at, state)
        return found[0].sum() + found[1].sum() + state.log_evidence.sum()

    assert torch.autograd.gradcheck(total, tuple(p.detach().clone().requires_grad_() for p in list(bank.parameters())))


@torch.no_grad()
def test_float32_data_are_solved_in_float64():
    bank, x, y, at = parts()
    exact = bank.predict(at, bank.fit(x, y))
    bank = bank.float()
    state = bank.fit(x.float(), y.float())
    assert state.cholesky.dtype == torch.float64
    for found, expected in zip(bank.predict(at.float(), state), exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_data_of_16_bits_have_a_factor_and_finite_gradients(dtype):
    bank = KernelBank(1, 1, H).to(dtype)
    x = torch.linspace(-2, 2, 60).reshape(1, -1, 1).to(dtype)
    mask = torch.arange(60) < torch.tensor([[40], [0]])
    state = bank.fit(x.expand(2, 60, 1), x.sin().expand(2, 60, 1), mask)
    mean, variance = bank.predict(x[:, 40:].expand(2, 20, 1), state)
    assert mean.dtype == variance.dtype == dtype and bool(torch.isfinite(mean).all())
    (mean.float().sum() + variance.float().sum() + state.log_evidence.sum()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in bank.parameters())


@torch.no_grad()
def test_heads_that_are_kept_are_what_they_were():
    bank, x, y, at = parts()
    before = bank.predict(at, bank.fit(x, y))
    bank.keep([0, 3, 4])
    for found, expected in zip(bank.predict(at, bank.fit(x, y)), before, strict=True):
        torch.testing.assert_close(found, expected[:, [0, 3, 4]])
    for heads in ([2], [0]):  # one kind alone
        bank, *_ = parts()
        bank.keep(heads)
        torch.testing.assert_close(bank.predict(at, bank.fit(x, y))[0], before[0][:, heads])


@torch.no_grad()
def test_the_average_over_models_has_the_moments_of_the_mixture():
    bank, x, y, at = parts()
    state = bank.fit(x, y)
    mean, variance = bank.predict(at, state)
    centre, log_spread = averaged(mean, variance.unsqueeze(-1), state)
    weights = state.log_evidence.softmax(-1)
    parts_ = torch.distributions.Normal(mean.movedim(1, -1), variance.sqrt().unsqueeze(-1).movedim(1, -1))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights[:, None, None, :].expand(T, M, 2, H)), parts_
    )
    torch.testing.assert_close(centre, mixture.mean)
    torch.testing.assert_close((2 * log_spread).exp(), mixture.variance + 1e-6)
    assert RegressionPath(1, 1, 8, 4, "kernels", heads=3)(torch.randn(2, 5, 1), torch.randn(2, 6, 3)).shape == (2, 5, 4)


def test_evidence_weighs_the_experts_as_an_average_over_models():
    torch.manual_seed(0)
    model = MixtureDensityNetwork(6, experts="conjugate", features="kernels", width=8).double()
    guide = DirichletMixtureGuide(model, 8, concentration_map="evidence").double()
    with torch.no_grad():
        guide.set_encoder.head[-1].weight.zero_()
        guide.set_encoder.head[-1].bias.zero_()
    context = tasks.gp("mix", 4, dtype=torch.float64).batch(0).context
    evidence = model.attend.regression.fit(context.x, context.y).log_evidence
    alpha = guide.concentration(context)
    expected = evidence.softmax(-1) * (alpha - 0.05).sum(-1, keepdim=True)
    torch.testing.assert_close(alpha - 0.05, expected)
    with pytest.raises(ValueError, match=r"^concentration_map: got 'evidence', but context experts have none"):
        DirichletMixtureGuide(MixtureDensityNetwork(3), 8, concentration_map="evidence")


def test_before_any_training_it_beats_the_marginal_and_nears_the_exact_answer():
    """What it starts with is Bayesian model averaging over generic kernels; on three seeds of tasks."""
    for seed in range(3):
        stream = tasks.gp("rbf", 16, seed, num_context=(20, 40), max_points=60)
        torch.manual_seed(seed)
        method = build("nmdp-kernels", TaskShape.of(stream, 16, min_scale=0.01))
        batches = [stream.batch(0)]
        found = float(score_tasks(method.model, method.guide, batches)["pll"].mean())
        exact = float(score_oracle(batches, 0.01)["pll"].mean())
        marginal = torch.distributions.Normal(0, batches[0].full.y.std()).log_prob(batches[0].target.y).mean()
        assert exact - found < 0.5 * (exact - float(marginal))
