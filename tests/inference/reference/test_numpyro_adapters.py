"""The NumPyro twin of an adapted network: the same log-joint, and NUTS as the reference that guides are graded by."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pyro import poutine
from torch import nn

import evaluation
import inference
from guides import RankwiseGuide
from inference.reference.numpyro_adapters import adapter_twin
from pp_models import Dataset, LowRankAdapted
from tests.tiny_transformers import BERT_TARGETS, tiny_bert
from tests.twin_log_joint import twin_log_joint

WIDTHS = {"gaussian": 2, "gaussian-head": 4, "bernoulli": 2, "categorical": 3}


def pair(prior="half-cauchy", likelihood="gaussian", dtype=torch.float64, batch=(2,), activation=nn.Tanh, **options):
    torch.manual_seed(0)
    inner = nn.Sequential(activation(), nn.Linear(6, WIDTHS[likelihood], bias=False))
    model = LowRankAdapted(
        nn.Sequential(nn.Linear(3, 6), inner), "all-linear", 2, 2.0, likelihood, rank_prior=prior, **options
    )
    with torch.no_grad():
        for module in model.rank_modules().values():
            nn.init.normal_(module.lora_B, std=0.5)
        for scale in model.ard_scales.values():
            scale.uniform_(0.5, 2.0)
    x = torch.randn(*batch, 5, 3, dtype=dtype)
    y = torch.randn(*batch, 5, 2, dtype=dtype)
    if likelihood == "bernoulli":
        y = (y > 0).to(dtype)
    if likelihood == "categorical":
        y = torch.randint(3, (*batch, 5))
    return model.to(dtype), Dataset(x, y, torch.rand(*batch, 5) > 0.3)


def both(model, data):
    """log-joint of the same multipliers under torch and under JAX."""
    dtype = data.x.dtype
    drawn = {f"{path}.rank_scale": 1 + torch.randn(2, dtype=dtype) for path in model.rank_modules()}
    ours = poutine.trace(poutine.condition(model, data=drawn)).get_trace(data).log_prob_sum().item()
    return ours, twin_log_joint(model, adapter_twin(model), data, drawn)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("likelihood", WIDTHS)
@pytest.mark.parametrize("prior", ["half-cauchy", "ard"])
def test_the_log_joint_is_the_same(prior, likelihood, dtype, tolerance):
    ours, theirs = both(*pair(prior, likelihood, dtype))
    assert theirs == pytest.approx(ours, rel=tolerance)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.5, "kl_count": "weights", "num_data": 70}, {"kl_weight": 1e-2, "num_data": 30}]
)
def test_the_log_joint_is_weighted_alike(batch, options):
    with pytest.warns(DeprecationWarning) if options else nullcontext():
        found = pair(batch=batch, **options)
    ours, theirs = both(*found)
    assert theirs == pytest.approx(ours, rel=1e-10)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Identity, nn.Dropout])
def test_the_log_joint_is_the_same_for_every_activation(activation):
    model, data = pair(activation=activation)
    ours, theirs = both(model.eval(), data)
    assert theirs == pytest.approx(ours, rel=1e-10)


def linear_problem():
    """One linear layer, two ranks, Gaussian prior and noise: z has a Gaussian posterior."""
    torch.manual_seed(1)
    base = nn.Sequential(nn.Linear(2, 2))
    model = LowRankAdapted(base, ["0"], 2, 2.0, "gaussian", noise_scale=0.5, rank_prior="ard").double()
    with torch.no_grad():
        nn.init.normal_(model.backbone[0].lora_B)
    data = Dataset(torch.randn(8, 2).double(), torch.randn(8, 2).double())
    layer = model.backbone[0]
    with torch.no_grad():
        hidden = data.x @ layer.lora_A.T
        design = (hidden.unsqueeze(1) * layer.lora_B).reshape(-1, 2)  # dy / dz
        residual = (data.y - layer.base_layer(data.x)).reshape(-1)
        covariance = torch.linalg.inv(design.T @ design / 0.25 + torch.eye(2).double())
        return model, data, covariance @ design.T @ residual / 0.25, covariance


def test_nuts_finds_the_posterior_of_a_linear_layer_and_grades_a_guide():
    model, data, mean, covariance = linear_problem()
    result = inference.nuts(model, data, num_warmup=200, num_samples=1000, seed=1)
    draws = result.draws["0.rank_scale"]
    assert draws.shape == (1000, 2) and draws.dtype == torch.float64
    error = covariance.diagonal().sqrt() / np.sqrt(200)
    assert bool(((draws.mean(0) - mean).abs() < 4 * error).all())
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0.25, atol=0.01)
    guide = RankwiseGuide(model).double().eval()
    with torch.no_grad():
        for levels in guide.levels:
            levels["log_alpha"].copy_(covariance.diagonal().log())
    grade = evaluation.grade(model, guide, data, result, num_samples=500)
    (row,) = grade.table.to_dict("records")
    assert row["site"] == "0.rank_scale" and row["entries"] == 2
    assert row["sd_ratio"] == pytest.approx(1.0, abs=0.15)
    found, expected = row["mean_error"], float(((1 - mean).abs() / covariance.diagonal().sqrt()).mean())
    assert found == pytest.approx(expected, abs=0.2) and math.isfinite(float(grade.khat))


def test_a_posterior_of_several_layers_and_tasks_predicts():
    model, data = pair(likelihood="categorical", batch=(2,))
    result = inference.nuts(model, data, num_warmup=30, num_samples=20, num_chains=2)
    assert {name: tuple(d.shape) for name, d in result.draws.items()} == {
        "0.rank_scale": (40, 2),
        "1.1.rank_scale": (40, 2),
    }
    prediction = result.predict(data.x)
    assert prediction.samples.shape == (40, 2, 5)
    one = {name: d[3] for name, d in result.draws.items()}
    outputs = poutine.condition(model, data=one)(data.without_y())
    torch.testing.assert_close(prediction.function_samples[3], outputs.softmax(-1).detach())


def test_what_has_no_twin_is_refused_in_one_line():
    model, data = pair("log-uniform")
    with pytest.raises(ValueError, match=r"^model: its rank_prior 'log-uniform' is improper, so that there is no post"):
        inference.nuts(model, data)
    transformer = LowRankAdapted(tiny_bert(), BERT_TARGETS, rank=2, rank_prior="half-cauchy")
    with pytest.raises(ValueError, match=r"^model: its backbone has a BertForSequenceClassification, which has no Num"):
        adapter_twin(transformer)
    other = LowRankAdapted(
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), ["0"], 1, likelihood="gaussian", rank_prior="ard"
    )
    with pytest.raises(ValueError, match=r"^model: its backbone has a LayerNorm at '1', which has no NumPyro twin; NU"):
        adapter_twin(other)
    own, _ = pair(call=lambda backbone, x: backbone(x))
    with pytest.raises(ValueError, match=r"^model: its backbone is applied by a call of one's own, which has no Num"):
        adapter_twin(own)
