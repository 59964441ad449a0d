"""LRVD inside Hugging Face's peft: merging, several adapters, kinds of layers, refusals."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from guides.adapters.lrvd_layers import kl_divergence, rank_log_alpha, sampling
from guides.adapters.lrvd_peft import LrvdConfig, LrvdLinear, as_plain_lora
from guides.adapters.lrvd_saving import lrvd_load
from tests.guides.adapters.adapted_networks import Net, adapted, logits, scatter
from tests.tiny_transformers import BERT_TARGETS, tiny_bert, tiny_gpt2

ROOT = Path(__file__).parents[3]


def test_merging_gives_the_mean_and_disabling_the_base():
    model = scatter(adapted())
    mean = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_bert()))
        with sampling(model, seed=0):
            assert torch.equal(logits(model), logits(tiny_bert()))
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), mean, atol=1e-5, rtol=0)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), mean, atol=1e-5, rtol=0)
    merged = model.merge_and_unload()
    assert not any(isinstance(m, LrvdLinear) for m in merged.modules())
    torch.testing.assert_close(logits(merged), mean, atol=1e-5, rtol=0)


def test_conv1d_layers():
    base = tiny_gpt2()
    model = get_peft_model(base, LrvdConfig(r=3, target_modules=["c_attn", "c_proj"])).eval()
    assert torch.equal(logits(model), logits(tiny_gpt2()))
    scatter(model)
    mean = logits(model)
    with sampling(model, seed=0):
        assert not torch.equal(logits(model), mean)
    torch.testing.assert_close(logits(model.merge_and_unload()), mean, atol=1e-5, rtol=0)


def test_adapters_are_independent(tmp_path):
    first, second = scatter(adapted()), scatter(adapted("asym", r=2), scale=0.5)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    both = lrvd_load(tiny_bert(), tmp_path / "first")
    lrvd_load(both, tmp_path / "second", adapter_name="other")
    assert torch.equal(logits(both), logits(first))
    assert torch.equal(kl_divergence(both), kl_divergence(first))
    both.set_adapter("other")
    assert torch.equal(logits(both), logits(second))
    assert {len(v) for v in rank_log_alpha(both).values()} == {2}
    both.add_adapter("plain", LoraConfig(r=2, target_modules=BERT_TARGETS))
    both.set_adapter("plain")
    assert torch.equal(logits(both), logits(tiny_bert()))
    assert rank_log_alpha(both) == {} and not kl_divergence(both).any()
    both.delete_adapter("other")
    both.set_adapter("default")
    assert torch.equal(logits(both), logits(first))
    assert not [n for n, _ in both.named_parameters() if n.endswith(".other")]


def test_weighted_sums_of_adapters_are_refused_and_those_of_their_means_are_plain_lora(tmp_path):
    first, second = scatter(adapted()), scatter(adapted(), scale=0.5)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    model = lrvd_load(tiny_bert(), tmp_path / "first")
    model.add_adapter("plain", LoraConfig(r=4, target_modules=BERT_TARGETS))
    for names in (["default", "plain"], ["plain", "default"], ["default"]):
        with pytest.raises(ValueError, match=r"^adapters: 'default' is an LRVD adapter, .* combine those$") as caught:
            model.add_weighted_adapter(names, [0.5] * len(names), "sum", combination_type="cat")
        assert "\n" not in str(caught.value) and set(model.peft_config) == {"default", "plain"}
    model.add_weighted_adapter(["plain"], [1.0], "copy")
    assert "copy" in model.peft_config
    with as_plain_lora():
        plain = PeftModel.from_pretrained(tiny_bert(), tmp_path / "first")
        plain.load_adapter(tmp_path / "second", "second")
    plain.add_weighted_adapter(["default", "second"], [1.0, 0.0], "sum", combination_type="cat")
    plain.set_adapter("sum")
    torch.testing.assert_close(logits(plain.eval()), logits(first))


def test_a_deep_copy_is_independent():
    model = scatter(adapted())
    twin = copy.deepcopy(model)
    scatter(twin, scale=1.0)
    assert not torch.equal(logits(twin), logits(model))


class Linear4bit(nn.Linear):
    """Bears the name of a quantised layer."""


def quantised():
    net = Net()
    net.first = Linear4bit(6, 8)
    return net


@pytest.mark.parametrize(
    ("options", "base", "message"),
    [
        ({"r": 0}, Net, r"^r: got 0; it must be at least 1"),
        ({"r": -2}, Net, r"^r: got -2; it must be at least 1"),
        ({"rank_pattern": {"first": 0}}, Net, r"^rank_pattern: got 0 for 'first'; it must be at least 1"),
        ({"family": ""}, Net, r"^family: got ''; it must be one of rank, shared_sigma, asym, weight_tied, untied$"),
        ({"family": "rows"}, Net, r"^family: got 'rows'; it must be one of"),
        ({"prior": "flat"}, Net, r"^prior: got 'flat'; it must be one of log-uniform, half-cauchy, ard$"),
        (
            {"prior": "half-cauchy", "family": "asym"},
            Net,
            r"^prior: got 'half-cauchy', which is of one scale and goes with multipliers around 1 \(family 'rank'\)",
        ),
        ({"noise": "word"}, Net, r"^noise: got 'word'; it must be one of call, sequence, token, none$"),
        ({"use_dora": True}, Net, r"^use_dora: got True, which LRVD does not support: its update is not a sum of"),
        ({"lora_bias": True}, Net, r"^lora_bias: got True, which LRVD does not support: a bias is no rank component"),
        ({"init_lora_weights": "pissa"}, Net, r"^init_lora_weights: got 'pissa'; with LRVD it must be True, False or"),
        ({"target_modules": ["third"]}, Net, r"^Target modules \{'third'\} not found in the base model"),
        ({"target_modules": ["wte"]}, tiny_gpt2, r"^target_modules: 'transformer.wte' is of type Embedding; LRVD ada"),
        (
            {},
            quantised,
            r"^target_modules: 'first' is of type Linear4bit, quantised, which LRVD does not support; load",
        ),
    ],
)
def test_refusals(options, base, message):
    with pytest.raises(ValueError, match=message) as caught:
        get_peft_model(base(), LrvdConfig(**{"target_modules": ["first"], **options}))
    assert "\n" not in str(caught.value)


def test_a_model_without_lrvd_layers_is_refused():
    for call in (kl_divergence, rank_log_alpha, lambda m: sampling(m).__enter__()):
        with pytest.raises(ValueError, match=r"^model: Net has no LRVD layer; adapt it with guides.LrvdConfig first$"):
            call(Net())
    model = adapted()
    with pytest.raises(ValueError, match=r"^noise: got 'none'; it must be one of call, sequence, token$"):
        sampling(model, noise="none").__enter__()
    with pytest.raises(ValueError, match=r"^num_samples: got 0; it must be at least 1$"):
        sampling(model, num_samples=0).__enter__()
    with pytest.raises(ValueError, match=r"^count: got 'layers'; it must be 'rank' or 'weights'$"):
        kl_divergence(model, "layers")


def test_peft_is_imported_only_when_asked_for():
    script = """
import sys
import pp_models, guides, inference, evaluation, inference.adapters.lrvd_training
assert not {"peft", "transformers"} & set(sys.modules), "imported"
sys.modules["peft"] = None
try:
    guides.LrvdConfig
except ImportError as error:
    assert "pip install guidebook[adapters]" in str(error) and "\\n" not in str(error), error
else:
    raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
