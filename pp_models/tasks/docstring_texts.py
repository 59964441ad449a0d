"""Sentences of four libraries, read from their installed sources: a labelled text set that needs no download."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from pp_models.data import DataError

#: by class: the package, and what to install for it
LIBRARIES = {"scipy": "scipy", "sklearn": "scikit-learn", "torch": "torch", "transformers": "transformers"}
#: another library, for texts of none of the classes
ODD_LIBRARY = {"pyro": "pyro-ppl"}
#: characters of a sentence, and sentences of one file at most
LENGTHS, PER_FILE = (30, 220), 4
#: sentences of a library that another may share
SPARE = 20
_NAMES = re.compile(
    r"\b(scipy|sklearn|scikit[- ]learn|(py)?torch\w*|transformers|hugging ?face|numpyro|pyro\w*)\b", re.IGNORECASE
)


def docstring_sentences(package: str, install: str, count: int, seed: int = 0) -> tuple[list[str], str]:
    """First paragraphs of docstrings of an installed package, library names masked.

    Sources are parsed and never imported or run. Files come in a random order, tests are left out, and a paragraph
    counts once.

    Args:
        package: its import name.
        install: what pip calls it.
        count: how many; sources that hold fewer are refused.
        seed: of the order.

    Returns:
        ``count`` paragraphs in random order, and the package with its version.

    Raises:
        DataError: the package is not installed, or its sources hold too few.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{package}: its sources are the texts, and it is not installed; pip install {install}")
    root = Path(spec.submodule_search_locations[0])
    files = sorted(p for p in root.rglob("*.py") if not {"tests", "testing"} & set(p.relative_to(root).parts))
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, None] = {}
    for index in torch.randperm(len(files), generator=generator).tolist():
        if len(found) >= 2 * count:
            break
        for number, paragraph in enumerate(_paragraphs(files[index])):
            if number == PER_FILE:
                break
            found.setdefault(paragraph)
    if len(found) < count:
        raise DataError(f"{package}: its installed sources hold {len(found)} sentences; {count} are needed")
    texts = list(found)
    chosen = torch.randperm(len(texts), generator=generator)[:count].tolist()
    return [texts[i] for i in chosen], f"{package} {metadata.version(install)}"


def _paragraphs(path: Path) -> Iterator[str]:
    """First paragraphs of a file's docstrings that have the right length."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # templates with holes
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node, clean=False)):
            paragraph = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
            if LENGTHS[0] <= len(paragraph) <= LENGTHS[1] and ">>>" not in paragraph:
                yield _NAMES.sub("library", paragraph)


@cache
def library_sentences(per_class: int) -> tuple[tuple[tuple[str, int], ...], str]:
    """Pairs (sentence, class) of the four libraries in turns, ``per_class`` each, and where they are from.

    Sentences that two libraries share (they carry copies of the same code) are left out.

    Raises:
        DataError: they share more than is spare.
    """
    found, sources = zip(*(docstring_sentences(*item, per_class + SPARE) for item in LIBRARIES.items()), strict=True)
    times = Counter(text for column in found for text in column)
    columns = [[text for text in column if times[text] == 1][:per_class] for column in found]
    if any(len(column) < per_class for column in columns):
        raise DataError(
            f"docstrings: the libraries ({', '.join(sources)}) share more than {SPARE} of {per_class + SPARE} sentences"
        )
    rows = [(text, label) for turn in zip(*columns, strict=True) for label, text in enumerate(turn)]
    return tuple(rows), ", ".join(sources)
