"""Whether data are unlike what a model was trained on: a likelihood ratio between the levels of its latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from inference.objectives import make
from inference.objectives.independent_plates import sample_sites
from inference.random_state import seeded
from pp_models.arguments import CALLABLE, DRAWS, SEED, TEXT, checked, each


@checked(
    model=CALLABLE, guide=CALLABLE, sites=each(TEXT, must="name sites of the guide"), num_samples=DRAWS, seed=SEED
)  # fmt: skip
def likelihood_ratio(
    model: Callable,
    guide: Callable,
    *args: Any,
    sites: Sequence[str],
    num_samples: int = 64,
    seed: int = 0,
    **kwargs: Any,
) -> Tensor:
    """A score of outliers: the ELBO, less the ELBO where some latents follow their prior (Havtorn et al. 2021).

    LLR = L - L', L' = E[log p(y | z)] - KL(q(z_rest | y) ‖ p(z_rest)) with z_rest from the guide and the named latents
    from p(z_named | z_rest). Data that the other latents explain need nothing of the named ones: the higher, the more
    the data are unlike what the higher levels know. Name those nearest to the data; with none the score is 0.

    Args:
        model: the model, one of the library's with a data set or any Pyro model.
        guide: its guide.
        *args: what both are called with.
        sites: latents that follow their prior in L'.
        num_samples: draws of each bound.
        seed: of the draws.
        **kwargs: what both are called with by name.

    Returns:
        One score a task ``[*B]``, nats.

    Raises:
        ValueError: a site that the guide does not draw.

    Example:
        >>> likelihood_ratio(model, guide, data, sites=["z"])
    """
    with torch.no_grad(), seeded(seed):
        drawn = [name for name, site in sample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
                 if not site["is_observed"]]  # fmt: skip
        for site in sites:
            if site not in drawn:
                raise ValueError(
                    f"sites: got {site!r}; it must be among those that the guide draws: {', '.join(drawn)}"
                )
        bounds = []
        for named in ((), tuple(sites)):
            torch.manual_seed(seed)
            objective = make("elbo", num_particles=num_samples)
            bounds.append(objective.terms(model, _with_prior(model, guide, named), *args, **kwargs).bound)
    return bounds[0] - bounds[1]


def _with_prior(model: Callable, guide: Callable, named: tuple[str, ...]) -> Callable:
    """The guide with some of its sites as the model draws them given the others."""

    def program(*args: Any, **kwargs: Any) -> None:
        rest = poutine.block(guide, hide=list(named))
        trace = poutine.trace(rest).get_trace(*args, **kwargs)
        if named:
            poutine.block(poutine.replay(model, trace=trace), expose=list(named))(*args, **kwargs)

    return program
