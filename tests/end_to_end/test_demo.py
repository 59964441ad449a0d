"""The demo from end to end, with a hundredth of its training."""

import re

import numpy as np
import pandas as pd
import pytest
import xarray

from evaluation import report, summarise
from guidebook.demo import FILES, GP_METHODS, IMAGE_METHODS, PICTURES, run_demo

ORACLE = "exact GP, sd >= 0.02"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "PICTURE_DPI", 40)
        return run_demo(folder, steps=10), folder


def test_the_table_compares_the_methods_with_the_exact_answer(demo):
    table, folder = demo
    assert list(table.model) == [*GP_METHODS, ORACLE]
    methods, best = table[:-1], table.iloc[-1]
    assert np.isfinite(methods.drop(columns="model").to_numpy(float)).all()
    assert (methods.ll < best.ll).all() and (methods.pll < best.pll).all()
    saved = pd.read_csv(folder / "gp.csv")
    pd.testing.assert_frame_equal(saved, table, check_dtype=False)
    assert list(pd.read_csv(folder / "images.csv").model) == list(IMAGE_METHODS)


def test_the_folder_holds_the_files_that_were_promised(demo):
    folder = demo[1]
    assert {path.name for path in folder.iterdir()} == {*FILES, ".written.json"}
    for name in PICTURES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_the_report_needs_no_other_file(demo):
    page = (demo[1] / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(PICTURES) and page.count('src="data:image/png;base64,') == len(PICTURES)
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert not re.search(r"<script|<link|@import|url\((?!data:)", page)
    for name in (*GP_METHODS, ORACLE.replace(">", "&gt;")):
        assert name in page
    assert "guidebook demo --images digits --seed 0 --steps 10 --out demo" in page
    assert re.search(r"<h2>Verdict: \d of 6 fits can be trusted</h2>", page).start() < page.index(
        "Gaussian-process regression"
    )


def test_the_posterior_opens_in_arviz(demo):
    idata = xarray.open_datatree(demo[1] / "posterior.nc")
    posterior = idata["posterior"]
    assert posterior["layer_0.weight"].sizes == {
        "chain": 1,
        "draw": 100,
        "task": 2,
        "layer_0_unit": 48,
        "layer_0_input": 1 + 2 * 8 + 1,
    }
    assert list(posterior["layer_0_input"].values)[-1] == "bias"
    summary = summarise(idata, var_names=["layer_3.weight"], kind="stats")
    assert len(summary) == 2 * 2 * 49 and np.isfinite(summary.to_numpy(float)).all()
