"""NMDP on a mix of GP kernels, fitted once for the experiments that look at what its weights know."""

from __future__ import annotations

from evaluation.experiments.experiment import Workshop
from evaluation.experiments.nmdp_parts import Pair, Size, mixture, train
from pp_models import TaskBatch, tasks

#: floor of every scale
FLOOR = 0.01
#: name -> (experts, pooling of the guide's encoder); strict banks have twice the experts
VARIANTS = {
    "NMDP, strict": ("strict", "mean"),
    "NMDP, context": ("context", "mean"),
    "NMDP, context, set transformer": ("context", "set-transformer"),
}
SCALES = {
    "smoke": Size(4, 8, 3, 2, 4, 45, 8),
    "small": Size(3_000, 48, 8, 16, 16, 600, 100),
    "paper": Size(100_000, 128, 8, 16, 16, 1_000, 1_000, 5e-4),
}


def fitted(
    hyperparameters: str, scale: str, names: list[str], seeds: list[int], workshop: Workshop
) -> dict[tuple[str, int], Pair]:
    """Every variant and seed, trained (or read back) on the mix of kernels with the TNP sampler's counts."""
    size = SCALES[scale]
    found = {}
    for seed in seeds:
        for name in names:
            experts, pooling = VARIANTS[name]
            number = 2 * size.num_experts if experts == "strict" else size.num_experts
            stream = tasks.gp("mix", size.batch_size, seed, hyperparameters=hyperparameters, **tasks.TNP_COUNTS)
            build = mixture(1, 1, size, experts, FLOOR, pooling, number, spread=0.6)
            found[name, seed] = train(workshop, f"nmdp-mix-{hyperparameters}-{scale}", name, build, stream, seed, size)
    return found


def test_tasks(hyperparameters: str, count: int, points: int, seed: int = 1_000_000) -> TaskBatch:
    """``count`` test tasks of the mix with that many context points, as one batch."""
    stream = tasks.gp(
        "mix", count, seed, hyperparameters=hyperparameters, num_context=(points, points), max_points=points + 10
    )
    return stream.batch(0)
