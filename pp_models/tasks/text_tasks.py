"""Labelled sentences: CoLA, SST-2, MRPC, questions with answer letters, docstrings, and made-up ones that need no file.

A published set is read from the folder that ``GUIDEBOOK_DATA`` names (or the cache) where it is there, and otherwise
through the Hugging Face package ``datasets`` (see :mod:`pp_models.tasks.hub_text`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from pp_models.data import DataError
from pp_models.files import LENIENT, checked
from pp_models.tasks import hub_text
from pp_models.tasks.data_files import text_of
from pp_models.tasks.docstring_texts import LIBRARIES, ODD_LIBRARY, docstring_sentences, library_sentences
from pp_models.tasks.downloads import find

#: names of the answers of a multiple-choice question, in order
LETTERS = "ABCDE"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TextSet:
    """Sentences (or pairs of sentences, or questions) and their classes.

    Args:
        texts: n sentences; for questions the whole prompt, up to and without the answer's letter.
        labels: class indices, long ``[n]``.
        num_classes: C.
        source: what the rows are, for tables and captions.
        pairs: the second sentence of each, or None.
    """

    texts: tuple[str, ...]
    labels: Tensor
    num_classes: int
    source: str
    pairs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.labels) or (self.pairs is not None and len(self.pairs) != len(self.texts)):
            raise DataError(f"{self.source}: {len(self.texts)} texts and {len(self.labels)} labels; each needs its own")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise DataError(f"{self.source}: a label lies outside 0 to {self.num_classes - 1}")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Tensor | Sequence[int]) -> TextSet:
        """The given rows, in that order."""
        chosen = [int(i) for i in rows]
        pairs = None if self.pairs is None else tuple(self.pairs[i] for i in chosen)
        return replace(self, texts=tuple(self.texts[i] for i in chosen), labels=self.labels[chosen], pairs=pairs)

    def shuffled(self, seed: int = 0) -> TextSet:
        """All rows in a random order that depends on the seed alone."""
        return self.take(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)))

    def first(self, count: int) -> TextSet:
        """The first ``count`` rows (all, where there are fewer)."""
        return self.take(range(min(count, len(self))))


def load_text(name: str, split: str = "train") -> TextSet:
    """A labelled set by name.

    Args:
        name: ``"cola"`` (acceptability; the test is both development files), ``"sst2"`` (sentiment), ``"mrpc"``
            (paraphrases; the test is the development file), ``"arc-challenge"``, ``"arc-easy"``,
            ``"winogrande-xs"``, ``-s``, ``-m``, ``-l`` (questions), ``"templates"`` (made here), ``"docstrings"``
            (which of four installed libraries a sentence is from; their sources are parsed) and ``"docstrings-odd"``
            (sentences of a fifth), or, through the hub only, ``"rte"``, ``"qnli"``, ``"qqp"``, ``"mnli"``,
            ``"obqa"`` and ``"boolq"``.
        split: ``"train"`` or ``"test"`` (what GLUE calls validation, whose labels are known).

    Raises:
        ValueError: unknown name or split.
        DataError: a file is nowhere and the hub cannot be asked, or a file is not what it should be.
    """
    if name not in TEXT_SETS:
        raise ValueError(f"name: got {name!r}; it must be one of {', '.join(TEXT_SETS)}")
    if split not in ("train", "test"):
        raise ValueError(f"split: got {split!r}; it must be train or test")
    return TEXT_SETS[name](split)


def answer_prompt(question: str, choices: Sequence[str]) -> str:
    """A question with lettered choices, to be continued with a letter.

    Raises:
        ValueError: fewer than two or more than five choices.
    """
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"choices: got {len(choices)}; there must be 2 to {len(LETTERS)}")
    lettered = " ".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"Choose the right answer. Question: {question} Choices: {lettered} Answer:"


def template_sentences(count: int, seed: int = 0, label_noise: float = 0.1, questions: bool = False) -> TextSet:
    """Short opinions made from a few words; a share of the labels is wrong, so that certainty does not pay.

    Args:
        count: n.
        seed: of everything.
        label_noise: share of flipped labels.
        questions: as two-choice prompts (A. good, B. bad) instead of sentences.
    """
    generator = torch.Generator().manual_seed(seed)

    def pick(words: Sequence[str]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=generator))]

    texts, labels = [], []
    for _ in range(count):
        good = int(torch.randint(2, (1,), generator=generator))
        text = f"the {pick(_NOUNS)} was {pick(_ADVERBS)} {pick(_GOOD if good else _BAD)} and the {pick(_NOUNS)} was new"
        flipped = float(torch.rand((), generator=generator)) < label_noise
        texts.append(answer_prompt(f"how was it? {text}", ("bad", "good")) if questions else text)
        labels.append(good ^ int(flipped))
    return TextSet(tuple(texts), torch.tensor(labels), 2, f"{count} made-up opinions, {label_noise:.0%} of them wrong")


_NOUNS = ("film", "story", "music", "actor", "scene", "book", "voice", "picture", "dance", "ending")
_ADVERBS = ("very", "rather", "quite", "really", "truly")
_GOOD = ("good", "charming", "warm", "clever", "lovely", "bright")
_BAD = ("bad", "dull", "cold", "stupid", "ugly", "dark")


def _content(name: str) -> str | None:
    """The text of a file (or of its gzipped form) in the data folder or cache; None where it is nowhere."""
    path = find(name + ".gz") or find(name)
    return None if path is None else text_of(path)


def _glue(name: str, split: str) -> TextSet:
    """CoLA, SST-2 or MRPC from files, any set of GLUE from the hub."""
    files, text, label, pair, header = _GLUE_FILES.get(name, ({}, 0, 0, None, False))
    found = [_content(f"glue/{file}") for file in files.get(split, ())]
    if not found or any(content is None for content in found):
        wanted = ", ".join(f"glue/{file}" for file in files.get(split, ())) or None
        rows, classes = hub_text.glue(name, split, wanted)
        return _set(rows, classes, f"GLUE {name}, {split} rows of the hub")
    rows = []
    for content in found:
        assert content is not None
        try:
            lines = list(csv.reader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE))[int(header) :]
            rows += [(row[text].strip(), None if pair is None else row[pair].strip(), int(row[label])) for row in lines]
        except (IndexError, ValueError, csv.Error) as error:
            raise DataError(f"{name}: a row of {files[split]} is not what it should be ({error})") from None
    if not rows:
        raise DataError(f"{name}: {', '.join(files[split])} holds no sentence; replace it")
    return _set(rows, 2, f"{_TITLES[name]}, {len(rows)} {split} sentences")


def _set(rows: Iterable[tuple[str, str | None, int]], classes: int, source: str) -> TextSet:
    texts, pairs, labels = zip(*rows, strict=True)
    return TextSet(texts, torch.tensor(labels), classes, source, None if pairs[0] is None else pairs)


#: by split the files; columns of text, label and second text; whether a header line is there
_GLUE_FILES: dict[str, tuple[dict[str, tuple[str, ...]], int, int, int | None, bool]] = {
    "cola": (
        {
            "train": ("CoLA/in_domain_train.tsv",),
            "test": ("CoLA/in_domain_dev.tsv", "CoLA/out_of_domain_dev.tsv"),
        },
        3,
        1,
        None,
        False,
    ),
    "sst2": ({"train": ("SST-2/train.tsv",), "test": ("SST-2/dev.tsv",)}, 0, 1, None, True),
    "mrpc": ({"train": ("MRPC/train.tsv",), "test": ("MRPC/dev.tsv",)}, 3, 0, 4, True),
}
_TITLES = {"cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC"}


@dataclass(frozen=True)
class _Question:
    """A line of ARC as it is read."""

    question: str
    choices: list[str]
    label: int | str

    __pydantic_config__ = LENIENT

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise ValueError(f"a question has {len(self.choices)} choices; there must be 2 to {len(LETTERS)}")
        if not 0 <= int(self.label) < len(self.choices):
            raise ValueError(f"label {self.label} lies outside 0 to {len(self.choices) - 1}")


@dataclass(frozen=True)
class _Gap:
    """A line of WinoGrande as it is read."""

    sentence: str
    option1: str
    option2: str
    answer: int | str

    __pydantic_config__ = LENIENT

    def __post_init__(self) -> None:
        if int(self.answer) not in (1, 2):
            raise ValueError(f"answer {self.answer} is neither 1 nor 2")


def _json_lines(file: str, schema: type[T]) -> list[T] | None:
    content = _content(file)
    if content is None:
        return None
    try:
        rows = checked([json.loads(line) for line in content.splitlines() if line.strip()], list[schema])  # type: ignore[valid-type]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: it holds a line that is no question ({str(error)[:200]})") from None
    if not rows:
        raise DataError(f"{file}: it holds no question; replace it")
    return rows


def _arc(level: str, split: str) -> TextSet:
    file = f"arc/ARC-{level}-{split}.jsonl"
    rows = _json_lines(file, _Question)
    if rows is None:
        questions = hub_text.questions(f"arc-{level.lower()}", split, file)
    else:
        questions = [(row.question, row.choices, int(row.label)) for row in rows]
    return _prompts(questions, len(LETTERS), f"ARC-{level}, {len(questions)} {split} questions")


def _winogrande(size: str, split: str) -> TextSet:
    file = f"winogrande/{f'train_{size}' if split == 'train' else 'dev'}.jsonl"
    rows = _json_lines(file, _Gap)
    if rows is None:
        questions = hub_text.questions(f"winogrande-{size}", split, file)
    else:
        questions = [(row.sentence, (row.option1, row.option2), int(row.answer) - 1) for row in rows]
    return _prompts(questions, 2, f"WinoGrande-{size.upper()}, {len(questions)} {split} questions")


def _hub_questions(name: str, classes: int, split: str) -> TextSet:
    questions = hub_text.questions(name, split, None)
    return _prompts(questions, classes, f"{name}, {len(questions)} {split} questions of the hub")


def _prompts(questions: Sequence[tuple[str, Sequence[str], int]], classes: int, source: str) -> TextSet:
    texts = tuple(answer_prompt(question, choices) for question, choices, _ in questions)
    return TextSet(texts, torch.tensor([answer for _, _, answer in questions]), classes, source)


#: sentences of each library to train on and to test on
DOCSTRINGS = {"train": 140, "test": 100}


def _docstrings(split: str) -> TextSet:
    rows, sources = library_sentences(sum(DOCSTRINGS.values()))
    border = DOCSTRINGS["train"] * len(LIBRARIES)
    rows = rows[:border] if split == "train" else rows[border:]
    texts, labels = zip(*rows, strict=True)
    return TextSet(
        texts, torch.tensor(labels), len(LIBRARIES), f"docstrings of {sources}, {len(rows)} {split} sentences"
    )


def _odd_docstrings(split: str) -> TextSet:
    ((package, install),) = ODD_LIBRARY.items()
    texts, source = docstring_sentences(package, install, 200, seed=int(split == "test"))
    return TextSet(tuple(texts), torch.zeros(len(texts), dtype=torch.long), 1, f"docstrings of {source}, {split}")


def _templates(split: str) -> TextSet:
    return template_sentences(400, 0 if split == "train" else 1)


TEXT_SETS: dict[str, Callable[[str], TextSet]] = {
    **{name: partial(_glue, name) for name in ("cola", "sst2", "mrpc", "rte", "qnli", "qqp", "mnli")},
    "arc-challenge": partial(_arc, "Challenge"),
    "arc-easy": partial(_arc, "Easy"),
    **{f"winogrande-{size}": partial(_winogrande, size) for size in ("xs", "s", "m", "l")},
    "obqa": partial(_hub_questions, "obqa", 4),
    "boolq": partial(_hub_questions, "boolq", 2),
    "templates": _templates,
    "docstrings": _docstrings,
    "docstrings-odd": _odd_docstrings,
}
