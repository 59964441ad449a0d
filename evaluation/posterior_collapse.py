"""Which latent coordinates of any model respond to the data: active, passive, or mixed over a plate's elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from evaluation.arviz.pyro_converter import is_factor, sample_sites
from evaluation.latent_findings import ACTIVE, NARROWED
from inference.objectives.dreams import Anew
from inference.objectives.independent_plates import is_point_mass
from inference.random_state import seeded
from pp_models.arguments import CALLABLE, POSITIVE, SEED, checked, integer, tensor

if TYPE_CHECKING:
    import pandas as pd

#: a coordinate is mixed where the share of elements whose posterior is the prior's lies between these
FEW, MOST = 0.1, 0.9
#: an element's posterior is the prior's where its variance is at least this share of it
AS_WIDE = 0.8


@checked(model=CALLABLE, guide=CALLABLE, num_samples=integer(20), seed=SEED)
def collapse(
    model: Callable, guide: Callable, *args: Any, num_samples: int = 200, seed: int = 0, **kwargs: Any
) -> pd.DataFrame:
    """Whether each latent coordinate carries anything of the data (posterior collapse).

    For every coordinate of a latent site, over the elements of the plates that the site is in (images, tasks, groups):
    ``moved``, the variance of the posterior's mean over the prior's variance (Burda et al. 2016's activity, in its
    units), and ``width``, the posterior's mean variance over the prior's. A coordinate is

    * ``passive``: nothing moves and nothing narrows; the posterior is the prior (Bonheme and Grzes 2023);
    * ``mixed``: so for some elements, and not for others;
    * ``active``: the rest.

    Prior variances are of draws of the model with nothing observed.

    Args:
        model: any Pyro model, or one of the library's with a data set.
        guide: its guide.
        *args: what both are called with.
        num_samples: draws of the guide, and of the prior.
        seed: of the draws.
        **kwargs: what both are called with by name.

    Returns:
        One row a coordinate: ``site``, ``coordinate`` (within its event), ``state``, ``moved`` (NaN without a plate),
        ``width``, ``passive_share`` of the elements.

    Raises:
        ValueError: no latent that the prior draws.
    """
    rows: list[dict[str, Any]] = []
    with torch.no_grad(), seeded(seed):
        prior = _draws(model, args, kwargs, num_samples, prior=True)
        posterior = _draws(guide, args, kwargs, num_samples)
    noise = 2 / num_samples, 2 / math.sqrt(num_samples)
    for site, (values, events) in posterior.items():
        if site not in prior or prior[site][0].shape[1:] != values.shape[1:]:
            continue
        z, before = (v.flatten(1, v.dim() - events - 1) if v.dim() - events > 1 else v.unsqueeze(1) for v in
                     (values, prior[site][0]))  # fmt: skip
        z, before = z.flatten(2) if events else z.unsqueeze(-1), before.flatten(2) if events else before.unsqueeze(-1)
        own = before.var(0).mean(0).clamp_min(1e-12)  # [coordinates]
        each = z.var(0) / own  # [elements, coordinates]
        moved = z.mean(0).var(0) / own if len(each) > 1 else torch.full_like(own, torch.nan)
        width, passive = each.mean(0), (each >= AS_WIDE).double().mean(0)
        for k in range(len(own)):
            still = not float(moved[k]) > ACTIVE + noise[0]
            wide = abs(math.log(max(float(width[k]), 1e-12))) <= NARROWED + noise[1]
            state = "passive" if still and wide else "mixed" if FEW < float(passive[k]) < MOST else "active"
            row = {"site": site, "coordinate": k, "state": state, "moved": float(moved[k]), "width": float(width[k])}
            rows.append(row | {"passive_share": float(passive[k])})
    if not rows:
        raise ValueError("model: it has no latent site that its prior draws with these arguments")
    import pandas as pd  # here, for it takes a second to import

    return pd.DataFrame(rows)


def _draws(
    program: Callable, args: tuple, kwargs: Mapping[str, Any], count: int, prior: bool = False
) -> dict[str, tuple[Tensor, int]]:
    """Draws ``[count, *batch, *event]`` of the latents by site, with the number of event dimensions."""
    found: dict[str, list[Tensor]] = {}
    events: dict[str, int] = {}
    names: set[str] = set()
    for _ in range(count):
        anew = Anew()
        with anew if prior else poutine.block(hide=[]):
            trace = poutine.trace(program).get_trace(*args, **kwargs)
        names |= set(anew.names)
        for name, site in sample_sites(trace):
            latent = not site["is_observed"] and not is_factor(site) and name not in names
            if latent and (not prior or not is_point_mass(site["fn"])):
                events[name] = len(site["fn"].event_shape)
                found.setdefault(name, []).append(torch.as_tensor(site["value"]).double().cpu())
    return {n: (torch.stack(v), events[n]) for n, v in found.items() if len({t.shape for t in v}) == 1}


@checked(covariance=tensor(2), noise_scale=POSITIVE, beta=POSITIVE)
def active_in_linear_model(covariance: Tensor, noise_scale: float, beta: float = 1.0) -> int:
    """How many latents the best linear model y = W z + N(0, σ²) with a Gaussian guide keeps: the exact condition.

    A direction of the data is kept where its variance is above β σ² (Lucas et al. 2019; Dang et al. 2024, theorem 1,
    for a KL that weighs β); all other latents collapse, however well the model is trained.

    Args:
        covariance: of the data ``[D, D]``.
        noise_scale: σ.
        beta: weight of the KL.
    """
    return int((torch.linalg.eigvalsh(covariance) > beta * noise_scale**2).sum())
