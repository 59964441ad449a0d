"""LRVD's experiments at smoke scale, what they claim judged on made-up results, and what they need installed."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from evaluation.adapters.adapter_method import AdapterBudget
from evaluation.adapters.adapter_reader import NextTokens
from evaluation.adapters.adapter_training import build_reader
from evaluation.experiments import lrvd_text, lrvd_text_runs, reproduce
from evaluation.experiments.lrvd_kappa import claims as kappa_claims
from evaluation.experiments.lrvd_language import score_tokens
from evaluation.experiments.lrvd_text import by_draws, other_corpus, text_sets
from evaluation.experiments.lrvd_text_claims import AT_EQUAL_RANK, RIVALS, claims
from evaluation.experiments.lrvd_text_runs import Run
from pp_models.adapters.text_networks import tiny_network, token_blocks
from pp_models.tasks.text_tasks import TEXT_SETS, template_sentences

pytestmark = pytest.mark.usefixtures("coarse_pictures")

WORDS = (*template_sentences(60).texts, *template_sentences(60, questions=True).texts)
TEXT_FILES = {"energy.png", "ranks.png", "stability.png", "thresholds.png", "scales.png"}
TEXT_FILES |= {"alignment-with-the-svd.csv", "doubt.csv", "with-a-temperature.csv", "how-many-draws.csv"}


@pytest.fixture
def small_minilm(monkeypatch, tmp_path):
    """A tiny BERT where the installed package would have its MiniLM."""
    made = tiny_network("minilm", (*WORDS, "we saw the old film again bad. good. He said"))
    made.network.save_pretrained(tmp_path / "model")
    made.tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("pp_models.adapters.text_networks.minilm_folder", lambda: tmp_path / "model")


def written(folder):
    return {path.name for path in folder.iterdir()} - {"results.json", "table.csv", "report.html", ".written.json"}


@pytest.mark.parametrize("name", ["lrvd/minilm-mrpc", "lrvd/deberta-rte", "lrvd/llama-obqa"])
def test_a_text_experiment_at_smoke_scale_compares_every_method(tmp_path, recorded_files, small_minilm, name):
    outcome = reproduce(name, "smoke", out=tmp_path, progress=False)
    assert written(tmp_path / f"{name}-smoke") == TEXT_FILES
    models = set(outcome.table.model)
    assert {"LoRA", "LRVD", "LRVD, mean", *RIVALS, *AT_EQUAL_RANK, "LRVD pruned at 1, mean"} <= models
    assert outcome.table[["acc", "nll", "ece", "brier", "odd_by_entropy", "rank"]].map(math.isfinite).all().all()
    assert outcome.checks and all(check.holds is None for check in outcome.checks)
    rank = outcome.table.set_index("model")["rank"]
    assert rank["ensemble of 3 LoRA"] == 3 * rank["LoRA"] == 3 * rank["LRVD"]
    assert rank["LoRA truncated by svd"] == rank["LRVD pruned at 1, mean"] <= rank["LRVD pruned at 2, mean"]


def test_finished_runs_are_read_back(tmp_path, recorded_files, small_minilm, monkeypatch):
    first = reproduce("lrvd/minilm-sst2", "smoke", out=tmp_path, progress=False)
    (tmp_path / "lrvd/fits/minilm-sst2-smoke/blob-seed0.safetensors").unlink()
    calls = []
    train = lrvd_text_runs.train_adapter
    monkeypatch.setattr(
        lrvd_text_runs, "train_adapter", lambda name, *a, **o: calls.append(name) or train(name, *a, **o)
    )
    again = reproduce("lrvd/minilm-sst2", "smoke", out=tmp_path, progress=False)
    assert calls == ["blob"]
    pd.testing.assert_frame_equal(again.table.drop(columns="step_ms"), first.table.drop(columns="step_ms"))


def test_the_language_model_at_smoke_scale(tmp_path):
    outcome = reproduce("lrvd/gpt2", "smoke", out=tmp_path, progress=False)
    assert written(tmp_path / "lrvd/gpt2-smoke") == {"ranks.png", "ranks-by-kind.csv"}
    assert list(outcome.table.model) == ["LoRA", "LoRA dropout (MC), mean", "LoRA dropout (MC)", "LRVD, mean", "LRVD"]
    assert (outcome.table.perplexity - outcome.table.nll.map(math.exp)).abs().max() < 1e-9
    assert set(outcome.tables["Ranks by kind"].kind) == {"QKV", "O", "MLP in", "MLP out"}


def test_token_scores_are_those_of_the_shifted_labels():
    texts = template_sentences(10).texts
    base = tiny_network("gpt2", texts)
    blocks = token_blocks(base, texts, 6)
    reader, _ = build_reader("lora", base, 0, 10, AdapterBudget(rank=2), 0)
    found = score_tokens(reader, blocks, None, 1, 0)
    with torch.no_grad():
        log_probs = NextTokens(reader(blocks.inputs)).log_prob(blocks.labels.float())
    assert found.nll == pytest.approx(-float(log_probs.sum()) / (len(blocks) * 5), rel=1e-5)


def test_the_planted_rank_at_smoke_scale(tmp_path):
    outcome = reproduce("lrvd/planted", "smoke", out=tmp_path, progress=False)
    assert written(tmp_path / "lrvd/planted-smoke") == {"energy.png", "scales.png"}
    assert outcome.checks == [] and len(outcome.table) == 3 * 2


def test_scores_of_the_first_draws():
    labels = torch.tensor([0, 1])
    sure, unsure = torch.eye(2), torch.full((2, 2), 0.5)
    found = by_draws([{"mean.test": sure[None], "draws.test": torch.stack([unsure, sure, sure])}], labels)
    assert list(found.draws) == [0, 1, 2, 3]
    expected = [0.0, math.log(2), -math.log(0.75), -math.log(5 / 6)]
    assert found.nll.tolist() == pytest.approx(expected, abs=1e-6)


def test_kappa_at_smoke_scale(tmp_path, small_minilm, monkeypatch):
    for name in ("docstrings", "docstrings-odd"):
        monkeypatch.setitem(TEXT_SETS, name, TEXT_SETS["templates"])
    outcome = reproduce("lrvd/kappa", "smoke", out=tmp_path, progress=False)
    assert written(tmp_path / "lrvd/kappa-smoke") == {"kappa.png", "planted-rank-4-of-16.csv"}
    assert list(outcome.table.model) == ["LoRA", "noise alone, α = 1", "LRVD, κ = 1", "LRVD, κ = 3"]
    assert outcome.checks == [] and outcome.table[["nll", "mean_nll_validation"]].map(math.isfinite).all().all()
    fits = tmp_path / "lrvd/fits/minilm-docstrings-smoke"  # those of lrvd/minilm-docstrings, and one more
    assert {p.name for p in fits.glob("**/lrvd-*")} == {"lrvd-seed0.safetensors"}
    assert (fits / "kappa-3/lrvd-seed0.safetensors").is_file()


def test_claims_on_kappa_are_judged_by_what_was_measured():
    kept = {1.0: 16, 10.0: 15, 100.0: 4, 300.0: 4, 1000.0: 2}
    planted = pd.DataFrame([{"kappa": k, "kept": n, "exact": float(n == 4)} for k, n in kept.items()])
    rows = [{"model": "LoRA", "nll": 1.2, "ece": 0.3}, {"model": "noise alone, α = 1", "nll": 0.9, "ece": 0.1}]
    for kappa, rank, nll in ((1.0, 80, 0.8), (10.0, 20, 0.85), (100.0, 1, 1.0)):
        row = {"model": f"LRVD, κ = {kappa:g}", "kappa": kappa, "rank": rank, "nll": nll, "ece": 0.1}
        rows.append(row | {"mean_nll_validation": nll, "mean_nll_test": nll + 0.01})
    table = pd.DataFrame(rows)
    checks = kappa_claims(table, planted)
    assert [check.holds for check in checks] == [True] * 6 + [None]
    assert json.loads(json.dumps([vars(check) for check in checks]))[0]["holds"] is True
    table.loc[3, ["rank", "mean_nll_validation"]] = 90, 0.95
    table.loc[4, "mean_nll_validation"] = 0.7
    failed = {check.name for check in kappa_claims(table, planted) if check.holds is False}
    assert failed == {"a heavier KL keeps fewer ranks", "no κ suits both problems"}


def test_texts_of_a_task_do_not_overlap_and_odd_ones_are_of_another_corpus(recorded_files):
    size = lrvd_text.SIZES["minilm"]["smoke"]
    sets = text_sets("mrpc", size)
    assert [len(sets[k]) for k in ("train", "validation", "test", "odd")] == [48, 16, 32, 16]
    assert all(each.pairs is not None for each in sets.values())
    assert other_corpus("cola") == "sst2" and other_corpus("sst2") == "cola"
    assert other_corpus("arc-easy") == "winogrande-s" and other_corpus("winogrande-m") == "arc-challenge"
    assert len(text_sets("cola", size._replace(train=1000))["train"]) == 90 - 16


def made_up(kept=(80, 88)):
    """A table and runs on which every claim holds, two seeds."""
    good = {
        "acc": 0.7,
        "matthews": 0.3,
        "nll": 0.5,
        "nll_T": 0.5,
        "ece": 0.05,
        "brier": 0.4,
        "rank": 288,
        "mi": 0.01,
        "mi_odd": 0.02,
    }
    models = {name: dict(good) for name in ("LRVD", *RIVALS, *AT_EQUAL_RANK)}
    models["LoRA"] = good | {"nll": 1.0, "ece": 0.2}
    models["LRVD, mean"] = good | {"nll": 0.6}
    models["LRVD pruned at 2, mean"] = good | {"rank": 200, "acc": 0.69}
    models["LRVD pruned at 1, mean"] = good | {"rank": 84, "acc": 0.67}
    table = pd.DataFrame([{"model": m, "seed": s, **row} for s in (0, 1) for m, row in models.items()])
    gauge = pd.DataFrame({"seed": [0, 1], "auc": [0.7, 0.8], "auc_random": [0.6, 0.6], "above_random": [1.0, 1.0]})
    tempered = table.groupby("model", as_index=False)[["nll_T", "rank"]].mean()
    tempered["less_lrvd"], tempered["less_lrvd_se"] = tempered.nll_T - 0.5, 0.01
    return table, {s: Run({}, {"kept_at_1": k}) for s, k in enumerate(kept)}, gauge, tempered


def test_claims_are_judged_by_what_was_measured():
    checks = claims(*made_up())
    judged = [check for check in checks if check.holds is not None]
    assert len(judged) == 10 and all(check.holds for check in judged)
    assert len(checks) - len(judged) == len(RIVALS) + len(AT_EQUAL_RANK)
    assert all(check.holds is None for check in claims(*made_up(), judged=False))
    failed = {check.name for check in claims(*made_up(kept=(60, 100))) if check.holds is False}
    assert failed == {"ranks kept at 1 agree over seeds"}
    table, runs, gauge, tempered = made_up()
    table.loc[table.model == "LRVD", ["nll", "mi_odd"]] = 0.9, 0.005
    tempered.loc[tempered.model.isin(("BLoB", "ensemble of 3 LoRA")), "less_lrvd"] = -0.02
    failed = {check.name for check in claims(table, runs, gauge, tempered) if check.holds is False}
    assert failed == {
        "NLL against LoRA",
        "draws against the posterior mean, NLL gained",
        "mutual information is larger on the other corpus",
        "all with a temperature: LRVD's mean beside the best single training",
    }


def test_importing_evaluation_needs_neither_peft_nor_transformers(tmp_path):
    script = """
import sys
sys.modules["peft"] = sys.modules["transformers"] = sys.modules["datasets"] = None
import evaluation.experiments, guidebook.demo, guidebook.command_line, evaluation.adapters.adapter_post_hoc
from evaluation.experiments import reproduce
try:
    reproduce("lrvd/deberta-cola", "smoke", out=sys.argv[1], progress=False)
except ValueError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "transformers: the package is missing; pip install guidebook[adapters]"
