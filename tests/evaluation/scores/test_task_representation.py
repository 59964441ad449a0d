"""What tells kinds of tasks apart: ratios, clusters, probes, pictures, hand-made features."""

import sys

import numpy as np
import pytest
import torch

from evaluation.scores.task_representation import (
    CONTEXT_FEATURES,
    centred_log_ratio,
    context_features,
    match_amplitude,
    picture_coordinates,
    representation_scores,
)
from pp_models import Dataset, TaskBatch, tasks


def test_the_centred_log_ratio_sums_to_zero_and_ignores_scale():
    alpha = torch.rand(5, 7).double() + 0.1
    clr = centred_log_ratio(alpha)
    torch.testing.assert_close(clr.sum(-1), torch.zeros(5).double())
    torch.testing.assert_close(centred_log_ratio(3 * alpha), clr)
    torch.testing.assert_close(clr.exp() / clr.exp().sum(-1, keepdim=True), alpha / alpha.sum(-1, keepdim=True))


def test_separate_kinds_score_one_and_noise_scores_chance():
    labels = torch.arange(90) % 3
    apart = torch.randn(90, 4) * 0.1 + 5 * torch.eye(4)[labels]
    found = representation_scores(apart, labels)
    assert (found.nmi, found.ari, found.probe) == (1.0, 1.0, 1.0) and found.chance == pytest.approx(1 / 3)
    noise = representation_scores(torch.randn(300, 4), torch.arange(300) % 3)
    assert noise.nmi < 0.05 and abs(noise.ari) < 0.05 and abs(noise.probe - 1 / 3) < 0.12
    assert representation_scores(apart, labels) == found


def test_features_of_one_point_only_give_chance():
    labels = torch.arange(40) % 2
    found = representation_scores(torch.ones(40, 3), labels)
    assert found.nmi == 0 and found.probe <= 0.5
    with pytest.raises(ValueError, match=r"labels: got counts \[40\]; at least two labels of 5 tasks"):
        representation_scores(torch.ones(40, 3), torch.zeros(40).long())
    with pytest.raises(ValueError, match=r"labels: got shape \[3\] for features \[40, 3\]; one a row"):
        representation_scores(torch.ones(40, 3), torch.zeros(3).long())


def test_pictures_say_how_they_were_made(monkeypatch):
    features = torch.cat([torch.randn(50, 1) * 3, torch.randn(50, 2)], 1)
    found, method = picture_coordinates(features, "pca")
    assert method == "PCA" and found.shape == (50, 2)
    torch.testing.assert_close(
        found.T @ found - torch.diag((found**2).sum(0)), torch.zeros(2, 2).double(), atol=1e-9, rtol=0
    )
    assert picture_coordinates(torch.randn(9, 1), "pca")[0].shape == (9, 2)
    monkeypatch.setitem(sys.modules, "umap", None)
    again, name = picture_coordinates(features)
    assert name == "PCA" and torch.equal(again, found)
    with pytest.raises(ValueError, match="method: got 'umap', which needs umap-learn"):
        picture_coordinates(features, "umap")
    with pytest.raises(ValueError, match="method: got 'tsne'; it must be one of auto, pca, umap"):
        picture_coordinates(features, "tsne")

    class Stub:
        def __init__(self, random_state):
            self.seed = random_state

        def UMAP(self, random_state):
            return type(self)(random_state)

        def fit_transform(self, x):
            return x[:, :2] + self.seed

    monkeypatch.setitem(sys.modules, "umap", Stub(0))
    assert picture_coordinates(features, seed=3)[1] == "UMAP"


def test_features_by_hand():
    x = torch.tensor([3.0, 1.0, 2.0, 4.0, 0.0])
    by_x = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    y = by_x[x.long()]
    found = context_features(Dataset(x[None, :, None], y[None, :, None]))[0]
    sd = float(by_x.std(correction=0))
    centred = by_x - by_x.mean()
    lags = [float((centred[k:] * centred[:-k]).sum() / (centred**2).sum()) for k in (1, 2)]
    expected = [sd, 2 / sd, 2 / sd, 4 / sd, *lags, 1.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert len(CONTEXT_FEATURES) == len(expected)


def test_padding_changes_no_feature():
    batch = tasks.gp("mix", 4, 0, num_context=(12, 12)).batch(0)
    short = [batch.context[i].points(slice(0, n)) for i, n in enumerate((12, 5, 8, 4))]
    padded = context_features(Dataset.pad(short))
    alone = torch.cat([context_features(d.map(lambda t: t.unsqueeze(0))) for d in short])
    torch.testing.assert_close(padded, alone)
    with pytest.raises(ValueError, match="data: got a task of 3 points; at least 4 are needed"):
        context_features(batch.context.points(slice(0, 3)))
    with pytest.raises(ValueError, match="data: got inputs of width 2; one input"):
        context_features(tasks.images().batch(0).context)


def test_hand_made_features_tell_kernels_apart_above_chance():
    batch = tasks.gp("mix", 400, 0, num_context=(40, 40), max_points=45).batch(0)
    found = representation_scores(context_features(batch.context), batch.truth["kernel"])
    assert found.probe > found.chance + 0.15


def test_matched_amplitudes_are_equal_and_keep_the_shape():
    batch = tasks.gp("mix", 6, 1, num_context=(10, 20)).batch(0)
    matched = match_amplitude(batch, 0.7)
    sd = matched.context.y.std(1, correction=0)
    torch.testing.assert_close(sd, torch.full_like(sd, 0.7))
    ratio = matched.target.y / batch.target.y
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    a, b = (context_features(d) for d in (batch.context, matched.context))
    torch.testing.assert_close(a[:, 1:], b[:, 1:], rtol=1e-4, atol=1e-4)
    assert not matched.truth
    mask = torch.ones(batch.context.x.shape[:2], dtype=torch.bool)
    mask[0, 5:] = False
    short = TaskBatch(Dataset(batch.context.x, batch.context.y, mask), batch.target)
    first = match_amplitude(short, 0.7).context.y[0, :5, 0]
    assert float(first.std(correction=0)) == pytest.approx(0.7, abs=1e-5)
    with pytest.raises(ValueError, match="to: got 0; it must be positive"):
        match_amplitude(batch, 0)
    with pytest.raises(ValueError, match="batch: got a task of 1 context points"):
        match_amplitude(TaskBatch(batch.context.points(slice(0, 1)), batch.target))


def test_numpy_is_not_reseeded():
    before = np.random.get_state()[1].copy()
    representation_scores(torch.randn(30, 2), torch.arange(30) % 2)
    assert (np.random.get_state()[1] == before).all()
