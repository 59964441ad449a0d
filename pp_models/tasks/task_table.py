"""The table of task distributions that the command line knows by name: one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pp_models import tasks
from pp_models.registry import Registry

if TYPE_CHECKING:
    from pp_models.tasks.task_stream import TaskStream

#: evenly spaced inputs of a test stream of functions, as many as ``tasks.gp_test`` has
TEST_GRID = 400
#: seeds of test streams start here, out of the way of training seeds
TEST_SEED = 1_000_000


@dataclass(frozen=True)
class TaskDistribution:
    """A task distribution by name.

    Args:
        description: one line.
        train: a stream from ``(batch_size, seed)``.
        test: the same with the test protocol of its kind: all points of a grid or an image, the test split.
        beta: weight of NVDP's KL that suits it (1.4 for regression on functions, 0.5 for images; docs/papers/nvdp.md).
        min_scale: floor of the standard deviation at which methods are compared on it.
        shows_progress: whether its streams take ``progress``, for a download.
        pictures: whether a task is the pixels of a picture.
    """

    description: str
    train: Callable[..., TaskStream]
    test: Callable[..., TaskStream]
    beta: float = 1.4
    min_scale: float = 0.1
    shows_progress: bool = False
    pictures: bool = False


def _gp(kernel: str, description: str, **options: Any) -> TaskDistribution:
    train, test = partial(tasks.gp, kernel, **options), partial(tasks.gp_test, kernel, **options)
    return TaskDistribution(description, train, test)


def _gp_of_tnp(kernel: str, description: str, **options: Any) -> TaskDistribution:
    stream = partial(tasks.gp, kernel, **tasks.TNP_COUNTS, **options)
    return TaskDistribution(description, stream, stream, min_scale=0.01)


def _on_a_line(stream: Callable[..., TaskStream], description: str) -> TaskDistribution:
    return TaskDistribution(description, partial(stream, grid=None), partial(stream, grid=TEST_GRID))


def _with_splits(stream: Callable[..., TaskStream], description: str, *which: str) -> TaskDistribution:
    return TaskDistribution(description, partial(stream, *which, "train"), partial(stream, *which, "test"))


def _table(table: str, description: str, division: str = "random") -> TaskDistribution:
    return _with_splits(partial(tasks.multi_output, division=division), description, table)


def _images(name: str, description: str, max_points: int | None = None, **counts: Any) -> TaskDistribution:
    train = partial(tasks.images, name, "train", max_points=max_points, **counts)
    test = partial(tasks.images, name, "test", full_image=True, **counts)
    return TaskDistribution(description, train, test, beta=0.5, shows_progress=True, pictures=True)


TASKS: Registry[TaskDistribution] = Registry(
    "tasks",
    {
        "gp-rbf": _gp("rbf", "Gaussian-process draws on a line, RBF kernel"),
        "gp-rbf-fixed": _gp("rbf", "the same, one RBF kernel for all tasks", hyperparameters="fixed"),
        "gp-matern52": _gp("matern52", "the same, Matérn-5/2 kernel"),
        "gp-periodic": _gp("periodic", "the same, periodic kernel"),
        "gp-weakly-periodic": _gp("weakly-periodic", "the same, periodic kernel times an RBF"),
        "gp-mix": _gp("mix", "the same, a kernel of three for each task"),
        "gp-rbf-tnp": _gp_of_tnp("rbf", "RBF draws with the numbers of points of TNP's code"),
        "gp-matern52-tnp": _gp_of_tnp("matern52", "the same, Matérn-5/2 kernel"),
        "gp-weakly-periodic-tnp": _gp_of_tnp("weakly-periodic", "the same, periodic kernel times an RBF"),
        "gp-mix-tnp": _gp_of_tnp("mix", "draws of three kernels with the numbers of points of TNP's code"),
        **{
            f"gp-{kernel}-fixed-tnp": _gp_of_tnp(
                kernel, f"gp-{kernel}-tnp with one set of hyper-parameters", hyperparameters="fixed"
            )
            for kernel in ("rbf", "matern52", "weakly-periodic", "mix")
        },
        "trigonometric": TaskDistribution(
            "sine, cosine or tanh, which few points cannot tell apart",
            partial(tasks.trigonometric, full_grid=False),
            partial(tasks.trigonometric, full_grid=True),
        ),
        "branches": TaskDistribution(
            "four curves mixed in a task's own proportions",
            tasks.branches,
            partial(tasks.branches, num_target=TEST_GRID),
        ),
        "sawtooth": _on_a_line(tasks.sawtooth, "sawtooth waves of random slope and level"),
        "heaviside": _on_a_line(tasks.heaviside, "functions that jump between -1 and 1"),
        "squared-exponential": _on_a_line(tasks.squared_exponential, "smooth GP draws of a given length scale"),
        "network-draws": _on_a_line(tasks.network_draws, "draws of a Bayesian network"),
        "mixed-offset": _on_a_line(tasks.mixed_offset, "a process with two modes that a context cannot tell apart"),
        "sarcos": _table("sarcos", "inverse dynamics of a robot arm, 7 outputs"),
        "sarcos-clusters": _table("sarcos", "the same, a task a cell of the inputs", "clusters"),
        "wq": _table("wq", "water quality, 14 outputs"),
        "wq-clusters": _table("wq", "the same, a task a cell of the inputs", "clusters"),
        "scm20d": _table("scm20d", "supply chain management, 16 outputs"),
        "scm20d-clusters": _table("scm20d", "the same, a task a cell of the inputs", "clusters"),
        "synthetic": _table("synthetic", "a made-up table of several outputs"),
        "synthetic-clusters": _table("synthetic", "the same, a task a cell of the inputs", "clusters"),
        "ecg-simulated": _with_splits(tasks.ecg, "simulated electrocardiograms", "simulated"),
        "ecg200": _with_splits(tasks.ecg, "single heartbeats (UCR ECG200)", "ecg200"),
        "ecg5000": _with_splits(tasks.ecg, "single heartbeats (UCR ECG5000)", "ecg5000"),
        "abalone": _with_splits(tasks.abalone, "rings of abalones, a task a sex"),
        "era5": _with_splits(tasks.era5, "precipitation from your own ERA5-Land files"),
        "digits": _images(
            "digits", "completion of 8x8 digits (scikit-learn's, no download)", max_points=64, num_context=(3, 48)
        ),
        "mnist": _images("mnist", "completion of MNIST digits"),
        "emnist": _images("emnist", "completion of EMNIST letters and digits"),
        "emnist-unseen": _images("emnist-unseen", "EMNIST classes 10 to 46, for models trained on digits"),
        "omniglot": _images("omniglot", "completion of Omniglot characters"),
        "cifar10": _images("cifar10", "completion of CIFAR-10 pictures"),
        "cifar10-subset": _images("cifar10-subset", "a few CIFAR-10 pictures"),
        "celeba": _images("celeba", "completion of CelebA faces"),
        "svhn": _images("svhn", "completion of street-view house numbers"),
    },
    "guidebook list tasks",
)


def task_stream(
    name: str, batch_size: int = 16, seed: int = 0, *, test: bool = False, progress: bool = True
) -> TaskStream:
    """A task distribution by name, for training or with the test protocol of its kind.

    Args:
        name: a name of ``TASKS``: ``gp-rbf`` … ``gp-mix``, ``trigonometric``, ``sawtooth``, ``ecg200`` …, or an image
            data set (``digits``, ``mnist`` …).
        batch_size: tasks a batch.
        seed: seed of the stream; a test stream adds ``TEST_SEED``.
        test: all points of a grid (or of an image) instead of the training counts, from the test split.
        progress: show a bar while a data set is downloaded.

    Raises:
        ValueError: unknown name.
    """
    found = TASKS.find(name)
    options = {"progress": progress} if found.shows_progress else {}
    if test:
        return found.test(batch_size=batch_size, seed=seed + TEST_SEED, **options)
    return found.train(batch_size=batch_size, seed=seed, **options)
