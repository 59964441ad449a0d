"""Writes the index of results: every claim of the papers, what was found, and where.

Run: python -m guidebook.results_index docs/results

What stands above the marker line of ``index.md`` is kept. Numbers of claims that held are counted from the pages beside
it, which the runs wrote (:mod:`guidebook.results_page`).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from evaluation.experiments.claims import CLAIMS, STANDS, Claim
from evaluation.experiments.table import EXPERIMENTS
from guidebook.results_page import MOST_TABLE_BYTES, markdown_table, replace_measured
from pp_models.files import read_regular

TITLES = {
    "nvdp": "NVDP (Neural Variational Dropout Processes)",
    "bnnp": "BNNP (Amortising Inference and Meta-Learning Priors in Neural Networks)",
    "nmdp": "NMDP (Neural Mixture Density Processes)",
    "lrvd": "LRVD (Low-Rank Variational Dropout)",
}


class Measured(NamedTuple):
    """What a results page says of an experiment.

    Args:
        page: its file.
        held: claims that held.
        claimed: claims.
        seeds: of the run.
    """

    page: str
    held: int
    claimed: int
    seeds: int


def measured_on(folder: Path) -> dict[str, Measured]:
    """Every experiment that the pages of a folder have a section of."""
    found: dict[str, Measured] = {}
    for path in sorted(folder.glob("*.md")):
        if path.name == "index.md":
            continue
        sections = re.split(r"^## ", read_regular(path, MOST_TABLE_BYTES).decode(), flags=re.MULTILINE)[1:]
        for section in sections:
            name = section.splitlines()[0].strip()
            if name not in EXPERIMENTS:
                continue
            words = re.findall(r"\| (yes|MISSED) \|$", section, flags=re.MULTILINE)
            seeds = re.search(r"--seeds ([\d,]+)", section)
            held, claimed = words.count("yes"), len(words)
            if name in found:  # the same experiment at another budget
                held, claimed = held + found[name].held, claimed + found[name].claimed
            found[name] = Measured(path.name, held, claimed, len(seeds.group(1).split(",")) if seeds else 0)
    return found


def evidence(claim: Claim, pages: dict[str, Measured]) -> str:
    """Where a claim was looked at: sections of pages, commands that were run at smoke size alone, tests."""
    parts = []
    for name in claim.experiments:
        if name in pages:
            seen = pages[name]
            anchor = name.replace("/", "")
            held = f": {seen.held} of {seen.claimed} held" if seen.claimed else ""
            seeds = f", {seen.seeds} seed{'s' if seen.seeds > 1 else ''}" if seen.seeds else ""
            parts.append(f"[{name}]({seen.page}#{anchor}){held}{seeds}")
        else:
            parts.append(f"`{name}`")
    return "; ".join([*parts, *(f"`tests/{test}`" for test in claim.tests)])


def index(folder: Path) -> str:
    """The Markdown of the index."""
    pages = measured_on(folder)
    every = [claim for claims in CLAIMS.values() for claim in claims]
    counts = {word: sum(claim.stands == word for claim in every) for word in STANDS}
    parts = [f"{len(every)} rows: " + ", ".join(f"{count} {word}" for word, count in counts.items()) + ".\n"]
    for family, claims in CLAIMS.items():
        rows = [
            {"": c.key, "the paper": c.words, "here": c.stands, "what was found": c.found, "where": evidence(c, pages)}
            for c in claims
        ]
        parts.append(f"## {TITLES[family]}\n\n{markdown_table(pd.DataFrame(rows))}\n")
    return "\n".join(parts)


def write_index(folder: str | Path) -> None:
    """Replaces the measured part of ``index.md`` in a folder of results pages.

    Raises:
        ValueError: it has no marker line, or cannot be read.
    """
    folder = Path(folder)
    replace_measured(folder / "index.md", "folder", lambda: index(folder))


if __name__ == "__main__":
    write_index(sys.argv[1])
