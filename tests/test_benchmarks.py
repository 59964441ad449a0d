"""The benchmarks run at a small scale, and what they claim holds there."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import bounds_and_gradients as curves
from benchmarks import device, performance, time_to_quality
from benchmarks import objectives_vs_pyro as versus


@pytest.fixture(scope="module")
def tables():
    torch.manual_seed(0)
    return [{row.name: row for row in rows} for rows in versus.main(repeats=3)]


@pytest.mark.parametrize("name", versus.CLAIMED)
def test_weights_per_task_lose_less_than_two_nats_in_all(tables, name):
    whole, sampled = tables
    assert abs(whole[name].gap) < 2
    assert abs(sampled[name].gap) < 4  # two repeats, each a mean of four scaled quarters
    assert whole[name].ess[0] > 35


def test_one_weight_for_the_whole_batch_loses_tens(tables):
    whole, _ = tables
    assert whole["Pyro ReweightedWakeSleep"].gap < -20
    assert max(whole["Pyro ReweightedWakeSleep"].ess) < 10


def test_a_scale_inside_the_logarithm_is_above_the_evidence(tables):
    _, sampled = tables
    assert sampled["Pyro RenyiELBO(0)"].gap > 20


def test_a_discrete_guide_gets_no_gradient_from_pyro_and_the_exact_one_from_ours():
    for theirs, ours, error, exact in versus.discrete_table(4, 200).values():
        assert theirs == 0.0
        assert abs(ours - exact) < 4 * error < exact


def test_gradients_with_many_particles_approach_their_closed_forms():
    for name in ("rws", "chi2"):
        _, gradients = curves.evaluate(name, {}, 64, 1000)
        error = gradients.std() / 1000**0.5
        assert abs(gradients.mean() - curves.limits()[name]) < 4 * error
        assert 20 * error < abs(curves.limits()[name])


def test_the_gradient_of_iwae_is_noisier_than_that_of_dreg():
    noise = {name: curves.evaluate(name, {}, 64, 500)[1].std() for name in ("iwae", "dreg")}
    assert noise["iwae"] > 10 * noise["dreg"]


def test_particles_from_the_prior_lose_their_weight_as_points_are_added():
    few, many = curves.prior_ess(4)[0], curves.prior_ess(400)[0]
    assert 16 > few > 4 > 2 > many


def test_the_picture_names_every_objective():
    table = {name: [0.5] * len(curves.PARTICLES) for name in curves.GRADIENTS}
    left, right = curves.picture({name: [0.0] * len(curves.PARTICLES) for name in curves.BOUNDS}, table).axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == list(curves.BOUNDS)
    assert [text.get_text() for text in right.get_legend().get_texts()] == list(curves.GRADIENTS)
    assert "nats" in left.get_ylabel()


def test_time_to_quality_trains_by_the_recipe_and_scores_beside_the_exact_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evaluation.run_configuration.step_cost", lambda *args, **options: 1.0)
    words = "--tasks gp-rbf-tnp --methods cnp,nmdp --budgets 1 --seeds 3 --width 8 --test-batches 1 --out"
    monkeypatch.setattr("sys.argv", ["time_to_quality", *words.split(), str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        time_to_quality.main()
    finally:
        torch.set_num_threads(threads)
    table = pd.read_csv(tmp_path / "gp-rbf-tnp.csv")
    assert list(table.method) == ["exact", "cnp", "nmdp"] and (table.steps[1:] == 20).all()
    assert table[list(time_to_quality.SCORES)].notna().all(axis=None)
    assert (table.pll[1:] < table.pll[0]).all()
    assert (tmp_path / "gp-rbf-tnp.png").stat().st_size > 0 and "joint_pll" in capsys.readouterr().out


def test_what_a_step_costs_by_every_way_of_running_it(tmp_path, monkeypatch):
    monkeypatch.setattr(performance, "QUICK", [("cnp", "cnp", 8, 2, False), ("nmdp-attention", "nmdp", 8, 2, False)])
    monkeypatch.setattr(performance, "GROWTH", {"tasks": (2, 3)})
    page = tmp_path / "page.md"
    marks = ("facts", "steps", "growth", "diagnostics", "adapters", "numpyro")
    page.write_text("".join(f"<!-- {name} -->\nold\n<!-- end -->\n" for name in marks))
    found = performance.main(rounds=2, out=tmp_path / "out", page=page)
    assert set(found["steps"]["arm"]) == {"by hand", "eager", "Pyro's SVI", "graph"}
    assert found["steps"][["ms", "ratio", "low", "high"]].gt(0).all(axis=None)
    assert found["growth"]["slope"].notna().sum() == 3
    assert "old" not in page.read_text() and page.read_text().count("| cnp |") >= 4
    assert (tmp_path / "out" / "steps.png").stat().st_size > 0
    with pytest.raises(ValueError, match=r"^page: .* has no mark <!-- steps -->$"):
        page.write_text("")
        performance.fill(page, {"steps": ""})


def test_the_docs_page_has_a_place_for_every_table():
    text = Path(__file__).parents[1].joinpath("docs", "performance.md").read_text()
    assert all(
        f"<!-- {name} -->" in text for name in ("facts", "steps", "growth", "diagnostics", "adapters", "numpyro")
    )


def test_what_needs_a_device_runs_on_the_cpu(tmp_path):
    found = device.main("cpu", tmp_path / "device.json", small=True)
    assert found["largest gap from the CPU"] == 0
    assert abs(found["error of bf16-mixed, nats per value"]) < 0.1
    assert [row["method"] for row in found["steps, ms"]] == list(device.METHODS)
    assert max(row["gap"] for row in found["diagnostics"]) < 1e-9
    assert json.loads((tmp_path / "device.json").read_text())["torch"] == torch.__version__
