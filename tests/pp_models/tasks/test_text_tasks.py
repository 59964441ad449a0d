"""Labelled sentences and questions: files in the published formats, the hub's rows, and made-up sentences."""

import gzip
import sys
import types

import pytest
import torch

from pp_models.data import DataError
from pp_models.tasks import hub_text
from pp_models.tasks.text_tasks import TextSet, answer_prompt, load_text, template_sentences


def test_files_in_the_published_formats_are_read(recorded_files):
    cola, test = load_text("cola"), load_text("cola", "test")
    assert (len(cola), len(test), cola.num_classes) == (90, 24 + 20, 2)
    assert all((" good." in text) == bool(label) for text, label in zip(cola.texts, cola.labels, strict=True))
    sst2 = load_text("sst2", "test")
    assert len(sst2) == 40 and not any(text.endswith(" ") for text in sst2.texts)
    mrpc = load_text("mrpc")
    assert mrpc.pairs is not None and mrpc.texts[0].startswith('He said "')
    easy = load_text("arc-easy")
    assert easy.labels.tolist() == [2] * 3 and "C. c Answer:" in easy.texts[0]
    winogrande = load_text("winogrande-xs")
    assert winogrande.labels.tolist() == [1] and "A. A B. B Answer:" in winogrande.texts[0]


def test_rows_are_taken_and_shuffled_by_seed_alone():
    found = template_sentences(20)
    assert found.shuffled(3).texts == found.shuffled(3).texts != found.shuffled(4).texts
    assert found.shuffled(3).texts != found.texts and sorted(found.shuffled(3).texts) == sorted(found.texts)
    assert len(found.first(5)) == 5 and len(found.first(50)) == 20


def test_made_up_labels_are_wrong_as_often_as_asked():
    plain, noisy = template_sentences(400, 0, 0.0), template_sentences(400, 0, 0.1)
    assert plain.texts == noisy.texts
    assert 0.05 < float((plain.labels != noisy.labels).float().mean()) < 0.15
    assert template_sentences(3, questions=True).texts[0].endswith("A. bad B. good Answer:")


def fake_datasets(monkeypatch, rows, asked):
    """A stand-in for the package ``datasets`` that answers any request with the same rows."""

    def load_dataset(address, configuration, split):
        asked.append((address, configuration, split))
        return rows

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.delenv("GUIDEBOOK_DATA", raising=False)
    monkeypatch.setattr("pp_models.tasks.text_tasks.find", lambda name: None)


@pytest.mark.parametrize(
    ("name", "split", "row", "asked", "text", "label"),
    [
        (
            "rte",
            "test",
            {"sentence1": "a", "sentence2": "b", "label": 1},
            ("nyu-mll/glue", "rte", "validation"),
            "a",
            1,
        ),
        (
            "mnli",
            "test",
            {"premise": "a", "hypothesis": "b", "label": 2},
            ("nyu-mll/glue", "mnli", "validation_matched"),
            "a",
            2,
        ),
        ("cola", "train", {"sentence": "a", "label": 0}, ("nyu-mll/glue", "cola", "train"), "a", 0),
        (
            "obqa",
            "test",
            {"question_stem": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
            ("allenai/openbookqa", "main", "test"),
            answer_prompt("q", ["x", "y"]),
            1,
        ),
        (
            "arc-challenge",
            "test",
            {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"},
            ("allenai/ai2_arc", "ARC-Challenge", "test"),
            answer_prompt("q", ["x", "y"]),
            0,
        ),
        (
            "boolq",
            "train",
            {"question": "is it", "passage": "It is.", "answer": True},
            ("google/boolq", None, "train"),
            answer_prompt("is it? Passage: It is.", ["False", "True"]),
            1,
        ),
        (
            "winogrande-m",
            "test",
            {"sentence": "s _", "option1": "x", "option2": "y", "answer": "1"},
            ("allenai/winogrande", "winogrande_m", "validation"),
            answer_prompt("s _", ["x", "y"]),
            0,
        ),
    ],
)
def test_without_files_the_hub_is_asked(monkeypatch, name, split, row, asked, text, label):
    requests = []
    fake_datasets(monkeypatch, [row, row], requests)
    found = load_text(name, split)
    assert requests == [asked]
    assert found.texts == (text, text) and found.labels.tolist() == [label, label]


def test_paragraphs_of_the_hub(monkeypatch):
    requests = []
    fake_datasets(monkeypatch, [{"text": " a b \n"}, {"text": "  "}], requests)
    assert hub_text.lines("test") == ["a b"]
    assert requests == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]


def test_what_is_missing_is_said_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    monkeypatch.setattr("pp_models.tasks.downloads.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match="datasets is missing; put glue/CoLA/in_domain_train.tsv .* pip install datasets"
    ):
        load_text("cola")
    with pytest.raises(DataError, match="datasets is missing; pip install datasets"):
        load_text("boolq")

    def unreachable(address, configuration, split):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=unreachable))
    with pytest.raises(DataError, match="the hub gave no rows \\(no route to host\\)"):
        load_text("rte")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", "it is no complete gzip file"),
        (gzip.compress(b"s\tx\t\tA sentence.\n"), "a row of .* is not what it should be"),
        (gzip.compress(b"s\t3\t\tA sentence.\n"), "a label lies outside 0 to 1"),
    ],
)
def test_a_broken_file_is_said_in_one_line(monkeypatch, tmp_path, content, message):
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    (tmp_path / "glue/CoLA").mkdir(parents=True)
    (tmp_path / "glue/CoLA/in_domain_train.tsv.gz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_text("cola")


def test_bad_input_gets_one_line():
    with pytest.raises(ValueError, match="name: got 'x'"):
        load_text("x")
    with pytest.raises(ValueError, match="split: got 'dev'"):
        load_text("cola", "dev")
    with pytest.raises(ValueError, match="choices: got 1"):
        answer_prompt("q", ["a"])
    with pytest.raises(DataError, match="2 texts and 1 labels"):
        TextSet(("a", "b"), torch.tensor([0]), 2, "it")
