"""Few-shot classification: each task is a few classes, renumbered, of which a few examples each are the context."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pp_models.arguments import FLAG, SEED, checked, each, integer, number, one_of
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.tasks.image_folder import picture_paths, read_pictures
from pp_models.tasks.task_stream import TaskStream

SPLITS = ("train", "validation", "test")


class FewShotTasks(TaskStream):
    """Tasks of ``ways`` classes, drawn anew and numbered 0, 1, … in each, so that only the context says which is which.

    Batches are ``x [T, N, D]``, ``y [T, N]`` long: ``ways * shots`` context points, ``ways * queries`` target points,
    each in random order. ``truth`` holds ``classes [T, ways]``, indices into ``names``.

    Args:
        examples: by class, its examples ``[n_c, D]``.
        names: of the classes.
        ways: classes a task.
        shots: examples of each class as context.
        queries: examples of each class as target.
        batch_size: tasks a batch, T.
        seed: any non-negative integer.

    Raises:
        DataError: fewer classes than ``ways``, or a class with fewer examples than ``shots + queries``.
    """

    @checked(ways=integer(2), shots=integer(0), queries=integer(1))
    def __init__(
        self,
        examples: list[Tensor],
        names: list[str],
        ways: int = 5,
        shots: int = 1,
        queries: int = 5,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        if len(examples) < ways:
            raise DataError(f"ways: got {ways}; the split has {len(examples)} classes, and must have as many at least")
        for name, part in zip(names, examples, strict=True):
            if len(part) < shots + queries:
                raise DataError(
                    f"shots, queries: got {shots} and {queries}; class {name!r} has {len(part)} examples, and must "
                    f"have {shots + queries} at least"
                )
        self.examples, self.names, self.ways, self.shots, self.queries = examples, names, ways, shots, queries

    @property
    def dim_x(self) -> int:
        """Numbers of an example."""
        return int(self.examples[0].shape[1])

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: classes, then their examples."""
        contexts: list[tuple[Tensor, Tensor]] = []
        targets: list[tuple[Tensor, Tensor]] = []
        chosen = []
        for _ in range(self.batch_size):
            classes = torch.randperm(len(self.examples), generator=generator)[: self.ways]
            parts = [self._drawn(self.examples[c], generator) for c in classes.tolist()]
            number = torch.arange(self.ways)
            for found, some, count in ((contexts, 0, self.shots), (targets, 1, self.queries)):
                x, y = torch.cat([part[some] for part in parts]), number.repeat_interleave(count)
                order = torch.randperm(len(y), generator=generator)
                found.append((x[order], y[order]))
            chosen.append(classes)
        context, target = (
            Dataset(torch.stack([x for x, _ in part]), torch.stack([y for _, y in part]))
            for part in (contexts, targets)
        )
        return TaskBatch(context, target, {"classes": torch.stack(chosen)})

    def _drawn(self, examples: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(examples), generator=generator)[: self.shots + self.queries]
        return examples[order[: self.shots]], examples[order[self.shots :]]


@checked(
    split=one_of(*SPLITS),
    shares=each(number(0, 1), 3, 3, "be three shares, of training, validation and test classes"),
    grey=FLAG,
    split_seed=SEED,
)
def from_few_shot(
    source: Any,
    labels: Any = None,
    *,
    split: str = "train",
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    grey: bool = False,
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
    split_seed: int = 0,
) -> FewShotTasks:
    """Few-shot tasks from pictures or arrays; classes, not examples, are divided into splits.

    Args:
        source: a folder whose folders are classes of pictures (scaled to [-0.5, 0.5]); or an array or tensor
            ``[n, ...]`` of examples, which are scaled by the mean and standard deviation of all training numbers.
        labels: ``[n]``, the class of each example of an array.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        ways: classes a task.
        shots: examples of each class as context.
        queries: examples of each class as target.
        batch_size: tasks a batch.
        seed: of the stream.
        size: side, or (height, width), to which pictures are resized.
        grey: one channel in place of three.
        shares: of classes in each split.
        split_seed: of the split; the same for all three.

    Raises:
        DataError: no pictures or classes, arrays that do not fit, or too few classes or examples.
        ValueError: an argument out of range.

    Example:
        >>> import numpy as np, guidebook as gb
        >>> x, labels = np.random.randn(120, 4), np.repeat(np.arange(12), 10)
        >>> tasks = gb.tasks.from_few_shot(x, labels, ways=3, shots=2, queries=4)
        >>> model = gb.BayesianNetwork([tasks.dim_x, 16, tasks.ways], likelihood="categorical")
    """
    pictures = isinstance(source, str | os.PathLike)
    if pictures and labels is None:
        root = Path(source)
        paths = [path for path in picture_paths(root) if path.parent != root]
        if not paths:
            raise DataError(f"source: {root} holds no folders of pictures; each class must have a folder of its own")
        words = np.array([path.parent.name for path in paths])
        x = read_pictures(paths, root, size, grey).reshape(len(paths), -1) / 255.0 - 0.5
    elif pictures or labels is None:
        raise DataError("labels: they must be given with an array, and not with a folder, whose folders are classes")
    else:
        x = np.asarray(source.detach().cpu() if isinstance(source, Tensor) else source)
        words = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
        if x.ndim < 2 or x.dtype.kind not in "fiub" or words.shape != x.shape[:1]:
            raise DataError(
                f"labels: got shape {list(words.shape)} for examples {list(x.shape)} of {x.dtype}; they must be [n] "
                "for numbers [n, ...]"
            )
        x = x.reshape(len(x), -1).astype(np.float64)
        if not np.isfinite(x).all():
            bad = int((~np.isfinite(x).all(1)).sum())
            raise DataError(f"source: {bad} example(s) hold NaN or infinity; every number must be finite")
    if not shares[0] > 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares: got {tuple(shares)}; they must sum to 1, the first above 0")
    names = np.unique(words)
    order = np.random.default_rng(split_seed).permutation(len(names))
    ends = [0, round(shares[0] * len(names)), round((shares[0] + shares[1]) * len(names)), len(names)]
    parts = {name: sorted(order[ends[i] : ends[i + 1]]) for i, name in enumerate(SPLITS)}
    if not pictures and len(parts["train"]):
        training = x[np.isin(words, names[parts["train"]])]
        x = (x - training.mean()) / (training.std() or 1.0)
    found = [torch.from_numpy(x[words == names[i]]).float() for i in parts[split]]
    return FewShotTasks(found, [str(names[i]) for i in parts[split]], ways, shots, queries, batch_size, seed)
