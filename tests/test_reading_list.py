"""The page of the literature: every work has a line, and every name on it is one that there is."""

import importlib
import re
from pathlib import Path

import pytest

import guidebook as gb
from evaluation.methods import METHODS
from inference.objectives import REGISTRY

PAGE = (Path(__file__).parents[1] / "docs" / "reading_list.md").read_text(encoding="utf-8")
#: a dotted name, by what it begins with
DOTTED = re.compile(r"^(gb|guides|inference|evaluation|pp_models)(\.\w+)*")
NAMED = re.compile(r"(objectives?|methods?) ((?:`[^`]+`(?:, | and )?)+)")
NAME = re.compile(r"^[a-z0-9+-]+$")


def table(heading):
    """Rows of the first table below a heading, its head left out."""
    lines = [line for line in PAGE.partition(heading)[2].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    width = len(rows[0])
    return [row for row in rows[2:] if len(row) == width]


PARTS, WORKS = table("# What of the literature"), table("## Every paper, one by one")


def there_is(name):
    """Whether a dotted name can be reached."""
    first, *rest = name.split(".")
    found = gb if first == "gb" else importlib.import_module(first)
    for i, part in enumerate(rest):
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = importlib.import_module(".".join([found.__name__, part]))
        except (ImportError, AttributeError):
            return f"{name}: no {'.'.join(rest[: i + 1])}"
    return ""


def unknown(text):
    """The names of a cell that there are not."""
    found = []
    for code in re.findall(r"`([^`]+)`", text):
        dotted = DOTTED.match(code.strip())
        if dotted and (missing := there_is(dotted[0])):
            found.append(missing)
    for kind, names in NAMED.findall(text):
        table = REGISTRY if kind.startswith("objective") else METHODS
        found += [
            f"{kind} {name}" for name in re.findall(r"`([^`]+)`", names) if NAME.match(name) and name not in table
        ]
    return found


@pytest.mark.parametrize("row", PARTS, ids=[row[0][:40] for row in PARTS])
def test_a_part_is_called_what_the_page_calls_it(row):
    assert unknown(row[1]) == []
    assert row[3]  # what proves it


@pytest.mark.parametrize("row", WORKS, ids=[row[0][:40] for row in WORKS])
def test_a_work_is_here_under_its_name_or_not_for_a_reason(row):
    _, here, how = row
    assert here in ("here", "in part", "not") and unknown(how) == []
    if here == "not":
        assert len(how.split()) >= 8  # a reason
    else:
        assert "`" in how


def test_every_work_has_one_line():
    titles = [row[0] for row in WORKS]
    assert len(titles) == len(set(titles)) == 63
    assert sum(row[1] != "not" for row in WORKS) >= 40


def test_a_name_that_there_is_not_is_noticed():
    assert unknown("`gb.guides.NoSuchGuide(model)`, objective `elbow`, methods `np` and `npp`") == [
        "gb.guides.NoSuchGuide: no guides.NoSuchGuide", "objective elbow", "methods npp"
    ]  # fmt: skip
    assert unknown('`gb.compare`, objective `elbo`, `estimator="stl"`, objectives `iwae`, `dreg`') == []
