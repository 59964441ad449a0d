"""Objectives on one model, guide and batch: bounds, noise of the gradients, effective sample sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor, nn

from inference.data_dtype import as_computed
from inference.objectives import REGISTRY, TaskObjective, make
from inference.random_state import seeded
from pp_models.arguments import CALLABLE, DRAWS, MOST_DRAWS, SEED, TEXT, checked, each, integer
from pp_models.data import Dataset, TaskBatch

if TYPE_CHECKING:
    import pandas as pd


@checked(
    model=CALLABLE,
    guide=CALLABLE,
    num_particles=each(DRAWS, 1, must="hold numbers of particles"),
    repeats=integer(2, MOST_DRAWS),
    seed=SEED,
)
def compare_objectives(
    model: nn.Module,
    guide: nn.Module,
    batch: Any,
    objectives: Iterable[str] | Mapping[str, Callable[[int], pyro.infer.ELBO]] | None = None,
    num_particles: Iterable[int] = (1, 4, 16, 64),
    repeats: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Evaluates every objective many times without training: one row an objective and number of particles.

    The signal-to-noise ratio of a gradient g is ‖E g‖ / √(tr Var g), of guide's and model's parameters apart; ‖E g‖² is
    estimated without bias, as ‖ḡ‖² - tr Var / repeats, and 0 where that is negative: the signal is then below
    what so many repeats can tell from noise. IWAE's ratio falls like 1/√K for the guide while its bound tightens
    (Rainforth et al. 2018).

    Parameters, their ``.grad`` and the process's random state are left as they were.

    Args:
        model: the model; of a bare function no parameters are known, and its ratio is NaN.
        guide: its guide.
        batch: a TaskBatch or Dataset, or whatever both are called with.
        objectives: names, or a function from K to an objective by label; all of the registry by default.
        num_particles: values of K.
        repeats: evaluations of each, at least 2.
        seed: seed of the draws, the same for every row.

    Returns:
        Columns ``objective``, ``num_particles``, ``status`` (``ok`` or ``failed``), ``reason``, ``bound`` (nats, mean
        over tasks and repeats) and ``bound_se`` (over repeats), ``snr_guide``, ``snr_model``, ``ess``,
        ``share_below_2`` (means over tasks and repeats), ``seconds`` (a loss with its gradients).

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    sizes = list(num_particles)
    if isinstance(objectives, Mapping):
        makers = dict(objectives)
    else:
        given: Any = [objectives] if isinstance(objectives, str) else REGISTRY if objectives is None else objectives
        if isinstance(given, Iterable) and getattr(given, "ndim", 1) != 0:
            given = list(given)
        names = each(TEXT, 1, must="hold names of objectives, or be a mapping").check("objectives", given)
        makers = {name: _maker(name) for name in names}
    if isinstance(batch, Dataset | TaskBatch):
        batch = as_computed(batch, model, guide)
    rows = []
    for label, maker in makers.items():
        for k in sizes:
            row: dict[str, Any] = {"objective": label, "num_particles": k, "status": "ok", "reason": ""}
            try:
                row |= _measure(model, guide, maker(k), batch, repeats, seed)
            except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
                row |= {"status": "failed", "reason": str(error).splitlines()[0] if str(error) else repr(error)}
            rows.append(row)
    import pandas as pd  # here, for it takes a second to import

    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = [
    "objective", "num_particles", "status", "reason", "bound", "bound_se", "snr_guide", "snr_model", "ess",
    "share_below_2", "seconds",
]  # fmt: skip


def _maker(name: str) -> Callable[[int], TaskObjective]:
    if name not in REGISTRY:
        make(name)  # raises, naming those there are
    return lambda k: make(name, num_particles=k, normalize=False)


class _Moments:
    """Running mean and variance of a vector (Welford), in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, value: Tensor) -> None:
        self.count += 1
        value = value.double()
        change = value - self.mean
        self.mean = self.mean + change / self.count
        self.squares = self.squares + change * (value - self.mean)

    def deviation(self) -> Tensor:
        return (self.squares / (self.count - 1)).sqrt()

    def signal_to_noise(self) -> float:
        noise, size = float(self.deviation().square().sum()), float(self.mean.square().sum())
        if size == 0.0:
            return float("nan")  # no gradient at all
        if noise < 1e-24 * size:
            return float("inf")
        return (max(size - noise / self.count, 0.0) / noise) ** 0.5


def _measure(
    model: nn.Module, guide: nn.Module, objective: pyro.infer.ELBO, batch: Any, repeats: int, seed: int
) -> dict[str, float]:
    parts = {
        name: [p for p in module.parameters() if p.requires_grad] if isinstance(module, nn.Module) else []
        for name, module in (("guide", guide), ("model", model))
    }
    moments = {name: _Moments() for name in (*parts, "bound", "ess", "below")}
    every = [p for parameters in parts.values() for p in parameters]
    device = every[0].device if every else None
    with seeded(seed, device), pyro.validation_enabled(False):
        started = 0.0
        for repeat in range(repeats + 1):
            if repeat == 1:  # the first evaluation warms up
                started = time.perf_counter()
                moments = {name: _Moments() for name in moments}
            loss, bound, ess, below = _evaluate(model, guide, objective, batch)
            gradients: Any = [None] * len(every)
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, every, allow_unused=True)
            by_parameter = iter(gradients)
            for name, parameters in parts.items():
                pairs = [(p, next(by_parameter)) for p in parameters]
                flat = [(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs]
                if flat:
                    moments[name].add(torch.cat(flat))
            for name, value in (("bound", bound), ("ess", ess), ("below", below)):
                if value is not None:
                    moments[name].add(value.detach())
        seconds = (time.perf_counter() - started) / repeats

    def mean(name: str) -> float:
        return float(moments[name].mean) if moments[name].count else float("nan")

    def ratio(name: str) -> float:
        return moments[name].signal_to_noise() if moments[name].count else float("nan")

    return {
        "bound": mean("bound"),
        "bound_se": float(moments["bound"].deviation()) / repeats**0.5,
        "snr_guide": ratio("guide"),
        "snr_model": ratio("model"),
        "ess": mean("ess"),
        "share_below_2": mean("below"),
        "seconds": seconds,
    }


def _evaluate(
    model: nn.Module, guide: nn.Module, objective: Any, batch: Any
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Loss, mean bound of a task, mean effective sample size and share of tasks below 2."""
    if isinstance(objective, TaskObjective):
        terms = objective.terms(model, guide, batch, diagnostics=True)
        ess = terms.ess
        return objective.reduce(terms), terms.bound.mean(), None if ess is None else ess.mean(), terms.share_below_2
    data = batch.full if isinstance(batch, TaskBatch) else batch
    loss = objective.differentiable_loss(model, guide, data)
    count = max(data.batch_shape.numel(), 1) if isinstance(data, Dataset | TaskBatch) else 1
    return loss, -loss / count, None, None
