"""Simulation-based calibration of amortised guides: cheap, because a guide answers a thousand data sets at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from inference.data_dtype import as_computed
from inference.objectives.independent_plates import is_point_mass, sample_sites
from inference.predict import predict
from inference.progress import Stages
from inference.random_state import seeded
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.task_plates import PARTICLE_PLATE

#: of every site at most this many entries are ranked
MOST_ENTRIES = 8
LIKELIHOOD = "log likelihood"
DISTANCE = "distance"


class NothingDrawn(ValueError):
    """A guide that draws no site of the model, whose calibration therefore cannot be asked."""


@dataclass(frozen=True)
class CalibrationRanks:
    """Ranks of the truth among the draws of a guide.

    Args:
        ranks: by quantity, ``[T]``, integers 0 .. S; uniform for an exact posterior.
        num_draws: S.
    """

    ranks: dict[str, Tensor]
    num_draws: int

    def scores(self, name: str) -> Tensor:
        """The ranks as standard normal quantiles ``[T]``: N(0, 1) for an exact posterior."""
        return torch.special.ndtri((self.ranks[name].double() + 0.5) / (self.num_draws + 1))

    def summary(self) -> dict[str, tuple[float, float]]:
        """By quantity the mean and the standard deviation of its scores: 0 and 1 for an exact posterior.

        Below 0 the guide's draws lie too high, in its own standard deviations; a standard deviation of 2 says that the
        guide's is half of what it should be. With S draws no score exceeds that of rank S, so large deviations read
        somewhat smaller than they are.
        """
        return {name: (float(self.scores(name).mean()), float(self.scores(name).std())) for name in self.ranks}


@torch.no_grad()
def simulation_ranks(
    model: Any,
    guide: Any,
    inputs: Dataset | Sequence[Dataset],
    num_draws: int = 99,
    *,
    seed: int = 0,
    chunk_size: int = 50,
    progress: bool = False,
) -> CalibrationRanks:
    """Draws latents and data from the model, and ranks the latents among the guide's draws given those data.

    Simulation-based calibration (Talts et al. 2018) over all tasks of ``inputs`` at once. A guide that answers with the
    prior passes for every latent, so the log-likelihood of the data is ranked as well (Modrák et al. 2023). So is the
    distance of a site's entries, all together, to a random point (TARP, Lemos et al. 2023).

    Args:
        model: its prior must be one that can be sampled.
        guide: amortised over data sets.
        inputs: inputs ``[T, N]`` of the simulated tasks, or several such of different N; their y is not used.
        num_draws: S, draws of each task.
        seed: of everything drawn.
        chunk_size: tasks whose draws are made at once.
        progress: show a bar over the tasks, where stderr is a terminal.

    Returns:
        Ranks of up to eight entries of every drawn site, of the distance to a random point for a site of several
        entries, and of the log-likelihood.

    Raises:
        ValueError: fewer than two draws, inputs without a task dimension, or (NothingDrawn) a guide without drawn
            sites.
        NotImplementedError: a prior that cannot be sampled.
    """
    if num_draws < 2:
        raise ValueError(f"num_draws: got {num_draws}; it must be at least 2")
    groups = [inputs] if isinstance(inputs, Dataset) else list(inputs)
    if not groups:
        raise ValueError("inputs: got none; at least one set of tasks is needed")
    for group in groups:
        if len(group.batch_shape) != 1:
            raise ValueError(f"inputs: got task dimensions {list(group.batch_shape)}; it must have one")
    groups = [as_computed(group, model, guide) for group in groups]
    found: dict[str, list[Tensor]] = {}
    with seeded(seed, groups[0].x.device), Stages(progress) as shown:
        shown.begin("simulated tasks", sum(map(len, groups)))
        for group in groups:
            for start in range(0, len(group), chunk_size):
                part = group[start : start + chunk_size]
                for name, ranks in _chunk_ranks(model, guide, part, num_draws, seed).items():
                    found.setdefault(name, []).append(ranks)
                shown.advance(len(part))
    if set(found) <= {LIKELIHOOD}:
        raise NothingDrawn("guide: it draws no site of the model; there is nothing to calibrate")
    return CalibrationRanks({name: torch.cat(parts) for name, parts in found.items()}, num_draws)


def _chunk_ranks(model: Any, guide: Any, inputs: Dataset, num_draws: int, seed: int) -> dict[str, Tensor]:
    """Ranks of some tasks; which entries are ranked depends on the seed alone."""
    truth = poutine.trace(model).get_trace(inputs.without_y())
    data = Dataset(inputs.x, truth.nodes["y"]["value"], inputs.mask, inputs.observed)
    with pyro.plate(PARTICLE_PLATE, num_draws, dim=-2):
        drawn = poutine.trace(guide).get_trace(data)
        given = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(data)
    generator = torch.Generator().manual_seed(seed)
    ranks: dict[str, Tensor] = {}
    for name, site in sample_sites(drawn):
        if name not in truth.nodes or is_point_mass(site["fn"]):
            continue
        event = site["fn"].event_shape
        values = site["value"].expand(num_draws, len(inputs), *event).reshape(num_draws, len(inputs), -1)
        true = truth.nodes[name]["value"].expand(len(inputs), *event).reshape(len(inputs), -1)
        for entry in torch.randperm(values.shape[-1], generator=generator)[:MOST_ENTRIES].tolist():
            ranks[f"{name}[{entry}]" if values.shape[-1] > 1 else name] = _rank(true[:, entry], values[..., entry])
        if values.shape[-1] > 1 and len(inputs) > 1:
            other = true.roll(1, 0)  # another task's truth: a point that has nothing to do with this one's
            ranks[f"{name} ({DISTANCE})"] = _rank((true - other).norm(dim=-1), (values - other).norm(dim=-1))
    fixed = {n: s["value"] for n, s in sample_sites(truth)}
    own = poutine.trace(poutine.condition(model, data=fixed)).get_trace(data).nodes["y"]
    ranks[LIKELIHOOD] = _rank(_by_task(own, 1, len(inputs))[0], _by_task(given.nodes["y"], num_draws, len(inputs)))
    return ranks


def _rank(truth: Tensor, draws: Tensor) -> Tensor:
    """How many draws ``[S, T]`` lie below the truth ``[T]``, ties broken at random."""
    ties = (draws == truth).sum(0)
    chosen = (torch.rand(truth.shape, device=truth.device) * (ties + 1)).long().clamp_max(ties)
    return (draws < truth).sum(0) + chosen


def _by_task(site: Any, draws: int, tasks: int) -> Tensor:
    """Log-likelihood ``[S, T]`` of an observation site."""
    value = site["fn"].log_prob(site["value"])
    return value.reshape(draws, tasks, -1).sum(-1) if value.dim() > 1 or draws == 1 else value.expand(draws, tasks)


def pit_by_context_size(
    model: Any,
    guide: Any,
    batches: Iterable[TaskBatch],
    num_samples: int = 200,
    *,
    seed: int = 0,
    progress: bool = False,
) -> dict[int, Tensor]:
    """Probability integral transforms of held-out targets, by number of context points; uniform where calibrated.

    Args:
        model: the model.
        guide: its guide; it sees the contexts.
        batches: held-out tasks with real-valued targets.
        num_samples: predictive draws; a transform is the share of them below the target.
        seed: of the draws; the n-th batch has seed + n.
        progress: show a bar over the batches, where stderr is a terminal.

    Returns:
        By size, in ascending order, the values of all existing points and outputs in one dimension.

    Raises:
        DataError: targets without y, or classes.
        ValueError: no batches.
    """
    found: dict[int, list[Tensor]] = {}
    batches = list(batches)
    if not batches:
        raise ValueError("batches: got none; held-out tasks are needed")
    with Stages(progress) as shown:
        shown.begin("predictions of held-out tasks", len(batches))
        for number, batch in enumerate(batches):
            y = batch.target.y
            if y is None or not y.dtype.is_floating_point:
                raise DataError("target: its y must be known and real for a probability integral transform")
            samples = predict(model, guide, batch.context, batch.target.without_y(), num_samples, seed=seed + number)
            below = (samples.samples < y).double().mean(0)
            counts, mask = batch.context.counts, batch.target.output_mask()
            for size in counts.unique().tolist():
                found.setdefault(int(size), []).append(below[mask & (counts == size)[..., None, None]])
            shown.advance()
    return {size: torch.cat(found[size]) for size in sorted(found)}


def ecdf_envelope(count: int, num_draws: int, level: float = 0.95, repeats: int = 2_000, seed: int = 0) -> Tensor:
    """Half-width of the band that the ECDF of uniform ranks stays in everywhere with this probability.

    By simulation (Säilynoja et al. 2022, section 2.3, in its plainest form: one half-width for all ranks).

    Args:
        count: number of ranks, T.
        num_draws: S; ranks are 0 .. S.
        level: probability that the whole ECDF stays inside.
        repeats: simulated sets of ranks.
        seed: of the simulation.

    Returns:
        A scalar: the largest |ECDF - uniform| at that probability.
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randint(0, num_draws + 1, (repeats, count), generator=generator)
    return torch.quantile(ecdf_distance(ranks.T, num_draws), level)


def ecdf_distance(ranks: Tensor, num_draws: int) -> Tensor:
    """Largest distance between the ECDF of ranks ``[T, *batch]`` and the uniform one, ``[*batch]``."""
    counts = torch.zeros(num_draws + 1, *ranks.shape[1:], device=ranks.device)
    counts.scatter_add_(0, ranks, torch.ones_like(ranks, dtype=counts.dtype))
    uniform = torch.arange(1, num_draws + 2, device=ranks.device, dtype=counts.dtype) / (num_draws + 1)
    empirical = counts.cumsum(0) / len(ranks)
    return (empirical - uniform.reshape(-1, *(1,) * (ranks.dim() - 1))).abs().amax(0)
