"""An objective of one's own as a short program, with the gradient estimator of each site chosen by an annotation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from inference.objectives.fixed_values import (
    leave_one_out,
    log_densities_at_fixed_values,
    log_density,
    score_term,
)
from inference.objectives.importance_weights import ImportanceWeighted, WeightedDraws, weigh
from inference.objectives.independent_plates import (
    PARTICLES,
    TaskAxes,
    share,
)
from inference.objectives.program_values import (
    KL,
    Particles,
    ProgramDraws,
    called,
    check_additive,
    check_apart,
    divergences,
    evidence_lower_bound,
    with_one_replaced,
)
from inference.objectives.pushforward import moved_after_the_draw
from inference.objectives.site_estimators import (
    ESTIMATORS,
    SiteEstimators,
    by_row,
    joint_states,
    log_probability,
    measures_of,
    run_rows,
)
from inference.objectives.task_objective import BoundTerms, data_set
from pp_models.arguments import CALLABLE, FLAG, checked, mapping, named, one_of, optional

#: among the dimensions that were looked at: whether a program is additive
ADDITIVE = (-1, 0)


class RunningMean(nn.Module):
    """An exponentially weighted mean of earlier values, without the weight of its start."""

    total: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def before(self, value: Tensor) -> Tensor:
        """The mean before this value, which then counts."""
        mean = (self.total / self.weight.clamp_min(1e-12)).to(value)
        if torch.is_grad_enabled():
            self.total.mul_(self.decay).add_((1 - self.decay) * value.detach().mean().to(self.total))
            self.weight.mul_(self.decay).add_(1 - self.decay)
        return mean


class Program(ImportanceWeighted):
    """An objective written as a program of the particles' log-densities; each site's gradient estimator is a choice.

    ``program(particles)`` returns for each task what is maximised, ``[*B]`` of all K particles together, or ``[K, *B]``
    where every particle is an estimate of its own, whose mean is then taken (as of an ELBO). Whatever it is, the
    gradient is that of its expectation over the guide's draws, the sum of

    * the program's own, at the draws, with that through the draws of ``"pathwise"`` sites;
    * ``"score"``: (program less baseline) ∇ log q of the site. Baselines: ``"leave-one-out"``, the other particles'
      mean for ``[K, *B]``, and for ``[*B]`` the program with this particle's log-densities replaced by the mean of the
      others' (VIMCO); ``"running-mean"`` over earlier steps, which one particle has too; or ``"none"``;
    * ``"enumerate"``: the program in every state of the discrete sites, times the state's probability. For ``[K, *B]``
      value and gradient are then exact in them; for ``[*B]`` one particle at a time takes every state, while the others
      stay as they were drawn (local expectations: Titsias and Lázaro-Gredilla 2015), at K² S program values;
    * ``"measure-valued"``: the program at the two measures of a weak derivative, for Normal, Bernoulli and Poisson;
    * ``"fixed"``: nothing: draws are those of a proposal that is not trained, as in wake-sleep.

    Sites drawn after an enumerated or measure-valued one are drawn anew for each of its values. Estimators compose, for
    every site's is unbiased given the others (Becker et al. 2024). The first call on a CPU checks that tasks do not
    enter one another's values, nor particles for ``[K, *B]``; on a device this is not looked at.

    Args:
        num_particles: particles of each task, K.
        program: a function of :class:`Particles`; by default the ELBO.
        estimators: one of ``"pathwise"``, ``"score"``, ``"enumerate"``, ``"measure-valued"``, ``"fixed"`` for all
            sites, or a mapping from names of sites; goes before ``infer={"estimator": …}`` at the guide's sample
            statement. Other sites are pathwise, or scored where they cannot be reparameterised.
        baseline: of the scores: ``"leave-one-out"``, ``"running-mean"`` or ``"none"``.
        minimize: the program is an upper bound, or a loss.
        stopped: also give ``log_q_stopped``.
        additive: the program is a weighted sum of log-densities of each particle, as the ELBO is, and so may be taken
            for every element of a plate though the elements share latents: a mixture's assignments are then enumerated
            one by one.
        **options: see :class:`ImportanceWeighted`.

    Raises:
        ValueError: when used, an estimator that a site cannot have, a name that is no site, or a program that returns
            another shape or mixes tasks.

    Example:
        >>> iwae = Program(8, program=lambda p: log_mean_exp(p.log_weights), estimators={"k": "enumerate"})
    """

    name = "program"
    description = "an objective of one's own, with the estimator of each site by annotation"
    reference = "Becker et al. 2024; Schulman et al. 2015"

    @checked(
        program=CALLABLE,
        estimators=optional(named(*ESTIMATORS, other=mapping(one_of(*ESTIMATORS)))),
        baseline=one_of("leave-one-out", "running-mean", "none"),
        minimize=FLAG,
        stopped=FLAG,
        additive=FLAG,
    )
    def __init__(
        self,
        num_particles: int = 8,
        *,
        program: Callable[[Particles], Tensor] = evidence_lower_bound,
        estimators: str | Mapping[str, str] | None = None,
        baseline: str = "leave-one-out",
        minimize: bool = False,
        stopped: bool = False,
        additive: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_particles, **options)
        self.program, self.estimators, self.baseline, self.stopped = program, estimators, baseline, stopped
        self.additive = additive
        self.sign = -1.0 if minimize else 1.0
        self._seen: set[tuple[int, int]] = set()
        if baseline == "running-mean":
            self.module = RunningMean()

    @property
    def scores_guide(self) -> bool:
        return self.stopped or (isinstance(self.estimators, str) and self.estimators != "pathwise")

    # -- draws --------------------------------------------------------------------------------------------------

    def draw(
        self, model: Any, guide: Any, args: tuple, kwargs: dict, particles: AbstractContextManager, diagnostics: bool
    ) -> ProgramDraws:
        args = data_set(args, self.on)
        chosen = SiteEstimators(self.estimators)

        def run(sites: Trace | None, within: AbstractContextManager) -> tuple[Trace, Trace]:
            with within:
                with chosen:
                    replayed = guide if sites is None else poutine.replay(guide, trace=sites)
                    guide_trace = self.run_guide(replayed, args, kwargs)
                return guide_trace, self.run_model(model, guide_trace, args, kwargs)

        guide_trace, model_trace = run(None, particles)
        chosen.check()
        ties = self.ties(model, guide, (guide_trace, model_trace), args, args, kwargs, particles)
        fixed = chosen.of("fixed")
        if fixed and ties is not None and moved_after_the_draw(guide_trace, ties):
            raise ValueError(
                f"estimators: got 'fixed' for site {fixed[0]!r}, whose draws the guide's parameters act on afterwards; "
                "use the objective 'rws'"
            )

        def measured(traces: tuple[Trace, Trace], within: AbstractContextManager) -> tuple[WeightedDraws, dict]:
            name = within.name if isinstance(within, pyro.plate) else PARTICLES
            draws = weigh(traces[1], traces[0], ties, name, self.additive)
            values = {"log_p": draws.log_p, "log_q": draws.log_q, "log_likelihood": draws.log_likelihood}
            values |= {KL + name: kl for name, kl in divergences(*traces, draws, self._pair.trusted).items()}
            if self.stopped:
                with within:
                    found = log_densities_at_fixed_values(guide, traces[0], draws.axes, args, kwargs, scaled=False)
                parts = [share(v - v.detach(), draws.axes.shape) for v in found.values()]
                values["log_q_stopped"] = draws.log_q - (sum_of(parts) if parts else 0.0)
            return draws, values

        first, values = measured((guide_trace, model_trace), particles)
        own = {item.name: getattr(first, item.name) for item in fields(first)}
        draws = ProgramDraws(**own, values=values, scores=scores_of(guide_trace, first.axes, chosen))
        if not (chosen.of("enumerate") or chosen.of("measure-valued")):
            return draws
        dim = None
        if isinstance(particles, pyro.plate):
            dim = particles.dim
        elif self._pair.trusted:
            dim = -1 - self._nesting(model, guide, args, kwargs)

        def row(sites: Trace, within: AbstractContextManager) -> tuple[Trace, dict, TaskAxes]:
            traces = run(sites, within)
            found, values = measured(traces, within)
            each = found.log_p.shape[0]
            values = {name: value.expand(each, *value.shape[1:]) for name, value in values.items()}
            return traces[0], values, found.axes

        enumerated = chosen.of("enumerate")
        if enumerated:
            states = joint_states(guide_trace, enumerated, first.axes)
            count = len(states[enumerated[0]])
            runs = run_rows(row, guide_trace, states, particles, dim)
            draws.states = by_row([values for _, values, _ in runs], count)
            draws.state_scores = by_row([scores_of(trace, axes, chosen) for trace, _, axes in runs], count)
            log_q = [sum_of(log_probability(trace.nodes[n], axes) for n in enumerated) for trace, _, axes in runs]
            draws.probability = by_row([{"q": one} for one in log_q], count)["q"].exp()
        for name in chosen.of("measure-valued"):
            moved, factors = measures_of(name, guide_trace.nodes[name], first.axes)
            with torch.no_grad():
                runs = run_rows(row, guide_trace, {name: moved}, particles, dim)
            found = by_row([values for _, values, _ in runs], len(moved))
            draws.moved = {key: torch.cat([draws.moved[key], v], 1) if draws.moved else v for key, v in found.items()}
            draws.factors = factors if draws.factors is None else torch.cat([draws.factors, factors], 1)
        return draws

    # -- value and gradient ---------------------------------------------------------------------------------------

    def combine(self, draws: ProgramDraws) -> BoundTerms:
        value = called(self.program, draws.values)
        # what is on a device is not looked at, for that would be a host read in a training step
        if value.device.type == "cpu" and not torch.compiler.is_compiling():
            if self.additive and ADDITIVE not in self._seen:
                check_additive(self.program, draws.values, value)
                self._seen.add(ADDITIVE)
            check_apart(self.program, draws.values, value, self._seen)
        together = value.dim() == len(draws.axes.shape)
        bound = self._of_all(draws, value) if together else self._of_each(draws, value)
        return self.weighted_terms(draws, bound)

    def _of_each(self, draws: ProgramDraws, value: Tensor) -> Tensor:
        """The bound where every particle is an estimate, ``[K, *B]``."""
        shape, count = draws.axes.shape, value.shape[0]
        each, scores, weight = value.unsqueeze(1), draws.scores, torch.ones_like(value).unsqueeze(1)
        change = torch.zeros_like(value)
        if draws.probability is not None:
            each, scores, weight = called(self.program, draws.states), draws.state_scores, draws.probability
            change = ((weight - weight.detach()) * each.detach()).sum(1)
            value = (weight.detach() * each).sum(1)
        else:
            scores = {name: log_q.unsqueeze(1) for name, log_q in scores.items()}
        if draws.factors is not None:
            with torch.no_grad():
                moved = called(self.program, draws.moved)
            change = change + ((draws.factors - draws.factors.detach()) * moved).sum(1)
        bound = (value + change).mean(0)
        if scores:
            signal = weight * (each - self._baseline(value.detach(), leave_one_out).unsqueeze(1)) / count
            for log_q in scores.values():
                log_q = log_q.expand(-1, signal.shape[1], *log_q.shape[2:])
                bound = bound + score_term(signal.flatten(0, 1), log_q.flatten(0, 1), shape)
        return bound

    def _of_all(self, draws: ProgramDraws, value: Tensor) -> Tensor:
        """The bound where the particles make one value, ``[*B]``."""
        shape = draws.axes.shape
        bound = value
        if draws.probability is not None:
            weight, replaced = draws.probability, with_one_replaced(self.program, draws.values, draws.states)
            bound = (weight.detach() * replaced).sum(1).mean(0)
            bound = bound + ((weight - weight.detach()) * replaced.detach()).sum((0, 1))
        if draws.factors is not None:
            with torch.no_grad():
                replaced = with_one_replaced(self.program, draws.values, draws.moved)
            bound = bound + ((draws.factors - draws.factors.detach()) * replaced).sum((0, 1))
        if draws.scores:

            def without(_: Tensor) -> Tensor:
                others = {name: leave_one_out(v).unsqueeze(1) for name, v in draws.values.items()}
                with torch.no_grad():
                    return with_one_replaced(self.program, draws.values, others).squeeze(1)

            each = value.detach().expand(draws.log_q.shape)
            signal = each - self._baseline(each, without if len(each) > 1 else torch.zeros_like)
            for log_q in draws.scores.values():
                bound = bound + score_term(signal, log_q, shape)
        return bound

    def _baseline(self, value: Tensor, leave_one_out: Callable[[Tensor], Tensor]) -> Tensor:
        """What is subtracted from a particle's value, whose draws it must not depend on."""
        if self.baseline == "none":
            return torch.zeros_like(value)
        if isinstance(self.module, RunningMean):
            return self.module.before(value).expand(value.shape)
        return leave_one_out(value)


def scores_of(trace: Trace, axes: TaskAxes, chosen: SiteEstimators) -> dict[str, Tensor]:
    """log q ``[K, *B]`` of the sites whose gradient is a score function's."""
    sites: Any = trace.nodes
    return {name: log_density(sites[name], axes, scaled=False) for name in chosen.of("score") if name in sites}


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    first, *others = values
    return sum(others, first)
