"""Amortised posteriors of the layers' modulations of a ModulatedPrototypicalNetwork."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pp_models.arguments import WIDTH, checked
from pp_models.contract import Guide
from pp_models.data import Dataset
from pp_models.observation_model import seen_outputs
from pp_models.parameter_module import mlp
from pp_models.processes.conditional_process import context_memory
from pp_models.processes.modulated_prototypes import ModulatedPrototypicalNetwork
from pp_models.task_plates import task_plates


class ModulationGuide(Guide):
    """q(m | D) = Π_l N(m_l; μ_l(D, m_<l), σ_l²(D, m_<l)): modulations layer by layer, from the context's prototypes.

    Classes are read as the means of their examples in the plain embedding, then averaged: their numbers mean nothing
    outside a task, and a guide that sees the classes renumbered says the same. Of no points it is the prior.

    Args:
        model: the network, whose embedding is read and trained.
        width: hidden width.

    Raises:
        TypeError: another kind of model.
    """

    name = "modulation"
    description = "scales and shifts of an embedding's layers, from the classes' prototypes"

    @checked(width=WIDTH)
    def __init__(self, model: ModulatedPrototypicalNetwork, width: int = 64) -> None:
        super().__init__()
        if not isinstance(model, ModulatedPrototypicalNetwork):
            raise TypeError(
                f"model: got {type(model).__name__}; ModulationGuide is a guide for a ModulatedPrototypicalNetwork"
            )
        self._shared = (model,)  # in a tuple: its parameters are the model's, not the guide's
        self.dim_y, self.prior_scale = model.dim_y, model.prior_scale
        self.sites = [model.site(i) for i in range(len(model.widths))]
        self.of_class = mlp([model.embedding.dim_out, width, width])  # type: ignore[list-item]
        self.heads = nn.ModuleList()
        for i, features in enumerate(model.widths):
            head = mlp([width + 2 * sum(model.widths[:i]), width, 4 * features])
            with torch.no_grad():  # about the prior at the start
                head[-1].weight.mul_(0.1)  # type: ignore[operator, union-attr]
                head[-1].bias.zero_()  # type: ignore[operator, union-attr]
            self.heads.append(head)

    def read(self, data: Dataset) -> Tensor:
        """A task as a vector ``[*B, width]``, the same however its classes are numbered."""
        shown = seen_outputs(data, self.dim_y) * data.full_mask().unsqueeze(-1)  # [*B, N, C]
        count = shown.sum(-2).unsqueeze(-1)  # [*B, C, 1]
        prototypes = shown.mT @ self._shared[0].embedding(data.x) / count.clamp_min(1)
        there = (count > 0).to(prototypes.dtype)
        return (self.of_class(prototypes) * there).sum(-2) / there.sum(-2).clamp_min(1)

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples every modulation given the data, and hands the data over; returns the values by site."""
        self._shared[0].check(data)
        values: dict[str, Tensor] = {}
        with task_plates(data.batch_shape, data.x.device):
            seen, some = self.read(data), data.full_mask().any(-1, keepdim=True)
            for site, head in zip(self.sites, self.heads, strict=True):
                mean, raw = torch.where(some, head(seen), 0.0).chunk(2, -1)
                scale = self.prior_scale * softplus(raw + math.log(math.e - 1))  # that of the prior at 0
                values[site] = pyro.sample(site, dist.Normal(mean, scale).to_event(1))
                lead = torch.broadcast_shapes(seen.shape[:-1], values[site].shape[:-1])
                seen = torch.cat([t.expand(*lead, t.shape[-1]) for t in (seen, values[site])], -1)
            memory = dist.Delta(context_memory(data, self.dim_y), event_dim=2)
            values["memory"] = pyro.sample("memory", memory)
        return values
