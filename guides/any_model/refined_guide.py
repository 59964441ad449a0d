"""Semi-amortised inference: a guide's answer, made better by a few steps on each data set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from guides.any_model.amortised_guide import AnyModelGuide
from guides.any_model.local_parameters import common_draw, moved, moves_of
from guides.any_model.outside_handlers import outside_handlers, own_randomness
from pp_models.arguments import CALLABLE, DRAWS, POSITIVE, SEED, checked, instance, integer, one_of, optional
from pp_models.contract import Guide, ObjectiveOffers, as_guide, model_of
from pp_models.data import Dataset, TaskBatch
from pp_models.parameter_module import ParameterModule
from pp_models.single_precision import single

Moves = dict[str, dict[str, Tensor]]
#: of Adam: decays of the mean gradient and of its square, and what keeps a square root off zero
DECAY, SQUARE_DECAY, LEAST_SQUARE = 0.9, 0.999, 1e-16


class _Moved(Messenger):
    """Moves the distributions of a guide's sites, and keeps what they are when the moves are taken as constant.

    Args:
        moves: by site and parameter.
        common: draw all tasks of a batch from the same noise: a task's steps are then what they are without the others.
    """

    def __init__(self, moves: Moves, common: bool = False) -> None:
        super().__init__()
        self.moves, self.common = moves, common
        self.constant: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        moves = self.moves.get(msg["name"])
        if moves is not None and not msg["is_observed"]:
            self.constant[msg["name"]] = moved(msg["fn"], {name: value.detach() for name, value in moves.items()})
            msg["fn"] = moved(msg["fn"], moves)
            draw = common_draw(msg["fn"], len(msg["fn"].batch_shape)) if self.common else None
            if draw is not None:
                msg["value"], msg["done"] = draw, True


class RefinedGuide(Guide):
    """A guide whose distributions are moved by a few steps of Adam on each data set's own ELBO.

    What is moved are the local distributions that the guide gives: place, in units of its scale, and scale or
    concentrations, as factors. The gradient sticks the landing, so that it vanishes where the posterior is of the
    guide's family. No step is the guide itself; many lead to the best of its family on each data set, tasks of a batch
    each to their own. Steps draw from a seed of their own: the answer to the same data is the same. Sources: Kim et al.
    2018 (semi-amortised variational autoencoders), Roeder et al. 2017.

    Its parameters are the wrapped guide's. Trained itself, the guide learns to give good starts: ``gradient="stopped"``
    takes the moves as constant, ``"through"`` differentiates the steps.

    Args:
        guide: what is refined: one of the library's, an AutoGuide, any module whose sites are independent given the
            data and have reparameterised draws. Point masses stay.
        model: the model; None where the guide says for which one it was built.
        steps: steps on each data set.
        learning_rate: of the first step, in standard deviations; it falls to zero along a line.
        num_particles: draws of a step.
        gradient: ``"stopped"`` or ``"through"``.
        seed: of the draws of the steps.

    Raises:
        ValueError: a guide that does not say its model; when called, one whose sites depend on one another's draws, or
            have distributions that cannot be moved.

    Example:
        >>> refined = RefinedGuide(guide, steps=20)
        >>> gb.verdict(model, refined, y)
    """

    independent_sites = True

    @checked(
        guide=instance(nn.Module),
        model=optional(CALLABLE),
        steps=integer(0, 10**6),
        learning_rate=POSITIVE,
        num_particles=DRAWS,
        gradient=one_of("stopped", "through"),
        seed=SEED,
    )
    def __init__(
        self,
        guide: nn.Module,
        model: Callable | None = None,
        *,
        steps: int = 10,
        learning_rate: float = 0.1,
        num_particles: int = 4,
        gradient: str = "stopped",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if model is None:
            owned = guide._of_model[0] if isinstance(guide, AnyModelGuide) else model_of(guide)
            model = guide.model if isinstance(guide, AutoGuide) else owned
        if model is None:
            raise ValueError(
                f"model: got None, and {type(guide).__name__} does not say for which model it was built; it must be "
                "given"
            )
        self.steps, self.learning_rate = steps, learning_rate
        # an AutoGuide that was called cannot become a part of another module: it keeps its own names in Pyro's store
        self._apart = (guide,) if isinstance(guide, PyroModule) and not isinstance(guide, ParameterModule) else ()
        if not self._apart:
            self.guide = guide
        self.num_particles, self.gradient, self.seed = num_particles, gradient, seed
        self.point_mass = as_guide(guide).point_mass
        self._of_model = (model,)  # in a tuple: its parameters are the model's, not the guide's
        self._independent = as_guide(guide).independent_sites
        self._known: tuple[Any, Moves] | None = None
        if isinstance(model, ParameterModule):
            self.built_with["arguments"]["model"] = model.built_with

    # -- what the wrapped guide says ----------------------------------------------------------------------------

    @property
    def refined(self) -> nn.Module:
        """The guide that is refined."""
        return self._apart[0] if self._apart else self.guide

    def check_objective(self, objective: ObjectiveOffers) -> None:
        as_guide(self.refined).check_objective(objective)

    def auxiliary_values(self, latents: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return as_guide(self.refined).auxiliary_values(latents)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        if self._apart:
            return self._apart[0].named_parameters(*args, **kwargs)
        if isinstance(self.guide, AnyModelGuide) and self.guide.layout is None:
            return self.guide.named_parameters()  # which says that it has none yet
        return super().named_parameters(*args, **kwargs)

    def announce_parameters(self) -> None:
        """Of the wrapped guide, where it is of the library's kind; others announce their own."""
        if not self._apart:
            super().announce_parameters()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.refined, AnyModelGuide) and self.refined.layout is None:
            self.refined.set_up(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> Any:
        model = self._of_model[0]
        memo.setdefault(id(model), model)  # the copy is of the same model, which is not the guide's
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items() if k != "_known"})
        new._known = None
        return new

    # -- drawing ------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Samples the sites of the guide, from distributions that were moved for these data."""
        if not self.steps:
            return self._start(*args, **kwargs)
        with _Moved(self.moves(*args, **kwargs)):
            return self._start(*args, **kwargs)

    def _start(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped guide; parameters of one of the library's are announced as this one's."""
        guide = self.refined
        return (guide.forward if isinstance(guide, ParameterModule) else guide)(*args, **kwargs)

    def moves(self, *args: Any, **kwargs: Any) -> Moves:
        """The moves of each site's distribution after all steps on these data, by site and parameter."""
        keep = not torch.is_grad_enabled()  # draw after draw of one fit
        state = self._state(args, kwargs) if keep else None
        if state is not None and self._known is not None and _same(self._known[0], state):
            return self._known[1]
        with outside_handlers(), torch.enable_grad(), own_randomness(self.seed):
            found = self._descend(args, kwargs)
        if self.gradient == "stopped" or keep:
            found = {site: {n: v.detach() for n, v in each.items()} for site, each in found.items()}
        if state is not None:
            self._known = (state, found)
        return found

    def _descend(self, args: tuple, kwargs: Mapping[str, Any]) -> Moves:
        moves = self._first_moves(args, kwargs)
        torch.manual_seed(self.seed)  # of what was drawn so far, by how many tasks there are, the steps know nothing
        places = [(site, name) for site, each in moves.items() for name in each]
        values = [moves[site][name].requires_grad_() for site, name in places]
        means, squares = [torch.zeros_like(v) for v in values], [torch.zeros_like(v) for v in values]
        through = self.gradient == "through"
        for step in range(1, self.steps + 1):
            current: Moves = {site: {} for site in moves}
            for (site, name), value in zip(places, values, strict=True):
                current[site][name] = value
            bound = sum(self._bound(current, args, kwargs) for _ in range(self.num_particles)) / self.num_particles
            grads = torch.autograd.grad(-torch.as_tensor(bound), values, create_graph=through)
            rate = self.learning_rate * (1 - (step - 1) / self.steps)
            for i, grad in enumerate(grads):
                grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)  # one wild draw moves nothing
                means[i] = DECAY * means[i] + (1 - DECAY) * grad
                squares[i] = SQUARE_DECAY * squares[i] + (1 - SQUARE_DECAY) * grad.square()
                mean, square = means[i] / (1 - DECAY**step), squares[i] / (1 - SQUARE_DECAY**step)
                values[i] = values[i] - rate * mean / (square + LEAST_SQUARE).sqrt()
                if not through:
                    values[i] = values[i].detach().requires_grad_()
        found: Moves = {site: {} for site in moves}
        for (site, name), value in zip(places, values, strict=True):
            found[site][name] = value
        return found

    def _first_moves(self, args: tuple, kwargs: Mapping[str, Any]) -> Moves:
        """Zeros for every drawn site.

        Raises:
            ValueError: a site cannot be moved.
        """
        with torch.no_grad():
            drawn = self._drawn(args, kwargs)
            moves = {}
            for name, site in drawn.items():
                # Adam's second moments leave the range of half precisions
                moves[name] = {key: single(value) for key, value in moves_of(site["fn"], name).items()}
                if not site["fn"].has_rsample:
                    raise ValueError(
                        f"guide: site {name!r} ({type(site['fn']).__name__}) has no reparameterised draw; RefinedGuide "
                        "needs one"
                    )
            if not moves:
                raise ValueError("guide: it draws nothing, so that there is nothing to refine; train it further")
            if not self._independent and len(drawn) > 1:
                self._check_independent(drawn, self._drawn(args, kwargs))
                self._independent = True
        return moves

    def _drawn(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        trace = poutine.trace(self._start).get_trace(*args, **kwargs)
        return {name: site for name, site in trace.nodes.items() if _is_drawn(site)}

    def _check_independent(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
        for name, site in first.items():
            value = site["value"]
            again = second[name]["fn"] if name in second else None
            if again is None or not torch.equal(site["fn"].log_prob(value), again.log_prob(value)):
                raise ValueError(
                    f"guide: the distribution of site {name!r} depends on other draws; RefinedGuide needs sites that "
                    "are independent given the data, or one vector, as of AmortisedMultivariateNormalGuide"
                )

    def _bound(self, moves: Moves, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
        """One draw's log p - log q, summed over data sets, without the score of q."""
        # every batch dimension of the library's guides is one of tasks; elements of another's plates may be tied
        with _Moved(moves, common=isinstance(self.refined, ParameterModule)) as handler:
            guide_trace = poutine.trace(self._start).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(self._of_model[0], trace=guide_trace)).get_trace(*args, **kwargs)
        bound = torch.as_tensor(model_trace.log_prob_sum())
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample" and not site["is_observed"]:
                fn = handler.constant.get(name, site["fn"])
                bound = bound - scale_and_mask(fn.log_prob(site["value"]), site["scale"], site["mask"]).sum()
        return bound

    def _state(self, args: tuple, kwargs: Mapping[str, Any]) -> list[Any] | None:
        """What an answer depends on: tensors of the call, and parameters, each with its count of changes.

        None where that is not known: a call without tensors, whose data the model has from elsewhere.
        """
        model = self._of_model[0]
        given = _tensors((args, kwargs))
        if not given or any(t is None for t in given):
            return None
        held = [*given, *self.parameters(), *self.buffers(), *pyro.get_param_store()._params.values()]
        held += [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
        return [(t, t._version) for t in held]


def _is_drawn(site: Any) -> bool:
    if site["type"] != "sample" or site["is_observed"] or type(site["fn"]).__name__ == "_Subsample":
        return False
    fn = site["fn"]
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return type(fn).__name__ != "Delta"


def _tensors(value: Any) -> list[Any]:
    """The tensors of some arguments, None for each that is no tensor."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Dataset):
        return [t for t in (value.x, value.y, value.mask, value.observed) if t is not None]
    if isinstance(value, TaskBatch):
        return [*_tensors(value.context), *_tensors(value.target)]
    if isinstance(value, Mapping):
        return [t for each in value.values() for t in _tensors(each)]
    if isinstance(value, list | tuple):
        return [t for each in value for t in _tensors(each)]
    return [] if value is None else [None]  # what may hold anything


def _same(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(a is b and i == j for (a, i), (b, j) in zip(one, other, strict=True))
