"""The bound with a penalty on the aggregated posterior: the guide's draws of all tasks beside the prior's."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference.objectives.analytic_kl import is_flat
from inference.objectives.independent_plates import TaskAxes, drawn_sites, is_point_mass
from inference.objectives.kl_objective import Branches
from inference.objectives.penalised_elbo import PenalisedELBO
from pp_models.arguments import POSITIVE, checked, one_of

PENALTIES = ("mmd", "sinkhorn", "dip")
#: widths of the inverse multi-quadratic kernels, in units of the prior's own mean squared distance
WIDTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class InfoVAE(PenalisedELBO):
    """ELBO(D) - λ Δ(q(z), p(z)) for each task, q(z) = mean over tasks of q(z | D).

    Where the guide is the posterior and the tasks are the model's, q(z) is the prior, whatever the model (the tower
    rule); Δ is zero there, without the KL's pull of every single q(z | D) towards the prior.

    Δ (``penalty``), all unbiased or of a divergence that debiases itself, so that it may be below zero by chance:

    * ``"mmd"``: maximum mean discrepancy, inverse multi-quadratic kernels (InfoVAE, Zhao et al. 2019; WAE-MMD with
      ``beta=0``, Tolstikhin et al. 2018);
    * ``"sinkhorn"``: the Sinkhorn divergence of ``geomloss``, in units of the prior's spread (WAE by transport);
    * ``"dip"``: squared distance of the covariance of standardised draws from I (DIP-VAE-II, Kumar et al. 2018), the
      prior's moments taken as its marginals'.

    The draws of all particles and tasks count, of all sites that have a proper prior and a reparameterised draw.

    Args:
        num_particles: draws per task.
        penalty: Δ.
        penalty_weight: λ; at 0 the objective is ``elbo``.
        blur: length, in units of the prior's spread, below which ``"sinkhorn"`` does not look.
        **options: see :class:`TaskELBO`; ``beta`` is the weight of the KL.

    Raises:
        ValueError: an argument out of range, or a guide with no such site.
        ImportError: ``geomloss`` is missing.

    Example:
        >>> import guidebook as gb
        >>> wae = gb.objectives.make("info-vae", penalty="mmd", penalty_weight=10.0, beta=0.0)
    """

    name = "info-vae"
    description = "the bound with a penalty on the aggregated posterior: MMD, Sinkhorn or DIP"
    reference = "Zhao et al. 2019; Tolstikhin et al. 2018; Kumar et al. 2018"

    @checked(penalty=one_of(*PENALTIES), blur=POSITIVE)
    def __init__(
        self,
        num_particles: int = 1,
        *,
        penalty: str = "mmd",
        penalty_weight: float = 1.0,
        blur: float = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(num_particles, penalty_weight=penalty_weight, **options)
        self.penalty, self.blur = penalty, blur
        if self.local_reparameterization and penalty_weight:
            raise ValueError("local_reparameterization: got True, which draws no weight that a penalty could look at")
        self._sinkhorn = _geomloss(blur) if penalty == "sinkhorn" else None

    def penalise(self, runs: Branches, scored: Trace, axes: TaskAxes) -> Tensor | None:
        """Δ of all draws of a batch; None where nothing is drawn, as in a CNP, or all is a point mass."""
        posterior = runs.posterior
        own, prior, centre, spread = [], [], [], []
        for name, site in drawn_sites(posterior):
            other: Any = scored.nodes.get(name)
            if other is None or is_point_mass(site["fn"]) or is_flat(other):
                continue
            fn, value = other["fn"], site["value"]
            if not site["fn"].has_rsample:
                raise ValueError(
                    f"penalty: site {name!r} ({type(site['fn']).__name__}) has no reparameterised draw, by which a "
                    "penalty could move it; use 'elbo'"
                )
            if isinstance(_base(fn), torch.distributions.Cauchy | torch.distributions.HalfCauchy):
                raise ValueError(
                    f"penalty: the prior of site {name!r}, {type(_base(fn)).__name__}, has no mean and variance to "
                    "measure by; use 'elbo'"
                )
            event, dims = fn.event_shape.numel(), len(fn.event_shape)
            try:
                batch = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - dims])
                drawn = fn.expand(batch).sample()
            except NotImplementedError:
                raise ValueError(
                    f"penalty: the prior of site {name!r}, {type(fn).__name__}, cannot be drawn from; use 'elbo'"
                ) from None
            try:
                moments = fn.mean, fn.variance.sqrt()
            except NotImplementedError:  # correlated weights: those of its draws
                flat = drawn.reshape(-1, *fn.event_shape)
                moments = flat.mean(0), flat.std(0, correction=0).clamp_min(1e-6)
            own.append(value.expand(drawn.shape).reshape(-1, event))
            prior.append(drawn.reshape(-1, event))
            centre.append(moments[0].expand(drawn.shape).reshape(-1, event))
            spread.append(moments[1].expand(drawn.shape).reshape(-1, event))
        counts = {len(each) for each in own}
        if not own:
            return None
        if counts == {1}:
            raise ValueError(
                "guide: a latent has one draw, of one task and particle, which is not held to the prior; use 'elbo', a "
                "batch of tasks, or more particles"
            )
        most = max(counts)
        own, prior, centre, spread = (
            [each.repeat(most // len(each), 1) for each in part] for part in (own, prior, centre, spread)
        )
        scale = torch.cat(spread, -1)
        z = (torch.cat(own, -1) - torch.cat(centre, -1)) / scale
        at = (torch.cat(prior, -1) - torch.cat(centre, -1)) / scale
        if self.penalty == "dip":
            return _covariance_distance(z)
        return _mmd(z, at) if self._sinkhorn is None else self._sinkhorn(z, at)


def _base(fn: Any) -> Any:
    """What a distribution is of, without its independent, expanded or masked wraps."""
    while hasattr(fn, "base_dist") and not isinstance(fn, torch.distributions.TransformedDistribution):
        fn = fn.base_dist
    return fn


def _geomloss(blur: float) -> Any:
    try:
        from geomloss import SamplesLoss
    except ImportError:
        raise ImportError("penalty: 'sinkhorn' needs the package geomloss; pip install guidebook[transport]") from None
    return SamplesLoss("sinkhorn", p=2, blur=blur, backend="tensorized")


def _mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy of draws ``[S, E]`` from draws of N-like spread 1 in each entry."""
    count, scale = len(x), 2.0 * x.shape[-1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a.square().sum(-1, keepdim=True) + b.square().sum(-1) - 2 * a @ b.mT).clamp_min(0)
        total = torch.zeros_like(squares)
        for width in WIDTHS:
            total = total + width * scale / (width * scale + squares)
        return total / len(WIDTHS)

    def apart(values: Tensor) -> Tensor:
        """Mean over pairs of different draws."""
        return (values.sum() - values.diagonal().sum()) / max(count * (count - 1), 1)

    return apart(kernel(x, x)) + apart(kernel(y, y)) - 2 * kernel(x, y).mean()


def _covariance_distance(z: Tensor) -> Tensor:
    """‖Cov z - I‖² of draws ``[S, E]``: the product of two halves' estimates, so that its mean is the distance."""
    halves = [part - part.mean(0) for part in (z[::2], z[1::2])]
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    off = [part.mT @ part / max(len(part) - 1, 1) - eye for part in halves]
    return (off[0] * off[1]).sum()
