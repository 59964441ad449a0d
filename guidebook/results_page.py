"""Writes the measured part of a results page from the runs that measured it.

Run: python -m guidebook.results_page runs/nvdp docs/results/nvdp.md

What stands above the marker line of the page is kept; all below it is made anew from each run's ``results.json`` and
pictures, which are copied, smaller, into a folder beside the page.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from PIL import Image

from evaluation.experiments.experiment import RESULTS, Results, check_table, summary
from pp_models.files import make_folder, read_checked_json, read_regular, write_atomically

MARKER = "<!-- measured -->"
PICTURE_WIDTH = 800
#: a run's further tables are shown up to this length
MOST_ROWS = 16
#: of a table or a picture of a run
MOST_TABLE_BYTES = 2**28
MOST_PIXELS = 10**8


def markdown_table(frame: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table."""
    rows = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
    rows += [["" if pd.isna(v) else str(v) for v in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def small_picture(path: Path) -> bytes:
    """A PNG at most ``PICTURE_WIDTH`` wide with a palette: a tenth of the bytes, and as readable on a page."""
    stored = Image.open(io.BytesIO(read_regular(path, MOST_TABLE_BYTES)), formats=("PNG",))
    if stored.width * stored.height > MOST_PIXELS:
        raise ValueError(f"{path}: has {stored.width} x {stored.height} pixels; a picture of a run has fewer")
    picture = stored.convert("RGB")
    width = min(PICTURE_WIDTH, picture.width)
    picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.quantize(128).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def measured(runs: str | Path, pictures: Path) -> str:
    """The Markdown of every run under a folder, in the order of their names.

    Args:
        runs: folder of runs.
        pictures: existing folder, beside the page, that the runs' pictures are copied to.

    Raises:
        ValueError: the folder holds no results.
    """
    found = sorted(Path(runs).glob(f"*/{RESULTS}"))
    if not found:
        raise ValueError(f"runs: {runs} holds no results; run guidebook reproduce first")
    parts = []
    for path in found:
        result = read_checked_json(path, Results, "the results of an experiment")
        parts.append(f"## {result.name}\n\n```bash\n{result.command}\n```\n")
        parts += [f"{note}\n" for note in result.notes]
        parts.append(markdown_table(summary(pd.DataFrame(result.table))) + "\n")
        if result.checks:
            parts.append(markdown_table(check_table(result.checks)) + "\n")
        for table in sorted(path.parent.glob("*.csv")):
            frame = pd.read_csv(io.BytesIO(read_regular(table, MOST_TABLE_BYTES)))
            if table.name != "table.csv" and len(frame) <= MOST_ROWS:
                parts.append(f"{table.stem.replace('-', ' ').capitalize()}:\n\n{markdown_table(frame.round(3))}\n")
        for picture in sorted(path.parent.glob("*.png")):
            if picture.stem != "learning":
                name = f"{path.parent.name}-{picture.name}"
                write_atomically(pictures / name, small_picture(picture))
                parts.append(f"![{result.name}: {picture.stem}]({pictures.name}/{name})\n")
    return "\n".join(parts)


def replace_measured(page: Path, argument: str, measure: Callable[[], str]) -> None:
    """Replaces what stands below the marker line of a page.

    Args:
        page: the file.
        argument: of the caller, named where the page is at fault.
        measure: gives the Markdown, once the page has been read.

    Raises:
        ValueError: the page cannot be read, or has no marker line.
    """
    try:
        head, marker, _ = read_regular(page, MOST_TABLE_BYTES).decode().partition(MARKER)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{argument}: {page} cannot be read ({error})") from None
    if not marker:
        raise ValueError(f"{argument}: {page} has no line {MARKER}")
    write_atomically(page, f"{head}{MARKER}\n\n{measure()}".encode())


def write_page(runs: str | Path, page: str | Path) -> None:
    """Replaces the measured part of a page.

    Raises:
        ValueError: the page has no marker line, or there are no results.
    """
    page = Path(page)

    def measure() -> str:
        pictures = page.with_suffix("")
        make_folder(pictures, "page")
        return measured(runs, pictures)

    replace_measured(page, "page", measure)


if __name__ == "__main__":
    write_page(sys.argv[1], sys.argv[2])
