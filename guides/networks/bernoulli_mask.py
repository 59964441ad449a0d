"""Amortised posteriors of the masks of a MaskedNetwork."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from guides.set_encoder import POOLINGS, SetEncoder
from pp_models.arguments import WIDTH, checked, one_of
from pp_models.contract import Guide
from pp_models.data import Dataset
from pp_models.networks.masked_network import MaskedNetwork
from pp_models.parameter_module import mlp
from pp_models.task_plates import task_plates


class BernoulliMaskGuide(Guide):
    """q(m | D) = Π_l Π_u Bernoulli(m_lu; σ(f_l(D, m_<l))): masks layer by layer, given the data and the masks below.

    The masks are discrete: train with ``log-variance``, ``rws``, ``iwae`` (VIMCO) or ``elbo``, which take score
    functions of them (GFlowOut, Liu et al. 2023, with one mask a task).

    Args:
        model: the network.
        width: hidden width of the encoder and of the heads.
        pooling: of the encoder.

    Raises:
        TypeError: another family of model.
    """

    name = "bernoulli-mask"
    description = "which hidden units are on, layer by layer, from the data"

    @checked(width=WIDTH, pooling=one_of(*POOLINGS))
    def __init__(self, model: MaskedNetwork, width: int = 64, *, pooling: str = "mean") -> None:
        super().__init__()
        if not isinstance(model, MaskedNetwork):
            raise TypeError(f"model: got {type(model).__name__}; BernoulliMaskGuide is a guide for a MaskedNetwork")
        self.sites = [model.site(i) for i in range(len(model.widths))]
        self.encoder = SetEncoder(
            model.dim_x, model.dim_y, width, width, depth=4, pooling=pooling, missing_outputs=model.missing_outputs
        )
        self.heads = nn.ModuleList()
        for i, units in enumerate(model.widths):
            head = mlp([width + sum(model.widths[:i]), width, units])
            with torch.no_grad():  # about the prior at the start
                head[-1].weight.mul_(0.1)  # type: ignore[operator, union-attr]
                head[-1].bias.fill_(math.log(model.keep / (1 - model.keep)))  # type: ignore[operator, union-attr]
            self.heads.append(head)

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples every mask given the data; returns the values by site."""
        values: dict[str, Tensor] = {}
        with task_plates(data.batch_shape, data.x.device):
            seen = self.encoder(data)
            for site, head in zip(self.sites, self.heads, strict=True):
                values[site] = pyro.sample(site, dist.Bernoulli(logits=head(seen)).to_event(1))
                lead = torch.broadcast_shapes(seen.shape[:-1], values[site].shape[:-1])
                parts = [t.expand(*lead, t.shape[-1]) for t in (seen, values[site].to(seen.dtype))]
                seen = torch.cat(parts, -1)
        return values
