"""A step's graph against the step itself, on every cell of the swap grid. ``python -m tests.inference.compiled_grid``.

Losses, statistics, gradients (those that are None too) and the random state afterwards, float64, plain and masked data.
It prints a line for every model and one for every difference, and ends with 1 if there is any; ten minutes.
"""

from __future__ import annotations

import argparse
import sys
import time

import pyro
import torch

from evaluation.comparison.families import MODELS
from evaluation.methods import TaskShape
from guides import GUIDES
from inference.compile_step import CompiledStep
from inference.objectives import REGISTRY, make
from inference.training_step import Sealed, TrainingStep
from pp_models import tasks
from pp_models.data import DataError, Dataset, TaskBatch

REFUSALS = (TypeError, ValueError, DataError)
STREAM = tasks.gp("rbf", batch_size=2)
CLOSE = 1e-9


class Refused(Exception):
    """Model, guide and objective do not go together."""


def no_eager(batch):
    """A graph that cannot be made is a failure here."""
    raise AssertionError("the step fell back to eager")


def batch_of(number: int, masked: bool) -> TaskBatch:
    """Tasks in float64, the last point of each part's first task missing where masked."""
    batch = STREAM.batch(number).to(dtype=torch.float64)
    if not masked:
        return batch
    parts = []
    for part in (batch.context, batch.target):
        mask = part.full_mask().clone()
        mask[0, -1] = False
        parts.append(Dataset(part.x, part.y, mask))
    return TaskBatch(*parts)


def pair_step(model: str, guide: str, objective: str) -> TrainingStep:
    """The step of a cell.

    Raises:
        Refused: the model and the guide do not fit.
    """
    torch.manual_seed(0)
    try:
        built = MODELS[model][1](TaskShape.of(STREAM, 8))
        return TrainingStep(built, GUIDES[guide](built, 8), make(objective)).double().train()
    except REFUSALS as error:
        raise Refused(str(error)) from None


def eager(step: TrainingStep, batch, seed: int = 5):
    """Loss, statistics and gradients as autograd has them, and the random state afterwards."""
    step.zero_grad()
    torch.manual_seed(seed)
    with pyro.validation_enabled(False):
        loss, statistics = step(Sealed(batch))
        loss.backward()
    return loss.detach(), statistics, [p.grad for p in step.parameters()], torch.get_rng_state()


def differences(step: TrainingStep, compiled: CompiledStep, batch, seed: int = 5) -> list[str]:
    """What a graph and the step itself do not agree on."""
    buffers = [b.clone() for b in step.buffers()]
    loss, statistics, gradients, state = eager(step, batch, seed)
    counted = [b.clone() for b in step.buffers()]
    with torch.no_grad():
        for buffer, before in zip(step.buffers(), buffers, strict=True):
            buffer.copy_(before)
    step.zero_grad()
    torch.manual_seed(seed)
    found, numbers = compiled(batch)
    wrong = [] if torch.equal(torch.get_rng_state(), state) else ["the random state"]
    options = {"rtol": CLOSE, "atol": 1e-12, "equal_nan": True}
    wrong += [] if torch.allclose(found, loss, **options) else [f"the loss, {float(found)} for {float(loss)}"]
    wrong += [] if torch.allclose(numbers, statistics, **options) else ["the statistics"]
    for (name, parameter), expected in zip(step.named_parameters(), gradients, strict=True):
        if (parameter.grad is None) != (expected is None):
            wrong.append(f"whether {name} has a gradient")
        elif expected is not None:
            scale = CLOSE * float(expected.abs().max()) + 1e-12
            if not torch.allclose(parameter.grad, expected, rtol=CLOSE, atol=scale):
                wrong.append(f"the gradient of {name}")
    for (name, buffer), expected in zip(step.named_buffers(), counted, strict=True):
        wrong += [] if torch.allclose(buffer, expected) else [f"the buffer {name}"]
    return wrong


def cell(model: str, guide: str, objective: str, masked: bool) -> list[str]:
    """What is wrong with the graph of a cell.

    Raises:
        Refused: the three do not go together.
    """
    step = pair_step(model, guide, objective)
    batch = batch_of(int(masked), masked)
    try:
        with pyro.validation_enabled(False), torch.random.fork_rng():
            step(Sealed(batch))
    except REFUSALS as error:
        raise Refused(str(error)) from None
    compiled = CompiledStep(step, no_eager, "graph", dynamic=False)
    try:
        return differences(step, compiled, batch)
    except AssertionError:
        return list(compiled.failed.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="all by default")
    total = bad = 0
    for model in parser.parse_args().models or MODELS:
        started, count = time.perf_counter(), 0
        for guide in GUIDES:
            for objective in REGISTRY:
                for masked in (False, True):
                    try:
                        wrong = cell(model, guide, objective, masked)
                    except Refused:
                        continue
                    count += 1
                    bad += bool(wrong)
                    for what in wrong:
                        print(f"{model}, {guide}, {objective}, {'masked' if masked else 'plain'}: differs in {what}")
        total += count
        print(f"{model:24s} {count:4d} cells {time.perf_counter() - started:6.0f} s", flush=True)
    print(f"{total} cells, {bad} that differ")
    return int(bad > 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
