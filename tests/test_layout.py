"""What a reader is told: the Python and the commands of README.md and docs/ run, and their links lead somewhere."""

import importlib.util
import inspect
import itertools
import re
import runpy
import shlex
import sys
import textwrap
import types
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import typer

import guidebook as gb
from guidebook import pretrained
from guidebook.command_line import app

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.is_file()
]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
ROOMS = ("pp_models", "guides", "inference", "evaluation", "guidebook", "benchmarks", "tests")
#: public names that the reference leaves out
UNLISTED: set[str] = set()
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")


def blocks(text):
    """Language, number of the first line, and lines of each fenced block."""
    found, language = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("```"):
            if language is not None:
                found[-1][2].append(line)
        elif language is None:
            language = (line.removeprefix("```").split() or [""])[0]
            found.append((language, number + 1, []))
        else:
            language = None
    return found


def commands(text):
    """Every line of the blocks that begins with guidebook, as words."""
    lines = [line.removeprefix("$ ") for _, _, block in blocks(text) for line in block]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("guidebook ")]


#: page, number of the first line, and lines of each block of Python
SNIPPETS = [
    (page, number, lines)
    for page in PAGES
    for language, number, lines in blocks(page.read_text(encoding="utf-8"))
    if language == "python"
]


@pytest.mark.parametrize(
    ("page", "number", "lines"), SNIPPETS, ids=[f"{page.relative_to(ROOT)}:{number}" for page, number, _ in SNIPPETS]
)
def test_python_of_a_page_runs_alone(page, number, lines, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # blank lines above, so that a traceback names the line of the page
    exec(compile("\n" * (number - 1) + "\n".join(lines), str(page), "exec"), {"__name__": "__page__"})
    assert torch.get_default_dtype() == torch.float32


def test_metrics_are_logged_to_tensorboard_in_three_lines(monkeypatch):
    """The block of docs/fitting.md, with a writer that keeps what it is told: tensorboard itself need not be there."""
    page = (ROOT / "docs" / "fitting.md").read_text(encoding="utf-8")
    lines = re.search(r"```py title=\"log to TensorBoard.*?\n(.*?)```", page, re.DOTALL).group(1)
    told = []

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == "runs/log"

        def add_scalar(self, name, value, step):
            told.append((name, float(value), step))

    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    model = gb.BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
    given = {"gb": gb, "model": model, "guide": gb.guides.MCDropoutGuide(model, 4), "tasks": gb.tasks.gp("rbf", 2)}
    exec(textwrap.dedent(lines), given)
    assert ("step", 100.0, 100) in told and {name for name, *_ in told} >= {"loss", "log_likelihood", "kl"}


TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))


@pytest.mark.parametrize("path", TUTORIALS, ids=[path.stem for path in TUTORIALS])
def test_a_tutorial_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__page__")
    plt.close("all")


def test_the_reference_names_what_there_is():
    named = [
        line.removeprefix("::: ")
        for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("::: ")
    ]
    assert len(named) == len(set(named)) > 80
    found = []
    for name in named:
        module, _, last = name.rpartition(".")
        thing = getattr(importlib.import_module(module), last)
        assert thing.__doc__, name
        found.append(inspect.unwrap(thing))
    missing = [
        name
        for name in gb.__all__
        if inspect.isclass(getattr(gb, name)) or inspect.isfunction(getattr(gb, name))
        if inspect.unwrap(getattr(gb, name)) not in found and name not in UNLISTED
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_make_and_module_commands_of_a_page_exist(page):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for _, _, lines in (block for block in blocks(page.read_text(encoding="utf-8")) if block[0] in ("bash", "sh")):
        for words in (shlex.split(line.removeprefix("$ "), comments=True) for line in lines):
            for command, name in itertools.pairwise(words):
                if command == "make":
                    assert name in targets, words
                if command == "-m" and name.partition(".")[0] in ROOMS:
                    assert importlib.util.find_spec(name) is not None, words


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_of_a_page_are_ones_that_guidebook_reads(page):
    group = typer.main.get_command(app)
    for words in commands(page.read_text(encoding="utf-8")):
        assert words[1] in group.commands or words[1].startswith("--"), words
        if words[1] in group.commands:
            group.commands[words[1]].make_context(words[1], words[2:])  # raises on an unknown option


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_of_a_page_lead_to_files_that_are_there(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if page.name == "reports.md" and target.startswith("reports/"):  # made at build
            assert f'"{Path(target).stem}"' in (page.parent / "report_gallery.py").read_text(encoding="utf-8")
            assert Path(target).stem in pretrained().index
        elif not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_blocks_and_commands_are_found():
    text = "a\n```python\nx = 1\n```\n\n```bash\n$ guidebook list # all\nls\n```\n```python title='b'\ny = x\n```\n"
    assert blocks(text) == [
        ("python", 3, ["x = 1"]),
        ("bash", 7, ["$ guidebook list # all", "ls"]),
        ("python", 11, ["y = x"]),
    ]
    assert commands(text) == [["guidebook", "list"]]
