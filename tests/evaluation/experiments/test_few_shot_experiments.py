"""Few-shot common ground: it runs, its labels are flipped as said, and its scores are those of a known predictive."""

import numpy as np
import pytest
import torch

import guidebook as gb
from evaluation.experiments import common_few_shot as module
from evaluation.experiments.reproduction import reproduce
from evaluation.experiments.table import EXPERIMENTS


@pytest.fixture
def omniglot(tmp_path, monkeypatch):
    """Ten drawings of each of 1,240 characters, which nobody drew."""
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(1_240), 10).astype(np.uint16)
    (tmp_path / "data/omniglot").mkdir(parents=True)
    images = rng.integers(0, 256, (len(labels), 28, 28)).astype(np.uint8)
    np.savez(tmp_path / "data/omniglot/omniglot_28.npz", images=images, class_id=labels)
    monkeypatch.setitem(module.SCALES, "smoke", module.SCALES["smoke"]._replace(queries=1))
    return tmp_path


def few_shot(batch_size=64):
    x, labels = torch.randn(80, 3), torch.arange(80) // 8
    return gb.tasks.from_few_shot(x, labels, ways=5, shots=2, queries=3, batch_size=batch_size)


def test_it_runs_in_pieces_and_finds_its_fits_again(omniglot):
    options = {"tasks": ["omniglot-5way-1shot"], "methods": ["nvdp-class", "maml"], "progress": False}
    outcome = reproduce("common/few-shot", "smoke", out=omniglot / "runs", **options)
    assert list(outcome.table.model) == ["prototypical network", "logistic regression", "nvdp-class", "maml"]
    assert outcome.table.accuracy.between(0, 1).all() and np.isfinite(outcome.table.nll).all()
    assert "omniglot-5way-1shot: the papers' best (nvdp-class)" in outcome.checks[0].name

    fits = {path: path.stat().st_mtime_ns for path in (omniglot / "runs").rglob("*.safetensors")}
    again = reproduce("common/few-shot", "smoke", out=omniglot / "runs", **options)
    np.testing.assert_allclose(again.table.nll, outcome.table.nll, rtol=1e-5)
    assert fits and all(path.stat().st_mtime_ns == time for path, time in fits.items())


def test_wrong_labels_are_learned_from(omniglot):
    outcome = reproduce("nvdp/label-noise", "smoke", out=omniglot / "runs", progress=False)
    assert set(outcome.table.task) == {"20 % wrong"} and len(outcome.table) == 8


def test_so_many_labels_are_another_class():
    tasks = few_shot()
    noisy, clean = module.NoisyLabels(tasks, 0.4), module.NoisyLabels(tasks, 0.0)
    found, kept = noisy.batch(0), clean.batch(0)
    assert torch.equal(found.context.x, kept.context.x)
    wrong = torch.cat([found.context.y != kept.context.y, found.target.y != kept.target.y], -1).double().mean()
    assert abs(float(wrong) - 0.4) < 0.04  # of 1,600 labels: three standard errors
    assert found.context.y.min() == 0 and found.context.y.max() == 4
    alone = module.NoisyLabels(tasks, 0.4, context_alone=True).batch(0)
    assert torch.equal(alone.target.y, kept.target.y) and not torch.equal(alone.context.y, kept.context.y)


def test_scores_are_those_of_a_known_predictive():
    batches = [few_shot(8).batch(i) for i in range(2)]
    sure = module.scored(lambda batch: torch.nn.functional.one_hot(batch.target.y, 5).float(), batches)
    assert sure["accuracy"] == 1 and sure["nll"] == pytest.approx(0, abs=1e-5) and sure["ece"] == pytest.approx(0)
    flat = module.scored(lambda batch: torch.full((*batch.target.y.shape, 5), 0.2), batches)
    assert flat["nll"] == pytest.approx(np.log(5), abs=1e-5)


def test_logistic_regression_copes_with_one_class_and_sums_to_one():
    batch = few_shot(2).batch(0)
    one = gb.TaskBatch(gb.Dataset(batch.context.x, torch.zeros_like(batch.context.y)), batch.target)
    for each in (batch, one):
        found = module._logistic(each, 5)
        torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    assert (module._logistic(one, 5).argmax(-1) == 0).all()


def test_settings_are_read_from_their_names():
    for name in EXPERIMENTS["common/few-shot"].tasks:
        setting = module.Setting.of(name)
        assert name == f"{setting.data}-{setting.ways}way-{setting.shots}shot"
    assert module.Setting.of("mini-imagenet-5way-1shot") == ("mini-imagenet", 5, 1)
