"""The No-U-Turn sampler for any Pyro model, its potential compiled where that changes nothing."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor, nn

from inference.random_state import seeded

logger = logging.getLogger("guidebook")

#: points at which a compiled potential must be the model's, and the size of their numbers, as Pyro starts chains
POINTS, RADIUS = 16, 2.0


@contextmanager
def _frozen(model: Callable) -> Iterator[None]:
    """Takes the gradient from a module's parameters, which a compiled graph cannot hold with it."""
    trained = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def pyro_nuts(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    num_warmup: int,
    num_samples: int,
    num_chains: int = 1,
    seed: int | None = 0,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    progress: bool = False,
    hook: Callable | None = None,
    parallel: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:
    """Chains of Pyro's NUTS, one after the other, of one potential that is compiled once; or each in a process.

    Args:
        model: any Pyro model; discrete sites are summed out where they say ``infer={"enumerate": "parallel"}``.
        args: what it is called with.
        kwargs: what it is called with by name.
        num_warmup: adaptation steps of each chain.
        num_samples: draws of each chain.
        num_chains: chains.
        seed: of the first chain, the next ones have the next; None draws from the global generator.
        target_accept: target acceptance probability.
        max_tree_depth: doublings of a trajectory.
        progress: show Pyro's progress bar.
        hook: called at each step as Pyro's MCMC calls ``hook_fn``.
        parallel: one process a chain, as many as there are cores; the draws are those of one after the other.

    Returns:
        Draws by site ``[chains, samples, *value]``, and which were divergent ``[chains, samples]``.

    Raises:
        ValueError: the model has no latent, or its density is not finite wherever it is started; or, in parallel, it
            cannot be sent to another process.
    """
    options: dict[str, Any] = {"target_accept": target_accept, "max_tree_depth": max_tree_depth, "progress": progress}
    numbers: tuple = (num_warmup, num_samples)
    if parallel and num_chains > 1:
        seeds = [None if seed is None else seed + chain for chain in range(num_chains)]
        if seed is None:  # each process has a generator of its own
            seeds = [int(torch.randint(2**62, ())) for _ in seeds]
        parts = _in_processes([(model, args, dict(kwargs), *numbers, 1, each) for each in seeds], options)
        names = parts[0][0]
        return {n: torch.cat([draws[n] for draws, _ in parts]) for n in names}, torch.cat([bad for _, bad in parts])
    chains, divergent = [], torch.zeros(num_chains, num_samples, dtype=torch.bool)
    compiled: Callable | None = None
    for chain in range(num_chains):
        with seeded(None if seed is None else seed + chain), _frozen(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, of its compiler
            try:
                start, potential, transforms, _ = initialize_model(model, args, dict(kwargs))
            except ValueError as error:
                raise ValueError(f"model: {(str(error).splitlines() or ['it cannot be started'])[0]}") from None
            if not start:
                raise ValueError("model: it has no continuous latent with these arguments; there is nothing to sample")
            if compiled is None:
                compiled = _compiled(model, args, kwargs, start, potential)
            kernel = NUTS(
                potential_fn=compiled,
                transforms=transforms,
                target_accept_prob=target_accept,
                max_tree_depth=max_tree_depth,
            )
            mcmc = MCMC(
                kernel,
                num_samples,
                num_warmup,
                initial_params=start,
                hook_fn=hook,
                disable_progbar=not progress,
                transforms=transforms,
            )
            mcmc.run()
        chains.append({name: value.detach() for name, value in mcmc.get_samples().items()})
        # not by mcmc.diagnostics(), which computes R-hat too and needs four draws for it
        found: Any = mcmc._diagnostics[0]
        divergent[chain, found["divergences"]] = True
    return {name: torch.stack([chain[name] for chain in chains]) for name in chains[0]}, divergent


def _in_processes(calls: list[tuple], options: Mapping[str, Any]) -> list[tuple[dict[str, Tensor], Tensor]]:
    """The calls of :func:`pyro_nuts`, each in a process that has this one's parameters and default dtype.

    Raises:
        ValueError: what is called cannot be sent.
    """
    from joblib import Parallel, delayed, parallel_config  # here, for few runs need it

    count = min(len(calls), os.cpu_count() or 1)
    here = pyro.get_param_store().get_state(), torch.get_default_dtype(), max(1, torch.get_num_threads() // count)
    try:
        with parallel_config("loky", n_jobs=count):
            return list(Parallel()(delayed(_in_process)(here, call, dict(options)) for call in calls))
    except pickle.PicklingError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"chain_method: got 'parallel', but the model cannot be sent to another process ({reason[:120]}); it must "
            "be 'sequential'"
        ) from None


def _in_process(here: tuple, call: tuple, options: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    state, dtype, threads = here
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    pyro.get_param_store().set_state(state)
    return pyro_nuts(*call, **options)


def _compiled(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], start: Mapping[str, Tensor], potential: Callable
) -> Callable:
    """The potential as one graph, where it is the model's at other points too; else as the model gives it."""
    try:
        with seeded(0):  # a model that draws as it goes must not shift the chain's random numbers
            *_, fast, _, _ = initialize_model(model, args, dict(kwargs), jit_compile=True, skip_jit_warnings=True)
            points = [dict(start)]
            for _ in range(POINTS):
                points.append({n: torch.empty_like(v).uniform_(-RADIUS, RADIUS) for n, v in start.items()})
            for point in points:
                found, expected = fast(point), potential(point)
                # a branch that is taken at some draws alone is not in the graph
                if not torch.isclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
                    raise RuntimeError(
                        f"it is {float(found):.4g} at a point where the model's is {float(expected):.4g}"
                    )
        return fast
    except Exception as error:  # whatever a model does that a graph cannot hold
        why = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("nuts: the potential is not compiled (%s), which is slower", why[:120])
        return potential
