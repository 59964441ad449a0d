"""Image completion by NMDP beside a CNP and an attentive one, all with one floor."""

from __future__ import annotations

from typing import Any

import pandas as pd

from evaluation import plots
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.nmdp_parts import Size, ceiling, description, mixture, process, scores, train
from pp_models import tasks

#: floor of every scale, on the scale of pixels from 0 to 1
FLOOR = 0.05
SCALES = {
    "smoke": Size(3, 8, 3, 2, 2, 4, 4),
    "small": Size(3_000, 64, 8, 16, 8, 80, 100),
    "paper": Size(100_000, 128, 16, 16, 100, 1_000, 1_000, 5e-4),
}
NMDP = "NMDP, context"
METHODS = (NMDP, "CNP", "CANP")
#: classes that no training image has, by data set
UNSEEN = {"emnist": "emnist-unseen"}
COUNTS = (10, 30, 100)


def run(images: str, scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains on TNP's numbers of pixels and scores the target pixels of test images."""
    size = SCALES[scale_name]
    test = {"": _test(images, size, workshop)}
    if images in UNSEEN:
        test[", unseen classes"] = _test(UNSEEN[images], size, workshop)
    stream = _stream(images, "train", size.batch_size, 0, workshop)
    channels = stream.channels
    rows: list[dict[str, Any]] = []
    pairs = {}
    for seed in seeds:
        for name in METHODS:
            stream = _stream(images, "train", size.batch_size, seed, workshop)
            build = mixture(2, channels, size, "context", FLOOR, spread=0.3) if name == NMDP else None
            build = build or process(name, 2, channels, size, FLOOR)
            pair = pairs[name, seed] = train(
                workshop, f"nmdp-images-{images}-{scale_name}", name, build, stream, seed, size
            )
            row: dict[str, Any] = {"model": name, "seed": seed}
            for label, batches in test.items():
                found = scores(pair, batches, size.draws)
                row |= {f"{column}{label}": found[column].mean() for column in ("ll", "joint_ll", "mse")}
            rows.append(row)
    table = pd.DataFrame(rows)
    outcome = Outcome(f"nmdp/images-{images}", "", table)
    by = table.set_index(["model", "seed"])
    for other in METHODS[1:]:
        for column, words in (("ll", "marginal"), ("joint_ll", "joint")):
            gaps = [float(by.loc[(NMDP, s), column] - by.loc[(other, s), column]) for s in seeds]
            outcome.checks.append(Check(f"NMDP - {other}, {words} LL a pixel", "reported", signed(gaps), None))
    top, most = float(table[["ll", "joint_ll"]].max().max()), ceiling(FLOOR, channels)
    outcome.checks.append(Check("no score above the floor's ceiling", f"<= {most:.3f}", f"{top:+.3f}", top <= most))
    outcome.notes = [
        f"Training: {stream.source}. N_c in {stream.counts.num_context}, at most {stream.counts.max_points} pixels a "  # type: ignore[union-attr]
        f"task (TNP's counts, scaled down for small images). {size.test_tasks} test images, the same for every method; "
        "the target pixels are scored, in nats a pixel summed over channels. "
        + description(size, "context", FLOOR, channels),
        "ll is marginal, pixel by pixel with the mean weights; joint_ll all target pixels together. A CNP has no "
        "latent, so the two agree. The paper's counts, floor and number of experts are unknown, so none of its printed "
        "numbers is comparable.",
    ]
    shown = _stream(images, "test", 4, 1_000_007, workshop)
    counts = [c for c in COUNTS if c < shown.height * shown.width]
    rows_shown = min(4, len(shown.pixels))
    for name in (NMDP, "CANP"):
        picture = plots.image_completions(
            *pairs[name, seeds[0]], shown, counts=counts, num_images=rows_shown, num_samples=20
        )
        outcome.figures[f"completions_{name.split(',')[0].lower()}"] = (
            picture,
            f"{name}: observed pixels, predictive mean and standard deviation.",
        )
    return outcome


def _stream(images: str, split: str, batch_size: int, seed: int, workshop: Workshop) -> Any:
    return tasks.images(images, split, batch_size, seed, progress=workshop.progress, protocol="tnp")


def _test(images: str, size: Size, workshop: Workshop) -> list:
    stream = _stream(images, "test", 4, 1_000_000, workshop)
    return [stream.batch(i) for i in range(max(1, size.test_tasks // 4))]
