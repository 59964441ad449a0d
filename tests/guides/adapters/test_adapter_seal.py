"""Saved adapters say their format and checksums; what was altered, or holds something else, is one line."""

import json
import os

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from guides.adapters.adapter_seal import seal_config
from guides.adapters.lrvd_peft import LrvdConfig, as_plain_lora
from guides.adapters.lrvd_saving import lrvd_load
from tests.guides.adapters.adapted_networks import Net

X = torch.linspace(-1, 1, 12).reshape(2, 6)


@pytest.fixture
def saved(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(Net(), LrvdConfig(r=2, target_modules=["first", "second"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    return tmp_path


def refused(folder, message):
    with pytest.raises(ValueError, match=message) as caught:
        lrvd_load(Net(), folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def config(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_a_configuration_says_format_and_both_checksums(saved):
    seal = config(saved)["guidebook"]
    assert seal["format"] == 1 and len(seal["sha256"]) == len(seal["weights"]) == 64
    lrvd_load(Net(), saved)


def test_one_that_was_edited_is_refused_until_its_seal_is_removed(saved):
    content = config(saved)
    (saved / "adapter_config.json").write_text(json.dumps(content | {"lora_alpha": 64}))
    refused(saved, r"adapter_config.json was altered \(SHA-256 differs\); if you changed it yourself, remove its key")
    del content["guidebook"]
    (saved / "adapter_config.json").write_text(json.dumps(content | {"lora_alpha": 64}))
    assert lrvd_load(Net(), saved).peft_config["default"].lora_alpha == 64


def test_weights_of_another_adapter_are_refused(saved):
    path = saved / "adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    refused(saved, r"adapter_model.safetensors was altered, or does not belong to its adapter_config.json")


def test_another_format_is_refused(saved, monkeypatch):
    monkeypatch.setattr("guides.adapters.adapter_seal.FORMAT", 99)
    content = seal_config(config(saved), None)
    monkeypatch.undo()
    (saved / "adapter_config.json").write_bytes(content)
    refused(saved, r"adapter_config.json is of format 99; this version reads format 1$")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": "2"}, r"is not an adapter configuration \(r: Input should be a valid integer, got '2'\)$"),
        ({"r": 10**9}, r"\(r: a rank of 1000000000; there are at most 4096\)$"),
        ({"rank_pattern": {"first": 10**9}}, r"\(first: a rank of 1000000000; there are at most 4096\)$"),
        ({"target_modules": [3]}, r"\(target_modules.\S+: Input should be a valid string, got '3'\)$"),
        ({"family": "gauss"}, r"is not an adapter configuration \(family: got 'gauss'"),
        ({"lora_alpha": None}, r"\(lora_alpha: Input should be a valid number"),
    ],
)
def test_fields_of_another_type_or_out_of_range(saved, change, message):
    (saved / "adapter_config.json").write_bytes(seal_config(config(saved) | change, None))
    refused(saved, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t * torch.nan, r"is not readable \(\S+: holds values that are not finite in"),
        (lambda t: t + 0j, r"is not readable \(\S+ has dtype torch.complex64; an adapter's are floating point\)$"),
        (lambda t: t.to(torch.int32), r"has dtype torch.int32; an adapter's are floating point\)$"),
    ],
)
def test_weights_that_no_training_writes(saved, change, message):
    path = saved / "adapter_model.safetensors"
    save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path)
    (saved / "adapter_config.json").write_bytes(seal_config(config(saved), path))
    refused(saved, message)


def test_pipes_devices_and_deep_nesting(saved):
    file = saved / "adapter_config.json"
    file.write_text("[" * 200_000)
    refused(saved, r"is not an adapter configuration \(RecursionError: ")
    file.unlink()
    os.mkfifo(file)
    refused(saved, r"holds no adapter_config.json")
    file.unlink()
    file.symlink_to("/dev/zero")
    refused(saved, r"holds no adapter_config.json")


def test_peft_alone_opens_it(saved):
    ours = lrvd_load(Net(), saved)
    with as_plain_lora():
        plain = PeftModel.from_pretrained(Net(), saved).eval()
    names = [name for name in plain.state_dict() if "lora_" in name]
    assert len(names) == 4
    assert all(torch.equal(plain.state_dict()[name], ours.state_dict()[name]) for name in names)
