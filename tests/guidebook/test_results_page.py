"""The results page is made from what the runs left, and from nothing else."""

import pandas as pd
import pytest

from evaluation.experiments import reproduce
from guidebook.results_page import MARKER, markdown_table, write_page


def test_a_page_holds_every_run_with_its_command_and_pictures(tmp_path):
    outcome = reproduce("nvdp/inpainting-digits", "smoke", out=tmp_path / "runs", progress=False)
    page = tmp_path / "nvdp.md"
    page.write_text(f"# Title\n\n{MARKER}\n\nstale")
    write_page(tmp_path / "runs" / "nvdp", page)
    text = page.read_text()
    assert text.startswith("# Title\n") and "stale" not in text
    assert outcome.command in text and outcome.checks[0].measured in text
    for model in outcome.table.model:
        assert f"| {model} |" in text
    picture = tmp_path / "nvdp" / "inpainting-digits-smoke-completions.png"
    assert f"](nvdp/{picture.name})" in text and picture.read_bytes().startswith(b"\x89PNG")


def test_a_page_without_a_marker_or_runs_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n")
    with pytest.raises(ValueError, match="has no line <!-- measured -->"):
        write_page(tmp_path, page)
    page.write_text(f"{MARKER}\n")
    with pytest.raises(ValueError, match="holds no results"):
        write_page(tmp_path, page)
    assert page.read_text() == f"{MARKER}\n"


def test_bars_in_cells_do_not_break_a_table():
    assert markdown_table(pd.DataFrame({"a": ["x|y"]})) == "| a |\n| --- |\n| x\\|y |"
