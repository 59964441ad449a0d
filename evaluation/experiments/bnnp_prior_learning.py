"""Learning a prior over functions in one dimension with BNNP: what it draws, and what it is good for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from evaluation import plots
from evaluation.experiments.bnnp_scoring import context_scores, generator_scores
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from guides import BNNWeightGuide
from inference import predict, prior_predictive
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset, GaussianLikelihood, LearnedGaussianPrior, TaskBatch, tasks

#: context sizes of the scores; the pictures show 1 to 4
COUNTS = (1, 4, 16)
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {"pp-avi": ("pp-avi", {}), "avi": ("elbo", {"on": "context"})}


@dataclass(frozen=True)
class Family:
    """A family of functions and the network that learns a prior for it.

    Args:
        title: in words.
        stream: makes the task stream from a batch size, a seed and options.
        activation: of the network.
        noise: where the likelihood's noise starts, and its bound.
        test: the stream to test on, where it is another one than ``stream``.
        small: options of the training stream at small scale.
        dim_x: width of the inputs.
    """

    title: str
    stream: Callable[..., Any]
    activation: str
    noise: tuple[float, float] = (0.05, 0.3)
    test: Callable[..., Any] | None = None
    small: dict[str, Any] | None = None
    dim_x: int = 1

    def build(self, hidden: tuple[int, ...], prior: Any = None) -> tuple[BayesianNetwork, BNNWeightGuide]:
        """The network, with a prior by unit to be learned unless one is given, and its guide."""
        start, bound = self.noise
        model = BayesianNetwork(
            [self.dim_x, *hidden, 1],
            prior=LearnedGaussianPrior("unit") if prior is None else prior,
            likelihood=GaussianLikelihood(start, learn_noise=True, max_noise=bound),
            activation=self.activation,
        )
        return model, BNNWeightGuide(model)

    def test_stream(self, batch_size: int, seed: int, **options: Any) -> Any:
        """Tasks that nobody trains on."""
        return (self.test or self.stream)(batch_size, seed, **options)


def _recorded(kind: str, split: str) -> Callable[..., Any]:
    return lambda batch_size, seed, **options: tasks.ecg(kind, split, batch_size, seed, **options)


FAMILIES = {
    "sawtooth": Family("sawtooth waves", tasks.sawtooth, "relu"),
    "heaviside": Family("functions that jump between -1 and 1", tasks.heaviside, "tanh"),
    "squared-exponential": Family("smooth GP functions, length scale 0.5", tasks.squared_exponential, "silu"),
    "network-draws": Family("draws of a wide ReLU network", tasks.network_draws, "relu"),
    "ecg-simulated": Family(
        "simulated electrocardiograms",
        _recorded("simulated", "train"),
        "tanh",
        small={"num_points": (150, 150), "context_share": (2 / 150, 32 / 150)},
    ),
    "ecg200": Family(
        "recorded electrocardiograms (ECG200)",
        _recorded("ecg200", "train"),
        "tanh",
        (0.1, 0.5),
        _recorded("ecg200", "test"),
    ),
    "ecg5000": Family(
        "recorded electrocardiograms (ECG5000)",
        _recorded("ecg5000", "train"),
        "tanh",
        (0.1, 0.5),
        _recorded("ecg5000", "test"),
    ),
}


class Size(NamedTuple):
    """Size of a run: hidden widths, steps, weight samples S, tasks a step, test batches of 16, learning rates."""

    hidden: tuple[int, ...]
    steps: int
    particles: int
    batch_size: int
    test_batches: int
    rates: tuple[float, float]


SCALES = {
    "smoke": Size((6, 6), 5, 2, 2, 1, (5e-3, 5e-4)),
    "small": Size((20, 20), 1_500, 8, 4, 3, (5e-3, 5e-4)),
    "paper": Size((64, 64), 50_000, 32, 5, 20, (3e-3, 1e-4)),
}


def fitted(
    name: str, family: Family, scale_name: str, objective: str, seed: int, workshop: Workshop
) -> tuple[Any, Any]:
    """The pair trained on a family (or read back)."""
    size = SCALES[scale_name]
    options = (family.small or {}) if scale_name != "paper" else {}
    kind, extra = OBJECTIVES[objective]
    model, guide, _ = workshop.fit(
        f"bnnp-prior-{name}-{scale_name}",
        objective,
        lambda: family.build(size.hidden),
        family.stream(size.batch_size, seed, **options),
        seed,
        objective=make(kind, num_particles=size.particles, **extra),
        steps=size.steps,
        learning_rate=size.rates[0],
        final_learning_rate=size.rates[1],
    )
    return model, guide


def run(name: str, scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Learns the prior of one family by PP-AVI and by AVI, and compares its functions with true ones."""
    family, size = FAMILIES[name], SCALES[scale_name]
    test = family.test_stream(16, 1_000_000, num_points=(60, 60), num_context=16)
    batches = [test.batch(i) for i in range(size.test_batches)]
    rows, pairs = [], {}
    for seed in seeds:
        for objective in OBJECTIVES:
            pairs[objective, seed] = fitted(name, family, scale_name, objective, seed, workshop)
        pairs["standard", seed] = family.build(size.hidden)
        for label in (*OBJECTIVES, "standard"):
            model, guide = pairs[label, seed]
            row: dict[str, Any] = {"model": label if label in OBJECTIVES else "N(0, 1/k), untrained", "seed": seed}
            if label in OBJECTIVES:
                row |= context_scores(model, guide, batches, COUNTS)
                row["noise"] = float(model.likelihood.scale().detach())
            rows.append(row | generator_scores(model, test, seed=seed))
    table = pd.DataFrame(rows)
    outcome = Outcome(f"bnnp/prior-{name}", "", table)
    outcome.checks = _checks(scale_name, table, seeds)
    outcome.notes = [
        f"{family.title.capitalize()}. A {family.activation} network of hidden widths {list(size.hidden)}, a prior "
        f"correlated by unit, {size.steps} steps of {size.batch_size} tasks, S = {size.particles}; noise learned below "
        f"{family.noise[1]}. The paper trains two layers of 64 for 50,000 steps or more and judges the draws by eye.",
        "energy is the energy distance between 500 functions from the prior and 500 true ones on 50 points, true_sd "
        f"the standard deviation of true functions at a point. lpd, rmse and coverage (of 95 % intervals) are those of "
        f"{16 * len(batches)} held-out tasks, 44 target points each.",
    ]
    outcome.figures = _figures(name, pairs, seeds[0], test, scale_name)
    return outcome


def _checks(scale: str, table: pd.DataFrame, seeds: list[int]) -> list[Check]:
    by = table.set_index(["model", "seed"])
    checks = []
    for objective, share in (("pp-avi", 0.25), ("avi", 0.5)):
        drops = [
            1 - float(by.loc[(objective, s), "energy"] / by.loc[("N(0, 1/k), untrained", s), "energy"]) for s in seeds
        ]
        checks.append(
            Check(
                f"{objective}: the learned prior's functions are nearer the true ones",
                f"energy distance falls by {share:.0%} or more in every seed",
                signed(drops),
                bool(min(drops) >= share) if scale == "small" else None,
            )
        )
        runs = by.loc[objective]
        rises = (runs.lpd_1 < runs.lpd_4) & (runs.lpd_4 < runs.lpd_16)
        checks.append(
            Check(
                f"{objective}: predictions improve with context",
                "LPD at 1 < 4 < 16 points in every seed",
                "; ".join(f"{r.lpd_1:+.2f} {r.lpd_4:+.2f} {r.lpd_16:+.2f}" for r in runs.itertuples()),
                bool(rises.all()) if scale == "small" else None,
            )
        )
    return checks


def growing_contexts(batch: TaskBatch, counts: tuple[int, ...] = (1, 2, 3, 4)) -> TaskBatch:
    """The first task of a batch with its first 1, 2, 3 and 4 context points, as tasks of their own."""
    context, target = batch.context[0], batch.target[0]
    contexts = Dataset.pad([context.points(slice(0, c)) for c in counts])
    return TaskBatch(contexts, Dataset.pad([target] * len(counts)))


def _figures(name: str, pairs: dict, seed: int, test: Any, scale_name: str) -> dict[str, tuple[Any, str]]:
    x, truth = test.on_grid(100, 120 if scale_name != "smoke" else 20, seed=5)
    drawn = {
        "N(0, 1/k)": prior_predictive(pairs["standard", seed][0], x, 100, seed=0).function_samples,
        "learned, AVI": prior_predictive(pairs["avi", seed][0], x, 100, seed=0).function_samples,
        "learned, PP-AVI": prior_predictive(pairs["pp-avi", seed][0], x, 100, seed=0).function_samples,
        "true": truth,
    }
    show = growing_contexts(test.batch(0))
    predictions = {}
    for label, key in (("PP-AVI", "pp-avi"), ("AVI", "avi")):
        model, guide = pairs[key, seed]
        predictions[label] = predict(model, guide, show.context, x, 200, seed=0)
    return {
        "priors": (plots.function_draws(drawn, x), "100 functions from each prior, three of them in black."),
        "posteriors": (
            plots.fan_plot(
                predictions, show, x, tasks=(0, 1, 2, 3), titles=("1 point", "2 points", "3 points", "4 points")
            ),
            "A held-out task after 1 to 4 points: central 50, 80 and 95 % bands, three draws, and the other points.",
        ),
    }
