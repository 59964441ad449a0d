"""Whether to trust a fit: calibration, importance weights and predictions of an amortised guide, and what to try."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from evaluation.diagnostics import khat_threshold, psis
from evaluation.simulation_calibration import LIKELIHOOD, CalibrationRanks, NothingDrawn, simulation_ranks
from inference.objectives import REGISTRY
from inference.objectives.task_objective import effective_sample_size
from inference.posterior_draws import posterior_log_weights
from inference.predict import predict
from inference.progress import Stages
from pp_models.data import Dataset, TaskBatch

TRUST = "trust"
REWEIGH = "use with importance weights"
REJECT = "do not trust"
LEVELS = (TRUST, REWEIGH, REJECT)
KINDS = ("posterior", "prediction")
#: where in a training stream tasks lie that no training reaches, and how many of them a run's verdict rests on
HELD_OUT_BATCH, HELD_OUT_TASKS = 20_000_000, 32
#: what is too far off, in posterior standard deviations, and by which factor
MOST_BIAS, MOST_SPREAD = 0.2, 1.25
#: how many standard errors a deviation must be before it counts
STANDARD_ERRORS = 4.0
#: share of tasks whose weights must be reliable
RELIABLE = 0.9
#: below this share of effective draws the guide itself, without weights, is too far from the posterior
LEAST_EFFICIENCY = 0.5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what.
        measured: the numbers.
        rule: what they must be.
        passed: whether they are; None where it could not be looked at.
        sentence: what it means.
    """

    name: str
    measured: str
    rule: str
    passed: bool | None
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The answer to "can I trust this fit?".

    Args:
        level: ``"trust"``, ``"use with importance weights"`` or ``"do not trust"``.
        reason: one sentence.
        findings: what it rests on.
        advice: what to try next.
        numbers: every number by name.
        ranks: ranks of simulated truths, for :func:`evaluation.plots.rank_ecdf_plot`; None where nothing was simulated.
    """

    level: str
    reason: str
    findings: list[Finding]
    advice: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    ranks: CalibrationRanks | None = field(default=None, compare=False, repr=False)

    @property
    def sentence(self) -> str:
        """The reason as a sentence of its own."""
        return self.reason[0].upper() + self.reason[1:]

    def table(self) -> pd.DataFrame:
        """The findings, one row each."""
        word = {True: "yes", False: "NO", None: "not looked at"}
        return pd.DataFrame(
            [
                {"what": f.name, "measured": f.measured, "rule": f.rule, "holds": word[f.passed], "meaning": f.sentence}
                for f in self.findings
            ]
        )

    def __str__(self) -> str:
        lines = [f"{self.level.upper()}: {self.reason}"]
        lines += [
            f"  {'?' if f.passed is None else '+' if f.passed else '-'} {f.name}: {f.measured}" for f in self.findings
        ]
        return "\n".join(lines + [f"  try: {advice}" for advice in self.advice])


def verdict(
    model: Any,
    guide: Any,
    tasks: TaskBatch | Sequence[TaskBatch] | Dataset,
    *,
    objective: str | None = None,
    kind: str | None = None,
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

    Args:
        model: the model.
        guide: its guide, amortised over tasks.
        tasks: held-out tasks: a TaskBatch or several, or a Dataset of tasks (whose predictions are not tested, for
            nothing is held out of it). They must not have been trained on. Calibration simulates data at their inputs.
        objective: what the guide was trained with; it decides the kind where that is not given.
        kind: ``"posterior"`` or ``"prediction"``.
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
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}; it must be one of {', '.join(KINDS)}")
    for name, value, least in (("num_simulations", num_simulations, 20), ("num_samples", num_samples, 50)):
        if value < least:
            raise ValueError(f"{name}: got {value}; it must be at least {least}")
    batches = [tasks] if isinstance(tasks, TaskBatch | Dataset) else list(tasks)
    if not batches:
        raise ValueError("tasks: got none; held-out tasks are needed to test a guide on")
    if kind is None:
        predicts = (
            objective is not None and objective in REGISTRY and REGISTRY[objective].load().guide_is == "predictor"
        )
        kind = "prediction" if predicts else "posterior"
    tested = _Evidence(kind)
    if kind == "posterior":
        _test_calibration(tested, model, guide, batches, num_simulations, seed, progress)
    with Stages(progress) as shown:
        if tested.kind == "posterior":
            _test_weights(tested, model, guide, batches, num_samples, seed, shown)
        split = [batch for batch in batches if isinstance(batch, TaskBatch)]
        if split:
            _test_predictions(tested, model, guide, split, min(num_samples, 200), seed, shown)
    return tested.verdict()


class _Evidence:
    """Collects findings, and weighs them at the end."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.findings: list[Finding] = []
        self.numbers: dict[str, float] = {}
        self.advice: list[str] = []
        self.calibrated: bool | None = None
        self.reliable: bool | None = None
        self.predictive: bool | None = None
        self.ranks: CalibrationRanks | None = None

    def add(self, name: str, measured: str, rule: str, passed: bool | None, sentence: str, advice: str = "") -> None:
        self.findings.append(Finding(name, measured, rule, passed, sentence))
        if passed is False and advice:
            self.advice.append(advice)

    def verdict(self) -> Verdict:
        failed = [f for f in self.findings if f.passed is False]
        if not any(f.passed is not None for f in self.findings):
            return Verdict(REJECT, "nothing could be tested.", self.findings, self.advice, self.numbers, self.ranks)
        if not failed:
            what = "posterior draws and predictions are" if self.kind == "posterior" else "predictions are"
            level, reason = TRUST, f"as far as these tests see, {what} calibrated."
        elif self.kind == "posterior" and self.reliable and self.predictive is not False:
            level = REWEIGH
            reason = f"{failed[0].sentence} The importance weights are reliable and mend it."
            self.advice.insert(0, 'draw with sample_posterior(..., correct="psis")')
        else:
            level, reason = REJECT, failed[0].sentence
        return Verdict(level, reason, self.findings, list(dict.fromkeys(self.advice)), self.numbers, self.ranks)


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
    tested: _Evidence, model: Any, guide: Any, batches: Sequence[Any], count: int, seed: int, progress: bool
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
    tested: _Evidence, model: Any, guide: Any, batches: Sequence[Any], num_samples: int, seed: int, shown: Stages
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


def _test_predictions(
    tested: _Evidence, model: Any, guide: Any, batches: Sequence[TaskBatch], draws: int, seed: int, shown: Stages
) -> None:
    shown.begin("predictions of held-out tasks", len(batches))
    scores: list[Tensor] = []
    sizes: list[int] = []
    own_scores, other_scores = [], []
    discrete = False
    for number, batch in enumerate(batches):
        y = batch.target.y
        assert y is not None
        found = predict(model, guide, batch.context, batch.target.without_y(), draws, seed=seed + number)
        mask = batch.target.full_mask()
        log_prob = torch.where(mask, found.log_prob(_filled(y, mask)), 0.0)
        own_scores.append(log_prob.sum(-1) / mask.sum(-1))
        if len(batch.context) > 1 and batch.context.num_points:
            order = (torch.arange(len(batch.context)) + 1) % len(batch.context)
            swapped = predict(model, guide, batch.context[order], batch.target.without_y(), draws, seed=seed + number)
            other = torch.where(mask, swapped.log_prob(_filled(y, mask)), 0.0)
            other_scores.append(other.sum(-1) / mask.sum(-1))
        discrete = discrete or not y.dtype.is_floating_point
        if not discrete:
            below = (found.samples < y).double().mean(0).clamp(0.5 / draws, 1 - 0.5 / draws)
            normal = torch.special.ndtri(below)
            sizes.append(int(batch.context.counts.double().mean().round()))
            scores.append(torch.stack([_task_mean(normal, mask), _task_mean(normal.square(), mask)]))
        shown.advance()
    if other_scores:
        gain = (torch.cat(own_scores)[: sum(map(len, other_scores))] - torch.cat(other_scores)).double()
        error = float(gain.std() / math.sqrt(len(gain))) if len(gain) > 1 else math.inf
        uses = float(gain.mean()) > 2 * error
        tested.numbers |= {"context_gain": float(gain.mean())}
        tested.predictive = uses
        tested.add(
            "context",
            f"own context is worth {float(gain.mean()):+.3f} ± {error:.3f} nats a point over another task's",
            "above zero by two standard errors",
            uses,
            "Predictions use the context." if uses else "Predictions do not depend on the context.",
            "check that contexts reach the encoder; train longer; a smaller KL weight at the start",
        )
    if scores:
        both = torch.cat(scores, 1)
        bias, spread = float(both[0].mean()), float(both[1].mean().sqrt())
        bias_error = float(both[0].std() / math.sqrt(both.shape[1]))
        spread_error = float(both[1].std() / math.sqrt(both.shape[1])) / (2 * spread)
        off = abs(bias) > MOST_BIAS and abs(bias) > STANDARD_ERRORS * bias_error
        wrong = abs(math.log(spread)) > math.log(MOST_SPREAD) and abs(spread - 1) > STANDARD_ERRORS * spread_error
        tested.numbers |= {"pit_bias": bias, "pit_spread": spread}
        for size in sorted(set(sizes)):  # by number of context points
            part = torch.cat([score for score, own in zip(scores, sizes, strict=True) if own == size], 1)
            tested.numbers[f"pit_spread_{size}"] = float(part[1].mean().sqrt())
        passed = not (off or wrong)
        tested.predictive = passed and tested.predictive is not False
        kind = "too sure of themselves" if spread > 1 else "too cautious"
        tested.add(
            "predictions",
            f"normal scores of the targets: mean {bias:+.2f}, sd {spread:.2f} ({both.shape[1]} tasks)",
            f"|mean| <= {MOST_BIAS}, sd within a factor {MOST_SPREAD} of 1",
            passed,
            "Held-out targets fall where the predictive says." if passed else f"Predictions are {kind}.",
            "more training tasks or steps; a noise floor that fits the data; compare objectives",
        )


def _filled(y: Tensor, mask: Tensor) -> Tensor:
    """Observations with zeros where no point exists."""
    return torch.where(mask.reshape(mask.shape + (1,) * (y.dim() - mask.dim())), y, torch.zeros_like(y))


def _task_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the existing points and outputs of a task ``[T]``."""
    weight = mask.unsqueeze(-1).to(values.dtype).expand_as(values)
    total = torch.where(weight > 0, values, torch.zeros_like(values)).sum((-1, -2))
    return total / weight.sum((-1, -2)).clamp_min(1)
