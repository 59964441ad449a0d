"""Observing y at every point x: the site, what models that do so share, and the parts their networks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from pp_models.contract import Model
from pp_models.data import DataError, Dataset
from pp_models.likelihoods import Likelihood, of_observed


class ObservationModel(Model):
    """A model with inputs ``[*B, N, dim_x]``, whose network's ``outputs`` a likelihood turns into a density of y."""

    dim_x: int
    dim_y: int
    outputs: int
    likelihood: Likelihood
    #: whether networks that read a context's y are told which of its outputs are missing
    missing_outputs: bool = False

    @property
    def dim_seen(self) -> int:
        """Width of what a network reads of a point's y: y, and with ``missing_outputs`` a flag for each output."""
        return self.dim_y * (2 if self.missing_outputs else 1)

    def seen(self, data: Dataset) -> Tensor:
        """That itself ``[*B, N, dim_seen]``, see :func:`seen_outputs`."""
        return seen_outputs(data, self.dim_y, self.missing_outputs)

    def check(self, data: Dataset) -> None:
        """Refuses data that this model cannot take.

        Raises:
            DataError: input width, or dtype or width of y, does not fit.
        """
        if data.x.shape[-1] != self.dim_x:
            raise DataError(f"x: got input width {data.x.shape[-1]}; this model was built for {self.dim_x}")
        if data.y is not None:
            self.likelihood.check(data.y, self.outputs)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
}


def seen_outputs(data: Dataset, dim_y: int, missing_outputs: bool = False) -> Tensor:
    """y as numbers ``[*B, N, dim_y]`` for a network: class indices one-hot, and 0 where an output is missing.

    Args:
        data: observed points.
        dim_y: width of y, or the number of classes.
        missing_outputs: append a flag for each output, 1 where it is missing: without, 0 and missing look the same.

    Raises:
        ValueError: y is None.
    """
    if data.y is None:
        raise ValueError("data: y is None; a guide reads observed points")
    y = data.y if data.y.dtype.is_floating_point else one_hot(data.y, dim_y).to(data.x.dtype)
    if not missing_outputs:
        return y
    missing = torch.zeros_like(y) if data.observed is None else (~data.observed).to(y.dtype)
    return torch.cat([y, missing], -1)


def observe(distribution: dist.TorchDistribution, data: Dataset) -> Tensor:
    """The observation site ``y``: pointwise ``distribution`` (batch ``[..., N]``), masked, points as one event.

    Single outputs that are missing are integrated out.
    """
    if data.y is not None and data.num_points:
        distribution = of_observed(distribution, data.observed)
    # without points there is nothing to mask, and torch cannot sum a masked distribution over none
    if data.mask is not None and data.y is not None and data.num_points:
        distribution = distribution.mask(data.mask)
    return pyro.sample("y", distribution.to_event(1), obs=data.y)


def flat_representation(width: int, like: Tensor) -> dist.TorchDistribution:
    """A flat prior over a task representation ``[width]``: log-density 0, drawn as standard normal where sampled.

    A guide that puts a point mass there has a deterministic path (as in CNPs) at no cost in the bound.
    """
    return dist.Normal(like.new_zeros(width), like.new_ones(width)).to_event(1).mask(False)


def join(x: Tensor, representation: Tensor) -> Tensor:
    """Appends a task representation ``[*B, R]`` to every point of ``x`` ``[*B, N, Dx]``; leading dims broadcast."""
    shape = x.shape[:-2]
    if representation.shape[:-1] != shape:
        shape = torch.broadcast_shapes(shape, representation.shape[:-1])
    wide = representation.unsqueeze(-2).expand(*shape, x.shape[-2], representation.shape[-1])
    return torch.cat([x.expand(*shape, *x.shape[-2:]), wide], -1)


def decode_jointly(decoder: nn.Sequential, x: Tensor, vectors: list[Tensor]) -> Tensor:
    """``decoder(join(join(x, v_0), v_1) ...)``, with the first layer's product of a vector taken once for all points.

    Args:
        decoder: a linear layer, and what follows it.
        x: inputs of the points ``[*B, N, Dx]``.
        vectors: of each task ``[*B, R_i]``; leading dimensions broadcast.
    """
    first: Any = decoder[0]
    of_points, *of_vectors = first.weight.split([x.shape[-1], *(v.shape[-1] for v in vectors)], -1)
    shift = linear(vectors[0], of_vectors[0], first.bias)
    for vector, weight in zip(vectors[1:], of_vectors[1:], strict=True):
        shift = shift + linear(vector, weight)
    hidden = linear(x, of_points) + shift.unsqueeze(-2)
    rest: Any = decoder[1:]
    return rest(hidden)
