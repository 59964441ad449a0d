"""Whether to trust a fit: calibration, importance weights and predictions of an amortised guide, and what to try."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from evaluation.diagnostics import khat_threshold, psis
from evaluation.findings import MOST_BIAS, MOST_SPREAD, STANDARD_ERRORS, Evidence, Verdict
from evaluation.latent_findings import judge_activity, judge_likeness, judge_rates
from evaluation.prediction_findings import judge_predictions
from evaluation.simulation_calibration import LIKELIHOOD, CalibrationRanks, NothingDrawn, simulation_ranks
from inference.objectives import REGISTRY
from inference.objectives.task_objective import effective_sample_size
from inference.posterior_draws import posterior_log_weights
from inference.progress import Stages
from pp_models.arguments import CALLABLE, MOST_DRAWS, SEED, checked, data_set, integer, one_of
from pp_models.data import Dataset, TaskBatch, require_tasks

KINDS = ("posterior", "prediction")
#: what is tested
TASKS = data_set(
    "Dataset",
    "TaskBatch",
    instead="from_pyro_svi(model, guide, *args), whose k-hat says whether to trust the guide",
)
#: where in a training stream tasks lie that no training reaches, and how many of them a run's verdict rests on
HELD_OUT_BATCH, HELD_OUT_TASKS = 20_000_000, 32
#: share of tasks whose weights must be reliable
RELIABLE = 0.9
#: below this share of effective draws the guide itself, without weights, is too far from the posterior
LEAST_EFFICIENCY = 0.5


@checked(
    model=CALLABLE,
    guide=CALLABLE,
    kind=one_of(*KINDS),
    num_simulations=integer(20, MOST_DRAWS),
    num_samples=integer(50, MOST_DRAWS),
    seed=SEED,
)
def verdict(
    model: Any,
    guide: Any,
    tasks: TaskBatch | Sequence[TaskBatch] | Dataset,
    *,
    objective: str | None = None,
    kind: str | None = None,
    trained_on: TaskBatch | Sequence[TaskBatch] | Dataset | None = None,
    num_simulations: int = 400,
    num_samples: int = 1_000,
    seed: int = 0,
    progress: bool = False,
) -> Verdict:
    """Puts a fitted guide to the test.

    A guide that stands for the posterior under the model's own prior (``kind="posterior"``) is held to three things:

    * **calibration**: truths simulated from the model must rank uniformly among the guide's draws, latents and
      log-likelihood alike; this is what finds a guide that is biased, too narrow, too wide or blind to the data;
    * **importance weights** of the given tasks (or of simulated ones): Pareto k-hat below min(1 - 1/log10 S, 0.7);
    * **predictions** of the targets, where tasks have them: probability integral transforms, and whether a task's own
      context predicts better than another task's.

    A guide that is a conditional prior, as NMDP's, NVDP's and a neural process's (``kind="prediction"``), is no
    posterior under any fixed prior; only its predictions are tested.

    Besides, it notes what a fit is without taking trust from it: dropout rates that collapsed or are the same for every
    task, latents that stay at their prior, and tasks unlike those of the training.

    Args:
        model: the model.
        guide: its guide, amortised over tasks.
        tasks: held-out tasks: a TaskBatch or several, or a Dataset of tasks (whose predictions are not tested, for
            nothing is held out of it). They must not have been trained on. Calibration simulates data at their inputs.
        objective: what the guide was trained with; it decides the kind where that is not given.
        kind: ``"posterior"`` or ``"prediction"``.
        trained_on: some of the training tasks, at least 40 of them, to say whether the tested ones are like them.
        num_simulations: tasks simulated for calibration.
        num_samples: draws for the weights and predictions.
        seed: of everything drawn; the global random state stays as it was.
        progress: show what is being done, where stderr is a terminal.

    Returns:
        A :class:`Verdict`. *Trust*: use the guide's draws. *Use with importance weights*: the draws are off, but the
        weights mend it (``sample_posterior(..., correct="psis")``). *Do not trust*: they do not.

    Raises:
        ValueError: no tasks (None among them), or an argument out of range.
    """
    if tasks is None:  # as a stream that is exhausted, or a split that was not made, may give
        raise ValueError("tasks: got None; held-out tasks are needed to test a guide on")
    batches = _batches("tasks", tasks)
    if not batches:
        raise ValueError("tasks: got none; held-out tasks are needed to test a guide on")
    training = None if trained_on is None else _batches("trained_on", trained_on)
    if kind is None:
        predicts = (
            objective is not None and objective in REGISTRY and REGISTRY[objective].load().guide_is == "predictor"
        )
        kind = "prediction" if predicts else "posterior"
    tested = Evidence(kind)
    if kind == "posterior":
        _test_calibration(tested, model, guide, batches, num_simulations, seed, progress)
    with Stages(progress) as shown:
        if tested.kind == "posterior":
            _test_weights(tested, model, guide, batches, num_samples, seed, shown)
        split = [batch for batch in batches if isinstance(batch, TaskBatch)]
        if split:
            judge_predictions(tested, model, guide, split, min(num_samples, 200), seed, shown)
    judge_rates(tested, guide, batches)
    if tested.kind == "posterior":
        judge_activity(tested, model, guide, batches, min(num_samples, 400), seed)
    if training:
        judge_likeness(tested, batches, training)
    return tested.verdict()


def _batches(argument: str, given: Any) -> list[Any]:
    """One batch or several, checked."""
    single = not isinstance(given, Iterable) or isinstance(given, TaskBatch | Dataset | torch.Tensor | str)
    batches = [given] if single or getattr(given, "ndim", 1) == 0 else list(given)
    for batch in batches:
        TASKS.check(argument, batch)
        require_tasks(batch, argument)
    return batches


def _inputs(batches: Sequence[Any], count: int) -> Dataset:
    """Inputs of ``count`` tasks, those of the first batch over and over."""
    first = batches[0].context if isinstance(batches[0], TaskBatch) else batches[0]
    if isinstance(batches[0], TaskBatch) and first.num_points == 0:
        first = batches[0].target
    if not first.batch_shape:
        raise ValueError("tasks: a single data set; calibration over simulations needs a task dimension")
    index = torch.arange(count, device=first.x.device) % len(first)
    return Dataset(first.x[index], None, None if first.mask is None else first.mask[index])


def _test_calibration(
    tested: Evidence, model: Any, guide: Any, batches: Sequence[Any], count: int, seed: int, progress: bool
) -> None:
    try:
        ranks = simulation_ranks(model, guide, _inputs(batches, count), 99, seed=seed, progress=progress)
    except NotImplementedError:
        tested.add(
            "calibration", "the prior cannot be sampled", "ranks of simulated truths are uniform", None,
            "Nothing can be simulated from an improper prior.",
        )  # fmt: skip
        return
    except NothingDrawn:
        tested.add(
            "calibration", "the guide draws no latent", "ranks of simulated truths are uniform", None,
            "A model without latents has no posterior, only predictions.",
        )  # fmt: skip
        tested.kind = "prediction"
        return
    tested.ranks = ranks
    name, bias, spread, passed = _worst(ranks)
    blind = not passed and name == LIKELIHOOD
    tested.calibrated = passed
    tested.numbers |= {"largest_bias": bias, "largest_spread": spread}
    if blind:
        sentence = "The guide does not use what the data say: true latents explain their data better than its draws."
        advice = "train longer, or a guide that reads its data (is the encoder's input what you think it is?)"
    elif not passed:
        faults = []
        if abs(bias) > MOST_BIAS:
            faults.append(f"off by {abs(bias):.2f} of the guide's own standard deviations")
        if abs(math.log(spread)) > math.log(MOST_SPREAD):
            words = "too sure" if spread > 1 else "too wide"
            faults.append(f"{words}, for the truth scatters {spread:.2f} times as wide as the guide says")
        sentence = f"Draws of {name} are {' and '.join(faults)}."
        advice = (
            "a guide with correlations, or an objective that covers (chi2, rws)"
            if spread > MOST_SPREAD
            else "train longer, with a smaller learning rate at the end; compare with iwae or dreg"
        )
    else:
        sentence, advice = "Simulated truths look like the guide's draws.", ""
    tested.add(
        "calibration",
        f"worst of {len(ranks.ranks)} quantities, {name}: mean {bias:+.2f}, sd {spread:.2f} of {count} simulations",
        f"|mean| <= {MOST_BIAS}, sd within a factor {MOST_SPREAD} of 1 (beyond {STANDARD_ERRORS:g} standard errors)",
        passed,
        sentence,
        advice,
    )


def _worst(ranks: CalibrationRanks) -> tuple[str, float, float, bool]:
    """The quantity farthest from uniform, its mean and spread, and whether all are near enough."""
    count = len(next(iter(ranks.ranks.values())))
    found = []
    for name, (bias, spread) in ranks.summary().items():
        spread = max(spread, 1e-3)
        errors = abs(bias) * math.sqrt(count) / max(spread, 1.0), abs(math.log(spread)) * math.sqrt(2 * count)
        far = (abs(bias) > MOST_BIAS and errors[0] > STANDARD_ERRORS) or (
            abs(math.log(spread)) > math.log(MOST_SPREAD) and errors[1] > STANDARD_ERRORS
        )
        found.append(
            (far, max(abs(bias) / MOST_BIAS, abs(math.log(spread)) / math.log(MOST_SPREAD)), name, bias, spread)
        )
    latents = [f for f in found if f[2] != LIKELIHOOD]  # they say more about what is wrong
    worst = max(latents if any(f[0] for f in latents) else found)
    return worst[2], worst[3], worst[4], not any(f[0] for f in found)


def _test_weights(
    tested: Evidence, model: Any, guide: Any, batches: Sequence[Any], num_samples: int, seed: int, shown: Stages
) -> None:
    khats, efficiencies = [], []
    shown.begin("importance weights of held-out tasks", len(batches))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in batches:
            data = batch.full if isinstance(batch, TaskBatch) else batch
            log_weights = posterior_log_weights(model, guide, data, num_samples=num_samples).double()
            khats.append(psis(log_weights.unsqueeze(0)).reshape(-1))
            efficiencies.append((effective_sample_size(log_weights) / num_samples).reshape(-1))
            shown.advance()
    khat, efficiency = torch.cat(khats), torch.cat(efficiencies)
    threshold = khat_threshold(num_samples)
    # weights that hardly differ have no tail to fit
    good = (khat < threshold) | (efficiency > 0.99)
    share, level = float(good.double().mean()), float(efficiency.median())
    tested.reliable = share >= RELIABLE
    tested.numbers |= {"share_reliable": share, "efficiency": level, "khat": float(khat.median())}
    tested.add(
        "importance weights",
        f"k-hat below {threshold:.2f} in {share:.0%} of {len(khat)} tasks, median {float(khat.median()):.2f}",
        f"at least {RELIABLE:.0%} of the tasks",
        tested.reliable,
        "The weights that would mend the guide have a reliable mean."
        if tested.reliable
        else "The guide misses part of the posterior: its importance weights have no reliable mean.",
        "fewer latents, a richer guide, or more particles with chi2 or rws; NUTS on a few tasks as a reference",
    )
    tested.add(
        "efficiency",
        f"median effective share of the draws {level:.2f}",
        f">= {LEAST_EFFICIENCY}",
        level >= LEAST_EFFICIENCY,
        "The guide's draws are near the posterior's."
        if level >= LEAST_EFFICIENCY
        else f"Only {level:.0%} of the guide's draws count once they are weighed.",
        "train longer, or a richer guide",
    )
