"""The same Bayesian network in NumPyro: same sites, same parameters, same log-joint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pp_models.data import Dataset
from pp_models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianHeadLikelihood,
    GaussianLikelihood,
)
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.networks.priors import GaussianPrior
from pp_models.task_plates import task_plate_name

if TYPE_CHECKING:
    import jax


@contextmanager
def precision_of(model: torch.nn.Module) -> Iterator[None]:
    """JAX in the precision of a model, for this block alone; its global setting is as before."""
    import jax

    parameters = [t for t in (*model.parameters(), *model.buffers()) if t.dtype.is_floating_point]
    double = any(t.dtype == torch.float64 for t in parameters)
    with jax.enable_x64(double):
        yield


def as_array(tensor: torch.Tensor) -> jax.Array:
    """A torch tensor as a JAX array of the same precision (under :func:`precision_of`)."""
    import jax.numpy as jnp

    return jnp.asarray(tensor.detach().cpu().numpy())


@contextmanager
def twin_plates(batch_shape: torch.Size) -> Iterator[None]:
    """The task plates in NumPyro, with the names and dims of :func:`pp_models.task_plates.task_plates`."""
    import numpyro

    with ExitStack() as stack:
        for position, size in enumerate(reversed(batch_shape)):
            stack.enter_context(numpyro.plate(task_plate_name(position), size, dim=-1 - position))
        yield


def numpyro_twin(model: BayesianNetwork) -> Callable[[Dataset], None]:
    """A NumPyro model with the sites, the parameters (as constants) and the log-joint of a Bayesian network.

    It is called with the same Dataset: with y it observes it, without it samples it.

    Args:
        model: the network; its parameters are read when this is called.

    Raises:
        ValueError: a model with a representation (the guide supplies that) or with attention; a prior or a likelihood
            without a twin.
    """
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.scipy.linalg import solve_triangular

    if not model.independent_points:
        raise ValueError(f"model: got {type(model).__name__}, whose attention has no NumPyro twin")
    if model.representation_dim or model.reads_memory:
        raise ValueError("model: its representation or path is supplied by a guide, and has no prior to sample from")
    prior = model.prior
    if not isinstance(prior, GaussianPrior):
        raise ValueError(f"model: its prior is a {type(prior).__name__}, which has no NumPyro twin")
    likelihood = likelihood_twin(model.likelihood)
    activation = activation_twins()[model.activation]
    shapes = model.weight_shapes
    network_wide = not prior.independent_layers
    joint: Any = None
    centre: Any = None
    blocks: list[tuple[Any, Any, bool]] = []
    with torch.no_grad(), precision_of(model):
        if network_wide:
            centre, joint = (as_array(t) for t in prior.moments(0))
        else:
            found = [prior.gaussian(i, []) for i in range(len(shapes))]
            blocks = [(as_array(b.loc), as_array(b.factor), b.diagonal) for b in found]
    scaled = [prior.fan_in_scale(i) for i in range(len(shapes))]

    def whole(loc: Any, tril: Any, shape: tuple[int, int]) -> Any:
        gaussian = dist.MultivariateNormal(loc, scale_tril=tril)
        reshape = dist.transforms.ReshapeTransform(shape, (shape[0] * shape[1],))
        return dist.TransformedDistribution(gaussian, reshape)

    def layer(index: int, drawn: list[Any]) -> Any:
        shape = shapes[index]
        if not network_wide:
            loc, factor, diagonal = blocks[index]
            if diagonal:
                return dist.Normal(loc, factor).to_event(2)
            if loc.shape[0] == 1 and shape[0] > 1:
                return whole(loc[0], factor[0], shape)
            return dist.MultivariateNormal(loc, scale_tril=factor).to_event(1)
        counts = [a * b for a, b in shapes]
        start, stop = sum(counts[:index]), sum(counts[: index + 1])
        loc, tril = centre[start:stop], joint[start:stop, start:stop] * scaled[index]
        if index:
            flat, at = [], 0
            for weight, count, scale in zip(drawn, counts, scaled, strict=False):
                flat.append((weight.reshape(*weight.shape[:-2], count) - centre[at : at + count]) / scale)
                at += count
            residual = jnp.concatenate(flat, -1)[..., None]
            lower = jnp.broadcast_to(joint[:start, :start], (*residual.shape[:-2], start, start))
            noise = solve_triangular(lower, residual, lower=True)
            loc = loc + (joint[start:stop, :start] @ noise)[..., 0] * scaled[index]
        return whole(loc, tril, shape)

    def twin(data: Dataset) -> None:
        with torch.no_grad():
            x = as_array(model.network_input(data.x))
        y = None if data.y is None else as_array(data.y)
        with twin_plates(data.batch_shape):
            hidden = x
            drawn: list[Any] = []
            for i in range(len(shapes)):
                weight = numpyro.sample(model.site(i), layer(i, drawn))
                drawn.append(weight)
                hidden = hidden @ jnp.swapaxes(weight[..., :-1], -1, -2) + weight[..., None, :, -1]
                if i < len(shapes) - 1:
                    hidden = activation(hidden)
            observe_twin(likelihood(hidden), data, y)

    return twin


def observe_twin(each: Any, data: Dataset, y: Any) -> None:
    """The observation site of a twin: what does not exist, points or single outputs, is left out.

    Args:
        each: the NumPyro distribution of the points' y.
        data: whose masks count.
        y: its outputs as an array; None to draw them.
    """
    import numpyro

    if y is not None and data.observed is not None:
        each = each.base_dist.mask(as_array(data.observed)).to_event(1)
    if y is not None and data.mask is not None:
        each = each.mask(as_array(data.mask))
    numpyro.sample("y", each.to_event(1), obs=y)


def activation_twins() -> dict[str, Callable]:
    """Activations in JAX by name."""
    import jax

    return {
        "relu": jax.nn.relu,
        "tanh": jax.numpy.tanh,
        "silu": jax.nn.silu,
        "gelu": lambda v: jax.nn.gelu(v, approximate=False),
    }


def likelihood_twin(own: torch.nn.Module) -> Callable:
    """The NumPyro distribution of points by outputs ``[*B, N, K]``, as a likelihood's.

    Raises:
        ValueError: a likelihood without a twin.
    """
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist

    if isinstance(own, GaussianLikelihood):
        with torch.no_grad():
            noise = float(own.scale())
        return lambda outputs: dist.Normal(outputs, noise).to_event(1)
    if isinstance(own, GaussianHeadLikelihood):
        floor = own.min_scale

        def head(outputs: Any) -> Any:
            mean, raw = jnp.split(outputs, 2, -1)
            return dist.Normal(mean, floor + (1 - floor) * jax.nn.softplus(raw)).to_event(1)

        return head
    if isinstance(own, BernoulliLikelihood):
        return lambda outputs: dist.Bernoulli(logits=outputs, validate_args=False).to_event(1)
    if isinstance(own, CategoricalLikelihood):
        return lambda outputs: dist.Categorical(logits=outputs)
    raise ValueError(f"model: its likelihood is a {type(own).__name__}, which has no NumPyro twin")
