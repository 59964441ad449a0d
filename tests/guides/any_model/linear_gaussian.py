"""A linear Gaussian model of many data sets at once, whose posteriors are known."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import MultivariateNormal

DESIGN = torch.tensor([[1.0, 0.5, 0.0], [0.9, 0.6, 0.2], [0.0, 1.0, 1.0], [0.3, 0.0, 1.2]], dtype=torch.float64)
PRIOR = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
NOISE = 0.7


def model(y):
    """y ``[T, 4]`` = DESIGN w + noise, w ``[T, 3]``."""
    with pyro.plate("tasks", y.shape[0]):
        w = pyro.sample("w", dist.Normal(torch.zeros_like(PRIOR), PRIOR).to_event(1))
        pyro.sample("y", dist.Normal(w @ DESIGN.mT, NOISE).to_event(1), obs=y)


def draw(count):
    """Data of that many tasks."""
    w = torch.randn(count, 3, dtype=torch.float64) * PRIOR
    return w @ DESIGN.mT + NOISE * torch.randn(count, 4, dtype=torch.float64)


def posterior(y):
    """Exact posterior of w, batch ``[T]``."""
    precision = torch.diag(PRIOR**-2) + DESIGN.mT @ DESIGN / NOISE**2
    mean = torch.linalg.solve(precision, DESIGN.mT @ y.mT / NOISE**2).mT
    return MultivariateNormal(mean, precision_matrix=precision)
