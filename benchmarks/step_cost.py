"""What a training step costs against a hand-written torch loop of the same networks, in one run and in pairs.

Run: python -m benchmarks.step_cost [--steps 100]

Each row is a ratio: CPU time of a step through Pyro (our model, guide and objective) over that of a loop in
hand_loops.py, which has the same encoder, rate networks, decoder, likelihood and KL, written directly with torch. Steps
of both are interleaved, and the median of the pairwise ratios is printed with its quartiles.
"""

import argparse
import statistics
import time

import pyro
import torch
from torch import nn

from benchmarks.hand_loops import HandWrittenBNNP, HandWrittenCNP, HandWrittenNVDP
from evaluation.methods import TaskShape, build
from pp_models import tasks


def step(module: nn.Module, optimizer: torch.optim.Optimizer, batch) -> float:
    """CPU seconds of one training step."""
    started = time.process_time()
    optimizer.zero_grad()
    module(batch).backward()
    optimizer.step()
    return time.process_time() - started


def compare(name: str, hand: nn.Module, width: int, batch_size: int, steps: int) -> None:
    """Prints one row."""
    method = build(name, TaskShape(1, 1, width, recipe="paper"))  # the architectures of those loops
    ours = method.objective(method.model, method.guide)
    pairs = [(m, torch.optim.Adam(m.parameters(), 1e-3, fused=True)) for m in (ours, hand)]
    stream = tasks.gp("rbf", batch_size, 0, num_context=(50, 50), num_target=(50, 50), max_points=100)
    times: list[list[float]] = [[], []]
    for i in range(steps + 5):
        batch = stream.batch(i)
        for kept, (module, optimizer) in zip(times, pairs, strict=True):
            seconds = step(module, optimizer, batch)
            if i >= 5:
                kept.append(seconds)
    low, middle, high = statistics.quantiles([a / b for a, b in zip(*times, strict=True)], n=4)
    milliseconds = [1e3 * statistics.median(kept) for kept in times]
    print(
        f"{name:6s} width {width:4d}, {batch_size:3d} tasks: {milliseconds[0]:7.1f} ms ours, "
        f"{milliseconds[1]:7.1f} ms by hand, ratio {middle:.2f} (quartiles {low:.2f}-{high:.2f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {steps} steps each, interleaved")
    with pyro.validation_enabled(False):  # as inference.fit runs
        for width, batch_size in ((64, 8), (128, 16)):
            compare("nvdp", HandWrittenNVDP(width), width, batch_size, steps)
            compare("cnp", HandWrittenCNP(width), width, batch_size, steps)
        for width, batch_size in ((32, 16), (64, 4), (128, 2)):
            compare("bnnp", HandWrittenBNNP(width), width, batch_size, max(steps // 10, 5))
