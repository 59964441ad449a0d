"""Common ground on images: completion from some of the pixels, every method with one floor and one budget."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation import plots
from evaluation.experiments.common_fits import Budget, TestTasks, budget_of, trained
from evaluation.experiments.common_ground import METHODS, ON_LINES_ALONE
from evaluation.experiments.common_ground import run as run_methods
from evaluation.experiments.experiment import Outcome, Workshop
from evaluation.experiments.table import EXPERIMENTS
from pp_models import tasks as distributions
from pp_models.data import DataError
from pp_models.tasks.downloads import no_downloads
from pp_models.tasks.task_table import TASKS, TEST_SEED, task_stream

NAME = "common/images"
#: numbers of pixels seen, by image data set
SIZES = {"digits": (3, 6, 10, 16), "mnist": (10, 30, 100, 196)}
#: pixels of all test images together, so that large images are fewer
MOST_PIXELS = 16_384
#: methods whose completions are shown, where they are asked for
SHOWN = ("nvdp", "nmdp", "bnnp", "convcnp")


def run(
    scale_name: str,
    seeds: list[int],
    workshop: Workshop,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    cpu_seconds: float | None = None,
) -> Outcome:
    """Every method on every data set; see :func:`evaluation.experiments.common_ground.run`."""
    budget = budget_of(scale_name, cpu_seconds)
    methods = [name for name in METHODS if name not in ON_LINES_ALONE] if methods is None else methods
    names = [name for name in EXPERIMENTS[NAME].tasks if is_here(name)] if tasks is None else tasks
    tests = [test_tasks(name, budget, workshop) for name in names]
    outcome = run_methods(NAME, tests, budget, seeds, workshop, methods)
    for test in tests:
        images = distributions.images(test.name, "test", 4, progress=workshop.progress)
        outcome.notes.append(
            f"{test.name}: {images.source}; trained on the numbers of pixels that NVDP's code has, scored on all other "
            f"pixels of {sum(map(len, test.batches))} test images."
        )
        for name in (each for each in SHOWN if each in methods):
            method, _ = trained(workshop, test, budget, name, seeds[0])
            picture = plots.image_completions(
                method.model,
                method.guide,
                images,
                counts=SIZES[test.name],
                num_images=3,
                num_samples=20,  # type: ignore[arg-type]
            )
            caption = f"{name} on {test.name}, seed {seeds[0]}: pixels seen, predictive mean and standard deviation."
            outcome.figures[f"{test.name}_{name}"] = (picture, caption)
    left_out = [name for name in EXPERIMENTS[NAME].tasks if tasks is None and name not in names]
    if left_out:
        outcome.notes.append(
            f"Left out, for its files are not on this machine (GUIDEBOOK_DATA): {', '.join(left_out)}."
        )
    return outcome


def is_here(name: str) -> bool:
    """Whether a data set is on this machine."""
    try:
        with no_downloads("common/images"):
            task_stream(name, 1, test=True, progress=False)
            task_stream(name, 1, progress=False)
    except DataError:
        return False
    return True


def test_tasks(name: str, budget: Budget, workshop: Workshop) -> TestTasks:
    """Test images: with the training numbers of pixels, and the same images with each of ``SIZES``."""
    size = budget.test_batch_size
    stream = task_stream(name, size, 0, test=True, progress=workshop.progress)
    height, width = stream.image_size  # type: ignore[misc]
    count = min(budget.test_batches, max(2, MOST_PIXELS // (size * height * width)))
    few = max(1, count // 8)
    by_size = {}
    for m in SIZES[name]:
        sized = TASKS.find(name).test(batch_size=size, seed=TEST_SEED + 1, num_context=(m, m), progress=False)
        by_size[m] = [sized.batch(i) for i in range(few)]
    watched = [stream.batch(count + i) for i in range(few)]
    return TestTasks(name, [stream.batch(i) for i in range(count)], by_size, watched)
