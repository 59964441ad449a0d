"""The converter of Pyro's posteriors, with this library's rules for arguments and its own results of NUTS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro.infer import MCMC

from evaluation.arviz import pyro_converter
from evaluation.arviz.arviz_container import COORDS, DIMS
from evaluation.arviz.pyro_converter import SAMPLE_DIMS
from inference.reference.nuts import NutsResult
from pp_models.arguments import CALLABLE, DRAWS, SEED, checked, instance, optional


@checked(model=CALLABLE, guide=CALLABLE, num_samples=DRAWS, seed=SEED, coords=COORDS, dims=DIMS)
def from_pyro_svi(
    model: Callable,
    guide: Callable,
    *args: Any,
    num_samples: int = 1_000,
    container: str = "auto",
    seed: int | None = None,
    prior: bool = True,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    sample_dims: Sequence[str] = SAMPLE_DIMS,
    **kwargs: Any,
) -> Any:
    """Draws from a guide, weighs and scores them under its model, and packs what ArviZ looks for.

    One call of guide and model a draw, so that nothing need be vectorised, and
    dimensions are named by the model's own plates. ``chain`` has length 1, so that ``az.summary`` and ``az.loo`` work.

    Groups:
        posterior, prior: the model's unobserved sample sites (and deterministic ones).
        posterior_predictive, prior_predictive, observed_data: its observed sites; NaN (-1 for integers) stands for a
            value that a mask takes out.
        log_likelihood: of each element of an observed site's batch, summed over its event. Where a mask
            (``poutine.mask``, ``obs_mask``, ``distribution.mask``) takes elements out, the others are stacked along one
            dimension ``{site}_observation`` with coordinates ``{site}_{plate}``, since ``loo`` fails on any filling. A
            ``pyro.factor`` is no observation.
        sample_stats: log_p, log_q and log_weight = log_p - log_q, ``[chain, draw, *plates]`` over the plates that hold
            every site, whose elements have posteriors of their own (none: ``[chain, draw]``). Factors count in log_p,
            and what an AutoGuide draws in its own unconstrained space in log_q.

    Args:
        model: any Pyro model.
        guide: any Pyro guide of it, an AutoGuide too.
        *args: what both are called with.
        num_samples: draws.
        container: "inferencedata", "datatree", or "auto" for what the installed ArviZ reads.
        seed: of the draws; None draws from the global generator.
        prior: also draw from the prior (left out where a prior is improper).
        coords: coordinate values by dimension name.
        dims: names of a site's event dimensions, by site; ``{site}_dim_k`` otherwise.
        sample_dims: ``["chain", "draw"]``, or ``["sample"]``, which both become.
        **kwargs: what both are called with.

    Returns:
        an ``arviz.InferenceData`` or an ``xarray.DataTree``.

    Raises:
        ValueError: fewer than one draw, a subsampled plate, a site whose shape changes between draws, a model without
            observed site or factor, or a latent site that the guide lacks.
    """
    return pyro_converter.from_pyro_svi(
        model, guide, *args, num_samples=num_samples, container=container, seed=seed, prior=prior, coords=coords,
        dims=dims, sample_dims=sample_dims, **kwargs,
    )  # fmt: skip


@checked(mcmc=instance(MCMC, NutsResult), model=optional(CALLABLE), seed=SEED, coords=COORDS, dims=DIMS)
def from_pyro_mcmc(
    mcmc: Any,
    model: Callable | None = None,
    *args: Any,
    container: str = "auto",
    seed: int | None = None,
    prior: bool = True,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    sample_dims: Sequence[str] = SAMPLE_DIMS,
    **kwargs: Any,
) -> Any:
    """Draws of Pyro's MCMC, or of :func:`inference.nuts` on any Pyro model, as an ArviZ container.

    Groups are those of :func:`from_pyro_svi`, by chain and draw: the model is run once at each draw. ``sample_stats``
    has ``lp``, the joint log-density, and ``diverging``.

    Args:
        mcmc: what sampled: a ``NutsResult``, or a ``pyro.infer.MCMC`` that has run.
        model: the model; a ``NutsResult`` knows its own.
        *args: what it was called with; a ``NutsResult`` knows that too.
        container: "inferencedata", "datatree" or "auto", as for :func:`evaluation.to_arviz`.
        seed: of the predictive draws and the prior's; None draws from the global generator.
        prior: also draw from the prior (left out where a prior is improper).
        coords: coordinate values by dimension name.
        dims: names of a site's event dimensions, by site; ``{site}_dim_k`` otherwise.
        sample_dims: ``["chain", "draw"]``, or ``["sample"]``, which both become.
        **kwargs: what it was called with by name.

    Raises:
        ValueError: no model, draws of NumPyro's (``arviz.from_numpyro(result.mcmc)`` takes them), a subsampled plate,
            or a site of the model that was not sampled.

    Example:
        >>> idata = from_pyro_mcmc(nuts(schools, y, num_chains=4))
    """
    options: dict[str, Any] = {
        "container": container, "seed": seed, "prior": prior, "coords": coords, "dims": dims,
        "sample_dims": sample_dims,
    }  # fmt: skip
    if isinstance(mcmc, NutsResult):
        if mcmc.divergent is None:
            raise ValueError("mcmc: got draws of NumPyro's; it must be arviz.from_numpyro(result.mcmc) that takes them")
        draws, ended = mcmc.by_chain(), mcmc.divergent
        return pyro_converter.from_pyro_mcmc(
            draws, mcmc.model, *mcmc.args, diverging=ended, **options, **dict(mcmc.kwargs)
        )
    if model is None:
        raise ValueError("model: got None; Pyro's MCMC does not say which model it sampled, so that it must be given")
    return pyro_converter.from_pyro_mcmc(mcmc, model, *args, **options, **kwargs)
