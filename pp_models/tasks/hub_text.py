"""Text sets of the Hugging Face hub, through its package ``datasets``, which is imported only when it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pp_models.data import DataError
from pp_models.tasks.downloads import DATA_VARIABLE, check_allowed

#: columns of the first and second text, and the number of classes
_GLUE: dict[str, tuple[str, str | None, int]] = {
    "cola": ("sentence", None, 2),
    "sst2": ("sentence", None, 2),
    "mrpc": ("sentence1", "sentence2", 2),
    "rte": ("sentence1", "sentence2", 2),
    "qnli": ("question", "sentence", 2),
    "qqp": ("question1", "question2", 2),
    "mnli": ("premise", "hypothesis", 3),
}
#: address on the hub and configuration
_QUESTIONS: dict[str, tuple[str, str | None]] = {
    "arc-challenge": ("allenai/ai2_arc", "ARC-Challenge"),
    "arc-easy": ("allenai/ai2_arc", "ARC-Easy"),
    **{f"winogrande-{size}": ("allenai/winogrande", f"winogrande_{size}") for size in ("xs", "s", "m", "l")},
    "obqa": ("allenai/openbookqa", "main"),
    "boolq": ("google/boolq", None),
}


def _rows(address: str, configuration: str | None, split: str, wanted: str | None) -> Iterable[dict[str, Any]]:
    """Rows of a hub data set.

    Raises:
        DataError: ``datasets`` is not installed, or the hub does not answer.
    """
    check_allowed(address)
    otherwise = f"put {wanted} (or .gz) into the folder that {DATA_VARIABLE} names, or " if wanted else ""
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"{address}: the package datasets is missing; {otherwise}pip install datasets") from None
    try:
        return load_dataset(address, configuration, split=split)
    except Exception as error:  # the hub's client raises many kinds
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{address}: the hub gave no rows ({why}); {otherwise}try again with a connection") from error


def glue(name: str, split: str, wanted: str | None) -> tuple[list[tuple[str, str | None, int]], int]:
    """Rows (text, second text or None, class) of a set of GLUE and its number of classes.

    Args:
        name: ``"cola"``, ``"sst2"``, ``"mrpc"``, ``"rte"``, ``"qnli"``, ``"qqp"`` or ``"mnli"``.
        split: ``"train"`` or ``"test"`` (the labelled validation rows; matched for MNLI).
        wanted: the file that would have made this call unnecessary, for the message.

    Raises:
        DataError: see above.
    """
    first, second, classes = _GLUE[name]
    part = "train" if split == "train" else "validation_matched" if name == "mnli" else "validation"
    rows = _rows("nyu-mll/glue", name, part, wanted)
    return [(row[first], row[second] if second else None, int(row["label"])) for row in rows], classes


def questions(name: str, split: str, wanted: str | None) -> list[tuple[str, Sequence[str], int]]:
    """Questions, their choices and the index of the right one; test rows are the labelled ones of the publisher.

    Raises:
        DataError: see above.
    """
    address, configuration = _QUESTIONS[name]
    labelled_test = name.startswith(("arc", "obqa"))
    part = "train" if split == "train" else "test" if labelled_test else "validation"
    found: list[tuple[str, Sequence[str], int]] = []
    for row in _rows(address, configuration, part, wanted):
        if name == "boolq":
            found.append((f"{row['question']}? Passage: {row['passage']}", ("False", "True"), int(row["answer"])))
        elif name.startswith("winogrande"):
            found.append((row["sentence"], (row["option1"], row["option2"]), int(row["answer"]) - 1))
        else:
            question = row["question_stem" if name == "obqa" else "question"]
            choices = row["choices"]
            found.append((question, choices["text"], choices["label"].index(row["answerKey"])))
    return found


def lines(split: str = "train") -> list[str]:
    """Paragraphs of WikiText-2 (raw), blank ones left out.

    Args:
        split: ``"train"`` or ``"test"``.

    Raises:
        DataError: see above.
    """
    rows = _rows("Salesforce/wikitext", "wikitext-2-raw-v1", split, None)
    return [row["text"].strip() for row in rows if row["text"].strip()]
