"""One interface over Bayesian adapters: draws, KL, predictions and temperature of every kind."""

import math

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import guidebook as gb
from guides.adapters.lora_laplace import laplace_factors, laplace_scale
from guides.adapters.lrvd_layers import rank_log_alpha
from guides.adapters.lrvd_saving import lrvd_load
from inference.adapters.temperature import temperature_of
from tests.guides.adapters.adapted_networks import Net, adapted, logits, scatter
from tests.tiny_transformers import BERT_TARGETS, tiny_bert, token_ids


def lora(**options):
    options = {"r": 4, "lora_alpha": 7, "target_modules": BERT_TARGETS} | options
    return scatter(get_peft_model(tiny_bert(), LoraConfig(**options))).eval()


def blob_model():
    model = lora()
    gb.adapters.blob(model, scale=0.1)
    return model


def laplace_model():
    model = lora()
    gb.adapters.laplace(model, loader(), prior_precision=50.0)
    return model


def pvera_model():
    config = peft.PveraConfig(r=4, target_modules=BERT_TARGETS, projection_prng_key=1, generator_seed=3)
    model = get_peft_model(tiny_bert(), config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "pvera_lambda" in name:
                p.normal_()
    return model


def monteclora_model():
    return lora(monteclora_config=peft.MontecloraConfig(sample_scaler=0.3, buffer_size=3))


MODELS = {
    "lrvd": lambda: scatter(adapted()),
    "blob": blob_model,
    "laplace": laplace_model,
    "pvera": pvera_model,
    "monteclora": monteclora_model,
    "lora-dropout": lambda: lora(lora_dropout=0.3),
}


def loader(rows=6):
    ids = token_ids(rows)
    labels = torch.arange(rows) % 2
    return [{"input_ids": ids[i : i + 2], "labels": labels[i : i + 2]} for i in range(0, rows, 2)]


def everything(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", MODELS)
def test_draws_differ_and_leave_the_model_as_it_was(kind):
    model = MODELS[kind]()
    assert set(gb.adapters.adapter_kinds(model)) == {kind}
    before, weights, state = logits(model), everything(model), torch.get_rng_state()
    found = []
    for _ in range(2):
        with gb.adapters.sampling(model, 3, seed=5) as draws:
            assert len(draws) == 3
            found.append(torch.stack([logits(model) for _ in draws]))
    assert torch.equal(found[0], found[1])  # a seed decides
    assert all(float((found[0][i] - found[0][j]).abs().max()) > 1e-4 for i, j in ((0, 1), (1, 2), (0, 2)))
    assert torch.equal(logits(model), before) and torch.equal(torch.get_rng_state(), state)
    after = everything(model)
    moving = ("gaussian_var_prior", "expert_weights")  # MonteCLoRA notes its last draw
    assert all(torch.equal(weights[n], after[n]) for n in weights if not n.endswith(moving))
    with pytest.raises(RuntimeError), gb.adapters.sampling(model, 3):
        raise RuntimeError
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", MODELS)
def test_predictions_are_means_of_probabilities_over_draws(kind):
    model = MODELS[kind]().train()
    mean = gb.adapters.predict(model, loader())
    assert model.training and mean.num_samples == 1
    probabilities = logits(model.eval(), token_ids(6)).softmax(-1)
    torch.testing.assert_close(mean.mean, probabilities, atol=1e-6, rtol=0)
    drawn = gb.adapters.predict(model, loader(), draws=4, seed=2)
    with gb.adapters.sampling(model, 4, seed=2) as turns:
        each = [torch.cat([logits(model, b["input_ids"]) for b in loader()]).softmax(-1) for _ in turns]
    torch.testing.assert_close(drawn.mean, torch.stack(each).mean(0), atol=1e-6, rtol=0)
    labels = torch.arange(6) % 2
    expected = torch.stack(each).mean(0)[range(6), labels].log()
    torch.testing.assert_close(drawn.log_prob(labels), expected, atol=1e-5, rtol=0)
    assert drawn.to_dataframe().shape[0] == 6


def test_kl_of_each_kind():
    model = MODELS["lrvd"]()
    torch.testing.assert_close(gb.adapters.kl(model), gb.guides.kl_divergence(model))
    model = blob_model()
    factors = [m for m in model.modules() if hasattr(m, "log_scale")]
    expected = sum(
        torch.distributions.kl_divergence(
            torch.distributions.Normal(f.weight, f.log_scale.exp()), torch.distributions.Normal(0.0, 0.2)
        ).sum()
        for f in factors
    )
    torch.testing.assert_close(gb.adapters.kl(model), expected)
    gb.adapters.kl(model).backward()
    assert all(torch.isfinite(f.log_scale.grad).all() for f in factors)
    model = monteclora_model()
    logits(model.train())
    assert torch.isfinite(gb.adapters.kl(model)) and bool(gb.adapters.kl(model) > 0)
    for kind, why in (("pvera", "of inputs"), ("laplace", "trained by a bound"), ("lora-dropout", "to be trained by")):
        with pytest.raises(ValueError, match=f"^model: its adapters are of kind '{kind}', which has no KL: .*{why}$"):
            gb.adapters.kl(MODELS[kind]())


def test_laplace_is_the_curvature_of_the_likelihood():
    torch.manual_seed(0)
    model = scatter(get_peft_model(Net(), LoraConfig(r=2, target_modules=["second"]))).double()
    x = torch.randn(7, 6).double()
    gb.adapters.laplace(model, [x[:3], x[3:]], prior_precision=2.0)
    for factor in laplace_factors(model):
        found = torch.zeros_like(factor.weight)
        factor.weight.requires_grad_(True)
        for row in x:
            output = model(row.unsqueeze(0))[0]
            rows = [torch.autograd.grad(output[c], factor.weight, retain_graph=True)[0] for c in range(3)]
            p, jacobian = output.softmax(-1).detach(), torch.stack(rows)
            mean = torch.einsum("c,coi->oi", p, jacobian)
            found += torch.einsum("c,coi->oi", p, (jacobian - mean) ** 2)
        torch.testing.assert_close(factor.laplace_curvature.double(), found, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(laplace_scale(factor) ** -2, factor.laplace_curvature + 2.0)
    gb.adapters.laplace(model, x, prior_precision=2.0)  # anew, in one batch
    torch.testing.assert_close(factor.laplace_curvature.double(), found, rtol=1e-5, atol=1e-7)


def test_a_temperature_is_fitted_kept_and_saved(tmp_path):
    model = scatter(adapted())
    with torch.no_grad():
        model.base_model.model.classifier.weight.mul_(60.0)
    inputs = [{"input_ids": token_ids(40)[i : i + 8]} for i in range(0, 40, 8)]
    sharp = gb.adapters.predict(model, inputs).likelihood.logits[0]
    labels = torch.distributions.Categorical(logits=sharp / 3.0).sample()
    held_out = [b | {"labels": labels[8 * i : 8 * i + 8]} for i, b in enumerate(inputs)]
    before = gb.adapters.predict(model, inputs).log_prob(labels).mean()
    temperature = gb.adapters.calibrate(model, held_out)
    after = gb.adapters.predict(model, inputs).log_prob(labels).mean()
    grid = torch.linspace(0.3, 30.0, 2000).log()
    losses = torch.stack([nn.functional.cross_entropy(sharp / t, labels) for t in grid.exp()])
    assert abs(-float(after) - float(losses.min())) < 1e-4 and after > before
    model.save_pretrained(tmp_path)
    for opened in (lrvd_load, PeftModel.from_pretrained):
        base = tiny_bert()
        base.load_state_dict(base.state_dict() | {"classifier.weight": 60.0 * base.classifier.weight})
        again = opened(base, tmp_path)
        assert temperature_of(again) == pytest.approx(temperature)
        torch.testing.assert_close(
            gb.adapters.predict(again, inputs).mean, gb.adapters.predict(model, inputs).mean, atol=1e-6, rtol=0
        )
    plain = lora()
    assert temperature_of(plain) == 1.0
    found = gb.adapters.calibrate(plain, held_out)
    assert temperature_of(plain) == pytest.approx(found) and gb.adapters.calibrate(plain, held_out) == found


def test_peft_opens_an_lrvd_adapter_as_one(tmp_path):
    model = scatter(adapted())
    gb.prune_ranks(model, budget=9)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    assert set(gb.adapters.adapter_kinds(again)) == {"lrvd"}
    found, expected = rank_log_alpha(again), rank_log_alpha(model)
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)
    assert torch.equal(logits(again), logits(model))
    lora().save_pretrained(tmp_path / "plain")
    assert type(PeftModel.from_pretrained(tiny_bert(), tmp_path / "plain").peft_config["default"]) is LoraConfig


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gb.adapters.predict(lora(), loader(), draws=2),
            "model: PeftModel has no random adapter; it must have",
        ),
        (lambda: gb.adapters.kl(Net()), "model: Net has no random adapter"),
        (lambda: gb.adapters.predict(lora(), []), "loader: got no batch"),
        (lambda: gb.adapters.predict(Net(), [(torch.ones(2, 6),) * 3]), "loader: got a batch of 3 parts"),
        (lambda: gb.adapters.predict(Net(), torch.ones(2, 4, 6)), "model: it gives outputs of shape"),
        (lambda: gb.adapters.predict(Net(), torch.ones(2, 6), temperature=0.0), "temperature: got 0.0; it must"),
        (lambda: gb.adapters.calibrate(Net(), torch.ones(2, 6)), "held_out: got a batch without labels"),
        (
            lambda: gb.adapters.calibrate(Net(), [(torch.ones(2, 6), torch.tensor([0, 5]))]),
            "held_out: got labels from 0",
        ),
        (lambda: gb.adapters.calibrate(Net(), [(torch.ones(1, 6), torch.tensor([-100]))]), "held_out: got no label"),
        (lambda: gb.adapters.blob(Net()), "model: Net has no LoRA layer with linear factors of adapter 'default'"),
        (lambda: gb.adapters.blob(blob_model()), "model: its factors are random already"),
        (lambda: gb.adapters.laplace(Net(), torch.ones(2, 6)), "model: Net has no LoRA layer"),
        (lambda: gb.guides.LrvdConfig(logit_temperature=0.0), "logit_temperature: got 0.0; it must be positive"),
        (
            lambda: gb.adapters.kl(gb.LowRankAdapted(Net(), ["first"], 2)),
            "model: got a LowRankAdapted; its posterior is its guide's",
        ),
    ],
)
def test_what_cannot_be_is_one_line(call, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value), caught.value


def test_a_prediction_by_numbers():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(5, 6)
    found = gb.adapters.predict(model, x, likelihood="gaussian", noise_scale=0.5)
    y = torch.randn(5, 3)
    expected = (-0.5 * ((y - model(x)) / 0.5) ** 2).sum(-1) - 3 * math.log(0.5 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(found.log_prob(y), expected.detach())


def test_blobs_scales_are_saved_beside_a(tmp_path):
    model = blob_model()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("log_scale"):
                p.normal_()
    model.save_pretrained(tmp_path)
    again = get_peft_model(tiny_bert(), LoraConfig.from_pretrained(tmp_path))
    gb.adapters.blob(again)
    again.load_adapter(tmp_path, "default")
    found, expected = ({n: p for n, p in m.named_parameters() if n.endswith("log_scale")} for m in (again, model))
    assert len(found) == 6 and all(torch.equal(found[n], expected[n]) for n in expected)
