"""Reports: prose, tables, figures and settings in one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from pp_models.files import make_folder, write_atomically
from pp_models.own_files import write_own

TEMPLATE = "report.html.jinja"
#: dots per inch of the pictures; twice what a page shows them at, for sharp screens and print
PICTURE_DPI = 200
#: CSS pixels per inch of figure
SHOWN_DPI = 100
PICTURE_WIDTH = 760
#: characters of a cell that stays on one line on a desktop, and of one that makes a phone stack the table's cells
SHORT_CELL, LONG_CELL = 18, 40


@dataclass(frozen=True)
class Heading:
    """A heading of level 2 or 3; the title is level 1."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Prose:
    """Plain text; a blank line starts a paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A DataFrame, its index left out; floats are shown with ``digits`` decimals, what is missing as a dash."""

    frame: pd.DataFrame
    caption: str = ""
    digits: int = 3


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure; ``alt`` says what it shows to those who cannot see it (the caption by default).

    ``png`` is the figure already drawn by :func:`as_png`, where that is at hand: drawing takes a second.
    """

    figure: Figure
    caption: str = ""
    alt: str = ""
    png: bytes | None = None


@dataclass(frozen=True)
class Code:
    """Text to be copied as it is, such as the command that made the report."""

    text: str
    caption: str = ""


@dataclass(frozen=True)
class Settings:
    """A configuration: values by name."""

    values: Mapping[str, Any]
    caption: str = ""


Section = Heading | Prose | Table | Picture | Code | Settings


def _words(value: Any, digits: int | None = None) -> str:
    """A cell or setting in plain words; floats in as few digits as say the same where ``digits`` is None."""
    if isinstance(value, list | tuple):
        return ", ".join(_words(each, digits) for each in value)
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "\N{EN DASH}"
    if hasattr(value, "item"):
        value = value.item()  # NumPy's scalars to Python's
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if digits is None:
        return f"{value:g}"
    too_small = value != 0 and abs(value) < 0.5 * 10**-digits
    return f"{value:.{max(digits - 1, 0)}e}" if too_small or abs(value) >= 1e7 else f"{value:.{digits}f}"


def _table(section: Table) -> dict[str, Any]:
    frame = section.frame
    columns = [
        (str(name), pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind))
        for name, kind in zip(frame.columns, frame.dtypes, strict=True)
    ]
    rows = [[_words(cell, section.digits) for cell in row] for row in frame.itertuples(index=False, name=None)]
    longest = [max((len(row[i]) for row in rows), default=0) for i in range(len(columns))]
    classes = [
        "number" if number else "short" if longest[i] <= SHORT_CELL else "" for i, (_, number) in enumerate(columns)
    ]
    return {
        "kind": "table",
        "columns": list(zip((name for name, _ in columns), classes, strict=True)),
        "rows": rows,
        "caption": section.caption,
        "stacked": max(longest, default=0) > LONG_CELL,
    }


def as_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PICTURE_DPI, metadata={"Software": None})  # no version of the library
    return buffer.getvalue()


def _picture(section: Picture) -> dict[str, Any]:
    png = as_png(section.figure) if section.png is None else section.png
    width, height = (round(inches * SHOWN_DPI) for inches in section.figure.get_size_inches())
    return {
        "kind": "picture",
        "data": base64.b64encode(png).decode(),
        "width": width,
        "height": height,
        "caption": section.caption,
        "alt": section.alt or section.caption or "figure",
    }


def _prepared(section: Section) -> dict[str, Any]:
    """What the template needs of a section."""
    match section:
        case Heading(text, level):
            if level not in (2, 3):
                raise ValueError(f"level: got {level} for the heading {text!r}; it must be 2 or 3")
            return {"kind": "heading", "text": text, "level": level}
        case Prose(text):
            return {"kind": "prose", "paragraphs": [part.strip() for part in text.split("\n\n") if part.strip()]}
        case Table():
            return _table(section)
        case Picture():
            return _picture(section)
        case Code(text, caption):
            return {"kind": "code", "text": text.strip("\n"), "caption": caption}
        case Settings(values, caption):
            pairs = [(name, _words(value)) for name, value in values.items()]
            return {"kind": "settings", "pairs": pairs, "caption": caption}
    raise TypeError(
        f"sections: got {type(section).__name__}; each must be a Heading, Prose, Table, Picture, Code or Settings"
    )


def render_report(title: str, sections: Sequence[Section]) -> str:
    """The report as HTML text; every word of it is escaped.

    Raises:
        TypeError: a section of an unknown kind.
        ValueError: a heading of another level than 2 or 3.
    """
    text = resources.files("evaluation").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    prepared = [_prepared(section) for section in sections]
    return environment.from_string(text).render(title=title, sections=prepared, picture_width=PICTURE_WIDTH)


def write_report(path: str | os.PathLike, title: str, sections: Sequence[Section]) -> Path:
    """Writes one self-contained HTML file, readable on a phone, on a desktop and on paper.

    The file is complete or what it was before: a run that dies while writing leaves no half of it.

    Args:
        path: a file ending in ``.html``, or a folder that gets a ``report.html``, where it takes the place of an
            earlier report and of nobody's file; folders are created.
        title: heading of the page.
        sections: from top to bottom.

    Returns:
        where it was written.

    Raises:
        CheckpointError: the folder cannot be created or written to, or holds somebody's ``report.html``.
        TypeError, ValueError: as :func:`render_report`; nothing is written then.
    """
    file, write = Path(path), write_atomically
    if file.suffix.lower() != ".html":
        file, write = file / "report.html", partial(write_own, argument="path")
    content = render_report(title, sections).encode("utf-8")
    make_folder(file.parent, "path")
    write(file, content)
    return file
