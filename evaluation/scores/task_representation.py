"""Does a task's concentration say what kind of task it is? Clustering, a linear probe, a picture, and two controls."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pp_models import Dataset, TaskBatch
from pp_models.arguments import POSITIVE, SEED, checked, integer, one_of, tensor

#: names of the columns of ``context_features``
CONTEXT_FEATURES = (
    "sd",
    "mean step / sd",
    "largest step / sd",
    "second difference / sd",
    "lag-1 correlation",
    "lag-2 correlation",
    "turning points",
)


def centred_log_ratio(alpha: Tensor) -> Tensor:
    """clr(α)_l = ln α_l - mean_j ln α_j, ``[*B, L]``: coordinates of a composition that sum to 0 (Aitchison 1982).

    NMDP clusters concentrations by them (docs/papers/nmdp.md, eq. 22).
    """
    log_alpha = alpha.log()
    return log_alpha - log_alpha.mean(-1, keepdim=True)


@dataclass(frozen=True)
class RepresentationScores:
    """How far features tell labels apart.

    Args:
        nmi: normalised mutual information of k-means clusters and labels, 0 to 1.
        ari: adjusted Rand index of the same, 0 for chance.
        probe: cross-validated accuracy of a logistic regression.
        chance: share of the most frequent label, what a probe reaches without features.
    """

    nmi: float
    ari: float
    probe: float
    chance: float


@checked(features=tensor(2), folds=integer(2), seed=SEED)
def representation_scores(features: Tensor, labels: Tensor, *, folds: int = 5, seed: int = 0) -> RepresentationScores:
    """K-means (10 starts, as many clusters as labels) and a linear probe on standardised features.

    Args:
        features: ``[T, K]``.
        labels: ``[T]`` long.
        folds: of the cross-validation, stratified.
        seed: of k-means and of the folds.

    Raises:
        ValueError: shapes that do not fit, a single label, or fewer tasks of a label than folds.
    """
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"labels: got shape {list(labels.shape)} for features {list(features.shape)}; one a row")
    values, counts = labels.unique(return_counts=True)
    if len(values) < 2 or int(counts.min()) < folds:
        raise ValueError(f"labels: got counts {counts.tolist()}; at least two labels of {folds} tasks are needed")
    x, y = _standardised(features), labels.cpu().numpy()
    with warnings.catch_warnings():
        # features that collapse to fewer distinct points than clusters, or a probe that still improves
        warnings.simplefilter("ignore")
        clusters = KMeans(len(values), n_init=10, random_state=seed).fit_predict(x)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
        accuracy = cross_val_score(probe, x, y, cv=splits).mean()
    return RepresentationScores(
        float(normalized_mutual_info_score(y, clusters)),
        float(adjusted_rand_score(y, clusters)),
        float(accuracy),
        int(counts.max()) / len(y),
    )


def _standardised(features: Tensor) -> np.ndarray:
    values = features.detach().double().cpu()
    scale = values.std(0, correction=0)
    return ((values - values.mean(0)) / torch.where(scale > 0, scale, 1.0)).numpy()


@checked(features=tensor(2), method=one_of("auto", "pca", "umap"), seed=SEED)
def picture_coordinates(features: Tensor, method: str = "auto", seed: int = 0) -> tuple[Tensor, str]:
    """Two coordinates a task for a picture.

    Args:
        features: ``[T, K]``, standardised here.
        method: ``"pca"``, ``"umap"`` (needs umap-learn), or ``"auto"`` for UMAP where it is installed.
        seed: of UMAP.

    Returns:
        ``[T, 2]`` float64, and ``"UMAP"`` or ``"PCA"``: which of the two it was.

    Raises:
        ValueError: unknown method, or UMAP is asked for and not installed.
    """
    x = _standardised(features)
    if method != "pca":
        try:
            import umap
        except ImportError:
            if method == "umap":
                raise ValueError("method: got 'umap', which needs umap-learn; pip install umap-learn") from None
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns that a seed forbids threads
                return torch.as_tensor(umap.UMAP(random_state=seed).fit_transform(x)).double(), "UMAP"
    left, singular, _ = np.linalg.svd(x, full_matrices=False)
    found = torch.as_tensor(left * singular)[:, :2]
    if found.shape[1] < 2:
        found = torch.cat([found, torch.zeros(len(found), 2 - found.shape[1], dtype=found.dtype)], 1)
    return found, "PCA"


@checked()
def context_features(data: Dataset) -> Tensor:
    """Seven hand-made features of a context on a line: what a probe can know without a model.

    Points are ordered by x; steps are differences of neighbouring outputs. See ``CONTEXT_FEATURES`` for the columns.

    Args:
        data: contexts with one input, ``[T, N]``, at least 4 points a task; the first output is used.

    Returns:
        ``[T, 7]`` float64, without NaN.

    Raises:
        ValueError: y is missing, x is not on a line, or a task has fewer than 4 points.
    """
    if data.y is None or data.x.shape[-1] != 1:
        raise ValueError(f"data: got inputs of width {data.x.shape[-1]}; one input and observed outputs are needed")
    if float(data.counts.min()) < 4:
        raise ValueError(f"data: got a task of {int(data.counts.min())} points; at least 4 are needed")
    exists = data.full_mask() if data.observed is None else data.observed[..., 0]
    if float(exists.sum(-1).min()) < 4:
        raise ValueError(f"data: got a task of {int(exists.sum(-1).min())} known values of y; at least 4 are needed")
    order = data.x[..., 0].masked_fill(~exists, math.inf).argsort(-1)
    y = data.y[..., 0].double().gather(-1, order)
    exists = exists.gather(-1, order).double()  # existing points come first
    count = exists.sum(-1, keepdim=True)
    centred = (y - (y * exists).sum(-1, keepdim=True) / count) * exists
    variance = centred.square().sum(-1, keepdim=True) / count
    sd = variance.sqrt().clamp_min(1e-12)

    def lag(k: int) -> Tensor:
        return (centred[..., k:] * centred[..., :-k]).sum(-1) / (count * variance).squeeze(-1).clamp_min(1e-12)

    step = (y[..., 1:] - y[..., :-1]) * exists[..., 1:] / sd
    second = (step[..., 1:] - step[..., :-1]) * exists[..., 2:]
    turns = (step[..., 1:] * step[..., :-1] < 0) * exists[..., 2:]
    steps, pairs = (count - 1).squeeze(-1), (count - 2).squeeze(-1)
    columns = [
        sd.squeeze(-1),
        step.abs().sum(-1) / steps,
        step.abs().max(-1).values,
        second.abs().sum(-1) / pairs,
        lag(1),
        lag(2),
        turns.sum(-1) / pairs,
    ]
    return torch.stack(columns, -1)


@checked(to=POSITIVE)
def match_amplitude(batch: TaskBatch, to: float = 0.5) -> TaskBatch:
    """The same tasks with every context at one standard deviation, so that amplitude tells nothing.

    Target outputs are scaled by the same factor, and the observation noise with them; ``truth`` is left out, since an
    oracle would be wrong.

    Args:
        batch: tasks of at least 2 context points.
        to: the standard deviation that each task's context gets, in units of y.

    Raises:
        ValueError: ``to`` is not positive, or a task has fewer than 2 context points.
    """
    context = batch.context
    if float(context.counts.min()) < 2:
        raise ValueError(f"batch: got a task of {int(context.counts.min())} context points; at least 2 are needed")
    assert context.y is not None
    exists = context.full_mask().unsqueeze(-1) if context.observed is None else context.observed
    count = exists.sum(-2, keepdim=True).clamp_min(1)
    mean = (context.y * exists).sum(-2, keepdim=True) / count
    variance = ((context.y - mean) ** 2 * exists).sum(-2, keepdim=True) / count
    factor = to / variance.sqrt().clamp_min(1e-12)

    def scaled(data: Dataset) -> Dataset:
        return Dataset(data.x, None if data.y is None else data.y * factor, data.mask, data.observed)

    return TaskBatch(scaled(context), scaled(batch.target))
