"""Adapters in half precision: every family and noise trains, predicts and has its KL, near what float32 gives."""

import peft
import pytest
import torch
from torch import nn

import guidebook as gb
import guides
from guides.adapters.lrvd_families import FAMILIES
from pp_models import Dataset

HALVES = (torch.bfloat16, torch.float16)
#: how a half precision comes about: the network alone, the adapter too, all cast afterwards, or autocast
WAYS = ("network", "network and adapter", "cast", "autocast")


def step_of_peft(family, noise, dtype, way):
    """Loss, KL, size of the gradient, and everything that must be finite, of one training step and one prediction."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    if way.startswith("network"):
        base = base.to(dtype)
    config = guides.LrvdConfig(r=2, target_modules=["0", "2"], family=family, noise=noise)
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=way != "network and adapter").train()
    if way == "cast":
        model = model.to(dtype)
    x = torch.randn(5, 4, 6)
    x[:, -1] = 0.0  # padding: a variance of 0, whose root has no slope
    x = x if way == "autocast" else x.to(dtype)
    autocast = torch.autocast("cpu", dtype=dtype, enabled=way == "autocast")
    torch.manual_seed(1)
    with autocast:
        kl = guides.kl_divergence(model)
        loss = model(x).float().square().mean() + kl / 100
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None for g in gradients)
    model.eval()
    with autocast, torch.no_grad(), guides.sampling(model, 2, seed=0) as draws:
        predictions = [model(x) for _ in draws]
    size = sum(float(g.double().abs().sum()) for g in gradients)
    return float(loss.detach()), float(kl.detach()), size, [loss, kl, *gradients, *predictions]


@pytest.mark.parametrize("noise", ["sequence", "call", "token", "none"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_step_of_every_family_is_near_that_of_float32(family, noise):
    loss, kl, size, _ = step_of_peft(family, noise, torch.float32, "network")
    for dtype in HALVES:
        for way in WAYS:
            found = step_of_peft(family, noise, dtype, way)
            assert all(bool(torch.isfinite(value).all()) for value in found[3]), (dtype, way)
            assert found[0] == pytest.approx(loss, rel=0.05), (dtype, way)
            assert found[1] == pytest.approx(kl, rel=0.05), (dtype, way)
            assert found[2] == pytest.approx(size, rel=0.2), (dtype, way)


def test_squares_that_leave_float16_do_not_reach_the_outputs():
    """Inputs of 300 have squares of 90,000, beyond float16; deviations of 1e-4 have squares of 1e-8, below it."""
    lora_A, lora_B = torch.full((2, 6), 1e-3), torch.full((3, 2), 1e-3)
    levels = {
        name: torch.full(shape, -18.0) for name, shape in (("log_variance_A", (2, 6)), ("log_variance_B", (3, 2)))
    }
    x = torch.full((5, 6), 300.0)
    from guides.adapters.lrvd_families import noisy_output

    torch.manual_seed(0)
    exact = noisy_output("untied", x, lora_A, lora_B, levels, "token")
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.float16):
        found = noisy_output("untied", x, lora_A, lora_B, levels, "token")
    assert torch.isfinite(found).all()
    assert found.float().std() == pytest.approx(float(exact.std()), rel=0.5) and float(exact.std()) > 0


GUIDES = {
    **{f"rankwise {family}": lambda model, f=family: guides.RankwiseGuide(model, f) for family in FAMILIES},
    "mean-field": guides.AdapterMeanFieldGuide,
    "dropout": guides.MCDropoutAdapterGuide,
    "rank dropout": lambda model: guides.MCDropoutAdapterGuide(model, 0.1, "rank"),
    "point": guides.PointAdapterGuide,
    "laplace": guides.LaplaceAdapterGuide,
    "laplace kronecker": lambda model: guides.LaplaceAdapterGuide(model, 1.0, "kronecker"),
}


def step_of_guide(kind, dtype, way):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    if way == "network":
        base = base.to(dtype)
    proper = kind == "mean-field" or kind.startswith("laplace")
    model = gb.LowRankAdapted(base, ["0", "2"], rank=2, factor_prior=0.5 if proper else "log-uniform")
    for module in model.rank_modules().values():
        nn.init.normal_(module.lora_B, std=0.3)
    guide = GUIDES[kind](model)
    if way == "cast":
        model, guide = model.to(dtype), guide.to(dtype)
    data = Dataset(torch.randn(7, 6), torch.randint(0, 3, (7,)))
    given = data if way == "autocast" else data.to(dtype=dtype)
    if kind.startswith("laplace"):
        guide.fit_curvature(given)
        guide.eval()
    autocast = torch.autocast("cpu", dtype=dtype, enabled=way == "autocast")
    torch.manual_seed(1)
    with autocast:
        loss = gb.objectives.TaskELBO(2).differentiable_loss(model, guide, given)
    loss.backward()
    gradients = [p.grad for p in [*model.parameters(), *guide.parameters()] if p.grad is not None]
    with autocast:  # predictions from data in float32: a call casts them to what the network reads
        mean = gb.predict(model, guide, data, data.without_y(), 4, seed=0).mean
        draws = gb.sample_posterior(model, guide, data, 4, seed=0)
    return float(loss.detach()), [loss, mean, *gradients, *draws.values()]


@pytest.mark.parametrize("kind", GUIDES)
def test_a_step_of_every_adapter_guide_is_near_that_of_float32(kind):
    loss, _ = step_of_guide(kind, torch.float32, "network")
    for dtype in HALVES:
        for way in ("network", "cast", "autocast"):
            found, values = step_of_guide(kind, dtype, way)
            assert all(bool(torch.isfinite(value).all()) for value in values), (dtype, way)
            if not kind.startswith("laplace"):  # whose draws of another dtype are others, as wide as the prior
                assert found == pytest.approx(loss, rel=0.05), (dtype, way)


@pytest.mark.parametrize("dtype", HALVES)
def test_fit_takes_a_network_in_half_precision(dtype):
    base = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    model = gb.LowRankAdapted(base, ["0", "2"], rank=2)
    data = Dataset(torch.randn(7, 6), torch.randint(0, 3, (7,)))
    result = gb.fit(model, guides.RankwiseGuide(model), data, steps=3, progress=False, device="cpu")
    assert len(result.skipped) == 0
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
