"""Refinement of a mixture guide by the context it has seen, at no training cost."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pp_models.arguments import DRAWS, checked, instance
from pp_models.contract import Guide
from pp_models.data import Dataset
from pp_models.mixtures.mixture_density import MixtureDensityNetwork
from pp_models.task_plates import task_plates


class ConjugateRefinement(Guide):
    """A guide's q(z | D) taken as the prior, updated by the context's likelihood under the experts.

    The sweeps are docs/papers/nmdp.md, eq. 14 and 16.

    q(z | D) says what to expect of a task like this; a few variational sweeps add what these very points say about
    which expert spoke. Whether they were counted before depends on how the guide was trained: one trained as the
    posterior given D has seen them, and this counts them twice; one that ignores its context gets the exact kind of
    update. Compare both on held-out tasks before choosing. An empty context changes nothing.

    It wraps a trained pair, for prediction; its parameters are the wrapped guide's, and no gradient reaches them.

    Args:
        model: the mixture.
        guide: a guide with Dirichlet or stick-breaking weights.
        sweeps: variational updates.

    Raises:
        ValueError: ``sweeps`` below 1; when called, a guide that has no conjugate update.
    """

    independent_sites = True

    @checked(model=instance(MixtureDensityNetwork), guide=instance(nn.Module), sweeps=DRAWS)
    def __init__(self, model: MixtureDensityNetwork, guide: nn.Module, sweeps: int = 8) -> None:
        super().__init__()
        self.guide, self.sweeps = guide, sweeps
        self._shared = (model,)  # in a tuple: its parameters are the model's, not the guide's

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Samples the sites of the guide, ``mixture_weights`` from the refined distribution."""
        with poutine.block(), torch.no_grad():
            trace = poutine.trace(self.guide).get_trace(data)
            refined: dict[str, Any] = {}
            if data.num_points:
                refined = self._shared[0].conjugate_proposal(trace, data, self.sweeps)
        values = {}
        with task_plates(data.batch_shape, data.x.device):
            for name in ("mixture_weights", "memory"):
                if name in trace.nodes:
                    fn = refined.get(name, trace.nodes[name]["fn"])
                    values[name] = pyro.sample(name, fn)
        return values
