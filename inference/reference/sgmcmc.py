"""Stochastic-gradient MCMC: Langevin and Hamiltonian dynamics of the package ``posteriors``, whole or broken apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine, validation_enabled
from pyro.infer.mcmc.util import initialize_model
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.data_dtype import as_computed
from inference.random_state import seeded
from inference.reference.nuts import NutsResult
from pp_models.arguments import CALLABLE, DRAWS, POSITIVE, SEED, checked, integer, one_of
from pp_models.contract import Model
from pp_models.data import Dataset, require_tasks

METHODS = ("sgld", "sghmc")
STRUCTURES = ("joint", "sites")


class _ScaledObservations(Messenger):
    """Log-densities of observed sites times a factor, so that a minibatch stands for all points."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample":
            msg["scale"] = msg["scale"] * self.factor


@checked(
    model=CALLABLE,
    method=one_of(*METHODS),
    structure=one_of(*STRUCTURES),
    step_size=POSITIVE,
    friction=POSITIVE,
    num_warmup=integer(0),
    num_samples=DRAWS,
    thin=integer(1),
    num_chains=integer(1, 1024),
    seed=SEED,
)
def sgmcmc(
    model: Callable,
    *args: Any,
    method: str = "sghmc",
    structure: str = "joint",
    step_size: float = 1e-3,
    friction: float = 10.0,
    num_warmup: int = 1_000,
    num_samples: int = 1_000,
    thin: int = 1,
    num_chains: int = 4,
    batch_size: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> NutsResult:
    """Draws by stochastic-gradient dynamics, a reference for posteriors of many points or weights.

    SGLD (Welling and Teh 2011) and SGHMC (Chen et al. 2014) as ``posteriors`` has them, in the unconstrained space of
    the model's latents. No step is rejected, so that the step size is a bias: halve it until nothing moves, and hold
    what comes to :func:`inference.nuts` where that is affordable.

    ``structure="sites"`` breaks the dependence between sites (Alexos et al. 2022): the energy of a site is averaged
    over the others' values in other chains, drawn anew at each step. What is sampled is then the product of marginals
    that mean-field variational inference would fit, of any shape; on a Gaussian posterior its precisions are the
    diagonal blocks of the posterior's.

    Args:
        model: any Pyro model with continuous latents.
        *args: what it is called with; one Dataset for the library's own.
        method: ``"sgld"`` or ``"sghmc"``.
        structure: ``"joint"``, or ``"sites"``, which needs at least two chains.
        step_size: of ``posteriors``, per step, in units of the log-joint.
        friction: of SGHMC; above ``step_size`` times the largest curvature of the log-joint: its steps are explicit.
        num_warmup: steps that are thrown away.
        num_samples: draws that are kept of each chain.
        thin: steps between two of them.
        num_chains: chains, run side by side.
        batch_size: points of a minibatch, drawn anew each step for all tasks alike; needs a Dataset. None for all.
        seed: of starts, minibatches and noise.
        **kwargs: what the model is called with by name.

    Returns:
        The draws as :func:`inference.nuts` gives them; ``.predict(x)`` and ``.by_chain()`` too.

    Raises:
        ImportError: ``posteriors`` is missing.
        ValueError: an argument out of range, or a chain that leaves the finite numbers.

    Example:
        >>> import torch, guidebook as gb
        >>> model = gb.BayesianNetwork([1, 1], likelihood="gaussian")
        >>> data = gb.Dataset(torch.randn(9, 1), torch.randn(9, 1))
        >>> draws = gb.sgmcmc(model, data, num_warmup=5, num_samples=5, num_chains=2).draws["layer_0.weight"]
        >>> draws.shape
        torch.Size([10, 1, 2])
    """
    dynamics = _dynamics(method)
    if structure == "sites" and num_chains < 2:
        raise ValueError(f"num_chains: got {num_chains}; structure='sites' averages over other chains, take at least 2")
    if args and isinstance(args[0], Dataset):
        require_tasks(args[0], "data")
        args = (as_computed(args[0], model), *args[1:])
        if args[0].y is None:
            raise ValueError("data: y is None; a posterior needs observed points")
        if isinstance(model, Model):
            model.check(args[0])
    points = _points(args, batch_size)
    home = args[0].x.device if args and isinstance(args[0], Dataset) else torch.device("cpu")
    at_once: bool | None = None
    # checks of values look at them, which dynamics of all chains at once cannot
    with seeded(seed, home), validation_enabled(False):
        starts, transforms = [], {}
        for _ in range(num_chains):
            start, _, transforms, _ = initialize_model(model, args, dict(kwargs))
            starts.append(start)
        if not starts[0]:
            raise ValueError("model: it has no continuous latent with these arguments; there is nothing to sample")
        state = {name: torch.stack([start[name].detach() for start in starts]) for name in starts[0]}
        options = {"lr": step_size} if method == "sgld" else {"lr": step_size, "alpha": friction}
        held = dynamics.init(state)
        kept: list[dict[str, Tensor]] = []
        for step in range(num_warmup + num_samples * thin):
            given, factor = _minibatch(args, points, batch_size)

            def log_joint(z: Mapping[str, Tensor], given: tuple = given, factor: float = factor) -> Tensor:
                return _log_joint(model, given, kwargs, z, transforms, factor)

            if at_once is None:
                at_once = _runs_at_once(log_joint, state)
            energy = (_apart if structure == "sites" else _together)(log_joint, num_chains, at_once)
            held, _ = dynamics.update(held, None, energy, **options)
            if step % 64 == 0 and not all(bool(torch.isfinite(v).all()) for v in held.params.values()):
                raise ValueError(f"step_size: got {step_size}; a chain left the finite numbers, it must be smaller")
            if step >= num_warmup and (step - num_warmup) % thin == thin - 1:
                kept.append({name: value.detach().clone() for name, value in held.params.items()})
    draws = {}
    for name in state:
        values = torch.stack([each[name] for each in kept], 1).flatten(0, 1)
        draws[name] = transforms[name].inv(values) if name in transforms else values
        if not bool(torch.isfinite(draws[name]).all()):
            raise ValueError(f"step_size: got {step_size}; a chain left the finite numbers, it must be smaller")
    return NutsResult(draws, num_chains, 0, None, model, args, kwargs)


def _dynamics(method: str) -> Any:
    try:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its dependencies, as they are imported
            from posteriors import sgmcmc as dynamics
    except ImportError:
        raise ImportError("method: the package posteriors is missing; pip install guidebook[sgmcmc]") from None
    return getattr(dynamics, method)


def _points(args: tuple, batch_size: int | None) -> int:
    if batch_size is None:
        return 0
    if not args or not isinstance(args[0], Dataset):
        raise ValueError(f"batch_size: got {batch_size}; minibatches are of the points of a Dataset, which the first "
                         "argument must be")  # fmt: skip
    if not 1 <= batch_size <= args[0].num_points:
        raise ValueError(f"batch_size: got {batch_size}; it must lie in 1..{args[0].num_points}, the number of points")
    if args[0].mask is not None:
        raise ValueError(f"batch_size: got {batch_size} on ragged tasks; a minibatch would hold other shares of each")
    return args[0].num_points


def _minibatch(args: tuple, points: int, batch_size: int | None) -> tuple[tuple, float]:
    if batch_size is None:
        return args, 1.0
    return (args[0].points(torch.randperm(points)[:batch_size]), *args[1:]), points / batch_size


def _log_joint(
    model: Callable, args: tuple, kwargs: Mapping, z: Mapping[str, Tensor], transforms: Mapping, factor: float
) -> Tensor:
    """log p(x, y) at unconstrained latents, its Jacobian included."""
    values = {name: transforms[name].inv(v) if name in transforms else v for name, v in z.items()}
    with poutine.trace() as traced, poutine.condition(data=values), _ScaledObservations(factor):
        model(*args, **kwargs)
    total: Any = traced.trace.log_prob_sum()
    for name, transform in transforms.items():
        total = total - transform.log_abs_det_jacobian(values[name], z[name]).sum()
    return total


def _together(log_joint: Callable, chains: int, at_once: bool) -> Callable:
    """Σ over chains of their own log-joint: its gradient is each chain's."""

    def energy(params: Mapping[str, Tensor], _: Any) -> tuple[Tensor, Tensor]:
        return _over_chains(log_joint, params, chains, at_once).sum(), torch.tensor([])

    return energy


def _apart(log_joint: Callable, chains: int, at_once: bool) -> Callable:
    """Σ over chains and sites of the log-joint at the site's own value and the others' of other chains."""

    def energy(params: Mapping[str, Tensor], _: Any) -> tuple[Tensor, Tensor]:
        parts = []
        for own in params:
            others = {n: v[torch.randperm(chains)].detach() for n, v in params.items() if n != own}
            parts.append(_over_chains(log_joint, {own: params[own], **others}, chains, at_once))
        return torch.stack(parts).sum(), torch.tensor([])

    return energy


def _over_chains(log_joint: Callable, params: Mapping[str, Tensor], chains: int, at_once: bool) -> Tensor:
    """The log-joint of every chain ``[chains]``."""
    if at_once:
        return torch.vmap(log_joint)(dict(params))
    return torch.stack([log_joint({name: v[c] for name, v in params.items()}) for c in range(chains)])


def _runs_at_once(log_joint: Callable, params: Mapping[str, Tensor]) -> bool:
    """Whether a program can be run for all chains together: one that looks at its values cannot."""
    try:
        torch.vmap(log_joint)(dict(params))
    except (RuntimeError, ValueError):
        return False
    return True
