"""Findings on latents and tasks: rates that collapsed, latents that stay at their prior, tasks unlike the training's.

These are notes: they say what a fit is, and do not by themselves take trust from predictions that hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import one_hot

from evaluation.findings import Evidence
from inference.data_dtype import as_computed
from inference.objectives.independent_plates import sample_sites
from inference.posterior_draws import sample_posterior
from inference.random_state import seeded
from pp_models.contract import as_guide
from pp_models.data import Dataset, TaskBatch
from pp_models.task_plates import PARTICLE_PLATE

#: rates whose mean over tasks lies outside have collapsed, and a spread between tasks below which they do not differ
COLLAPSED, LEAST_RATE_SPREAD = (0.01, 0.99), 0.005
#: a latent is active where its posterior mean varies by this share of the prior's variance between tasks (Burda et
#: al. 2016), or its posterior variance is away from the prior's by more than this share
ACTIVE, NARROWED = 0.01, 0.05
#: how far from the training tasks is far (farther than this share of these), the share of tested tasks that may be
#: farther, and the training tasks that it takes to say so
FAR, MOST_UNLIKE, LEAST_TASKS = 0.95, 0.25, 40
PRIOR_DRAWS = 64


def judge_rates(tested: Evidence, guide: Any, batches: Sequence[TaskBatch | Dataset]) -> None:
    """Whether a dropout guide's rates are alive: away from 0 and 1, and different from task to task."""
    contexts = [batch.context if isinstance(batch, TaskBatch) else batch for batch in batches]
    with torch.no_grad():
        found = [as_guide(guide).rates(as_computed(context, guide, guide)) for context in contexts]
    by_site: dict[str, list[Tensor]] = {}
    for rates in found:
        for site, values in (rates or {}).items():
            by_site.setdefault(site, []).append(values.double().reshape(-1, values.shape[-2] * values.shape[-1]))
    layers = {site: torch.cat(parts) for site, parts in by_site.items()}
    if not layers or len(next(iter(layers.values()))) < 2:
        return
    means = {site: float(values.mean()) for site, values in layers.items()}
    spreads = {site: float(values.std(0).mean()) for site, values in layers.items()}
    dead = [site for site, mean in means.items() if not COLLAPSED[0] <= mean <= COLLAPSED[1]]
    alike = [site for site, spread in spreads.items() if spread < LEAST_RATE_SPREAD]
    tested.numbers |= {"rate_mean": _average(means), "rate_spread": _average(spreads)}
    passed = len(dead) < len(layers) and len(alike) < len(layers)
    if passed:
        sentence = "Rates differ from task to task."
    elif len(dead) == len(layers):
        sentence = "The rates collapsed: they carry nothing, and whatever the predictions know comes another way."
    else:
        sentence = "The rates are the same for every task: what the predictions know of a task comes another way."
    tested.note(
        "rates",
        f"mean {_average(means):.3f}, spread between tasks {_average(spreads):.3f}; {len(dead)} of {len(layers)} "
        f"layers at 0 or 1, {len(alike)} alike in all tasks",
        f"a layer's mean within {COLLAPSED[0]} and {COLLAPSED[1]}, its spread >= {LEAST_RATE_SPREAD}, in some layer",
        passed,
        sentence,
        "a guide without a second path, or one that is dropped at random; a smaller KL weight at the start",
    )


def _joined(parts: Sequence[Mapping[str, Tensor]], dim: int) -> dict[str, Tensor]:
    """Values of several batches as those of one along the tasks; sites whose size differs between them are left out."""
    if len(parts) == 1:
        return dict(parts[0])
    found = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts if name in part]
        if (
            first.dim() > dim
            and len(values) == len(parts)
            and len({(*v.shape[:dim], *v.shape[dim + 1 :]) for v in values}) == 1
        ):
            found[name] = torch.cat(values, dim)
    return found


def judge_activity(tested: Evidence, model: Any, guide: Any, batches: Sequence[Any], draws: int, seed: int) -> None:
    """Which latent coordinates respond to the data, of a guide that stands for the posterior under the prior."""
    whole = [batch.full if isinstance(batch, TaskBatch) else batch for batch in batches]
    if any(len(data.batch_shape) != 1 for data in whole) or sum(map(len, whole)) < 2:
        return
    priors, posteriors = [], []
    for number, data in enumerate(as_computed(part, model, guide) for part in whole):
        try:
            priors.append(_prior_moments(model, data, seed))
        except NotImplementedError:  # an improper prior has no spread
            return
        posteriors.append(sample_posterior(model, guide, data, draws, seed=seed + number))
    prior, posterior = _joined(priors, 0), _joined(posteriors, 1)
    shares: dict[str, tuple[int, int]] = {}
    for name, values in posterior.items():
        if name not in prior or values.dim() < 2 or values.shape[1:] != prior[name].shape:
            continue  # shared between tasks, or no latent of the model
        own = prior[name].mean(0).double().clamp_min(1e-12)
        moved = values.double().mean(0).var(0) / own
        width = values.double().var(0).mean(0) / own
        active = (moved > ACTIVE + own.new_tensor(2 / draws)) | ((width.log()).abs() > NARROWED + 2 / math.sqrt(draws))
        shares[name] = int(active.sum()), active.numel()
    if not shares:
        return
    some, all_ = (sum(share[k] for share in shares.values()) for k in (0, 1))
    still = [name for name, share in shares.items() if share[0] == 0]
    tested.numbers |= {"active_latents": some / all_}
    tested.note(
        "active latents",
        f"{some} of {all_} coordinates move or narrow with the data"
        + (f"; none of {', '.join(still[:3])}{' …' if len(still) > 3 else ''}" if still else ""),
        "some of every site",
        not still,
        "Every latent site responds to the data."
        if not still
        else "Some latents stay at their prior: the data say nothing of them, or the guide does not look.",
        "a smaller KL weight at the start, or free bits; fewer latents",
    )


def judge_likeness(tested: Evidence, batches: Sequence[TaskBatch | Dataset], trained_on: Sequence[Any]) -> None:
    """Whether the tested tasks lie where the training tasks do, by the level, scale and roughness of x and y."""
    whole = not all(isinstance(batch, TaskBatch) for batch in (*batches, *trained_on))
    names, known = _features(trained_on, whole)
    _, asked = _features(batches, whole)
    if len(known) < LEAST_TASKS or known.shape[1] != asked.shape[1]:
        return
    # one half says what is usual, the other how far from it tasks of the training lie: as tasks to come would
    usual, others = known[::2], known[1::2]
    centre = usual.nanmedian(0).values
    width = (usual - centre).abs().nanmean(0).clamp_min(1e-3 * (1 + centre.abs()))
    far = ((others - centre).abs() / width).nan_to_num(0.0).amax(1)
    each = ((asked - centre).abs() / width).nan_to_num(0.0)
    limit = float(far.quantile(FAR))
    unlike = each.amax(1) > limit * (1 + 1e-6)
    share = float(unlike.double().mean())
    error = math.sqrt(MOST_UNLIKE * (1 - MOST_UNLIKE) / len(asked))
    worst = names[int((each > limit).double().mean(0).argmax())]
    tested.numbers |= {"unlike_training": share}
    passed = share <= MOST_UNLIKE + 2 * error
    tested.note(
        "likeness to the training tasks",
        f"{share:.0%} of {len(asked)} tasks lie farther from the training tasks than {FAR:.0%} of these do"
        + ("" if passed else f", most by {worst}"),
        f"at most {MOST_UNLIKE:.0%} (beyond 2 standard errors)",
        passed,
        "The tasks are like those of the training."
        if passed
        else "Tasks are unlike those of the training: amortised answers are extrapolated.",
        "train on tasks like these, or scale x and y as in training",
    )


def _average(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def _prior_moments(model: Any, data: Dataset, seed: int) -> dict[str, Tensor]:
    """Variance over prior draws of every latent site that tasks do not share ``[T, *event]``."""
    with torch.no_grad(), seeded(seed, data.x.device), pyro.plate(PARTICLE_PLATE, PRIOR_DRAWS, dim=-2):
        trace = poutine.trace(model).get_trace(data.without_y())
    return {
        name: site["value"].var(0)
        for name, site in sample_sites(trace)
        if name != "y" and site["value"].dim() >= 2 and site["value"].shape[:2] == (PRIOR_DRAWS, len(data))
    }


def _features(batches: Sequence[Any], whole: bool) -> tuple[list[str], Tensor]:
    """Names, and by task ``[T, F]``: number of points, level and log spread of x and y, roughness of y along x.

    Of the context alone unless ``whole``.
    """
    rows = []
    names: list[str] = []
    for batch in batches:
        data = batch
        if isinstance(batch, TaskBatch):
            data = batch.full if whole or not batch.context.num_points else batch.context
        x, mask, known = data.x.double(), data.full_mask(), data.output_mask()
        y = data.y.double() if data.y.dim() == x.dim() else one_hot(torch.where(mask, data.y, 0)).double()
        known = known if data.observed is not None else mask.unsqueeze(-1)
        x, y, mask, known = x.flatten(0, -3), y.flatten(0, -3), mask.flatten(0, -2), known.flatten(0, -3)
        features = [mask.sum(-1, keepdim=True).double().log1p()]
        names = ["number of points"]
        for label, values, there in (("x", x, mask.unsqueeze(-1)), ("y", y, known)):
            mean, sd = _moments(values, there)
            features += [mean, sd.clamp_min(1e-6).log()]
            width = values.shape[-1]
            labels = [label] if width == 1 else [f"{label}{k}" for k in range(width)]
            names += [f"level of {each}" for each in labels] + [f"spread of {each}" for each in labels]
        features.append(_roughness(x, y, mask, known))
        names.append("roughness of y along x")
        rows.append(torch.cat(features, -1))
    width = max((row.shape[1] for row in rows), default=0)
    return names, torch.cat([row for row in rows if row.shape[1] == width]) if rows else torch.zeros(0, 0)


def _moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``[T, D]`` over what exists by a mask ``[T, N, 1 or D]``."""
    count = mask.double().sum(-2).clamp_min(1)
    values = torch.where(mask, values, torch.zeros_like(values))
    mean = values.sum(-2) / count
    square = torch.where(mask, values - mean.unsqueeze(-2), torch.zeros_like(values)).square()
    return mean, (square.sum(-2) / count).sqrt()


def _roughness(x: Tensor, y: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """Log of the squared difference to the nearest point over the variance ``[T, 1]``: small for smooth functions."""
    distance = torch.cdist(x, x)
    nobody = ~mask.unsqueeze(-2) | torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)
    nearest = distance.masked_fill(nobody, math.inf).argmin(-1)
    index = nearest.unsqueeze(-1).expand_as(y)
    both = known.expand_as(y) & known.expand_as(y).gather(-2, index)
    step = torch.where(both, y - y.gather(-2, index), torch.zeros_like(y))
    count = mask.sum(-1, keepdim=True).double()
    square = torch.where(mask, step.square().sum(-1), torch.zeros_like(step[..., 0])).sum(-1, keepdim=True)
    total = _moments(y, known)[1].square().sum(-1, keepdim=True) * count
    return torch.where(count > 2, (square / total.clamp_min(1e-12)).clamp_min(1e-6).log(), torch.nan)
