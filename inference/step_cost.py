"""What a training step costs, and so how many of them a number of CPU seconds buys."""

from __future__ import annotations

import copy
import time
from typing import Any

from inference.fit import fit

#: steps that are timed at least and at most; a cheap step is timed for about a second in all
FEWEST, MOST = 8, 64
#: the least that a fit takes
LEAST_STEPS = 20


def step_cost(model: Any, guide: Any, tasks: Any, objective: Any, **options: Any) -> float:
    """CPU seconds of a step, those of drawing its tasks and of all threads included; everything is left as it was.

    The number of points differs from batch to batch, so that this is a mean over the first few of them.

    Args:
        model: the model.
        guide: its guide.
        tasks: the training stream.
        objective: the objective.
        **options: of :func:`inference.fit` that change the cost, such as ``max_grad_norm``, ``device``, ``precision``.
    """
    trial = copy.deepcopy((model, guide, objective))

    def seconds(steps: int) -> float:
        start = time.process_time()
        fit(trial[0], trial[1], tasks, trial[2], steps, learning_rate=1e-5, progress=False, **options)
        return time.process_time() - start

    seconds(2)  # what is set up at the first steps of a process
    first = seconds(FEWEST) / FEWEST
    further = min(MOST, int(1 / max(first, 1e-4)))
    return seconds(further) / further if further > FEWEST else first


def steps_within(seconds: float, cost: float) -> int:
    """Steps that so many CPU seconds buy, at least ``LEAST_STEPS``.

    Args:
        seconds: to spend.
        cost: of a step, as :func:`step_cost` measures it.
    """
    return max(LEAST_STEPS, int(seconds / cost))
