"""What code and documentation cite can be opened by a reader of the repository, and labels are explained there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAPERS = ROOT / "docs" / "papers"
ROOMS = ("pp_models", "guides", "inference", "evaluation", "guidebook", "tests", "benchmarks", "examples", "docs")

CITATION = re.compile(r"docs/papers/([\w-]+\.md)(?:#([\w-]+))?(?:,\s+eqs?\.\s+(\d+(?:(?:,| and| to)\s+\d+)*))?")
#: a paper's name and a number, which may be the paper's or some page's that nobody can open
BARE = re.compile(r"\b(?:NVDP|BNNP|NMDP|LRVD)(?:'s)?,?\s+(?:sections?|eqs?\.|spec)\s*\w*|\bspec page\b")
LABEL = re.compile(r"\b[TAB]\d{1,2}[a-z]?\b")


def texts() -> Iterator[tuple[str, str]]:
    """Every source and page as (path, text), this file left out; comment marks do not break a sentence."""
    files = [f for room in ROOMS for kind in ("py", "md") for f in sorted((ROOT / room).rglob(f"*.{kind}"))]
    for file in [*files, *sorted(ROOT.glob("*.md"))]:
        if file != Path(__file__).resolve():
            text = file.read_text(encoding="utf-8")
            yield str(file.relative_to(ROOT)), re.sub(r"\n\s*#:? ", "\n", text)


def equations(page: str) -> list[int]:
    """Numbers at the ends of lines within a page's code blocks, in their order."""
    blocks = re.findall(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [int(n) for block in blocks for n in re.findall(r"\((\d+)\)$", block, re.MULTILINE)]


def anchors(page: str) -> set[str]:
    """What a page's headings are linked by."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def wrong_citations(text: str) -> list[str]:
    """The citations of a text that lead nowhere."""
    found = [match[0] for match in BARE.finditer(text)]
    for match in CITATION.finditer(text):
        name, anchor, numbers = match.groups()
        page = (PAPERS / name).read_text(encoding="utf-8") if (PAPERS / name).exists() else None
        asked = {int(n) for n in re.findall(r"\d+", numbers or "")}
        if page is None or (anchor and anchor not in anchors(page)) or not asked <= set(equations(page)):
            found.append(match[0])
    return found


def explained() -> set[str]:
    """Labels that have a row of a table on a paper's page."""
    rows = [re.findall(r"^\| ([TAB]\d{1,2}[a-z]?) \|", page.read_text(), re.MULTILINE) for page in PAPERS.glob("*.md")]
    return {label for row in rows for label in row}


def test_every_citation_leads_to_a_page_and_to_an_equation_there():
    wrong = {path: found for path, text in texts() if (found := wrong_citations(text))}
    assert wrong == {}
    cited = [match for _, text in texts() for match in CITATION.findall(text)]
    assert {name for name, _, _ in cited} == {page.name for page in PAPERS.glob("*.md")}


@pytest.mark.parametrize("paper", ["nvdp", "bnnp", "nmdp", "lrvd"])
def test_equations_of_a_page_are_numbered_in_turn(paper):
    found = equations((PAPERS / f"{paper}.md").read_text(encoding="utf-8"))
    assert found == list(range(1, len(found) + 1)) and len(found) > 10


def test_what_a_page_says_a_piece_is_called_is_in_the_code():
    words = {
        word for path, text in texts() if not path.startswith(("docs", "tests")) for word in re.findall(r"\w+", text)
    }
    for page in sorted(PAPERS.glob("*.md")):
        rows = re.findall(r"^\|.*\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
        names = {
            word
            for row in rows
            for quoted in re.findall(r"`([^`]+)`", row)
            for word in re.findall(r"[A-Za-z_]\w+", quoted)
        }
        assert len(names) > 20
        assert names - words == set(), page.name


def test_no_label_stands_unexplained():
    known = explained()
    assert known == {"A1", "A2", "A3", "A4", "A5", "A5c"}  # the names of NMDP's ablation, and one more rung
    wrong = {path: sorted(found) for path, text in texts() if (found := set(LABEL.findall(text)) - known)}
    assert wrong == {}


@pytest.mark.parametrize(
    "text",
    [
        "see docs/papers/nvdp.md, eq. 99",
        "see docs/papers/nvdp.md, eq. 1 to 99",
        "see docs/papers/nvdp.md,\n    eq. 1, 2 and 99",
        "see docs/papers/nvdp.md#no-such-heading",
        "see docs/papers/vae.md",
        "(NMDP, section 1.2)",
        "(NMDP, eq. 2)",
        "(BNNP\n    spec B8)",
        "tests of the spec page",
    ],
)
def test_what_leads_nowhere_is_found(text):
    assert len(wrong_citations(text)) == 1


def test_what_leads_somewhere_is_not():
    assert wrong_citations("docs/papers/nvdp.md, eq. 1 to 3; docs/papers/nmdp.md#the-ladder; the paper's eq. 7") == []
    assert LABEL.findall("T10, B3, A11 and A5c, but no A100 and no T, B") == ["T10", "B3", "A11", "A5c"]
