"""Trains several methods at once, one process and one thread each, with a progress bar for every one of them."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evaluation.methods import Method, TaskShape, build
from evaluation.recipes import Recipe, recipe
from inference import fit
from pp_models.tasks.task_stream import TaskStream


@dataclass(frozen=True)
class Job:
    """One method to train.

    Args:
        label: names the job; unique.
        method: a name of ``METHODS``.
        task: its widths.
        tasks: the training stream.
        steps: optimizer steps.
        seed: seed of the initial parameters and of the fit.
        recipe: how; None for the method's own. The stream decides the batch size.
    """

    label: str
    method: str
    task: TaskShape
    tasks: TaskStream
    steps: int
    seed: int
    recipe: Recipe | None = None

    def build(self) -> Method:
        """The method with its initial parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build(self.method, self.task)


_messages: Any = None


def _start_worker(messages: Any) -> None:
    global _messages
    _messages = messages
    torch.set_num_threads(1)  # the products are small: two threads of one process gain nothing, two processes do
    torch.set_flush_denormal(True)


def _train(job: Job) -> tuple[dict[str, dict[str, Any]], list[dict[str, float]]]:
    """Trains in a worker; parameters come back as arrays."""
    method = job.build()
    how = recipe(job.method) if job.recipe is None else job.recipe
    optimizer = partial(torch.optim.Adam, lr=how.learning_rate, fused=True)
    report = [lambda row: _messages.put((job.label, row))]
    result = fit(
        method.model, method.guide, job.tasks, method.objective, job.steps, job.seed, optimizer, "cpu",
        progress=False, callbacks=report, schedule=how.schedule, warmup=how.warmup, max_grad_norm=how.max_grad_norm,
    )  # fmt: skip
    modules = {"model": method.model, "guide": method.guide}
    return {k: {n: t.numpy() for n, t in m.state_dict().items()} for k, m in modules.items()}, result.history


def train_jobs(jobs: Sequence[Job], workers: int = 2) -> dict[str, tuple[Method, list[dict[str, float]]]]:
    """Trains every job; the same result as one after the other.

    Args:
        jobs: what to train; the longest first, so that no process waits long at the end.
        workers: processes.

    Returns:
        The fitted method and its history by label, in the order of the jobs.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    label, numbers = TextColumn("{task.description}"), TextColumn("{task.fields[numbers]}")
    with Progress(label, BarColumn(), MofNCompleteColumn(), numbers, TimeElapsedColumn()) as progress:
        bars = {j.label: progress.add_task(j.label, total=j.steps, numbers="") for j in jobs}

        def show() -> None:
            for name, row in iter(messages.get, None):
                known = (("loss", "loss"), ("log_likelihood", "LL"))
                shown = "  ".join(f"{word} {row[key]:.3f}" for key, word in known if key in row)
                progress.update(bars[name], completed=row["step"], numbers=shown)

        listener = threading.Thread(target=show, daemon=True)
        listener.start()
        try:
            with ProcessPoolExecutor(workers, context, _start_worker, (messages,)) as pool:
                found = list(pool.map(_train, jobs))
        finally:
            messages.put(None)
            listener.join()
            messages.close()
            messages.join_thread()
    fitted = {}
    for job, (states, history) in zip(jobs, found, strict=True):
        method = job.build()
        for name, module in (("model", method.model), ("guide", method.guide)):
            module.load_state_dict({n: torch.tensor(values) for n, values in states[name].items()})
            module.eval()
        fitted[job.label] = (method, history)
    return fitted
