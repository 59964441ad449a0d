"""gb.save and gb.load: the same predictions from a folder, in another process, and nothing run that a folder says."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import guidebook as gb
from evaluation.methods import METHODS, TaskShape, build
from inference.architecture import architecture_bytes, checked_rebuild, describe
from pp_models import Dataset
from pp_models.files import FileError, read_sealed_json, sealed_json
from tests.sensor_table import sensor_table

FIXTURE = Path(__file__).with_name("saved_by_0_1")
X, Y = ["x1", "x2", "site"], ["y1", "y2"]


def pair(width=4, **options):
    model = gb.BayesianNetwork([1, width, 2], likelihood=gb.GaussianHeadLikelihood(0.05), **options)
    return model, gb.guides.BernoulliExpertGuide(model, width=width, pooling="attention")


def prediction(model, guide):
    x = torch.linspace(-1, 1, 5)[:, None]
    model.eval(), guide.eval()
    return gb.predict(model, guide, Dataset(x[:2], x[:2] ** 2), x, 8, seed=0)


def assert_same(saved, model, guide):
    found, expected = prediction(saved.model, saved.guide), prediction(model, guide)
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.samples, expected.samples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_comes_back_as_it_was_with_nothing_else_changed(tmp_path, dtype):
    model, guide = pair(prior=gb.LearnedGaussianPrior("unit"), input_features=3)
    model.to(dtype), guide.to(dtype)
    gb.save(tmp_path / "fit", model, guide, objective="conditional-prior")
    before = torch.get_rng_state()
    saved = gb.load(tmp_path / "fit")
    assert torch.equal(before, torch.get_rng_state())
    assert_same(saved, model, guide)
    assert saved.objective == "conditional-prior" and saved.columns is None and "torch" in saved.versions
    assert not saved.model.training and next(saved.guide.parameters()).dtype == dtype
    other = pair()
    gb.save(tmp_path / "fit", *other)  # takes the place of the first
    assert_same(gb.load(tmp_path / "fit"), *other)
    with pytest.raises(ValueError, match="this fit was not to a table"):
        saved.predict("new.csv")


@pytest.mark.parametrize("granularity", ["weight", "unit", "layer", "network"])
def test_a_given_prior_is_kept_with_its_numbers(tmp_path, granularity):
    learned = gb.LearnedGaussianPrior(granularity)
    gb.BayesianNetwork([1, 4, 2], prior=learned)
    with torch.no_grad():
        for p in learned.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    model, guide = pair(width=4, prior=learned.as_given())
    gb.save(tmp_path / "fit", model, guide)
    saved = gb.load(tmp_path / "fit")
    assert_same(saved, model, guide)
    for index in range(saved.model.prior.count):
        for found, expected in zip(saved.model.prior.moments(index), model.prior.moments(index), strict=True):
            assert torch.equal(found, expected)


def test_models_around_a_module_of_ones_own_name_the_remedy_in_one_line(tmp_path):
    backbone = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    adapted = gb.LowRankAdapted(backbone, ["0"], rank=2, likelihood="gaussian")
    module = gb.BayesianModule(backbone, "last", likelihood="gaussian")
    for model, guide in ((adapted, gb.guides.RankwiseGuide(adapted)), (module, gb.guides.ModuleMeanFieldGuide(module))):
        with pytest.raises(
            ValueError, match=r"which is a Sequential, cannot be said in a file; save the state_dict\(\)"
        ) as e:
            gb.save(tmp_path / "fit", model, guide)
        assert "\n" not in str(e.value) and not (tmp_path / "fit").exists()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "convcnp"])
def test_every_method_is_said_by_its_arguments(name, tmp_path):
    classes = 3 if name in ("nvdp-class", "metamodulation") else 0
    method = build(name, TaskShape(2, classes or 1, width=8, num_classes=classes))
    path = tmp_path / "architecture.json"
    path.write_bytes(architecture_bytes(method.model, method.guide))
    both = {"model": method.model, "guide": method.guide}
    shapes = {f"{k}.{n}": list(t.shape) for k, m in both.items() for n, t in m.state_dict().items()}
    model, guide, _ = checked_rebuild(path, shapes)
    assert describe(model, guide) == describe(method.model, method.guide)
    assert guide.state_dict().keys() == method.guide.state_dict().keys()


def test_what_no_file_can_say_is_refused_when_saving_and_nothing_is_written(tmp_path):
    model, guide = pair()

    class Mine(gb.guides.AmortisedMeanFieldGuide):
        pass

    features = gb.BayesianNetwork([1, 4, 2], likelihood="gaussian-head", input_features=_Wide())
    changed = pair()
    changed[1].another = nn.Linear(2, 2)
    exchanged = pair()
    exchanged[0].likelihood = gb.GaussianHeadLikelihood(0.5)
    for given, line in [
        ((model, Mine(model)), "guide: got Mine, which is not one of guidebook's own classes"),
        ((nn.Linear(1, 1), guide), "model: got Linear; it must be one of guidebook's own classes"),
        (
            (features, gb.guides.AmortisedMeanFieldGuide(features)),
            "its input_features, which is a _Wide, cannot be said",
        ),
        (exchanged, "model: its likelihood was exchanged after it was built"),
        (changed, "they cannot be built anew by what they were built with"),
    ]:
        with pytest.raises(ValueError, match=line):
            gb.save(tmp_path / "no", *given)
    assert not (tmp_path / "no").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(FileError, match=r"holds thesis.txt, which no save wrote"):
        gb.save(tmp_path / "mine", model, guide)
    with pytest.raises(ValueError, match="rows: got True without tasks"):
        gb.save(tmp_path / "no", model, guide, rows=True)


class _Wide(nn.Module):
    dim_out = 2

    def forward(self, x):
        return torch.cat([x, x], -1)


def test_a_fit_with_a_checkpoint_folder_opens_in_one_line_with_its_columns(tmp_path):
    tasks = gb.tasks.from_dataframe(sensor_table().dropna(), "id", X, Y, batch_size=2)
    model = gb.BayesianNetwork([tasks.dim_x, 8, 4], likelihood="gaussian-head")
    guide = gb.guides.AmortisedMeanFieldGuide(model, 8)
    gb.fit(model, guide, tasks, "elbo", steps=3, progress=False, checkpoint_dir=tmp_path)
    saved = gb.load(tmp_path)
    assert (saved.steps, saved.objective, saved.columns, saved.tasks) == (3, "elbo", tasks.columns, None)
    table = sensor_table().dropna()
    table.loc[::2, Y] = None
    expected = gb.predict_frame(model, guide, table, tasks, 5, seed=0)
    assert torch.equal(saved.predict(table, 5, seed=0).samples, expected.samples)
    again = gb.fit(model, guide, tasks, "elbo", steps=5, progress=False, checkpoint_dir=tmp_path, resume=True)
    assert again.steps == gb.load(tmp_path).steps == 5
    gb.save(tmp_path / "copy", model, guide, tasks, rows=True)
    assert torch.equal(gb.load(tmp_path / "copy").tasks.batch(1).full.y, tasks.batch(1).full.y)


def test_a_folder_opens_in_another_process(tmp_path):
    model, guide = pair()
    gb.save(tmp_path / "fit", model, guide)
    code = (
        "import sys, torch, guidebook as gb\nfrom pp_models import Dataset\n"
        "model, guide = gb.load(sys.argv[1])[:2]\nx = torch.linspace(-1, 1, 5)[:, None]\n"
        "print(gb.predict(model, guide, Dataset(x[:2], x[:2] ** 2), x, 8, seed=0).mean.flatten().tolist())\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "fit")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), prediction(model, guide).mean.flatten())


@pytest.mark.parametrize("version", ["0_1", "0_2"])
def test_folders_of_released_versions_are_opened_by_later_ones(version):
    """0.2 has a given prior and rows that lack an output."""
    saved = gb.load(FIXTURE.with_name(f"saved_by_{version}"))
    expected = json.loads((FIXTURE.parent / f"saved_by_{version}.json").read_text())
    table = sensor_table(6)
    table = (table.dropna() if version == "0_1" else table).reset_index(drop=True)
    assert saved.tasks.missing_outputs == (version != "0_1")
    table.loc[::2, Y] = None
    found = saved.predict(table, weights="mean").to_dataframe()
    assert found["y1_mean"].tolist() == pytest.approx(expected["y1_mean"], rel=1e-6)
    assert saved.tasks.names == expected["tasks"]


LIKELIHOOD = {"class": "GaussianHeadLikelihood", "arguments": {"min_scale": 0.1}}


def altered(folder, to, **changes):
    """A copy whose architecture says something else, its checksum right."""
    shutil.copytree(folder, to)
    content = read_sealed_json(to / "architecture.json")
    both = not any(place.startswith("guide") for place in changes)
    for place, value in changes.items():
        *path, last = place.split("__")
        part = content
        for name in path:
            part = part[name]
        part[last] = value
    if both:  # the guide says the same of its model
        model = content["model"]
        content["guide"]["arguments"]["model"] = {"class": model["kind"], "arguments": model["arguments"]}
    (to / "architecture.json").write_bytes(sealed_json(content))
    return to


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"model__kind": "os.system"}, "class: got 'os.system'"),
        ({"model__kind": "Dataset"}, "it is no module that a file can build"),
        ({"model__kind": "AmortisedMeanFieldGuide"}, "no architecture that this version can build"),
        ({"model__arguments__layer_sizes": [1, 16000, 2]}, "in the weights, and"),
        ({"model__arguments__layer_sizes": [1] + [16000] * 900 + [2]}, "no architecture that this version can build"),
        ({"guide__arguments__model": LIKELIHOOD}, "the guide was built with another model"),
        ({"guide__arguments__width": 10**9}, "width: got 1000000000"),
        ({"guide__arguments__nonsense": 1}, "unexpected keyword argument 'nonsense'"),
        ({"model__arguments__prior": LIKELIHOOD}, "prior: got"),
        ({"model__arguments__prior": {"class": "X"}}, "a module needs a class and arguments"),
        ({"dtype": "object"}, "dtype: got 'object'"),
        ({"extra": 1}, "is not an architecture"),
        ({"versions": 3}, "is not an architecture"),
    ],
)
def test_what_a_folder_says_is_checked_before_anything_is_built(changes, line, tmp_path):
    gb.save(tmp_path / "fit", *pair())
    with pytest.raises(FileError, match=line) as caught:
        gb.load(altered(tmp_path / "fit", tmp_path / "bad", **changes))
    assert "\n" not in str(caught.value)


def test_modules_nested_without_end_are_refused(tmp_path):
    gb.save(tmp_path / "fit", *pair())
    deep = {"class": "FixedGaussianPrior", "arguments": {}}
    for _ in range(50):
        deep = {"class": "FixedGaussianPrior", "arguments": {"scale": deep}}
    with pytest.raises(FileError, match="nested more than"):
        gb.load(altered(tmp_path / "fit", tmp_path / "bad", model__arguments__prior=deep))


@pytest.mark.parametrize("name", ["architecture.json", "weights.safetensors", "data.json"])
def test_damaged_and_missing_files_are_said(name, tmp_path):
    tasks = gb.tasks.from_dataframe(sensor_table().dropna(), "id", ["x1"], "y1")
    gb.save(tmp_path / "fit", *pair(), tasks=tasks)
    content = (tmp_path / "fit" / name).read_bytes()
    for cut in (content[: len(content) // 2], b"", content[:-9] + b"x" + content[-8:]):
        (tmp_path / "fit" / name).write_bytes(cut)
        with pytest.raises(FileError, match=name):
            gb.load(tmp_path / "fit")
    if name == "weights.safetensors":
        (tmp_path / "fit" / name).unlink()
        with pytest.raises(FileError, match=name):
            gb.load(tmp_path / "fit")
    with pytest.raises(FileError, match="holds no fit"):
        gb.load(tmp_path / "nowhere")


def test_a_run_of_foreign_classes_says_that_it_cannot_be_opened(tmp_path):
    class Mine(gb.guides.AmortisedMeanFieldGuide):
        pass

    model = gb.BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
    gb.fit(model, Mine(model, 4), gb.tasks.gp("rbf", 2), "elbo", steps=1, progress=False, checkpoint_dir=tmp_path)
    with pytest.raises(FileError, match=r"holds a run without architecture.json, of classes that are not"):
        gb.load(tmp_path)
