"""Task distributions by name: infinite, seeded, resumable streams of TaskBatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pp_models.gp_tasks import GPTasks
from pp_models.image_data import load_images
from pp_models.image_tasks import ImageTasks
from pp_models.trigonometric_tasks import TrigonometricTasks

#: The counts of the TNP sampler: N_c ~ U{3..46}, N_t ~ U{3..49 - N_c}; ``gp(**TNP_COUNTS)``.
TNP_COUNTS: dict[str, Any] = {"num_context": (3, 46), "num_target": (3, None), "max_points": 49}


def gp(kernel: str | Sequence[str] = "rbf", batch_size: int = 16, seed: int = 0, **options: Any) -> GPTasks:
    """Gaussian-process regression tasks on a line; see :class:`pp_models.gp_tasks.GPTasks` for the options."""
    return GPTasks(kernel, batch_size, seed, **options)


def gp_test(
    kernel: str | Sequence[str] = "rbf", batch_size: int = 16, seed: int = 1_000_000, *, grid: int = 400, **options: Any
) -> GPTasks:
    """NVDP's test protocol: ``grid`` evenly spaced inputs, a random m of them as context, all others as target.

    ``batch.full`` is the whole grid. Give it another seed than the training stream, since equal seeds share the
    draws of counts and hyper-parameters; the default is one that nobody trains with.
    """
    return GPTasks(kernel, batch_size, seed, grid=grid, **options)


def trigonometric(batch_size: int = 16, seed: int = 0, **options: Any) -> TrigonometricTasks:
    """The functional-ambiguity toy; see :class:`pp_models.trigonometric_tasks.TrigonometricTasks` for the options."""
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

    See :func:`pp_models.image_data.load_images` for the names and :class:`pp_models.image_tasks.ImageTasks` for the
    options; ``full_image=True`` is the test mode.
    """
    return ImageTasks(load_images(name, split, progress), batch_size, seed, **options)
