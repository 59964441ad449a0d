"""LRVD adapters on disk: exact round trips, plain peft as the reader, folders that are refused."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from guides.adapters.lrvd_families import family_kl
from guides.adapters.lrvd_layers import kl_divergence, lrvd_modules, sampling
from guides.adapters.lrvd_peft import LrvdConfig, LrvdLinear, as_plain_lora
from guides.adapters.lrvd_saving import lrvd_load
from tests.guides.adapters.adapted_networks import Net, adapted, every_family, logits, scatter
from tests.tiny_transformers import tiny_bert, token_ids


@every_family
def test_a_prior_is_saved_with_its_adapter(family, tmp_path):
    prior = "half-cauchy" if family == "rank" else "ard"
    model = scatter(adapted(family, prior=prior))
    expected = sum(family_kl(*m.lrvd_state("default")[:4], prior=prior) for m in lrvd_modules(model).values())
    torch.testing.assert_close(kl_divergence(model), expected)
    usual = sum(family_kl(*m.lrvd_state("default")[:4]) for m in lrvd_modules(model).values())
    assert abs(float((expected - usual).detach())) > 0.1
    model.save_pretrained(tmp_path)
    assert torch.equal(kl_divergence(lrvd_load(tiny_bert(), tmp_path)), kl_divergence(model))


@every_family
def test_saved_and_loaded_it_is_the_same(family, tmp_path):
    model = scatter(adapted(family, modules_to_save=["classifier"]))
    nn.init.normal_(model.base_model.model.classifier.modules_to_save["default"].weight)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    loaded = lrvd_load(tiny_bert(), tmp_path)
    before = {n: p for n, p in model.named_parameters() if "lora_" in n}
    after = {n: p for n, p in loaded.named_parameters() if "lora_" in n}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert any(
        p.requires_grad
        for n, p in lrvd_load(tiny_bert(), tmp_path, is_trainable=True).named_parameters()
        if "lora_" in n
    )
    for m in (model, loaded):
        with sampling(m, seed=3, noise="sequence"):
            m.found = logits(m)
    assert torch.equal(loaded.found, model.found)


def test_plain_peft_reads_the_posterior_mean(tmp_path):
    model = scatter(adapted())
    model.save_pretrained(tmp_path)
    with as_plain_lora():
        plain = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    assert not any(isinstance(m, LrvdLinear) for m in plain.modules())
    assert torch.equal(logits(plain), logits(model))


def test_plain_peft_in_a_process_without_this_library_predicts_the_posterior_mean(tmp_path):
    model = scatter(adapted())
    model.save_pretrained(tmp_path / "adapter")
    tiny_bert().save_pretrained(tmp_path / "base")
    script = f"""
import sys, warnings

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("guides", "pp_models", "inference", "evaluation", "tests", "pyro"):
            raise ImportError(name + " is not installed")

sys.meta_path.insert(0, Blocked())
try:
    import guides
except ImportError:
    pass
else:
    raise SystemExit("guidebook can be imported")
warnings.simplefilter("ignore")
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import BertForSequenceClassification

base = BertForSequenceClassification.from_pretrained({str(tmp_path / "base")!r})
model = PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r}).eval()
with torch.no_grad():
    logits = model(torch.tensor({token_ids().tolist()})).logits
save_file({{"logits": logits}}, {str(tmp_path / "logits.safetensors")!r})
assert not [m for m in sys.modules if m.partition(".")[0] in ("guides", "pp_models", "inference")]
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(load_file(tmp_path / "logits.safetensors")["logits"], logits(model))


def saved(path, **net):
    get_peft_model(Net(**net), LrvdConfig(r=2, target_modules=["first", "second"])).save_pretrained(path)
    return path


def test_an_adapter_of_another_architecture_is_refused_and_the_base_left_alone(tmp_path):
    saved(tmp_path)
    other = Net(k_in=7)
    with pytest.raises(
        ValueError, match=r"^base: the adapter's lora_A for 'first' has shape \[2, 6\], and the layer has 7"
    ):
        lrvd_load(other, tmp_path)
    assert type(other.first) is nn.Linear
    with pytest.raises(
        ValueError, match=r"^base: the adapter has weights for 'first', and .*ForSequenceClassification"
    ):
        lrvd_load(tiny_bert(), tmp_path)


def test_folders_that_hold_no_such_adapter_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^path: .* holds no adapter_config.json; save the adapter by"):
        lrvd_load(Net(), tmp_path)
    with pytest.raises(ValueError, match=r"^path: /no/such/folder is not a folder, nor the name of a repository"):
        lrvd_load(Net(), "/no/such/folder")
    plain = tmp_path / "plain"
    get_peft_model(Net(), LoraConfig(r=2, target_modules=["first"])).save_pretrained(plain)
    with pytest.raises(ValueError, match=r"^path: .* is of a LORA adapter without LRVD's fields; load it by peft"):
        lrvd_load(Net(), plain)
    pickled = saved(tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"^path: .* holds adapter_model.bin, a pickle that is not read; save"):
        lrvd_load(Net(), pickled)
    damaged = saved(tmp_path / "damaged")
    weights = (damaged / "adapter_model.safetensors").read_bytes()
    (damaged / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"^path: .*adapter_model.safetensors is not readable \("):
        lrvd_load(Net(), damaged)
    broken = saved(tmp_path / "broken")
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"^path: .* is not an adapter configuration \(JSONDecodeError"):
        lrvd_load(Net(), broken)
    differing = saved(tmp_path / "differing")
    content = json.loads((differing / "adapter_config.json").read_text())
    del content["guidebook"]  # which would say that it was edited
    (differing / "adapter_config.json").write_text(json.dumps(content | {"family": "untied"}))
    with pytest.raises(
        ValueError, match=r"^path: .* and its configuration differ, first in .*; the folder is damaged$"
    ):
        lrvd_load(Net(), differing)
