"""Local reparameterisation as an effect handler: draw pre-activations instead of weights (Kingma et al. 2015)."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from guides.networks.dropout_normal import VARIANCE_FLOOR, DropoutNormal
from pp_models.single_precision import single


def is_gaussian_weight(fn: Any) -> bool:
    """Whether a site's distribution is an independent Gaussian over a weight matrix."""
    if isinstance(fn, DropoutNormal):
        return True
    return (
        isinstance(fn, torch.distributions.Independent)
        and fn.reinterpreted_batch_ndims == 2
        and isinstance(fn.base_dist, torch.distributions.Normal)
        and len(fn.event_shape) == 2
    )


def preactivation_moments(fn: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance ``[*B, N, k_out]`` of ``linear(inputs, W)`` for a Gaussian W ~ ``fn``."""
    if isinstance(fn, DropoutNormal):
        return fn.preactivation_moments(inputs)
    loc, variance = fn.base_dist.loc, fn.base_dist.scale.square()
    return (
        torch.matmul(inputs, loc[..., :-1].mT) + loc[..., None, :, -1],
        torch.matmul(inputs.square(), variance[..., :-1].mT) + variance[..., None, :, -1],
    )


class local_reparameterization(Messenger):
    """Replaces the draw of every Gaussian weight matrix by a draw of the pre-activations it gives at each point.

    Wrap it around guide *and* model together: ``with local_reparameterization(): svi.step(batch)``. The marginal of
    every pre-activation is unchanged, the gradient has less variance. The noise is independent from point to point,
    so such draws are **not coherent functions**: never use it to draw posterior functions. The KL of the weights must
    be analytic (our objectives, ``TraceMeanField_ELBO``), for no weight is drawn whose density could be taken.

    Args:
        lazy: leave the site's value unset (NaN, no memory) instead of the posterior mean; for objectives that never
            look at it.

    Raises:
        ValueError: in a model whose points attend to one another, where a point's output depends on the *joint* law of
            the pre-activations of all points.
    """

    def __init__(self, lazy: bool = False) -> None:
        super().__init__()
        self.lazy = lazy
        self._sites: dict[int, tuple[Tensor, Any]] = {}

    def __enter__(self):
        self._sites.clear()
        return super().__enter__()

    def __exit__(self, *exc):
        self._sites.clear()
        return super().__exit__(*exc)

    def _pyro_sample(self, msg) -> None:
        if msg["done"] or msg["is_observed"] or not is_gaussian_weight(msg["fn"]):
            return
        fn = msg["fn"]
        shape = fn.batch_shape + fn.event_shape
        if self.lazy:
            like = fn.weight if isinstance(fn, DropoutNormal) else fn.base_dist.loc
            value = like.new_full((), torch.nan).expand(shape)
        else:
            value = fn.mean.expand(shape).clone()
        msg["value"] = value
        msg["done"] = True
        self._sites[id(value)] = (value, fn)  # holding the value keeps its id its own

    def _pyro_linear(self, msg) -> None:
        inputs, weight = msg["args"]
        if msg["done"] or id(weight) not in self._sites:
            return
        if msg["kwargs"].get("coherent"):
            raise ValueError(
                "local_reparameterization: the points of this model attend to one another, but pre-activations are "
                "drawn independently from point to point; draw the weights instead (local_reparameterization=False)"
            )
        fn = self._sites[id(weight)][1]
        mean, variance = preactivation_moments(fn, inputs)
        shape = torch.broadcast_shapes(fn.batch_shape, mean.shape[:-2]) + mean.shape[-2:]
        noise = torch.randn(shape, dtype=mean.dtype, device=mean.device)
        drawn = torch.addcmul(single(mean), (single(variance) + VARIANCE_FLOOR).sqrt(), single(noise))
        msg["value"] = drawn.to(inputs.dtype)
        msg["done"] = True
