"""Image completion by NVDP and its rivals: MNIST, Omniglot to MNIST, CelebA and the embedded digits."""

from __future__ import annotations

import pandas as pd
import torch

from evaluation import plots
from evaluation.experiments.experiment import Check, Outcome, Scale, Workshop
from evaluation.methods import TaskShape
from evaluation.scores.metrics import paired_difference
from evaluation.scores.scoring import MARGINAL, score_tasks
from pp_models import tasks

SCALES = {
    "smoke": Scale("smoke", 10, 16, 4, test_batches=2),
    "small": Scale("small", 2_000, 64, 16, test_batches=60, test_batch_size=4),
    "paper": Scale("paper", 1_875_000, 128, 16, 4e-4, (0.99, 0.999), test_batches=625, test_batch_size=16),
}
METHODS = ["nvdp", "cnp", "np", "np+cnp+vp"]
COUNTS = (10, 30, 100)


def run(train: str, test: str, scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains on the images of one data set and completes test images of another (or the same) one.

    Args:
        train: training data set.
        test: test data set.
        scale_name: the scale.
        seeds: seeds.
        workshop: where fits are kept.
    """
    scale = SCALES[scale_name]
    source = tasks.images(train, "train", scale.batch_size, 0, progress=workshop.progress)
    width = source.batch(0).target.y.shape[-1]  # type: ignore[union-attr]
    task = TaskShape(2, width, scale.width, beta=0.5)
    held_out = tasks.images(test, "test", scale.test_batch_size, 1_000_000, full_image=True, progress=workshop.progress)
    batches = [held_out.batch(i) for i in range(scale.test_batches)]
    pixels = batches[0].full.num_points
    counts = [c for c in COUNTS if c < pixels]
    fixed = {
        c: [
            tasks.images(
                test, "test", scale.test_batch_size, 1_000_000 + c, num_context=(c, c), full_image=True, progress=False
            ).batch(i)
            for i in range(max(1, scale.test_batches // 3))
        ]
        for c in counts
    }
    rows, scores, fitted = [], {}, {}
    for seed in seeds:
        for name in METHODS:
            stream = tasks.images(train, "train", scale.batch_size, seed, progress=False)
            method, _ = workshop.train(f"images-{train}-{scale.name}", name, task, stream, scale, seed)
            fitted[name, seed] = method
            found = scores[name, seed] = score_tasks(method.model, method.guide, batches)
            row = {"model": name, "seed": seed, **{c: found[c].mean() for c in MARGINAL}}
            for count, some in fixed.items():
                row[f"ll {count} px"] = score_tasks(method.model, method.guide, some).ll.mean()
            rows.append(row)
    table = pd.DataFrame(rows)
    short = train if train == test else f"{train}-{test}"
    outcome = Outcome(f"nvdp/inpainting-{short}", "", table)
    for other in METHODS[1:]:
        for seed in seeds:
            pair = [torch.tensor(scores[n, seed].ll.to_numpy(copy=True)) for n in ("nvdp", other)]
            outcome.checks.append(
                Check(f"NVDP - {other.upper()} in LL, seed {seed}", "reported", str(paired_difference(*pair)), None)
            )
    top = float(table[list(MARGINAL)].max().max())
    outcome.checks.append(Check("no score above the head's ceiling", "<= 1.3836", f"{top:+.3f}", bool(top <= 1.3836)))
    outcome.notes = [
        f"Training pixels: {source.source}. Test pixels: {held_out.source}. {len(batches) * scale.test_batch_size} "
        "test images, all pixels scored, nats per pixel and channel. y is the grey level minus one half.",
        "The paper's printed table was not available to us; no figure here is the paper's.",
    ]
    first = seeds[0]
    shown = tasks.images(test, "test", 4, 1_000_007, full_image=True, progress=False)
    outcome.figures["completions"] = (
        plots.image_completions(fitted["nvdp", first].model, fitted["nvdp", first].guide, shown, counts=counts),
        "NVDP: observed pixels, predictive mean and standard deviation.",
    )
    return outcome
