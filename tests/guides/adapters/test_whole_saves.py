"""An adapter that is saved over another: whatever stops the save, the old one is there, whole, or the new one is."""

import os

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, peft_model

from guides.adapters.lrvd_peft import LrvdConfig
from guides.adapters.lrvd_saving import lrvd_load
from pp_models.files import FileError
from tests.guides.adapters.adapted_networks import Net

X = torch.linspace(-1, 1, 12).reshape(2, 6)


def adapter(seed, config=LrvdConfig):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(Net(), config(r=2, target_modules=["first", "second"], init_lora_weights=False))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def output(folder):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return lrvd_load(Net(), folder)(X)


def half_written(*args, **kwargs):
    path = args[1]
    with open(path, "wb") as file:
        file.write(b"half of it")
    raise KeyboardInterrupt


def full_disk(*args, **kwargs):
    half = OSError(28, "No space left on device")
    raise half


@pytest.fixture
def saved(tmp_path):
    adapter(0).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("what I wrote of it")
    (tmp_path / "notes.txt").write_text("precious")
    return tmp_path


@pytest.mark.parametrize(
    ("at", "what"), [("weights", KeyboardInterrupt), ("weights", FileError), ("configuration", FileError)]
)
def test_an_interrupted_save_leaves_the_old_one(saved, monkeypatch, at, what):
    before, model = contents(saved), adapter(1)
    with monkeypatch.context() as patch:
        if at == "weights":
            patch.setattr(peft_model, "safe_save_file", half_written if what is KeyboardInterrupt else full_disk)
        else:
            patch.setattr("guides.adapters.lrvd_peft.write_atomically", full_disk)
        with pytest.raises(what) as caught:
            model.save_pretrained(saved)
    if what is FileError:
        why = "cannot be written (No space left on device); what was there is intact"
        assert str(caught.value) == f"save_directory: {saved} {why}"
    assert contents(saved) == before
    output(saved)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_file_that_cannot_take_its_place_brings_all_of_them_back(saved, monkeypatch, number):
    before, model, replace, count = contents(saved), adapter(1), os.replace, []

    def failing(old, new):
        if ".new" in str(old):
            count.append(new)
            if len(count) == number + 1:
                raise PermissionError(13, "Permission denied")
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(FileError, match=r"cannot be written \(Permission denied\); what was there is intact$"):
            model.save_pretrained(saved)
    assert contents(saved) == before


def test_a_first_save_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(peft_model, "safe_save_file", half_written)
    with pytest.raises(KeyboardInterrupt):
        adapter(0).save_pretrained(tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_a_save_over_another_is_the_new_one_and_leaves_what_is_the_users(saved):
    old, model = output(saved), adapter(1)
    model.save_pretrained(saved)
    assert not torch.equal(output(saved), old)
    found = contents(saved)
    assert set(found) == {"README.md", "notes.txt", "adapter_config.json", "adapter_model.safetensors"}
    assert found["notes.txt"] == b"precious" and b"what I wrote of it" in found["README.md"]


def test_a_second_adapter_goes_to_its_own_folder(tmp_path):
    model = adapter(0)
    model.add_adapter("other", LrvdConfig(r=1, target_modules=["first"]))
    model.save_pretrained(tmp_path)
    assert {"adapter_config.json", "other/adapter_config.json", "other/adapter_model.safetensors"} <= set(
        contents(tmp_path)
    )


def test_other_adapters_are_saved_as_peft_does(tmp_path, monkeypatch):
    adapter(0)
    adapter(0, LoraConfig).save_pretrained(tmp_path / "plain")
    PeftModel.from_pretrained(Net(), str(tmp_path / "plain"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="should be a directory, not a file"):
        adapter(0).save_pretrained(tmp_path / "file")
