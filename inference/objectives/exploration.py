"""Draws of discrete sites from a flatter proposal than the guide itself, for losses that hold whatever drew."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Bernoulli, Categorical, Independent, OneHotCategorical
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.objectives.fixed_values import log_density
from inference.objectives.importance_weights import unscaled
from inference.objectives.independent_plates import TaskAxes, share


class Explored(Messenger):
    """Replaces the draws of discrete sites by those of a tempered distribution mixed with the uniform one.

    Enter it outside a trace. ``proposals`` has each of these sites as it was drawn, and as the guide has it.

    Args:
        temperature: what logits are divided by.
        exploration: weight of the uniform distribution.
    """

    def __init__(self, temperature: float, exploration: float) -> None:
        super().__init__()
        self.temperature, self.exploration = temperature, exploration
        self.proposals: dict[str, Any] = {}
        self._given: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"]:  # replayed, or data
            self._given.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._given or type(msg["fn"]).__name__ == "_Subsample":
            return
        proposal = self.proposal(msg["fn"])
        if proposal is not None:
            msg["value"] = proposal.sample()
            self.proposals[msg["name"]] = {**msg, "fn": proposal}, {**msg}

    def log_ratio(self, axes: TaskAxes, scale: float | Tensor) -> Tensor:
        """log q - log r of the draws ``[K, *B]``, without gradient.

        Args:
            axes: the task dimensions.
            scale: what every site is scaled by.
        """
        found = []
        with torch.no_grad():
            for drawn, own in self.proposals.values():
                parts = (share(log_density(unscaled(site, scale), axes), axes.shape) for site in (own, drawn))
                found.append(next(parts) - next(parts))
        return sum(found[1:], found[0])

    def proposal(self, fn: Any) -> Any:
        """The flatter distribution; None for one that is not discrete with few states."""
        if isinstance(fn, torch.distributions.Independent):
            base = self.proposal(fn.base_dist)
            return None if base is None else Independent(base, fn.reinterpreted_batch_ndims)
        if isinstance(fn, torch.distributions.Bernoulli):
            probs = torch.sigmoid(fn.logits.detach() / self.temperature)
            return Bernoulli((1 - self.exploration) * probs + self.exploration / 2)
        if isinstance(fn, torch.distributions.Categorical | torch.distributions.OneHotCategorical):
            probs = torch.softmax(fn.logits.detach() / self.temperature, -1)
            kind = Categorical if isinstance(fn, torch.distributions.Categorical) else OneHotCategorical
            return kind((1 - self.exploration) * probs + self.exploration / probs.shape[-1])
        return None
