"""Common ground on Gaussian-process tasks: four kernels, fixed and random hyper-parameters, beside the exact answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from evaluation import plots
from evaluation.experiments.common_fits import Budget, TestTasks, budget_of, trained
from evaluation.experiments.common_ground import METHODS
from evaluation.experiments.common_ground import run as run_methods
from evaluation.experiments.experiment import Outcome, Workshop
from evaluation.experiments.table import EXPERIMENTS
from inference import predict
from pp_models import oracle_predict
from pp_models.tasks.task_stream import TaskStream
from pp_models.tasks.task_table import TASKS, TEST_SEED, task_stream

NAME = "common/gp"
#: numbers of context points, and points of the tasks that are scored at each of them
SIZES, POINTS = (3, 5, 10, 20, 40), 52
#: methods of the picture of functions, where they are asked for, and its context points
SHOWN, SHOWN_POINTS = ("nvdp", "nmdp", "nmdp-kernels", "bnnp", "convcnp"), 10


def run(
    scale_name: str,
    seeds: list[int],
    workshop: Workshop,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    cpu_seconds: float | None = None,
) -> Outcome:
    """Every method on every kernel; see :func:`evaluation.experiments.common_ground.run`."""
    budget = budget_of(scale_name, cpu_seconds)
    tests = [test_tasks(name, budget) for name in (EXPERIMENTS[NAME].tasks if tasks is None else tasks)]
    methods = METHODS if methods is None else methods
    outcome = run_methods(NAME, tests, budget, seeds, workshop, methods)
    outcome.notes.append(
        "Inputs are uniform on [-2, 2], 3 to 46 context points of at most 49, noise 0.02 (TNP's sampler). The fixed "
        "kernels have length scale 0.6 and scale 1 as NVDP's fixed one has, the weakly periodic one 0.75 with period "
        "0.375; those of the others vary from task to task. Recipes were chosen on Matérn-5/2 draws of random "
        "hyper-parameters, with other counts and another floor; gp-matern52-tnp is the column nearest to them. "
        f"{sum(map(len, tests[0].batches))} test tasks of each distribution."
    )
    if "nmdp-kernels" in methods:
        outcome.notes.append(
            "The experts of nmdp-kernels are Gaussian processes of learned kernels, RBF to Matérn and quasi-periodic: "
            "that the functions are of such kernels is what it knows before it sees one, and these tasks are its home."
        )
    shown = [name for name in SHOWN if name in methods]
    if shown:
        picture = functions(tests[-1], budget, shown, seeds[0], workshop)
        caption = f"{tests[-1].name}, seed {seeds[0]}: bands, draws, and the exact answer."
        outcome.figures["functions"] = (picture, caption)
    return outcome


def test_tasks(name: str, budget: Budget) -> TestTasks:
    """Test tasks of a kernel: with the training counts, and the same functions with every number of context points."""
    size, few = budget.test_batch_size, max(1, budget.test_batches // 8)
    stream = task_stream(name, size, 0, test=True)
    by_size = {m: [sized(name, size, m).batch(i) for i in range(few)] for m in SIZES}
    watched = [stream.batch(budget.test_batches + i) for i in range(few)]
    return TestTasks(name, [stream.batch(i) for i in range(budget.test_batches)], by_size, watched)


def sized(name: str, batch_size: int, context: int) -> TaskStream:
    """The test functions of a kernel; points move from target to context as these become more."""
    return TASKS.find(name).train(
        batch_size=batch_size, seed=TEST_SEED + 1, num_context=(context, context),
        num_target=(POINTS - context, POINTS - context), max_points=POINTS,
    )  # fmt: skip


def functions(test: TestTasks, budget: Budget, methods: Sequence[str], seed: int, workshop: Workshop) -> Figure:
    """Three tasks with ten context points by some methods, beside the exact answer."""
    batch = test.by_size[SHOWN_POINTS][0]
    line = torch.linspace(-2, 2, 200).unsqueeze(-1)
    predictions = {}
    for name in methods:
        method, _ = trained(workshop, test, budget, name, seed)
        predictions[name] = predict(method.model, method.guide, batch.context, line, 100, seed=0)
    return plots.fan_plot(predictions, batch, line, tasks=(0, 1, 2), oracle=oracle_predict(batch, line))
