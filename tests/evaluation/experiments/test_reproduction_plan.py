import json
from pathlib import Path

import pytest

from evaluation.experiments import experiment, reproduction
from evaluation.experiments.claims import CLAIMS, STANDS
from evaluation.experiments.table import EXPERIMENTS
from guidebook import results_index, results_page
from guidebook.command_line import main

ROOT = Path(__file__).parents[3]


def test_every_experiment_serves_a_claim_and_every_claim_says_where():
    every = [claim for claims in CLAIMS.values() for claim in claims]
    assert {name for claim in every for name in claim.experiments} == set(EXPERIMENTS)
    assert len({claim.key for claim in every}) == len(every)
    for claim in every:
        assert claim.stands in STANDS and claim.words and claim.found
        assert all((ROOT / "tests" / test).is_file() for test in claim.tests), claim
        where = claim.experiments or claim.tests or "docs/" in claim.found or "benchmarks." in claim.found
        assert where or claim.stands == "not run", claim


def test_the_index_is_what_the_command_writes():
    page = (ROOT / "docs/results/index.md").read_text(encoding="utf-8")
    assert page.partition(results_page.MARKER)[2].strip() == results_index.index(ROOT / "docs/results").strip()


def test_an_index_without_its_marker_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^folder: .*index.md cannot be read"):
        results_index.write_index(tmp_path)
    (tmp_path / "index.md").write_text("mine")
    with pytest.raises(ValueError, match=r"^folder: .*index.md has no line <!-- measured -->$"):
        results_index.write_index(tmp_path)
    assert (tmp_path / "index.md").read_text() == "mine"


@pytest.fixture
def few(monkeypatch):
    """A table of three experiments: one of common ground, one that is quick, one without its data."""
    names = ("common/gp", "nmdp/bimodal", "nvdp/inpainting-celeba")
    for name in list(EXPERIMENTS):
        if name not in names:
            monkeypatch.delitem(EXPERIMENTS, name)
    ran = []

    def run(self, scale, seeds, workshop, **options):
        ran.append(self.title)
        if "CelebA" in self.title:
            raise reproduction.DataError("celeba: no files; put them there")
        table = experiment.pd.DataFrame([{"model": "a", "seed": 0, "ll": 1.0}])
        name = "common/gp" if "kernels" in self.title else "nmdp/bimodal"
        return experiment.Outcome(name, "", table, [experiment.Check("c", "> 0", "1", True)])

    monkeypatch.setattr(type(EXPERIMENTS["common/gp"]), "run", run)
    return ran


def test_all_are_run_once_the_most_important_first(few, tmp_path):
    said = []
    assert reproduction.important_first() == ["common/gp", "nmdp/bimodal", "nvdp/inpainting-celeba"]
    before = reproduction.plan("smoke", None, tmp_path)
    assert not before.stands.any() and before.minutes.isna().all() and before.claims[0] == "nvdp-1, nmdp-9"
    table = reproduction.reproduce_all("smoke", None, tmp_path, False, say=said.append)
    assert list(table.outcome) == [
        "1 of 1 claims held",
        "1 of 1 claims held",
        "not run: celeba: no files; put them there",
    ]
    assert len(few) == 3 and said[2].startswith("nvdp/inpainting-celeba: not run: celeba")
    again = reproduction.reproduce_all("smoke", None, tmp_path, False, say=said.append)
    assert list(again.outcome[:2]) == ["stands", "stands"] and len(few) == 4  # what could not be run is tried again
    assert again.minutes[:2].notna().all()
    other = reproduction.plan("smoke", [1], tmp_path)
    assert not other.stands.any() and other.minutes[:2].notna().all()


def test_what_was_timed_is_said_before_anything_has_run(tmp_path):
    assert set(reproduction.MEASURED_MINUTES) <= set(EXPERIMENTS)
    known = reproduction.plan("small", None, tmp_path).set_index("experiment").minutes
    assert known.dropna().to_dict() == reproduction.MEASURED_MINUTES


def test_altered_results_do_not_stand(few, tmp_path):
    reproduction.reproduce_all("smoke", None, tmp_path, False, say=lambda _: None)
    path = reproduction.results_folder("common/gp", "smoke", tmp_path) / experiment.RESULTS
    path.write_text(json.dumps({"name": "common/gp"}))
    assert not reproduction.plan("smoke", None, tmp_path).stands[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce"], "experiment: none is given; it must be a name of guidebook reproduce --list, or all"),
        (["reproduce", "all", "--tasks", "gp-rbf"], "they are of single experiments; name one"),
    ],
)
def test_the_command_refuses(few, capsys, words, message):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code and message in capsys.readouterr().err and not few


def test_the_command_lists(few, tmp_path, capsys):
    main(["reproduce", "--list", "--out", str(tmp_path)])
    assert "common/gp" in capsys.readouterr().out and not few
