"""What every objective shares: Pyro's contract, particles, and one bound for each task."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_if_enumerated, check_model_guide_match, check_site_shape
from torch import Tensor

from inference.objectives.fixed_values import fixed_values
from inference.objectives.independent_plates import PARTICLES, Independence, Ties, check_extra_sites, sample_sites
from inference.objectives.kl_schedule import KLSchedule
from inference.objectives.particles import OWN, STRUCTURES, NotVectorised, Pairs, apart, check_one_alone, one_subsample
from inference.objectives.ties import Program, find_ties, structure
from pp_models.arguments import DRAWS, checked, instance, nesting
from pp_models.contract import ObjectiveOffers, as_guide, as_model
from pp_models.data import Dataset, TaskBatch
from pp_models.parameter_module import ParameterModule

logger = logging.getLogger("guidebook")

Draws = TypeVar("Draws")


@dataclass
class BoundTerms:
    """An objective on a batch of tasks, term by term; every tensor is per task ``[*B]``.

    Args:
        bound: what is maximised (for an upper bound: minimised); its gradient is the estimator's.
        log_likelihood: log-likelihood of the scored points under the guide's draws, in nats.
        kl: the divergence, reduced over weights as the objective reduces it (before β).
        points: number of scored values (points times output dimensions).
        kl_by_site: KL in nats (summed) by latent site.
        log_weights: logarithm of the unnormalised importance weights of the particles ``[K, *B]``, detached; None
            where the objective forms none and diagnostics were not asked for, and with local reparameterisation, which
            draws no weights whose density could be taken.
        scale: full over subsampled number of tasks, where the model subsamples its task plate.
        independent: which plates were split into bounds of their own, and which site ties the elements of the others.
        analytic: latent sites whose KL was taken in closed form; of the others it is a Monte-Carlo estimate.
    """

    bound: Tensor
    log_likelihood: Tensor
    kl: Tensor
    points: Tensor
    kl_by_site: dict[str, Tensor] = field(default_factory=dict)
    log_weights: Tensor | None = None
    scale: float = 1.0
    independent: Independence = field(default_factory=Independence)
    analytic: tuple[str, ...] = ()

    @cached_property
    def ess(self) -> Tensor | None:
        """Effective sample size of each task's weights, (Σ w)² / Σ w², between 1 and K; None without weights."""
        return None if self.log_weights is None else effective_sample_size(self.log_weights)

    @property
    def share_below_2(self) -> Tensor | None:
        """Share of tasks whose effective sample size is below 2: one particle decides their gradient."""
        return None if self.ess is None else (self.ess < 2).to(self.bound.dtype).mean()


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(Σ w)² / Σ w² over the first dimension ``[K, *B]`` → ``[*B]``."""
    return (2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)).exp()


def log_mean_exp(values: Tensor) -> Tensor:
    """log of the mean of exp over the first dimension."""
    return torch.logsumexp(values, 0) - torch.log(values.new_tensor(float(values.shape[0])))


class TaskObjective(ObjectiveOffers, ELBO):
    """Base of the objectives: one bound for each task, summed (or averaged) into a loss.

    Plates are read off the traces. Vectorised particles are a plate to the left of all others. A program that is not
    the library's own is first run for one particle alone too, and with other draws: where its densities differ, its
    particles are run one by one, and a plate whose elements are not independent is not split.

    What others may ask about an objective stands on its class: :class:`pp_models.contract.ObjectiveOffers`.

    Args:
        num_particles: draws per task, K.
        normalize: report and maximise per scored value (the mean over points and output dimensions, then over tasks)
            instead of nats per task, summed.
        vectorize_particles: evaluate the particles in one pass, where the program is shown to allow it.
        max_plate_nesting: plates of the model. For the library's models it is the number of task dimensions of the
            data; for any other model it is found by running it once.
        kl_schedule: how the KL grows, and when draws are means (:class:`.KLSchedule`); for objectives with a KL.

    Raises:
        ValueError: an argument out of range.
    """

    #: -1 for an upper bound, which is minimised
    sign = 1.0
    #: particles carry no gradient to the guide
    fixed_particles = False
    #: it has a KL that a schedule can weigh
    weighs_kl = False

    @checked(num_particles=DRAWS, max_plate_nesting=nesting(), kl_schedule=instance(KLSchedule))
    def __init__(
        self,
        num_particles: int = 1,
        *,
        normalize: bool = False,
        vectorize_particles: bool = True,
        max_plate_nesting: float = float("inf"),
        kl_schedule: KLSchedule | None = None,
    ) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self._pairs = Pairs()
        self._pair = OWN
        self.max_plate_nesting = max_plate_nesting
        self.normalize = normalize
        if kl_schedule is not None and not self.weighs_kl:
            raise ValueError(f"kl_schedule: got one, and {self.name or type(self).__name__!r} has no KL to weigh")
        self.kl_schedule = kl_schedule
        if kl_schedule is not None:
            self.module = kl_schedule

    @property
    def scores_guide(self) -> bool:
        return self.fixed_particles

    # -- what a subclass says -----------------------------------------------------------------------------------

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> Any:
        """Runs guide and model once; a dataclass of tensors ``[K, *B]``."""
        raise NotImplementedError

    def combine(self, draws: Any) -> BoundTerms:
        """The bound from the draws of all particles."""
        raise NotImplementedError

    # -- Pyro's contract ----------------------------------------------------------------------------------------

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound: summed over tasks, or averaged over tasks where normalized; a scalar tensor."""
        return self.reduce(self.terms(model, guide, *args, **kwargs))

    def reduce(self, terms: BoundTerms) -> Tensor:
        """The loss from the terms."""
        return -self.sign * (terms.bound.mean() if self.normalize else terms.scale * terms.bound.sum())

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, without gradients."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Computes gradients; returns the loss as a number, as Pyro's do. (:func:`inference.fit` reads none.)"""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(loss.detach())

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        """One pair of traces for Pyro's own tools: the guide on the data, the model replayed against it."""
        guide_trace = self.run_guide(guide, args, kwargs)
        return self.run_model(model, guide_trace, args, kwargs), guide_trace

    # -- machinery ----------------------------------------------------------------------------------------------

    def run_guide(self, guide: Callable, args: tuple, kwargs: dict) -> Trace:
        """One trace of a guide."""
        # outside the trace, whose record it changes; around the guide alone, for in the model a value may be a point
        # mass's, which keeps its gradient
        means = None if self.kl_schedule is None else self.kl_schedule.drawn()
        with fixed_values() if self.fixed_particles else nullcontext(), means or nullcontext():
            return poutine.trace(guide).get_trace(*args, **kwargs)

    def run_model(self, model: Callable, guide_trace: Trace, args: tuple, kwargs: dict) -> Trace:
        """One trace of the model with the guide's values.

        Raises:
            ValueError: a latent that one of the two has and the other has not.
        """
        trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        for name, site in sample_sites(trace):
            if not site["is_observed"] and name not in guide_trace:
                if site["infer"].get("enumerate"):
                    raise ValueError(
                        f"site {name!r}: the model enumerates it, which this objective does not; use "
                        "pyro.infer.TraceEnum_ELBO, or draw the site in the guide"
                    )
                raise ValueError(f"site {name!r}: the model samples it, but the guide does not")
        return trace

    def ties(
        self,
        model: Any,
        guide: Any,
        traces: tuple[Trace, Trace],
        args: tuple,
        guide_args: tuple,
        kwargs: dict,
        particles: AbstractContextManager,
    ) -> Ties | None:
        """What ties the elements of a program's plates, and whether its particles may be run at once.

        It is found out once for a pair, and again where the structure of its traces is another; None for the library's
        own models and guides.

        Args:
            model: the model.
            guide: what drew the values.
            traces: the guide's, and the model's replayed against it.
            args: what the model was called with.
            guide_args: what the guide was called with.
            kwargs: what both were called with.
            particles: the plate of the particles, left again.

        Raises:
            NotVectorised: the program is not right for all particles at once.
        """
        pair = self._pair
        if pair.trusted:
            return None
        guide_trace, model_trace = traces
        key = structure(guide_trace, model_trace)

        def run_guide(trace: Trace) -> Trace:
            return self.run_guide(poutine.replay(guide, trace=trace), guide_args, kwargs)

        def run_model(trace: Trace) -> Trace:
            return self.run_model(model, trace, args, kwargs)

        if key not in pair.ties:
            if len(pair.ties) >= STRUCTURES:  # a program whose every run is another
                pair.ties.clear()
            with apart():
                if isinstance(particles, pyro.plate) and particles.dim is not None:
                    traces = check_one_alone(*traces, particles.dim, particles.size, run_guide, run_model)
                check_extra_sites(*traces, "the model")
                check_shapes(*traces)
                pair.ties[key] = find_ties(Program(*traces, run_guide, run_model))
        return pair.ties[key]

    def terms(self, model: Any, guide: Any, *args: Any, diagnostics: bool = False, **kwargs: Any) -> BoundTerms:
        """Runs guide and model (all particles) and returns the bound, term by term and per task.

        Args:
            model: the model.
            guide: its guide.
            *args: passed to both; a TaskBatch or Dataset first for the library's models.
            diagnostics: also the importance weights of the draws, for objectives that form none; from the same pass.
            **kwargs: passed to both.

        Raises:
            ValueError: the pair cannot be trained with this objective; the message says why.
            DataError: data that do not fit the model.
        """
        as_guide(guide).check_objective(self)
        if self.kl_schedule is not None:
            self.kl_schedule.advance()
        if args:  # here, for Pyro's traces add the shapes of all sites to the message
            parts = (args[0].context, args[0].target) if isinstance(args[0], TaskBatch) else (args[0],)
            for part in parts:
                if isinstance(part, Dataset):
                    as_model(model).check(part)
        self._pair = self._pairs.of(model, guide)
        try:
            with nullcontext() if self._pair.trusted and self.vectorize_particles else one_subsample() as runs:
                return self.combine(self._draws(model, guide, args, kwargs, diagnostics, runs))
        finally:
            self._pair = OWN

    def _draws(self, model: Any, guide: Any, args: tuple, kwargs: dict, diagnostics: bool, runs: Any) -> Any:
        """The draws of all particles: at once where the program allows it."""
        if self.num_particles == 1:
            return self.draw(model, guide, args, kwargs, nullcontext(), diagnostics)
        why = None
        if self.vectorize_particles and not self._pair.sequential:
            known = self._pair.trusted or self._pair.ties
            try:
                dim = -1 - self._nesting(model, guide, args, kwargs)
                plate = pyro.plate(PARTICLES, self.num_particles, dim=dim)
                return self.draw(model, guide, args, kwargs, plate, diagnostics)
            except NotVectorised as difference:
                why = f"site {difference.site!r} has another density when all are run at once"
            except Exception as error:
                if known:  # it went well before, so that it is not the particles
                    raise
                lines = str(error).splitlines() or [type(error).__name__]
                why = f"all at once fail at site {runs.last!r} ({lines[0][:100]})"
        each = [self.draw(model, guide, args, kwargs, nullcontext(), diagnostics) for _ in range(self.num_particles)]
        if why is not None:
            if self.inner_steps > 1:
                raise ValueError(
                    f"inner_steps: got {self.inner_steps}; the program's particles must be run at once, but {why}"
                )
            self._pair.sequential = True
            if why not in self._pairs.said:
                self._pairs.said.add(why)
                logger.warning(
                    "particles of this model and guide are run one by one, for %s; write it for leading dimensions, "
                    "as in a[..., idx] or cumsum(-1), to have them run at once (or say vectorize_particles=False)",
                    why,
                )
        return joined(each)

    def _nesting(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> int:
        if args and isinstance(args[0], Dataset | TaskBatch) and isinstance(model, ParameterModule):
            needed = len(args[0].batch_shape)
            if self.max_plate_nesting < needed:
                raise ValueError(
                    f"max_plate_nesting: got {self.max_plate_nesting}; it must be at least {needed}, the data's task "
                    "dimensions"
                )
            return needed if math.isinf(self.max_plate_nesting) else int(self.max_plate_nesting)
        if math.isinf(self.max_plate_nesting):
            data = args[0].full if args and isinstance(args[0], TaskBatch) else None
            particles, self.num_particles = self.num_particles, 1
            try:
                with apart():  # a resumed run must draw what it would
                    self._guess_max_plate_nesting(model, guide, (data, *args[1:]) if data is not None else args, kwargs)
            finally:
                self.num_particles = particles
        return int(self.max_plate_nesting)


def check_shapes(guide_trace: Trace, model_trace: Trace) -> None:
    """Pyro's own checks of a pair, where its validation is on: shapes agree with plates, and guide with model.

    Raises:
        ValueError: they do not.
    """
    if not is_validation_enabled():
        return
    check_if_enumerated(guide_trace)
    check_model_guide_match(model_trace, guide_trace)
    for trace in (guide_trace, model_trace):
        pruned = prune_subsample_sites(trace)
        pruned.compute_log_prob()
        for site in pruned.nodes.values():
            if site["type"] == "sample":
                check_site_shape(site, sys.maxsize)


def joined(passes: list[Draws]) -> Draws:
    """Draws of several passes as those of one: tensors ``[k, *B]`` are joined, lists are appended."""
    changes: dict[str, Any] = {}
    for item in fields(passes[0]):  # type: ignore[arg-type]
        values = [getattr(one, item.name) for one in passes]
        tensor = next((value for value in values if isinstance(value, Tensor)), None)
        if tensor is not None:
            changes[item.name] = torch.cat([torch.zeros_like(tensor) if value is None else value for value in values])
        elif isinstance(values[0], dict):  # a site that a pass did not have, as where branches are drawn, adds nothing
            like = {key: part for value in values for key, part in value.items()}
            changes[item.name] = {
                key: torch.cat([value.get(key, torch.zeros_like(part)) for value in values])
                for key, part in like.items()
            }
        elif isinstance(values[0], list):
            changes[item.name] = [part for value in values for part in value]
    return replace(passes[0], **changes)  # type: ignore[type-var]


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that is not one of the choices.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{argument}: got {value!r}; it must be {' or '.join(map(repr, choices))}")


def data_set(args: tuple, on: str) -> tuple:
    """Arguments with a TaskBatch replaced by the points that guide and likelihood see: ``"full"`` or ``"context"``."""
    if args and isinstance(args[0], TaskBatch):
        return (args[0].full if on == "full" else args[0].context, *args[1:])
    return args


def scored_points(data: Any, score: str = "target") -> Dataset:
    """The points of a TaskBatch whose likelihood counts, ``"target"`` or ``"full"``; all of a Dataset."""
    return data.target if isinstance(data, TaskBatch) and score == "target" else context_and_full(data)[1]


def context_and_full(data: Any) -> tuple[Dataset, Dataset]:
    """Context and whole task of a TaskBatch; a Dataset is both.

    Raises:
        TypeError: anything else.
    """
    if isinstance(data, TaskBatch):
        return data.context, data.full
    if isinstance(data, Dataset):
        return data, data
    raise TypeError(f"data: got {type(data).__name__}; this objective needs a TaskBatch or a Dataset")
