"""Whether to trust a fit: calibration, importance weights and predictions of an amortised guide, and what to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from evaluation.diagnostics import khat_threshold, psis
from evaluation.findings import (
    LEAST_EFFICIENCY,
    MOST_BIAS,
    MOST_SPREAD,
    RELIABLE,
    STANDARD_ERRORS,
    Evidence,
    Verdict,
)
from evaluation.latent_findings import judge_activity, judge_likeness, judge_rates
from evaluation.prediction_findings import judge_predictions
from evaluation.pyro_trust import pyro_verdict
from evaluation.simulation_calibration import LIKELIHOOD, CalibrationRanks, NothingDrawn, simulation_ranks
from inference.objectives import REGISTRY
from inference.objectives.task_objective import effective_sample_size
from inference.posterior_draws import posterior_log_weights
from inference.progress import Stages
from pp_models.arguments import (
    CALLABLE,
    MOST_DRAWS,
    NOT_NEGATIVE,
    SEED,
    checked,
    data_set,
    each,
    integer,
    one_of,
)
from pp_models.contract import Model, as_guide
from pp_models.data import Dataset, TaskBatch, require_tasks
from pp_models.tasks.task_stream import TaskStream, batches_of

KINDS = ("posterior", "prediction")
#: what is tested
TASKS = data_set(
    "Dataset",
    "TaskBatch",
    instead="verdict(model, guide, *args) for a model that is called with other arguments",
)
#: where in a training stream tasks lie that no training reaches, how many of them a run's verdict rests on, and how
#: many share a batch and so their numbers of points
HELD_OUT_BATCH, HELD_OUT_TASKS, HELD_OUT_BATCH_SIZE = 20_000_000, 32, 4
#: tasks that are simulated at the inputs of a batch, at least
LEAST_INPUTS = 5


@checked(
    model=CALLABLE,
    guide=CALLABLE,
    kind=one_of(*KINDS),
    num_simulations=integer(20, MOST_DRAWS),
    num_samples=integer(50, MOST_DRAWS),
    seed=SEED,
    nuts_seconds=NOT_NEGATIVE,
    refit_seconds=NOT_NEGATIVE,
    checks=each(CALLABLE, must="be functions of the observed values by site"),
)
def verdict(
    model: Any,
    guide: Any,
    *args: Any,
    objective: str | None = None,
    kind: str | None = None,
    trained_on: TaskBatch | Sequence[TaskBatch] | Dataset | None = None,
    losses: Sequence[Any] | None = None,
    checks: Sequence[Callable] = (),
    nuts_seconds: float = 30.0,
    refit: Callable[[Callable], Callable] | None = None,
    refit_seconds: float = 60.0,
    num_simulations: int = 400,
    num_samples: int = 1_000,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> Verdict:
    """Puts a fitted guide to the test: ``verdict(model, guide, tasks)``, or any Pyro pair on its own arguments.

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

    A model that is called otherwise (``verdict(model, guide, *args, **kwargs)``, a function, an AutoGuide) is held to:

    * **spread**: a point mass is no posterior;
    * **importance weights**: k-hat with its standard error, of everything or of each element of the plates that hold
      every site, and the site that carries it; within the error of the limit more draws are taken;
    * **the loss**, where ``losses`` are given: has it settled;
    * **a reference**: a short NUTS of the same model, where it is small enough, finds its way and has no divergences;
      the shares of coordinates whose means and standard deviations are its;
    * **replications** of the data, a note on the model, and ``checks`` of yours, which weigh;
    * **refits**, where ``refit`` is given: simulation-based calibration by fitting simulated data anew.

    Args:
        model: the model.
        guide: its guide, amortised over tasks; of a model with other arguments any guide of it.
        *args: held-out tasks: a TaskBatch or several, or a Dataset of tasks (whose predictions are not tested, for
            nothing is held out of it). They must not have been trained on. Calibration simulates data at their inputs.
            Or what both are called with.
        objective: what the guide was trained with; it decides the kind where that is not given.
        kind: ``"posterior"`` or ``"prediction"``.
        trained_on: some of the training tasks, at least 40 of them, to say whether the tested ones are like them.
        losses: of the training, oldest first: numbers, or rows as ``FitResult.history`` has them.
        checks: functions of the observed values by site, such as ``lambda sites: sites["y"].max()``.
        nuts_seconds: for the reference; 0 runs none.
        refit: gives a guide fitted to a model whose data are simulated; it is called with that model.
        refit_seconds: how long refits go on, five of them at least.
        num_simulations: tasks simulated for calibration.
        num_samples: draws for the weights and predictions.
        seed: of everything drawn; the global random state stays as it was.
        progress: show what is being done, where stderr is a terminal.
        **kwargs: what both are called with, beside ``args``.

    Returns:
        A :class:`Verdict`. *Trust*: use the guide's draws. *Use with importance weights*: the draws are off, but the
        weights mend it (``sample_posterior(..., correct="psis")``). *Do not trust*: they do not.

    Raises:
        ValueError: no tasks (None among them), or an argument out of range.
    """
    if not _on_tasks(model, args, kwargs) or _is_fitted_to(guide, args):
        return pyro_verdict(
            model, guide, args, kwargs, losses=losses, checks=checks, nuts_seconds=nuts_seconds, refit=refit,
            refit_seconds=refit_seconds, num_samples=num_samples, seed=seed, progress=progress,
        )  # fmt: skip
    unknown = sorted(set(kwargs) - {"tasks"})
    if unknown or len(args) > 1:
        more = unknown[0] if unknown else f"{len(args)} arguments"
        raise TypeError(f"verdict: got {more}; with tasks it takes verdict(model, guide, tasks) and its own options")
    for name, given in (("losses", losses), ("checks", checks or None), ("refit", refit)):
        if given is not None:
            raise ValueError(
                f"{name}: got a {type(given).__name__}; it is for a model that is called with other than tasks"
            )
    tasks = args[0] if args else kwargs.get("tasks")
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


def _on_tasks(model: Any, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Whether a verdict is asked for on tasks, or on arguments of the model's own."""
    if isinstance(model, Model) or "tasks" in kwargs or (len(args) == 1 and args[0] is None):
        return True
    first = args[0] if len(args) == 1 and not kwargs else None
    several = isinstance(first, list | tuple) and all(isinstance(part, TaskBatch | Dataset) for part in first)
    return isinstance(first, TaskBatch | Dataset) or several


def _is_fitted_to(guide: Any, args: tuple) -> bool:
    """Whether the guide is the posterior of these data alone, so that other tasks can say nothing of it."""
    return not as_guide(guide).reads_data and len(args) == 1 and isinstance(args[0], Dataset)


def held_out_tasks(stream: TaskStream) -> list[TaskBatch]:
    """Tasks of a training stream that no training reaches, for a verdict."""
    return batches_of(stream, HELD_OUT_BATCH, HELD_OUT_TASKS)


def _inputs(batches: Sequence[Any], count: int) -> list[Dataset]:
    """Inputs of ``count`` tasks, and which outputs of them are known: those of the contexts over and over, by batch.

    Of targets where there is no context.
    """
    parts = []
    for batch in batches[: max(1, count // LEAST_INPUTS)]:
        data = batch.context if isinstance(batch, TaskBatch) else batch
        data = batch.target if isinstance(batch, TaskBatch) and data.num_points == 0 else data
        parts.append(data if data.batch_shape else _as_task(data))
    found = []
    for place, data in enumerate(parts):
        share = count // len(parts) + (place < count % len(parts))
        index = torch.arange(share, device=data.x.device) % len(data)
        mask, observed = (None if part is None else part[index] for part in (data.mask, data.observed))
        found.append(Dataset.unchecked(data.x[index], None, mask, observed))  # as incomplete as the tasks are
    return found


def _as_task(data: Dataset) -> Dataset:
    """A single data set as one task."""
    return data.map(lambda part: part.unsqueeze(0))


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
