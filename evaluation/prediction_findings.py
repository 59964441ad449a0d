"""Findings on predictions: whether they use the context, are calibrated and sharp, and fit what they were given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evaluation.findings import MOST_BIAS, MOST_SPREAD, STANDARD_ERRORS, Evidence
from evaluation.sharpness import references
from inference.predict import predict
from inference.progress import Stages
from pp_models.data import TaskBatch
from pp_models.likelihoods import floor_of

#: central intervals whose coverage is looked at, how far off it may be, and by how many standard errors
LEVELS_OF_INTERVALS = (0.5, 0.8, 0.95)


MOST_MISCOVERAGE = 0.05


COVERAGE_ERRORS = 3.0


#: a standard deviation below this many floors is held up by the floor, and the share of targets from which on the
#: others say something
NEAR_FLOOR, LEAST_REST = 1.2, 0.05


#: how much less of the variance of given points a mean may explain than a Gaussian process does of unseen ones
MOST_UNEXPLAINED = 0.2


def judge_predictions(
    tested: Evidence, model: Any, guide: Any, batches: Sequence[TaskBatch], draws: int, seed: int, shown: Stages
) -> None:
    shown.begin("predictions of held-out tasks", len(batches))
    scores: list[Tensor] = []
    sizes: list[int] = []
    own_scores, other_scores = [], []
    coverages: list[Tensor] = []
    counts: list[Tensor] = []
    confidences: list[Tensor] = []
    discrete = False
    floor = FloorEvidence(floor_of(model))
    for number, batch in enumerate(batches):
        y = batch.target.y
        assert y is not None
        found = predict(model, guide, batch.context, batch.target.without_y(), draws, seed=seed + number)
        mask, points = batch.target.known_mask(), batch.target.full_mask().sum(-1)
        own_scores.append(found.log_prob(y, mask).sum(-1) / points)
        if len(batch.context) > 1 and batch.context.num_points:
            order = (torch.arange(len(batch.context)) + 1) % len(batch.context)
            swapped = predict(model, guide, batch.context[order], batch.target.without_y(), draws, seed=seed + number)
            other_scores.append(swapped.log_prob(y, mask).sum(-1) / points)
        discrete = discrete or not y.dtype.is_floating_point
        if discrete:
            sure, chosen = found.mean.max(-1)
            parts = [task_mean(part.unsqueeze(-1), mask) for part in (sure, (chosen == y).to(sure))]
            confidences.append(torch.stack(parts).flatten(1)[:, mask.any(-1).flatten()])
        else:
            below = (found.samples < y).double().mean(0).clamp(0.5 / draws, 1 - 0.5 / draws)
            normal = torch.special.ndtri(below)
            sizes.append(int(batch.context.counts.double().mean().round()))
            scores.append(torch.stack([task_mean(normal, mask), task_mean(normal.square(), mask)]))
            inside = [task_mean(((2 * below - 1).abs() <= level).double(), mask) for level in LEVELS_OF_INTERVALS]
            coverages.append(torch.stack(inside))
            counts.append(batch.context.counts.reshape(-1))
            floor.add(found.std, y - found.mean, normal, mask)
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
    if confidences:
        judge_confidence(tested, torch.cat(confidences, 1).double())
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
        tested.numbers |= floor.numbers()
        cause = floor.cause()
        kind = "too sure of themselves" if spread > 1 else f"too cautious{cause}"
        tested.add(
            "predictions",
            f"normal scores of the targets: mean {bias:+.2f}, sd {spread:.2f} ({both.shape[1]} tasks)",
            f"|mean| <= {MOST_BIAS}, sd within a factor {MOST_SPREAD} of 1",
            passed,
            "Held-out targets fall where the predictive says." if passed else f"Predictions are {kind}.",
            "a likelihood with a smaller min_scale"
            if cause
            else f"{_training(spread > 1)}; a noise floor that fits the data; compare objectives",
        )
        judge_coverage(tested, torch.cat([c.flatten(1) for c in coverages], 1), torch.cat(counts), cause)
        if not discrete:
            judge_sharpness(tested, torch.cat([s.reshape(-1) for s in own_scores]), model, guide, batches, draws, seed)


def _training(too_sure: bool) -> str:
    """What training to try: tasks that were learned by heart make predictions too sure, and more steps do not help."""
    if too_sure:
        return "more training tasks, or an earlier end: fit(validation=..., keep_best=True)"
    return "more training tasks or steps"


def judge_confidence(tested: Evidence, found: Tensor) -> None:
    """Whether the probability of the class that is chosen is the share that is right.

    Args:
        tested: gets the finding.
        found: mean probability of the chosen class, and share that is right, by task ``[2, T]``.
    """
    if not found.shape[1]:
        return
    gap = found[0] - found[1]
    excess = float(gap.mean())
    error = float(gap.std() / math.sqrt(len(gap))) if len(gap) > 1 else math.inf
    passed = not (abs(excess) > MOST_MISCOVERAGE and abs(excess) > COVERAGE_ERRORS * error)
    kind = "too sure of themselves" if excess > 0 else "too cautious"
    tested.predictive = passed and tested.predictive is not False
    sure, right = (float(v) for v in found.mean(1))
    tested.numbers |= {"confidence": sure, "accuracy": right}
    tested.add(
        "confidence",
        f"{100 * right:.0f} ± {100 * error:.0f} % of the chosen classes are right, of mean probability {sure:.2f}",
        f"within {100 * MOST_MISCOVERAGE:.0f} points (beyond {COVERAGE_ERRORS:g} standard errors)",
        passed,
        "As many classes are right as the probabilities say."
        if passed
        else f"Predictions are {kind}: {100 * right:.0f} % of the classes are right where they say {100 * sure:.0f} %.",
        "more training tasks, of more classes; a temperature on the logits; more draws",
    )


class FloorEvidence:
    """Whether caution is that of the floor under the standard deviation, whose targets lie closer to the mean than it.

    Args:
        floor: least standard deviation that the model predicts; None where it has none.
    """

    def __init__(self, floor: float | None) -> None:
        self.floor = floor or None
        self.parts: list[Tensor] = []

    def add(self, std: Tensor, error: Tensor, normal: Tensor, mask: Tensor) -> None:
        """Standard deviations, errors of the mean and normal scores of some targets, ``[*B, N, Dy]`` each."""
        if self.floor is not None:
            self.parts.append(torch.stack([values[mask].double().reshape(-1) for values in (std, error, normal)]))

    def numbers(self) -> dict[str, float]:
        """The floor, the share of targets that are at it, and how far these lie from the mean."""
        if self.floor is None:
            return {}
        std, error, _ = torch.cat(self.parts, 1)
        near = std < NEAR_FLOOR * self.floor
        found = {"floor": self.floor, "share_at_floor": float(near.double().mean())}
        return found | ({"rmse_at_floor": float(error[near].square().mean().sqrt())} if bool(near.any()) else {})

    def cause(self) -> str:
        """What to add to "too cautious": the floor, where it and nothing else is the cause; else nothing."""
        found = self.numbers()
        if self.floor is None or found.get("rmse_at_floor", math.inf) >= self.floor / MOST_SPREAD:
            return ""
        std, _, normal = torch.cat(self.parts, 1)
        rest = normal[std >= NEAR_FLOOR * self.floor]
        if len(rest) >= LEAST_REST * len(normal) and float(rest.square().mean().sqrt()) < 1 / MOST_SPREAD:
            return ""
        return (
            f", by the floor of {self.floor:g} under their standard deviation: the {found['share_at_floor']:.0%} of "
            f"the targets that are at it lie {found['rmse_at_floor']:.2g} from the mean"
        )


def judge_coverage(tested: Evidence, inside: Tensor, counts: Tensor, floor: str = "") -> None:
    """Coverage of central intervals ``[levels, T]``, for all tasks and for those with few and with many points.

    Args:
        tested: gets the finding.
        inside: share of a task's targets inside.
        counts: context points of the tasks.
        floor: what makes intervals too wide, where it is the floor.
    """
    nominal = torch.tensor(LEVELS_OF_INTERVALS, dtype=inside.dtype)
    found, error = inside.mean(1), inside.std(1) / math.sqrt(inside.shape[1])
    off = (found - nominal).abs()
    bad = (off > MOST_MISCOVERAGE) & (off > COVERAGE_ERRORS * error)
    few = counts <= counts.double().median()
    for level, share, each in zip(LEVELS_OF_INTERVALS, found.tolist(), inside, strict=True):
        tested.numbers[f"coverage_{100 * level:.0f}"] = share
        for name, part in (("few", each[few]), ("many", each[~few])):  # context points
            if len(part):
                tested.numbers[f"coverage_{100 * level:.0f}_{name}"] = float(part.mean())
    passed = not bool(bad.any())
    if tested.kind == "prediction":  # a posterior that is too wide or narrow may be mended by its weights
        tested.predictive = passed and tested.predictive is not False
    worst = int(off.argmax())
    level, share = LEVELS_OF_INTERVALS[worst], float(found[worst])
    cause = floor if share > level else ""
    tested.add(
        "coverage",
        ", ".join(
            f"{100 * n:.0f} % intervals hold {100 * c:.0f} ± {100 * e:.0f} %"
            for n, c, e in zip(LEVELS_OF_INTERVALS, found.tolist(), error.tolist(), strict=True)
        ),
        f"each within {100 * MOST_MISCOVERAGE:.0f} points (beyond {COVERAGE_ERRORS:g} standard errors)",
        passed,
        "Central intervals hold the share of targets that they say."
        if passed
        else f"The {100 * level:.0f} % intervals hold {100 * share:.0f} % of the targets{cause}.",
        "a likelihood with a smaller min_scale"
        if cause
        else f"{_training(share < level)}; a likelihood with a noise of its own at each point",
    )


def judge_sharpness(
    tested: Evidence, own: Tensor, model: Any, guide: Any, batches: Sequence[TaskBatch], draws: int, seed: int
) -> None:
    """Log-likelihoods ``[T]`` beside those of the references: calibrated and useless is not to be trusted."""
    beside = references(model, guide, batches, draws, seed)
    gain = (own.double() - beside.marginal)[torch.isfinite(own.double() - beside.marginal)]
    if not len(gain):
        return
    error = float(gain.std() / math.sqrt(len(gain))) if len(gain) > 1 else math.inf
    fitted = torch.isfinite(beside.gp)
    tested.numbers |= {"own_ll": float(own.nanmean()), "marginal_ll": float(beside.marginal.nanmean())}
    measured = (
        f"{float(own.nanmean()):+.2f} nats a point; the marginal of all tasks {float(beside.marginal.nanmean()):+.2f}"
    )
    if bool(fitted.any()):
        tested.numbers |= {"gp_ll": float(beside.gp[fitted].median()), "own_ll_beside_gp": float(own[fitted].median())}
        measured += f"; in the median of {int(fitted.sum())} tasks {float(own[fitted].median()):+.2f}"
        measured += f", a Gaussian process fitted to each context {float(beside.gp[fitted].median()):+.2f}"
    passed = float(gain.mean()) > 2 * error
    tested.predictive = passed and tested.predictive is not False
    tested.add(
        "sharpness",
        measured,
        "above the marginal by two standard errors",
        passed,
        "Predictions say more than the spread of all tasks does."
        if passed
        else "Predictions say no more than the spread of all tasks does: useless, calibrated or not.",
        "train longer; a richer guide; check that contexts reach the encoder",
    )
    if not bool(fitted.any()):
        return
    given, unseen = float(beside.own_explained.nanmedian()), float(beside.gp_explained.nanmedian())
    tested.numbers |= {"context_explained": given, "gp_explained": unseen}
    fits = given >= unseen - MOST_UNEXPLAINED
    tested.predictive = fits and tested.predictive is not False
    tested.add(
        "fit of the context",
        f"the mean explains {given:.0%} of the variance of the points it was given; that of a Gaussian process fitted "
        f"to them {unseen:.0%} of points it never saw (medians over tasks)",
        f"no more than {MOST_UNEXPLAINED:.0%} behind",
        fits,
        "Predictions go through the points they were given as far as the noise allows."
        if fits
        else "Predictions miss the points they were given.",
        "train longer, with a schedule; a guide or model that reads every point (a path, attention, a regression)",
    )


def task_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the points and outputs of a task ``[T]`` that a mask of either keeps."""
    weight = (mask if mask.shape == values.shape else mask.unsqueeze(-1)).to(values.dtype).expand_as(values)
    total = torch.where(weight > 0, values, torch.zeros_like(values)).sum((-1, -2))
    return total / weight.sum((-1, -2)).clamp_min(1)
