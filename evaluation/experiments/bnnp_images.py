"""Images as functions with a learned weight prior: completion and super-resolution by BNNP."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
import torch

from evaluation import plots
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from guides import BNNWeightGuide
from inference import predict, prior_predictive
from inference.objectives import make
from pp_models import BayesianNetwork, LearnedGaussianPrior, tasks
from pp_models.tasks.image_tasks import ImageTasks, pixel_grid

#: share of the pixels seen
SHARES = (0.05, 0.25, 0.75)
FINE = 100


class Size(NamedTuple):
    """Hidden widths, steps, weight samples S, images a step, largest share of pixels as context, test images."""

    hidden: tuple[int, ...]
    steps: int
    particles: int
    batch_size: int
    most_context: float
    test_images: int


SCALES = {
    "smoke": Size((6, 6), 3, 2, 2, 0.3, 8),
    "small": Size((32, 32), 1_500, 8, 4, 0.3, 64),
    "paper": Size((64, 64, 64, 64), 250_000, 16, 5, 0.6, 1_000),
}


def build(hidden: tuple[int, ...]) -> tuple[BayesianNetwork, BNNWeightGuide]:
    """A ReLU network from a pixel's place to its ink, with pseudo-targets in the last layer too."""
    model = BayesianNetwork([2, *hidden, 1], prior=LearnedGaussianPrior("unit"), likelihood="bernoulli")
    return model, BNNWeightGuide(model)


def run(images: str, scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Learns a prior over images by PP-AVI, completes test images, and draws from the prior at two resolutions."""
    size = SCALES[scale_name]
    test = tasks.images(images, "test", size.test_images, 1_000_000, full_image=True, centred=False)
    pixels = test.height * test.width
    most = max(2, int(size.most_context * pixels))
    counts = [max(1, int(share * pixels)) for share in SHARES]
    rows, pairs = [], {}
    for seed in seeds:
        stream = tasks.images(
            images,
            "train",
            size.batch_size,
            seed,
            num_context=(max(1, pixels // 100), most),
            max_points=2 * most,
            centred=False,
        )
        model, guide, _ = workshop.fit(
            f"bnnp-{images}-{scale_name}",
            "pp-avi",
            lambda: build(size.hidden),
            stream,
            seed,
            objective=make("pp-avi", num_particles=size.particles),
            steps=size.steps,
            learning_rate=5e-3,
            final_learning_rate=5e-4,
        )
        pairs[seed] = model, guide
        rows.append({"model": "BNNP", "seed": seed} | _completion(model, guide, test, counts))
        rows.append({"model": "mean of the pixels seen", "seed": seed} | _baseline(test, counts))
    table = pd.DataFrame(rows)
    outcome = Outcome(f"bnnp/images-{images}", "", table)
    by = table.set_index(["model", "seed"])
    gains = [
        float(by.loc[("mean of the pixels seen", s), f"mse_{c}"] - by.loc[("BNNP", s), f"mse_{c}"])
        for s in seeds
        for c in counts
    ]
    falls = [float(by.loc[("BNNP", s), f"mse_{counts[0]}"] - by.loc[("BNNP", s), f"mse_{counts[-1]}"]) for s in seeds]
    small = scale_name == "small"
    outcome.checks = [
        Check(
            "completions beat the mean of the pixels seen",
            f"squared error lower with {', '.join(map(str, counts))} pixels, every seed",
            signed(gains),
            min(gains) > 0 if small else None,
        ),
        Check(
            "more pixels, better completions",
            f"squared error falls from {counts[0]} to {counts[-1]} pixels, every seed",
            signed(falls),
            min(falls) > 0 if small else None,
        ),
    ]
    outcome.notes = [
        f"{test.source} A ReLU network of hidden widths {list(size.hidden)}, Bernoulli likelihood, pseudo-targets in "
        "every "
        f"layer, PP-AVI with S = {size.particles}, {size.steps} steps of {size.batch_size} images. The paper trains "
        "four layers "
        "of 64 for 250,000 steps, and prints no numbers that we know of.",
        f"mse_c is the squared error of the predicted ink of the unseen pixels of {size.test_images} test images after "
        "c "
        "pixels, ink running from 0 to 1; lpd_c the Bernoulli log density a pixel.",
    ]
    outcome.figures = _figures(pairs[seeds[0]], test, counts)
    return outcome


def _split(test: ImageTasks, count: int) -> Any:
    full = test.batch(0).full
    return full.split(count)


def _completion(model: Any, guide: Any, test: ImageTasks, counts: list[int]) -> dict[str, float]:
    found: dict[str, float] = {}
    for count in counts:
        batch = _split(test, count)
        parts = [
            predict(model, guide, batch.context[i : i + 8], batch.target.x[i : i + 8], 50, seed=i)
            for i in range(0, len(batch), 8)
        ]
        mean = torch.cat([part.mean for part in parts])
        lpd = torch.cat([part.log_prob(batch.target.y[8 * i : 8 * i + 8]) for i, part in enumerate(parts)])
        found |= {f"mse_{count}": float((mean - batch.target.y).square().mean()), f"lpd_{count}": float(lpd.mean())}
    return found


def _baseline(test: ImageTasks, counts: list[int]) -> dict[str, float]:
    found: dict[str, float] = {}
    for count in counts:
        batch = _split(test, count)
        guess = batch.context.y.mean(1, keepdim=True)
        found[f"mse_{count}"] = float((batch.target.y - guess).square().mean())
    return found


def _figures(pair: tuple[Any, Any], test: ImageTasks, counts: list[int]) -> dict[str, tuple[Any, str]]:
    model, guide = pair
    own, fine = pixel_grid(test.height, test.width), pixel_grid(FINE, FINE)
    # the same seed draws the same weights: the same functions on both grids
    rows = {
        f"prior draws, {test.height}×{test.width}": prior_predictive(model, own, 6, seed=0)
        .function_samples[..., 0]
        .unflatten(-1, (test.height, test.width)),
        f"the same functions, {FINE}×{FINE}": prior_predictive(model, fine, 6, seed=0)
        .function_samples[..., 0]
        .unflatten(-1, (FINE, FINE)),
    }
    batch = _split(test, counts[1])
    completed = predict(model, guide, batch.context[:6], fine, 50, seed=0)
    rows[f"posterior means at {FINE}×{FINE} from {counts[1]} pixels"] = completed.mean[..., 0].unflatten(
        -1, (FINE, FINE)
    )
    return {
        "completions": (
            plots.image_completions(model, guide, test, counts=counts),
            f"Test images completed from {', '.join(map(str, counts))} pixels.",
        ),
        "super_resolution": (
            plots.picture_rows(rows),
            "Functions of the learned prior and posterior at two resolutions.",
        ),
    }
