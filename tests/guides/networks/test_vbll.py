"""Variational last layers without draws: the posterior of linear regression, the mean of draws, no noise, classes."""

import sys

import pytest
import torch
from torch import nn

import guidebook as gb
from guides import ModuleMeanFieldGuide, VBLLGuide
from inference.objectives import make
from pp_models import BayesianModule, Dataset


def body():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def model_of(likelihood="gaussian", freeze=True):
    return BayesianModule(body(), "last", likelihood=likelihood, noise_scale=0.4, prior="normal", freeze=freeze)


def data(classes=False):
    torch.manual_seed(2)
    x = torch.randn(30, 2).double()
    y = torch.stack([x.sum(-1), x.prod(-1)], -1) + 0.4 * torch.randn(30, 2).double()
    return Dataset(x, (y[:, 0] > 0).long() if classes else y, torch.arange(30) < 25)


def trained(guide, model, seen, steps=1500, rate=0.03):
    objective = make("elbo", estimator="analytic")
    optimizer = torch.optim.Adam([p for p in guide.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.differentiable_loss(model, guide, seen).backward()
        optimizer.step()
        schedule.step()
    return guide


def test_with_frozen_features_it_is_bayesian_linear_regression():
    model, seen = model_of(), data()
    exact = gb.guides.LastLayerGuide(model).fit(seen)
    guide = trained(VBLLGuide(model), model, seen)
    rows = guide.layers.W()
    # the distance that counts is the bound's, below
    torch.testing.assert_close(rows.mean.detach(), exact._by_output(exact.flat_loc().detach()), atol=0.05, rtol=0)
    covariance = rows.scale_tril @ rows.scale_tril.mT
    torch.testing.assert_close(covariance.detach(), exact.tril @ exact.tril.mT, atol=5e-3, rtol=0.1)
    evidence = make("iwae").terms(model, exact, seen).bound.detach()
    assert -make("elbo", estimator="analytic").loss(model, guide, seen) == pytest.approx(float(evidence), abs=0.02)


@pytest.mark.parametrize("covariance", ["dense", "diagonal"])
def test_it_is_the_mean_of_draws_and_has_no_noise(covariance):
    model, seen = model_of(freeze=False), data()
    guide = VBLLGuide(model, covariance, init_scale=0.3)
    objective = make("elbo", estimator="analytic")
    first, again = (objective.terms(model, guide, seen) for _ in range(2))
    assert torch.equal(first.bound, again.bound)
    drawn = torch.stack([make("elbo", num_particles=500).terms(model, guide, seen).bound for _ in range(40)]).detach()
    error = drawn.std() / 40**0.5
    assert abs(float(drawn.mean() - first.bound.detach())) < 4 * float(error)
    first.bound.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)  # what lies below is trained


def test_of_classes_it_is_a_lower_bound():
    model, seen = model_of("categorical"), data(classes=True)
    guide = VBLLGuide(model, init_scale=0.5)
    bound = make("elbo", estimator="analytic").terms(model, guide, seen)
    drawn = torch.stack([make("elbo", num_particles=500).terms(model, guide, seen).bound for _ in range(10)]).detach()
    assert float(bound.bound.detach()) < float(drawn.mean())
    better = trained(guide, model, seen, steps=200)
    assert make("elbo", estimator="analytic").loss(model, better, seen) < float(-bound.bound.detach())


def test_tasks_share_the_kl_and_fit_trains_it():
    model, seen = model_of(freeze=False), data()
    stacked = Dataset(torch.stack([seen.x, seen.x]), torch.stack([seen.y, seen.y]), torch.stack([seen.mask, seen.mask]))
    guide = VBLLGuide(model)
    objective = make("elbo", estimator="analytic")
    one, two = objective.terms(model, guide, seen), objective.terms(model, guide, stacked)
    torch.testing.assert_close(two.bound.sum(), 2 * one.log_likelihood - one.kl)
    result = gb.fit(model, guide, seen, objective, steps=20, learning_rate=1e-2, precision="64-true", progress=False)
    assert result.history[-1]["loss"] < float(-one.bound.detach())


def test_what_has_no_closed_form_is_refused(monkeypatch):
    model, seen = model_of(), data()
    with pytest.raises(ValueError, match=r"^estimator: got 'analytic', and ModuleMeanFieldGuide knows no expected"):
        make("elbo", estimator="analytic").terms(model, ModuleMeanFieldGuide(model), seen)
    monkeypatch.setitem(sys.modules, "vbll", None)
    with pytest.raises(ImportError, match=r"^VBLLGuide: it needs vbll, which is not installed: pip install"):
        VBLLGuide(model)
