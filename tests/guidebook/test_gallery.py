"""The gallery: every entry loads, scores what its card says, and is refused where a byte of it is another."""

import fnmatch
import hashlib
import pickle
import shutil
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import guidebook as gb
from evaluation.experiments.common_images import is_here
from evaluation.findings import LEVELS
from guidebook import gallery, gallery_training
from guidebook.listing import KINDS
from guidebook.runs import open_run, start
from pp_models import DataError
from pp_models.files import FileError, read_sealed_json, sealed_json
from pp_models.likelihoods import floor_of
from pp_models.tasks import downloads

ROOT = Path(__file__).parents[2]
ONE = "nmdp-gp-mix-tnp"


@pytest.fixture(autouse=True)
def one_thread():
    """The rounding of sums is that of one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A gallery with one entry, to be changed."""
    for module in (gallery, gallery_training):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    for suffix in (".json", ".safetensors"):
        shutil.copy(ROOT / "guidebook/weights" / f"{ONE}{suffix}", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", gallery.names())
def test_an_entry_scores_what_its_card_says(name):
    fitted = gb.load_pretrained(name)
    assert fitted.name == name and not fitted.model.training and not fitted.guide.training
    card = fitted.card
    if card.configuration.tasks == "mnist" and not is_here("mnist"):  # a machine without its files
        x = torch.rand(2, 3, 2) - 0.5
        context = gb.Dataset(x, torch.rand(2, 3, 1) - 0.5)
        assert gb.predict(fitted.model, fitted.guide, context, x, num_samples=2).mean.isfinite().all()
        return
    batches = gallery.scored_tasks(card.configuration.tasks)
    found = gallery.scores_of(fitted, batches, card.num_samples)
    assert found.keys() == card.scores.keys()
    assert all(abs(found[key] - card.scores[key]) < 1e-3 for key in found), (found, card.scores)
    assert card.floor == floor_of(fitted.model)
    exact = gallery.exact_scores(card.configuration.tasks, batches, card.floor)
    assert exact == pytest.approx(card.exact, abs=1e-3)
    assert card.verdict.level in LEVELS and card.findings and card.cpu_seconds > 0


def test_the_gallery_is_what_the_command_makes():
    assert set(gallery.names()) == set(gallery_training.ENTRIES)
    for name in gallery.names():
        options, held = gallery_training.ENTRIES[name], asdict(gallery.read_card(name).configuration)
        assert {key: held[key] for key in options} == options and name == f"{options['model']}-{options['tasks']}"
    files = {path.name for path in gallery.FOLDER.iterdir()}
    assert files == {f"{name}{suffix}" for name in gallery.names() for suffix in (".json", ".safetensors")}


def test_files_of_the_gallery_are_small_and_in_the_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    for path in gallery.FOLDER.iterdir():
        assert path.stat().st_size < 1_000_000
        assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


def test_the_table_lists_every_entry():
    table = gb.pretrained()
    assert sorted(table.index) == list(gallery.names()) and table.loc[ONE, "tasks"] == "gp-mix-tnp"
    assert table.loc[ONE, "pll"] < table.loc[ONE, "exact"]
    assert [name for name, _ in KINDS["pretrained"]()] == list(gallery.names())


def test_the_page_has_the_cards_numbers():
    assert gallery_training.markdown() in (ROOT / "docs/gallery.md").read_text(encoding="utf-8")


def test_an_entry_predicts_and_is_what_the_calls_of_the_library_take():
    model, guide, objective, name, card = gb.load_pretrained(ONE)
    batch = gallery.scored_tasks("gp-mix-tnp")[0]
    prediction = gb.predict(model, guide, batch.context, batch.target.x, num_samples=10)
    assert prediction.log_prob(batch.target.y).isfinite().all()
    assert objective.name == "iw-em" and name == ONE and card.configuration.model == "nmdp"


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"^name: got 'nmdp-gp-mix-tmp'; did you mean 'nmdp-gp-mix-tnp'"):
        gb.load_pretrained("nmdp-gp-mix-tmp")
    with pytest.raises(ValueError, match=r"^name: got 'gan'; it is none of \d+ names such as .* \(guidebook list"):
        gb.load_pretrained("gan")
    with pytest.raises(ValueError, match=r"^name: got '../weights/nmdp-gp-mix-tnp'; "):
        gb.load_pretrained("../weights/nmdp-gp-mix-tnp")
    with pytest.raises(ValueError, match=r"^name: got \[1\]; it must be a string$"):
        gb.load_pretrained([1])


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_an_altered_byte_is_refused(folder, suffix):
    path = folder / f"{ONE}{suffix}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match=rf"^{path}: (truncated or altered|is not a file of guidebook's)"):
        gb.load_pretrained(ONE)


def test_weights_of_another_entry_or_none_are_refused(folder):
    weights = folder / f"{ONE}.safetensors"
    shutil.copy(ROOT / "guidebook/weights/nvdp-gp-rbf.safetensors", weights)
    with pytest.raises(FileError, match="SHA-256 differs from its card's"):
        gb.load_pretrained(ONE)
    weights.unlink()
    with pytest.raises(FileError, match="cannot be read"):
        gb.load_pretrained(ONE)


class Boom:
    def __reduce__(self):
        return pytest.fail, ("code was run",)


def reseal(folder, **changes):
    path = folder / f"{ONE}.json"
    path.write_bytes(sealed_json(read_sealed_json(path) | changes))


def test_no_code_is_run_and_nothing_downloaded_even_where_a_card_vouches_for_it(folder, monkeypatch):
    weights = folder / f"{ONE}.safetensors"
    held, good = read_sealed_json(folder / f"{ONE}.json"), weights.read_bytes()
    weights.write_bytes(pickle.dumps(Boom()))
    reseal(folder, weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    with pytest.raises(FileError, match=r"is not a file of guidebook's"):
        gb.load_pretrained(ONE)
    weights.write_bytes(good)
    monkeypatch.delenv(downloads.DATA_VARIABLE, raising=False)
    monkeypatch.setattr(downloads, "cache_folder", lambda: folder / "cache")
    monkeypatch.setattr(downloads, "_download", lambda *arguments: pytest.fail("the network was reached"))
    reseal(folder, weights_sha256=held["weights_sha256"], configuration=held["configuration"] | {"tasks": "svhn"})
    with pytest.raises(DataError, match=r"not on this machine, and loading from the gallery"):
        gb.load_pretrained(ONE)
    reseal(folder, configuration=held["configuration"] | {"depth": 3})
    with pytest.raises(FileError, match=r"is not a card of the gallery \(configuration.depth: Unexpected keyword"):
        gb.load_pretrained(ONE)


@pytest.fixture
def tiny(folder, monkeypatch):
    """A gallery in which a small entry was made."""
    entry = {"model": "cnp", "tasks": "gp-rbf", "width": 8, "batch_size": 2, "seed": 3}
    monkeypatch.setitem(gallery_training.ENTRIES, "cnp-gp-rbf", entry)
    monkeypatch.setattr(gallery_training, "affordable", lambda *arguments: (4, 0.01))
    gallery_training.make_entries(["cnp-gp-rbf"], 1.0)
    return folder


def test_an_entry_is_made_once_and_as_guidebook_fit_would(tiny, tmp_path, capsys, monkeypatch):
    capsys.readouterr()
    fitted = gb.load_pretrained("cnp-gp-rbf")
    configuration = fitted.card.configuration
    assert (configuration.steps, configuration.width, configuration.seed) == (4, 8, 3)
    start(configuration, tmp_path / "run", device="cpu", progress=False)
    method = open_run(tmp_path / "run")[1]
    for one, two in ((fitted.model, method.model), (fitted.guide, method.guide)):
        assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    monkeypatch.setattr(gallery_training, "make_entry", lambda *arguments, **options: "made anew")
    gallery.main(["cnp-gp-rbf", "--cpu-seconds", "1"])
    assert capsys.readouterr().out == "cnp-gp-rbf: is there\n"
    gallery.main(["cnp-gp-rbf", "--anew"])
    assert capsys.readouterr().out == "made anew\n"


def test_an_entry_is_judged_as_it_is(tiny, capsys):
    path = tiny / "cnp-gp-rbf.json"
    held, weights = path.read_bytes(), (tiny / "cnp-gp-rbf.safetensors").read_bytes()
    altered = read_sealed_json(path) | {"scores": {"pll": 9.0}, "level": "trust"}
    path.write_bytes(sealed_json(altered))
    gallery.main(["cnp-gp-rbf", "--judge"])
    assert path.read_bytes() == held and (tiny / "cnp-gp-rbf.safetensors").read_bytes() == weights
    assert "cnp-gp-rbf: 4 steps, " in capsys.readouterr().out


def test_an_entry_that_is_too_large_is_not_written(folder, monkeypatch):
    monkeypatch.setitem(gallery_training.ENTRIES, "cnp-gp-rbf", {"model": "cnp", "tasks": "gp-rbf", "batch_size": 2})
    monkeypatch.setattr(gallery_training, "affordable", lambda *arguments: (1, 0.01))
    monkeypatch.setattr(gallery_training, "MOST_BYTES", 1000)
    with pytest.raises(FileError, match=r"cnp-gp-rbf.safetensors: would have [\d,]+ bytes; the package takes 1,000$"):
        gallery_training.make_entries(["cnp-gp-rbf"], 1.0)
    assert not list(folder.glob("cnp-*"))
