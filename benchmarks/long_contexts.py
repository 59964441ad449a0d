"""Memory and time of BNNWeightGuide on long contexts, in chunks and at once: each case in a process of its own.

Run: python -m benchmarks.long_contexts [--points 1000000] [--chunk 4096]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time


def measure(points: int, chunk: int, gradient: str, width: int) -> None:
    """One loss (with its gradient unless ``none``); prints seconds and peak memory."""
    import torch

    from guides import BNNWeightGuide
    from inference.objectives import make
    from pp_models import BayesianNetwork, Dataset, LearnedGaussianPrior

    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    model = BayesianNetwork([1, width, width, 1], prior=LearnedGaussianPrior("unit"), activation="tanh")
    options = {} if chunk == 0 else {"chunk_size": chunk, "chunk_gradient": gradient if gradient != "none" else "exact"}
    guide = BNNWeightGuide(model, solver="primal", **options)
    x = torch.rand(points, 1) * 4 - 2
    data = Dataset(x, x.sin() + 0.1 * torch.randn(points, 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    if gradient == "none":
        with torch.no_grad():
            guide(data)
    else:
        make("elbo", num_particles=1, max_plate_nesting=0).differentiable_loss(model, guide, data).backward()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{seconds:.2f} {before:.3f} {peak:.3f}")


def run(points: int, chunk: int, gradient: str, width: int) -> tuple[float, float, float]:
    """Seconds, memory before and peak memory (GiB, whole process) of one case."""
    words = [sys.executable, "-m", "benchmarks.long_contexts", "--case", gradient]
    words += ["--points", str(points), "--chunk", str(chunk), "--width", str(width)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    seconds, before, peak = map(float, done.stdout.split())
    return seconds, before, peak


def main(points: int = 1_000_000, chunk: int = 4096, width: int = 32) -> list[tuple[str, int, float, float]]:
    """Prints one row a case; returns ``(case, points, seconds, peak GiB)``."""
    print(f"[1, {width}, {width}, 1] network, one draw; GiB of the whole process, of which about half a GiB is Python")
    print(f"{'case':34s} {'points':>9s} {'seconds':>8s} {'before':>7s} {'peak':>6s}")
    rows = []
    few = min(5000, points)
    cases = [
        ("posterior, at once", few, 0, "none"),
        ("gradient, at once", few, 0, "exact"),
        ("gradient, chunks of 50", few, 50, "exact"),
        (f"posterior, chunks of {chunk}", points, chunk, "none"),
        (f"single gradient, chunks of {chunk}", points, chunk, "single"),
        (f"exact gradient, chunks of {chunk}", points, chunk, "exact"),
    ]
    for name, count, size, gradient in cases:
        seconds, before, peak = run(count, size, gradient, width)
        print(f"{name:34s} {count:9,d} {seconds:8.2f} {before:7.2f} {peak:6.2f}", flush=True)
        rows.append((name, count, seconds, peak))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, default=4096)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--case", default="")
    given = parser.parse_args()
    if given.case:
        measure(given.points, given.chunk, given.case, given.width)
    else:
        main(given.points, given.chunk, given.width)
