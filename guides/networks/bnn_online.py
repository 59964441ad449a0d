"""BNNP point by point: the last layer's posterior follows new points, the hidden layers' draws stay."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyro
import torch
from torch import Tensor

from guides.networks.bnn_weights import BNNWeightGuide
from guides.networks.conjugate_layer import posterior_of_statistics, statistics, with_bias
from guides.networks.whitened_gaussian import WhitenedGaussian
from pp_models.data import Dataset
from pp_models.task_plates import PARTICLE_PLATE


@dataclass(frozen=True)
class OnlinePosterior:
    """Draws of the hidden layers, and for each the exact posterior of the last layer after the points seen so far.

    Made by :meth:`start`; :meth:`update` gives the one after more points, in any order and any portions. The hidden
    layers never see the new points (docs/papers/bnnp.md#large-contexts-and-points-one-by-one).

    Args:
        guide: whose posterior it is.
        hidden: draws of the hidden layers' weights ``[S, *B, k_out, k_in + 1]``.
        context: the task representation of a deterministic path by site; empty without.
        gram: Σ λ φ φᵀ of the last layer ``[S, *B, blocks, k, k]``.
        moment: Σ λ φ (v - φᵀ μ) ``[S, *B, blocks, k]``.

    Example:
        >>> posterior = OnlinePosterior.start(guide, first_points, num_samples=50)
        >>> posterior = posterior.update(more_points)
        >>> weights = posterior.draw()
    """

    guide: BNNWeightGuide
    hidden: list[Tensor]
    context: dict[str, Tensor]
    gram: Tensor
    moment: Tensor

    @classmethod
    @torch.no_grad()
    def start(cls, guide: BNNWeightGuide, data: Dataset, num_samples: int = 100) -> OnlinePosterior:
        """Draws the hidden layers given the data, and keeps the last layer's posterior for each draw.

        Args:
            guide: a trained guide.
            data: what is known so far ``[*B, N]``; may be empty.
            num_samples: draws S.

        Raises:
            ValueError: points see one another, in the model or in the transformer of the last layer.
            DataError: the data has no y, or widths or a dtype that the model cannot take.
        """
        attentive = guide.inference == "transformer" and guide.amortised(len(guide.sites) - 1)
        if attentive or not guide.model.independent_points:
            seen_by = "the last layer's transformer" if attentive else type(guide.model).__name__
            raise ValueError(
                f"data: new points would attend only to one another in {seen_by}, so that portions do not add up; call "
                "the guide on all points instead"
            )
        if guide.model.path is not None:
            raise ValueError("guide: its model has a path, which would not see new points; call it on all points")
        with pyro.plate(PARTICLE_PLATE, num_samples, dim=-1 - len(data.batch_shape)):
            values = guide(data)
        hidden = [values[site] for site in guide.sites[:-1]]
        context = {site: value for site, value in values.items() if site not in guide.sites}
        blocks = guide.model.prior.gaussian(len(hidden), hidden)
        columns = guide.shapes[-1][0] * guide.shapes[-1][1] // blocks.loc.shape[-2]
        zero = data.x.new_zeros(num_samples, *data.batch_shape, blocks.loc.shape[-2], columns)
        return cls(guide, hidden, context, torch.diag_embed(zero), zero).update(data)

    @torch.no_grad()
    def update(self, data: Dataset) -> OnlinePosterior:
        """The posterior after more points ``[*B, N]``, exact for the last layer given the hidden draws.

        Raises:
            DataError: the data has no y, or widths or a dtype that the model cannot take.
        """
        guide, index = self.guide, len(self.hidden)
        guide.check(data)
        features = guide.layer_input(data.x, self.hidden, self.context)
        target, precision = guide.pseudo_observations(index, data, features)
        blocks = guide.model.prior.gaussian(index, self.hidden)
        gram, moment = statistics(with_bias(features), target, precision, blocks)
        return replace(self, gram=self.gram + gram, moment=self.moment + moment)

    def last_layer(self) -> WhitenedGaussian:
        """The posterior of the last layer's weights for each draw of the hidden ones, batch ``[S, *B]``."""
        guide, index = self.guide, len(self.hidden)
        blocks = guide.model.prior.gaussian(index, self.hidden)
        return posterior_of_statistics(self.gram, self.moment, blocks, guide.shapes[index], guide.prior_key(index))

    @torch.no_grad()
    def draw(self) -> dict[str, Tensor]:
        """Weights ``[S, *B, k_out, k_in + 1]`` by site: the hidden draws, and one of the last layer for each."""
        values = dict(zip(self.guide.sites, [*self.hidden, self.last_layer().sample()], strict=True))
        return {**self.context, **values}
