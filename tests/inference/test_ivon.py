"""IVON: a step by hand, the variance of a quadratic, the posterior of a linear regression, and what a resume keeps."""

import pytest
import torch
from torch import nn

import guidebook as gb
from inference import IVON, fit, ivon_guide
from inference.objectives import make
from pp_models import BayesianModule, Dataset


def test_a_step_by_hand():
    p = nn.Parameter(torch.tensor([0.5, -1.0], dtype=torch.float64))
    options = {"lr": 0.1, "ess": 20.0, "hess_init": 2.0, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.3}
    optimizer = IVON([p], **options)
    m, h, momentum = p.detach().clone(), torch.full((2,), 2.0, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for step in (1, 2, 3):
        torch.manual_seed(step)
        noise = torch.randn(2, dtype=torch.float64) / (20 * (h + 0.3)).sqrt()
        torch.manual_seed(step)
        with optimizer.sampled():
            torch.testing.assert_close(p.detach(), m + noise, rtol=1e-12, atol=0)
            optimizer.zero_grad()
            (p**4).sum().backward()
        g = 4 * (m + noise) ** 3
        found = noise * g * 20 * (h + 0.3)
        h = 0.9 * h + 0.1 * found + 0.5 * 0.1**2 * (h - found) ** 2 / (h + 0.3)
        momentum = 0.8 * momentum + 0.2 * g
        m = m - 0.1 * 2.3 * (momentum / (1 - 0.8**step) + 0.3 * m) / (h + 0.3)
        optimizer.step()
        torch.testing.assert_close(p.detach(), m, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(optimizer.standard_deviations()[p], (20 * (h + 0.3)).rsqrt(), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"^optimizer: IVON made no draw"):
        optimizer.step()


@pytest.mark.parametrize("seed", range(3))
def test_the_variance_of_a_quadratic_loss(seed):
    """Of a mean loss of curvature h over N data with a prior precision δ: 1 / (N h + δ)."""
    torch.manual_seed(seed)
    h, n, delta = torch.logspace(-1, 1, 40), 200.0, 5.0
    p = nn.Parameter(torch.zeros(40))
    optimizer = IVON([p], lr=0.01, ess=n, hess_init=1.0, beta2=0.999, weight_decay=delta / n)
    for _ in range(8_000):
        with optimizer.sampled():
            p.grad = h * (p.detach() - 1.0)
        optimizer.step()
    ratio = optimizer.standard_deviations()[p].square() * (n * h + delta)
    assert float((ratio.log().abs()).mean()) < 0.05
    torch.testing.assert_close(p.detach(), h / (h + delta / n), rtol=0.1, atol=0.02)


def regression():
    torch.manual_seed(1)
    x = torch.randn(50, 2)
    seen = Dataset(x, x @ torch.tensor([[1.0], [-0.5]]) + 0.3 * torch.randn(50, 1))
    module = nn.Sequential(nn.Linear(2, 1))
    return BayesianModule(module, "all", likelihood="gaussian", noise_scale=0.3), seen


def test_a_fit_by_it_gives_the_posterior_of_a_linear_regression():
    model, seen = regression()
    point = gb.guides.ModulePointGuide(model)
    result = fit(model, point, seen, "elbo", steps=1_500, optimizer="ivon", schedule="cosine", progress=False)
    guide = ivon_guide(model, result.guide, result.optimizer)
    phi = torch.cat([seen.x, torch.ones(50, 1)], -1).double()
    prior = torch.tensor([2.0, 2.0, 1.0]).double()  # fan-in: k over the scale's square
    precision = phi.mT @ phi / 0.3**2 + torch.diag(prior)
    mean = torch.linalg.solve(precision, phi.mT @ seen.y.double()[:, 0] / 0.3**2)
    found = torch.cat([q.mean.flatten() for q in guide.distributions()]).double()
    deviations = torch.cat([q.variance.sqrt().flatten() for q in guide.distributions()]).double()
    torch.testing.assert_close(found, mean, rtol=0, atol=0.05)
    torch.testing.assert_close(deviations, precision.diagonal().rsqrt(), rtol=0.15, atol=0)
    assert make("elbo").loss(model, guide, seen) < 60


def test_a_resumed_run_ends_with_the_bytes_it_would_have_had(tmp_path):
    def run(folder, steps, resume=False):
        model, seen = regression()
        fit(model, gb.guides.ModulePointGuide(model), seen, "elbo", steps=steps, optimizer="ivon", progress=False,
            checkpoint_dir=folder, resume=resume)  # fmt: skip
        return (folder / f"weights-{steps:08d}.safetensors").read_bytes()

    whole = run(tmp_path / "whole", 12)
    run(tmp_path / "parts", 7)
    assert run(tmp_path / "parts", 12, resume=True) == whole


def test_what_it_cannot_do_is_refused_in_one_line():
    model, seen = regression()
    point = gb.guides.ModulePointGuide(model)
    with pytest.raises(ValueError, match=r"^optimizer: got 'ivon' with an objective that is normalized"):
        fit(model, point, seen, make("elbo", normalize=True), steps=2, optimizer="ivon", progress=False)
    with pytest.raises(ValueError, match=r"^optimizer: got str; it must be 'ivon', a torch.optim"):
        fit(model, point, seen, "elbo", steps=2, optimizer="adan", progress=False)
    with pytest.raises(ValueError, match=r"^guide: got ModulePointGuide; it must be the ModulePointGuide whose points"):
        ivon_guide(model, point, IVON([nn.Parameter(torch.zeros(2))]))
