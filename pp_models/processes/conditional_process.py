"""What the models without latents share that read the points of a context themselves."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pp_models.arguments import FEATURES, FLAG, checked
from pp_models.context_path import split_memory
from pp_models.data import Dataset
from pp_models.likelihoods import Likelihood, make_likelihood
from pp_models.observation_model import ObservationModel, observe, seen_outputs
from pp_models.task_plates import task_plates, without_repeats


def context_memory(data: Dataset, dim_y: int) -> Tensor:
    """Points as one tensor ``[*B, N, Dx + dim_y + 1]``: input, output (classes one-hot), 1 where the point exists.

    Where single outputs are missing it has dim_y more columns: 1 where an output is known.

    Args:
        data: the points, y present.
        dim_y: width of y, or the number of classes.

    Raises:
        ValueError: y is None.
    """
    y = seen_outputs(data, dim_y)
    masks = [data.full_mask().unsqueeze(-1), *([] if data.observed is None else [data.observed])]
    return torch.cat([data.x, y, *(mask.to(data.x.dtype) for mask in masks)], -1)


def flat_memory(data: Dataset, width: int) -> dist.TorchDistribution:
    """A flat prior over a memory ``[N, width]`` with an entry for each point, log-density 0.

    Where it is drawn, without a guide, it is about zero: no entry exists, and the model predicts as without a context.
    The guide's memory may have another number of entries; with one a point, Pyro finds model and guide to agree when
    both see the same data set.
    """
    like = data.x.new_zeros(data.num_points, width)
    return dist.Normal(like, torch.full_like(like, 1e-3)).to_event(2).mask(False)


class ConditionalProcess(ObservationModel):
    """p(y | x, D_c) with nothing latent: a network that reads the context's points beside the inputs asked.

    Sites: ``memory`` ``[*B, N_context, Dx + Dy + 1]``, the context points as :func:`context_memory` lays them out, with
    a flat prior (:class:`guides.ContextPointsGuide` puts a point mass there); ``y``.

    Args:
        dim_x: input width.
        dim_y: output width (number of classes for a categorical likelihood).
        likelihood: as for BayesianNetwork; the per-point Gaussian head (floor 0.1) by default.
        missing_outputs: as for BayesianNetwork.
    """

    @checked(dim_x=FEATURES, dim_y=FEATURES, missing_outputs=FLAG)
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        likelihood: str | Likelihood = "gaussian-head",
        *,
        missing_outputs: bool = False,
    ) -> None:
        super().__init__()
        self.dim_x, self.dim_y, self.missing_outputs = dim_x, dim_y, missing_outputs
        self.likelihood = make_likelihood(likelihood)
        self.outputs = self.likelihood.num_outputs(dim_y)

    def sample_latents(self, data: Dataset) -> list[Tensor]:
        """Samples a task's latents ``[*B, R]``, inside the task plates; by default there are none."""
        return []

    def decode(self, asked: Dataset, context: Dataset, *latents: Tensor) -> Tensor:
        """The network's outputs ``[P, N, outputs]`` at the inputs asked ``[P, N]`` given contexts ``[P, M]``.

        Both have a mask, and the context's y is ``[P, M, Dy]`` (classes one-hot), with a mask of outputs where some are
        missing. Latents are those of :meth:`sample_latents`, ``[P, R]``.
        """
        raise NotImplementedError

    def forward(self, data: Dataset) -> Tensor:
        """Returns the network's outputs ``[*B, N, outputs]``."""
        self.check(data)
        with task_plates(data.batch_shape, data.x.device):
            memory = without_repeats(pyro.sample("memory", flat_memory(data, self.dim_x + self.dim_y + 1)), 2)
            latents = self.sample_latents(data)
            leads = (latent.shape[:-1] for latent in latents)
            shape = torch.broadcast_shapes(data.batch_shape, memory.shape[:-2], *leads)
            memory = memory.expand(*shape, -1, -1).reshape(shape.numel(), *memory.shape[-2:])
            context = Dataset.unchecked(*split_memory(memory, self.dim_x, self.dim_y))
            count = data.num_points
            asked = Dataset.unchecked(
                data.x.expand(*shape, -1, -1).reshape(shape.numel(), count, self.dim_x),
                None,
                data.full_mask().expand(*shape, -1).reshape(shape.numel(), count),
            )
            flat = (latent.expand(*shape, -1).reshape(shape.numel(), -1) for latent in latents)
            outputs = self.decode(asked, context, *flat)
            outputs = outputs.reshape(*shape, count, self.outputs)
            observe(self.likelihood(outputs), data)
        return outputs
