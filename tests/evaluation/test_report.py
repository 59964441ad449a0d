import base64
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from evaluation.report import Code, Heading, Picture, Prose, Settings, Table, render_report, write_report
from inference.checkpoint import CheckpointError

VOID = {"meta", "img", "br", "link", "input"}


class Outline(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text by tag."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())


def figure():
    new = Figure(figsize=(2, 1))
    new.subplots().plot([0, 1])
    return new


def sections():
    frame = pd.DataFrame(
        {"model": ["a", "b"], "seed": [0, 12], "pll": [0.123456, np.nan], "crps": [1e-6, 2.0], "ok": [True, False]}
    )
    return [
        Prose("First.\n\nSecond."),
        Heading("Scores"),
        Table(frame, "In nats."),
        Heading("Curves", 3),
        Picture(figure(), "A line."),
        Code("guidebook demo\n", "Run:"),
        Settings({"steps": 100, "learning_rate": 0.001, "layer_sizes": [1, 64, 2], "resume": None}),
    ]


def test_every_kind_of_section_is_there_in_order():
    outline = Outline(render_report("A run", sections()))
    assert outline.text["title"] == outline.text["h1"] == ["A run"]
    assert outline.text["p"] == ["First.", "Second.", "Run:"]
    assert outline.text["h2"] == ["Scores"] and outline.text["h3"] == ["Curves"]
    assert outline.text["th"] == [
        "model",
        "seed",
        "pll",
        "crps",
        "ok",
        "steps",
        "learning_rate",
        "layer_sizes",
        "resume",
    ]
    cells = ["a", "0", "0.123", "1.00e-06", "yes", "b", "12", "–", "2.000", "no"]
    assert outline.text["td"] == [*cells, "100", "0.001", "1, 64, 2", "–"]
    assert outline.text["code"] == ["guidebook demo"]
    assert outline.text["figcaption"] == ["In nats.", "A line."]
    assert [tag for tag, _ in outline.tags if tag in ("h1", "h2", "h3", "img", "pre")] == [
        "h1",
        "h2",
        "h3",
        "img",
        "pre",
    ]
    numeric = [a for tag, a in outline.tags if tag == "td" and a.get("class") == "number"]
    assert len(numeric) == 2 * 3


def test_pictures_are_inside_the_file_and_the_same_each_time():
    html = render_report("A run", sections())
    (picture,) = [a for tag, a in Outline(html).tags if tag == "img"]
    kind, data = picture["src"].split(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data)[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture["alt"] == "A line." and (picture["width"], picture["height"]) == ("200", "100")
    assert html == render_report("A run", sections())


def test_nothing_outside_the_file_is_needed():
    html = render_report("A run", sections())
    outline = Outline(html)
    assert "http" not in re.sub(r"base64,[^\"]*", "", html)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in outline.tags}
    assert "@import" not in html and "url(" not in html
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in outline.tags


def test_every_text_is_escaped():
    evil = '"><script>alert(1)</script>&'
    frame = pd.DataFrame({evil: [evil]})
    parts = [
        Heading(evil),
        Prose(evil),
        Table(frame, evil),
        Picture(figure(), evil, evil),
        Code(evil, evil),
        Settings({evil: evil}, evil),
    ]
    html = render_report(evil, parts)
    outline = Outline(html)
    assert "script" not in {tag for tag, _ in outline.tags} and "<script" not in html
    for tag in ("title", "h1", "h2", "code", "td", "figcaption"):
        assert set(outline.text[tag]) == {evil}
    assert [a["alt"] for tag, a in outline.tags if tag == "img"] == [evil]


def test_write_report_to_a_file_or_a_folder(tmp_path):
    assert write_report(tmp_path / "new" / "run", "A run", [Prose("x")]) == tmp_path / "new" / "run" / "report.html"
    file = write_report(str(tmp_path / "page.html"), "Größe", [Prose("x")])
    assert "Größe" in file.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "page.html"]  # nothing partial is left


def test_a_folder_with_somebodys_report_is_refused_and_its_own_is_written_over(tmp_path):
    (tmp_path / "report.html").write_text("precious")
    with pytest.raises(CheckpointError, match="^path: .* holds report.html, which was not written by guidebook; move"):
        write_report(tmp_path, "New", [])
    assert (tmp_path / "report.html").read_text() == "precious"
    for title in ("Old", "New"):
        file = write_report(tmp_path / "run", title, [])
    assert "New" in file.read_text()


def test_a_report_that_cannot_be_made_leaves_the_old_one(tmp_path):
    file = write_report(tmp_path / "page.html", "Old", [])
    with pytest.raises(ValueError, match="level: got 1 for the heading 'x'; it must be 2 or 3"):
        write_report(file, "New", [Heading("x", 1)])
    with pytest.raises(TypeError, match="sections: got str; each must be a Heading"):
        write_report(file, "New", ["x"])
    assert "Old" in file.read_text() and "New" not in file.read_text()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"path: .* is not a folder that can be written to") as caught:
        write_report(tmp_path / "file" / "report.html", "A run", [])
    assert "\n" not in str(caught.value)


def test_a_table_of_long_words_stacks_its_cells_on_a_phone():
    long = pd.DataFrame(
        {"fit": ["a"], "why": ["a sentence that says why a fit is not to be trusted <yet>"], "pll": [0.5]}
    )
    page = render_report("t", [Table(long), Table(long[["fit", "pll"]])])
    assert page.count('<table class="stacked">') == 1 and page.count("<table>") == 1
    assert '<td data-label="why">a sentence' in page and '<td class="number" data-label="pll">0.500</td>' in page
    assert '<td class="short">a</td><td class="number">0.500</td>' in page and "&lt;yet&gt;" in page
