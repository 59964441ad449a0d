"""The toy family of NMDP: four branches, mixed point by point in proportions that are the task's."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal

from pp_models.arguments import DRAWS, POINTS, SEED, checked
from pp_models.data import Dataset, TaskBatch
from pp_models.mixtures.simplex_distributions import sample_log_dirichlet
from pp_models.tasks.point_counts import PointCounts
from pp_models.tasks.task_stream import TaskStream

NUM_BRANCHES = 4
CONCENTRATION = 0.3
NOISE_SCALE = 0.1


def branch_means(x: Tensor) -> Tensor:
    """The branches sin 2x + 0.8, -sin 2x - 0.8, x / 2 and 1.2 cos 3x at ``[*B, N, 1]``: ``[*B, N, 4]``."""
    s = x[..., 0]
    return torch.stack([(2 * s).sin() + 0.8, -(2 * s).sin() - 0.8, s / 2, 1.2 * (3 * s).cos()], -1)


def branch_log_likelihood(data: Dataset) -> Tensor:
    """log N(y_i; f_l(x_i), 0.1²) ``[*B, N, 4]``: what the experts would be if they were known."""
    assert data.y is not None
    return Normal(branch_means(data.x), NOISE_SCALE).log_prob(data.y)


class BranchTasks(TaskStream):
    """z ~ Dir(0.3 · 1), then at every x ~ U(-2, 2) one branch with probabilities z, and noise 0.1.

    ``truth`` holds ``mixture_weights`` ``[T, 4]``.

    Args:
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
        num_context: smallest and largest number of context points.
        num_target: number of target points.
        dtype: of x and y.

    Raises:
        ValueError: a count out of range.
    """

    @checked(num_target=POINTS)
    def __init__(
        self,
        batch_size: int = 32,
        seed: int = 0,
        *,
        num_context: tuple[int, int] = (1, 20),
        num_target: int = 20,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(batch_size, seed)
        self.counts = PointCounts(num_context, (num_target, num_target), None)
        self.dtype = dtype

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: counts, weights, inputs, a branch for each point, noise."""
        m, t = self.counts.draw(generator)
        shape = (self.batch_size, m + t)
        gamma = torch._standard_gamma(
            torch.full((self.batch_size, NUM_BRANCHES), CONCENTRATION + 1, dtype=torch.float64), generator=generator
        )
        exponential = -torch.rand(gamma.shape, generator=generator, dtype=torch.float64).clamp_min(1e-300).log()
        weights = torch.softmax(gamma.log() - exponential / CONCENTRATION, -1)
        x = (4 * torch.rand(*shape, 1, generator=generator, dtype=torch.float64) - 2).to(self.dtype)
        which = torch.multinomial(weights, m + t, replacement=True, generator=generator)
        f = branch_means(x.double()).gather(-1, which.unsqueeze(-1))
        y = (f + NOISE_SCALE * torch.randn(f.shape, generator=generator, dtype=torch.float64)).to(self.dtype)
        whole = Dataset(x, y)
        batch = whole.split(m)
        return TaskBatch(batch.context, batch.target, {"mixture_weights": weights.to(self.dtype)})


@checked(num_samples=DRAWS, seed=SEED)
def branch_oracle(batch: TaskBatch, num_samples: int = 4000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Marginal and joint log-likelihood per target point of the true branches, weights drawn from their posterior.

    The posterior given the context is by importance weights of ``num_samples`` draws from Dir(0.3), as close as those
    draws reach.

    Args:
        batch: tasks of this family ``[T]``.
        num_samples: draws of the weights.
        seed: of the draws.

    Returns:
        ``[T]`` each, nats per point.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        log_z = sample_log_dirichlet(torch.full((NUM_BRANCHES,), CONCENTRATION, dtype=torch.float64), (num_samples,))
    marginal, joint = [], []
    context, target = branch_log_likelihood(batch.context).double(), branch_log_likelihood(batch.target).double()
    for seen, asked in zip(context, target, strict=True):
        log_w = torch.logsumexp(log_z.unsqueeze(-2) + seen, -1).sum(-1)  # [S]
        log_w = log_w - torch.logsumexp(log_w, 0) if seen.shape[0] else torch.full_like(log_w, -math.log(num_samples))
        each = torch.logsumexp(log_z.unsqueeze(-2) + asked, -1)  # [S, N]
        marginal.append(torch.logsumexp(log_w.unsqueeze(-1) + each, 0).mean())
        joint.append(torch.logsumexp(log_w + each.sum(-1), 0) / asked.shape[0])
    return torch.stack(marginal), torch.stack(joint)
