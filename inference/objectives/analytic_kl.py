"""When the KL of a site may be taken in closed form, and what it is then.

E_q[log q(z_i | z_<i) - log p(z_i | z_<i)] may be replaced by the mean over z_<i of KL(q(· | z_<i) ‖ p(· | z_<i)) only
where p's conditional is a function of what q drew *before* z_i, and where both densities are counted alike.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from inference.objectives.independent_plates import density_shape, same, sample_sites


def analytic_sites(posterior: Trace, other: Trace) -> set[str]:
    """The latent sites of a guide whose KL to another trace's conditionals may be analytic.

    Those that the other trace draws in the same order, under the same plates, with the same scale and mask, and whose
    prior is not flat.
    """
    latent = [name for name, site in sample_sites(posterior) if not site["is_observed"]]
    position = {name: i for i, name in enumerate(latent)}
    allowed: set[str] = set()
    last = -1  # the latest draw of the guide among the sites that the other trace has had so far
    for name, site in sample_sites(other):
        if name not in position:
            continue
        if position[name] > last and counted_alike(posterior.nodes[name], site):
            allowed.add(name)
        last = max(last, position[name])
    return allowed


def counted_alike(site: Any, other: Any) -> bool:
    """Whether two sites have the same plates, scale and mask, and neither is masked by its distribution."""
    if not same(site["scale"], other["scale"]) or not _same_mask(site["mask"], other["mask"]):
        return False
    if is_flat(other) or any(isinstance(s["fn"], pyro.distributions.MaskedDistribution) for s in (site, other)):
        return False
    frames = [{(f.name, f.dim) for f in s["cond_indep_stack"] if f.vectorized} for s in (site, other)]
    return frames[0] == frames[1]


def is_flat(site: Any) -> bool:
    """Whether a prior is masked away altogether, by its distribution or by a handler."""
    return site["mask"] is False or getattr(site["fn"], "_mask", None) is False


def _same_mask(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if a is None or b is None or isinstance(a, bool) or isinstance(b, bool):
        return (a is None or a is True) and (b is None or b is True)
    if a.device.type != "cpu" or b.device.type != "cpu" or a.shape != b.shape:
        return False
    return bool((a == b).all())


def closed_form(site: Any, other: Any) -> Tensor | None:
    """KL(q ‖ p) of a guide's site, of the shape of its log-density; None where there is no closed form."""
    q, p = site["fn"], other["fn"]
    try:
        found = kl_divergence(q, p)
    except NotImplementedError:
        return None
    except (IndexError, RuntimeError):  # torch's own formulas do not all broadcast
        shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
        try:
            found = kl_divergence(q.expand(shape), p.expand(shape))
        except (NotImplementedError, IndexError, RuntimeError):
            return None
    return found if found.shape == density_shape(site) else None
