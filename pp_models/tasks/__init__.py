"""Task distributions by name: infinite, seeded, resumable streams of TaskBatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from pp_models.tasks.branch_tasks import BranchTasks
    from pp_models.tasks.ecg_tasks import ECGTasks
    from pp_models.tasks.era5_tasks import ERA5Tasks
    from pp_models.tasks.few_shot_tasks import FewShotTasks
    from pp_models.tasks.frame_tasks import FrameTasks
    from pp_models.tasks.function_tasks import HeavisideTasks, NetworkTasks, SawtoothTasks, SquaredExponentialTasks
    from pp_models.tasks.gp_tasks import GPTasks
    from pp_models.tasks.image_tasks import ImageTasks
    from pp_models.tasks.interpolated_tasks import InterpolatedTasks
    from pp_models.tasks.mixed_offset_tasks import MixedOffsetTasks
    from pp_models.tasks.regression_tasks import RegressionTasks
    from pp_models.tasks.tabular_tasks import AbaloneTasks
    from pp_models.tasks.trigonometric_tasks import TrigonometricTasks


#: The counts of the TNP sampler: N_c ~ U{3..46}, N_t ~ U{3..49 - N_c}; ``gp(**TNP_COUNTS)``.
TNP_COUNTS: dict[str, Any] = {"num_context": (3, 46), "num_target": (3, None), "max_points": 49}


def example_table(num_tasks: int = 40, seed: int = 0) -> pd.DataFrame:
    """A made-up table of sensors' readings; see :func:`pp_models.tasks.made_up_readings.example_table`.

    Args:
        num_tasks: sensors.
        seed: of all numbers.
    """
    from pp_models.tasks import made_up_readings

    return made_up_readings.example_table(num_tasks, seed)


def from_dataframe(
    frame: Any,
    task: str | Sequence[str] | None = None,
    x: str | Sequence[str] = (),
    y: str | Sequence[str] = (),
    time: str | None = None,
    **options: Any,
) -> FrameTasks:
    """Tasks from your own table, one row a point.

    Args:
        frame: a pandas or polars DataFrame, an xarray Dataset, or the path of a CSV, Parquet or NetCDF file.
        task: the column, or columns, that say which task a row is of; None takes all rows as one data set.
        x: columns of inputs.
        y: columns of outputs.
        time: an input that is a time.
        **options: see :func:`pp_models.tasks.frame_tasks.from_dataframe`.
    """
    from pp_models.tasks import frame_tasks

    return frame_tasks.from_dataframe(frame, task, x, y, time, **options)


def from_arrays(x: Any, y: Any, **options: Any) -> FrameTasks:
    """Tasks from arrays, ``x[t] [N_t, Dx]`` and ``y[t] [N_t, Dy]`` for each task, ragged.

    Args:
        x: NumPy arrays, tensors or lists of inputs.
        y: the same of outputs.
        **options: see :func:`pp_models.tasks.array_tasks.from_arrays`.
    """
    from pp_models.tasks import array_tasks

    return array_tasks.from_arrays(x, y, **options)


def from_images(folder: Any, split: str = "train", batch_size: int = 16, seed: int = 0, **options: Any) -> ImageTasks:
    """Image completion on the pictures of a folder.

    Args:
        folder: of PNG, JPEG … files; folders in it are classes.
        split: ``"train"``, ``"validation"`` or ``"test"``, by picture.
        batch_size: tasks a batch.
        seed: of the stream.
        **options: see :func:`pp_models.tasks.image_folder.from_images`.
    """
    from pp_models.tasks import image_folder

    return image_folder.from_images(folder, split, batch_size, seed, **options)


def from_few_shot(source: Any, labels: Any = None, **options: Any) -> FewShotTasks:
    """Few-shot classification: each task is a few classes, of each a few examples as context and others as target.

    Args:
        source: a folder whose folders are classes of pictures; or an array ``[n, ...]`` of examples.
        labels: ``[n]``, the class of each example of an array.
        **options: see :func:`pp_models.tasks.few_shot_tasks.from_few_shot`.
    """
    from pp_models.tasks import few_shot_tasks

    return few_shot_tasks.from_few_shot(source, labels, **options)


def few_shot(
    name: str = "omniglot", split: str = "train", ways: int = 5, shots: int = 1, queries: int = 5,
    batch_size: int = 16, seed: int = 0, **options: Any,
) -> FewShotTasks:  # fmt: skip
    """Few-shot tasks of Omniglot, or of one's own copy of mini-ImageNet or CIFAR-FS.

    See :func:`pp_models.tasks.few_shot_data.few_shot`.
    """
    from pp_models.tasks import few_shot_data

    return few_shot_data.few_shot(name, split, ways, shots, queries, batch_size, seed, **options)


def interpolated(
    tasks: FewShotTasks, concentration: float = 0.5, share: float = 0.5, weight: float | None = None
) -> InterpolatedTasks:
    """Few-shot tasks between tasks, where there are few of them; see :class:`InterpolatedTasks`.

    Args:
        tasks: of :func:`few_shot` or :func:`from_few_shot`.
        concentration: of the Beta distribution of λ.
        share: of the tasks that are mixed.
        weight: λ itself, in place of a draw.
    """
    from pp_models.tasks.interpolated_tasks import InterpolatedTasks

    return InterpolatedTasks(tasks, concentration, share, weight)


def gp(kernel: str | Sequence[str] = "rbf", batch_size: int = 16, seed: int = 0, **options: Any) -> GPTasks:
    """Gaussian-process regression tasks on a line; see :class:`GPTasks` for the options."""
    from pp_models.tasks.gp_tasks import GPTasks

    return GPTasks(kernel, batch_size, seed, **options)


def gp_test(
    kernel: str | Sequence[str] = "rbf", batch_size: int = 16, seed: int = 1_000_000, *, grid: int = 400, **options: Any
) -> GPTasks:
    """NVDP's test protocol: ``grid`` evenly spaced inputs, a random m of them as context, all others as target.

    ``batch.full`` is the whole grid. Give it another seed than the training stream, since equal seeds share the
    draws of counts and hyper-parameters; the default is one that nobody trains with.
    """
    from pp_models.arguments import POINTS
    from pp_models.tasks.gp_tasks import GPTasks

    return GPTasks(kernel, batch_size, seed, grid=POINTS.check("grid", grid), **options)


def trigonometric(batch_size: int = 16, seed: int = 0, **options: Any) -> TrigonometricTasks:
    """The functional-ambiguity toy; see :class:`TrigonometricTasks` for the options."""
    from pp_models.tasks.trigonometric_tasks import TrigonometricTasks

    return TrigonometricTasks(batch_size, seed, **options)


def images(
    name: str = "digits",
    split: str = "train",
    batch_size: int = 16,
    seed: int = 0,
    *,
    progress: bool = True,
    **options: Any,
) -> ImageTasks:
    """Image completion on a named data set.

    See :func:`load_images` for the names and :class:`ImageTasks` for the
    options; ``full_image=True`` is the test mode, and ``protocol`` names whose numbers of pixels.
    """
    from pp_models.tasks.image_data import load_images
    from pp_models.tasks.image_tasks import ImageTasks

    return ImageTasks(load_images(name, split, progress), batch_size, seed, **options)


def sawtooth(batch_size: int = 5, seed: int = 0, **options: Any) -> SawtoothTasks:
    """Sawtooth waves with a random slope and level; see :class:`SawtoothTasks`."""
    from pp_models.tasks.function_tasks import SawtoothTasks

    return SawtoothTasks(batch_size, seed, **options)


def heaviside(batch_size: int = 5, seed: int = 0, **options: Any) -> HeavisideTasks:
    """Functions that jump between -1 and 1; see :class:`HeavisideTasks`."""
    from pp_models.tasks.function_tasks import HeavisideTasks

    return HeavisideTasks(batch_size, seed, **options)


def squared_exponential(batch_size: int = 5, seed: int = 0, **options: Any) -> SquaredExponentialTasks:
    """Smooth GP draws with a given length scale; see :class:`SquaredExponentialTasks`."""
    from pp_models.tasks.function_tasks import SquaredExponentialTasks

    return SquaredExponentialTasks(batch_size, seed, **options)


def network_draws(batch_size: int = 5, seed: int = 0, **options: Any) -> NetworkTasks:
    """Draws of a Bayesian network; see :class:`NetworkTasks`."""
    from pp_models.tasks.function_tasks import NetworkTasks

    return NetworkTasks(batch_size, seed, **options)


def ecg(kind: str = "simulated", split: str = "train", batch_size: int = 5, seed: int = 0, **options: Any) -> ECGTasks:
    """Electrocardiograms, simulated or recorded; see :class:`ECGTasks` for the options."""
    from pp_models.tasks.ecg_tasks import ECGTasks

    return ECGTasks(kind, split, batch_size, seed, **options)


def abalone(split: str = "train", batch_size: int = 2, seed: int = 0, **options: Any) -> AbaloneTasks:
    """Rings of abalones, a task a sex; see :class:`AbaloneTasks` for the options."""
    from pp_models.tasks.tabular_tasks import AbaloneTasks

    return AbaloneTasks(split, batch_size, seed, **options)


def era5(split: str = "train", batch_size: int = 5, seed: int = 0, **options: Any) -> ERA5Tasks:
    """Precipitation from the user's ERA5-Land files; see :class:`ERA5Tasks` for the options."""
    from pp_models.tasks.era5_tasks import ERA5Tasks

    return ERA5Tasks(split, batch_size, seed, **options)


def multi_output(
    table: str = "synthetic", split: str = "train", batch_size: int = 16, seed: int = 0, **options: Any
) -> RegressionTasks:
    """Regression with several outputs; see :class:`RegressionTasks` for the options.

    Tables are ``sarcos``, ``wq``, ``scm20d`` and ``synthetic``; ``division="clusters"`` has tasks that differ.
    """
    from pp_models.tasks.regression_tasks import RegressionTasks

    return RegressionTasks(table, split, batch_size, seed, **options)


def mixed_offset(batch_size: int = 16, seed: int = 0, **options: Any) -> MixedOffsetTasks:
    """A process with two modes that a context cannot tell apart; ``mixed_offset_tasks.py`` has its oracle."""
    from pp_models.tasks.mixed_offset_tasks import MixedOffsetTasks

    return MixedOffsetTasks(batch_size, seed, **options)


def branches(batch_size: int = 32, seed: int = 0, **options: Any) -> BranchTasks:
    """Four branches mixed in a task's own proportions; see :class:`BranchTasks`."""
    from pp_models.tasks.branch_tasks import BranchTasks

    return BranchTasks(batch_size, seed, **options)
