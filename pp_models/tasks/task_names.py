"""Task distributions under the names the command line uses."""

from __future__ import annotations

from collections.abc import Callable

from pp_models import tasks
from pp_models.tasks.gp_kernels import KERNELS
from pp_models.tasks.image_data import LOADERS
from pp_models.tasks.regression_tables import TABLES
from pp_models.tasks.task_stream import TaskStream

FUNCTIONS: dict[str, Callable[..., TaskStream]] = {
    "sawtooth": tasks.sawtooth,
    "heaviside": tasks.heaviside,
    "squared-exponential": tasks.squared_exponential,
    "network-draws": tasks.network_draws,
}
#: tables with several outputs, a task a random draw of rows; with -clusters a task is a cell of the input space
REGRESSION = tuple(f"{table}{suffix}" for table in TABLES for suffix in ("", "-clusters"))
RECORDINGS = {"ecg-simulated": "simulated", "ecg200": "ecg200", "ecg5000": "ecg5000"}
TASK_NAMES = (
    *(f"gp-{kernel}" for kernel in (*KERNELS, "mix")),
    "trigonometric",
    "branches",
    *FUNCTIONS,
    "mixed-offset",
    *REGRESSION,
    *RECORDINGS,
    "abalone",
    "era5",
    *LOADERS,
)
#: evenly spaced inputs of a test stream of functions, as many as ``tasks.gp_test`` has
TEST_GRID = 400
#: seeds of test streams start here, out of the way of training seeds
TEST_SEED = 1_000_000


def task_stream(
    name: str, batch_size: int = 16, seed: int = 0, *, test: bool = False, progress: bool = True
) -> TaskStream:
    """A task distribution by name, for training or with the test protocol of its kind.

    Args:
        name: a name of ``TASK_NAMES``: ``gp-rbf`` … ``gp-mix``, ``trigonometric``, ``sawtooth``, ``ecg200`` …, or an
            image data set (``digits``, ``mnist`` …).
        batch_size: tasks a batch.
        seed: seed of the stream; a test stream adds ``TEST_SEED``.
        test: all points of a grid (or of an image) instead of the training counts, from the test split.
        progress: show a bar while an image data set is downloaded.

    Raises:
        ValueError: unknown name.
    """
    if name not in TASK_NAMES:
        raise ValueError(f"tasks: got {name!r}; it must be one of {', '.join(TASK_NAMES)}")
    if test:
        seed += TEST_SEED
    if name.startswith("gp-"):
        return (tasks.gp_test if test else tasks.gp)(name.removeprefix("gp-"), batch_size, seed)
    if name == "trigonometric":
        return tasks.trigonometric(batch_size, seed, full_grid=test)
    if name == "branches":
        return tasks.branches(batch_size, seed, **({"num_target": TEST_GRID} if test else {}))
    if name in FUNCTIONS:
        return FUNCTIONS[name](batch_size, seed, grid=TEST_GRID if test else None)
    if name == "mixed-offset":
        return tasks.mixed_offset(batch_size, seed, grid=TEST_GRID if test else None)
    split = "test" if test else "train"
    if name in REGRESSION:
        table, clusters = name.removesuffix("-clusters"), name.endswith("-clusters")
        return tasks.multi_output(table, split, batch_size, seed, division="clusters" if clusters else "random")
    if name in RECORDINGS:
        return tasks.ecg(RECORDINGS[name], split, batch_size, seed)
    if name in ("abalone", "era5"):
        return (tasks.abalone if name == "abalone" else tasks.era5)(split, batch_size, seed)
    return tasks.images(name, split, batch_size, seed, progress=progress, full_image=test)
