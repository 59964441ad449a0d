"""Electrocardiograms as functions of time: simulated beats and the recordings of the UCR archive."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from pp_models.arguments import checked, one_of
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.tasks.data_files import check_classes, reading, text_of
from pp_models.tasks.downloads import find
from pp_models.tasks.point_counts import ShareCounts, random_subsets
from pp_models.tasks.task_stream import TaskStream

KINDS = ("simulated", "ecg200", "ecg5000")
#: name -> files by split, and the length of a series
ARCHIVE = {
    "ecg200": ({"train": "ecg/ECG200_TRAIN.csv.gz", "test": "ecg/ECG200_TEST.csv.gz"}, 96),
    "ecg5000": ({"train": "ecg/ECG5000_TRAIN.csv.gz"}, 140),
}
#: samples of a simulated window of 6 s, and of the 3 s of it that hold the beat
WINDOW, BEAT = 600, 300


@cache
def simulated_beat() -> Tensor:
    """One beat ``[300]`` at 100 samples a second, centred and scaled to ±1/2: seconds 3.5 to 6.5 of the simulation.

    It is made without noise, where BNNP's code (its ECG regression) adds 0.001 before scaling by about 1/13.

    Raises:
        DataError: neurokit2 is not installed.
    """
    try:
        import neurokit2
    except ImportError:
        raise DataError("ecg: simulated beats need neurokit2; pip install 'guidebook[ecg]'") from None
    wave = neurokit2.ecg_simulate(
        duration=8, sampling_rate=100, heart_rate=20, method="simple", noise=0.0, random_state=0
    )
    wave = torch.as_tensor(np.asarray(wave), dtype=torch.float64)
    wave = wave - wave.mean()
    wave = wave / (2 * wave.abs().max())
    return wave[350 : 350 + BEAT].clone()


def read_series(kind: str, split: str = "train") -> tuple[Tensor, Tensor]:
    """Recordings ``[n, L]`` (float64, as the archive standardised them) and their labels ``[n]``.

    Args:
        kind: ``"ecg200"`` (200 of 96 samples) or ``"ecg5000"`` (500 of 140 for training).
        split: ``"train"`` or ``"test"``; of ECG5000, of which only the training file is used, the first seven
            recordings of every ten train and the others test (350 and 150). Copies of it are sorted by label, so that
            a cut in two would part the classes.

    Raises:
        DataError: the file is nowhere, or is not what it should be.
    """
    files, length = ARCHIVE[kind]
    name = files.get(split, files["train"])
    path = find(name)
    if path is None:
        raise DataError(
            f"{kind}: no file {name}; take the set from the UCR archive (timeseriesclassification.com), write it as "
            "comma-separated values with the label first, and put it into the folder that GUIDEBOOK_DATA names"
        )
    with reading(path, "table of recordings"):
        lines = [line for line in text_of(path).splitlines() if line.strip()]
        if not lines:
            raise ValueError("it is empty")
        table = np.loadtxt(lines, delimiter=",", ndmin=2)
    if table.shape[1] != length + 1:
        raise DataError(f"{name}: it has {table.shape[1]} columns; a label and {length} samples were expected")
    if not np.isfinite(table).all():
        raise DataError(f"{name}: it holds values that are not finite; replace {path}")
    labels = check_classes(name, table[:, 0], 7, first=-1)  # -1 and 1, or 1 to 5
    if len(files) == 1:
        trains = np.arange(len(table)) % 10 < 7
        chosen = trains if split == "train" else ~trains
        table, labels = table[chosen], labels[chosen]
    return torch.as_tensor(table[:, 1:]), torch.as_tensor(labels)


class ECGTasks(TaskStream):
    """Each task is one ECG on an even grid over [-3, 3], a random part of its samples as context.

    Simulated ones place a beat of 3 s at a random offset in 6 s of flat line, 600 samples, without noise. ``truth``
    holds ``f`` ``[T, N, 1]`` and, for recordings, ``label`` ``[T]``.

    Args:
        kind: ``"simulated"``, ``"ecg200"`` or ``"ecg5000"``.
        split: of recordings, ``"train"`` or ``"test"``.
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
        num_points: samples used a task, smallest and largest number; None for all.
        context_share, num_context: see ``ShareCounts``; by default 2/600 to 32/600 for simulated ones.
        dtype: of x and y.

    Raises:
        ValueError: unknown kind or split, or counts out of range.
        DataError: see :func:`read_series` and :func:`simulated_beat`.
    """

    @checked(kind=one_of(*KINDS), split=one_of("train", "test"))
    def __init__(
        self,
        kind: str = "simulated",
        split: str = "train",
        batch_size: int = 5,
        seed: int = 0,
        *,
        num_points: tuple[int, int] | None = None,
        context_share: tuple[float, float] | None = None,
        num_context: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(batch_size, seed)
        self.kind, self.dtype = kind, dtype
        self.series = self.labels = None
        if kind == "simulated":
            self.beat, self.length = simulated_beat(), WINDOW
        else:
            self.series, self.labels = read_series(kind, split)
            self.length = self.series.shape[1]
        if context_share is None:
            context_share = (2 / 600, 32 / 600) if kind == "simulated" else (0.05, 0.5)
        self.counts = ShareCounts(num_points or (self.length, self.length), context_share, num_context)
        if self.counts.num_points[1] > self.length:
            raise ValueError(f"num_points: got {num_points}; a recording has {self.length} samples")
        self.x_range = (-3.0, 3.0)

    @property
    def input_interval(self) -> tuple[float, float]:
        """Ends of the interval that holds the inputs."""
        return self.x_range

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Whole recordings ``[count, L]`` and their labels."""
        if self.series is None or self.labels is None:
            offset = torch.randint(self.length - BEAT + 1, (count, 1), generator=generator)
            whole = self.beat[:1].expand(count, self.length).clone()
            return whole.scatter(1, offset + torch.arange(BEAT), self.beat.expand(count, BEAT)), None
        index = torch.randint(len(self.series), (count,), generator=generator)
        return self.series[index], self.labels[index]

    def on_grid(self, count: int, points: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
        """``count`` recordings at ``points`` evenly chosen samples: x ``[points, 1]`` and ``[count, points, 1]``."""
        chosen = torch.linspace(0, self.length - 1, points).round().long()
        values, _ = self._draw(count, torch.Generator().manual_seed(seed))
        x = torch.linspace(*self.x_range, self.length, dtype=torch.float64)[chosen]
        return x.unsqueeze(-1).to(self.dtype), values[:, chosen].unsqueeze(-1).to(self.dtype)

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: counts, recordings, then samples."""
        m, n = self.counts.draw(generator)
        values, labels = self._draw(self.batch_size, generator)
        chosen = torch.cat(random_subsets(self.batch_size, self.length, (m, n - m), generator), -1)
        x = torch.linspace(*self.x_range, self.length, dtype=torch.float64)[chosen].unsqueeze(-1).to(self.dtype)
        y = values.gather(1, chosen).unsqueeze(-1).to(self.dtype)
        truth = {"f": y} if labels is None else {"f": y, "label": labels}
        return TaskBatch(Dataset(x[:, :m], y[:, :m]), Dataset(x[:, m:], y[:, m:]), truth)
