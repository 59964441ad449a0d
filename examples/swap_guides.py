"""Swap the guide: one argument, nothing else changes.

The same Bayesian network, the same Pyro SVI and the same objective with four guides: three amortised ones on a batch of
tasks, and Pyro's AutoNormal, which is not amortised, on one data set.

Run: python examples/swap_guides.py
"""

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import guidebook as gb


def train(guide_class, steps: int = 200, width: int = 32) -> tuple[float, float]:
    """Mean loss of the first and of the last ten steps, in nats per point."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    model = gb.BayesianNetwork([1, width, width, 1], noise_scale=0.3)
    guide = guide_class(model)
    batch = gb.tasks.gp("rbf", batch_size=8, seed=0).batch(0)
    data = batch.full[0] if guide_class is AutoNormal else batch.full
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    losses = [svi.step(data) / data.x[..., 0].numel() for _ in range(steps)]
    return sum(losses[:10]) / 10, sum(losses[-10:]) / 10


if __name__ == "__main__":
    for guide_class in (
        gb.guides.BernoulliExpertGuide,
        gb.guides.AmortisedMeanFieldGuide,
        gb.guides.MCDropoutGuide,
        AutoNormal,
    ):
        first, last = train(guide_class)
        print(f"{guide_class.__name__:26s} -ELBO per point: {first:9.2f} at the start, {last:8.2f} at the end")
