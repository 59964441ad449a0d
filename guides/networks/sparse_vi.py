"""Mean-field variational inference in a sparse subspace of the weights, which moves while it is trained."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

from guides.networks.gaussian_vi import GaussianVIGuide
from pp_models.arguments import SHARE, checked, number
from pp_models.data import Dataset
from pp_models.log_uniform import LogUniform, normal_log_uniform_kl
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.task_plates import task_plates


class SparseNormal(TorchDistribution):
    """Independent Gaussians on some entries of a matrix; the others are 0 and have the prior's density.

    So that a density of q over one of p counts the active entries alone.

    Args:
        loc: ``[*B, k_out, k]``.
        scale: the same.
        active: the same, bool.
        prior: of the matrix, event ``[k_out, k]``, independent entries.
    """

    arg_constraints = {}  # noqa: RUF012 - torch's own name and type
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, active: Tensor, prior: Any) -> None:
        self.loc, self.scale, self.active, self.prior = loc, scale, active, prior
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SparseNormal:
        shape = torch.Size(batch_shape) + self.event_shape
        loc, scale, active = (t.expand(shape) for t in (self.loc, self.scale, self.active))
        return SparseNormal(loc, scale, active, self.prior)

    @property
    def mean(self) -> Tensor:
        return torch.where(self.active, self.loc, torch.zeros_like(self.loc))

    @property
    def variance(self) -> Tensor:
        return torch.where(self.active, self.scale.square(), torch.zeros_like(self.scale))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        noise = torch.randn(torch.Size(sample_shape) + self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        drawn = self.loc + self.scale * noise
        # 0 with a gradient: what the likelihood would have of an inactive weight says which to take in
        return torch.where(self.active, drawn, self.loc - self.loc.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        own = dist.Normal(self.loc, self.scale).log_prob(value)
        return torch.where(self.active, own, _entries(self.prior).log_prob(value)).sum((-1, -2))


def _entries(matrix: Any) -> Any:
    while isinstance(matrix, torch.distributions.Independent):
        matrix = matrix.base_dist
    return matrix


@register_kl(SparseNormal, torch.distributions.Independent)
def _kl_sparse(q: SparseNormal, p: torch.distributions.Independent) -> Tensor:
    entries = _entries(p)
    if isinstance(entries, LogUniform):
        each = normal_log_uniform_kl(q.loc, q.scale)
    elif isinstance(entries, torch.distributions.Normal):
        each = kl_divergence(dist.Normal(q.loc, q.scale), entries)
    else:
        raise NotImplementedError
    return torch.where(q.active, each, torch.zeros_like(each)).sum((-1, -2))


class SparseVIGuide(GaussianVIGuide):
    """Mean-field VI whose weights are 0 but for a share of them, which is chosen in training (SSVI, Li et al. 2024).

    After a number of steps :meth:`update_subspace` drops the weights of least signal, |mean| over standard deviation,
    and takes as many others in, those whose mean has the largest gradient where there is one, else at random. With
    density 1 it is :class:`GaussianVIGuide` with ``correlation="weight"``, bit for bit.

    Args:
        model: the network; the entries of its prior must be independent Gaussians, or log-uniform.
        density: share of the weights of each task that are not 0.
        batch_shape: task dimensions of the data that it will be fitted to.
        initial_scale: see :class:`GaussianVIGuide`.

    Raises:
        ValueError: another kind of prior, or what GaussianVIGuide refuses.

    Example:
        >>> import guidebook as gb
        >>> model = gb.BayesianNetwork([8, 1], likelihood="gaussian")
        >>> guide = gb.guides.SparseVIGuide(model, density=0.25)
        >>> callbacks = [lambda row: guide.update_subspace(0.2)]  # of gb.fit: at every logged row
    """

    @checked(density=SHARE)
    def __init__(
        self,
        model: BayesianNetwork,
        density: float = 0.1,
        batch_shape: tuple[int, ...] = (),
        initial_scale: float = 0.1,
    ) -> None:
        super().__init__(model, "weight", batch_shape, initial_scale)
        for i in range(len(self.shapes)):
            if not isinstance(_entries(model.prior.layer(i, [])), torch.distributions.Normal | LogUniform):
                raise ValueError(
                    f"model: its prior, {type(model.prior).__name__}, is not of independent Gaussian entries, nor "
                    "log-uniform, which a sparse subspace needs"
                )
        self._shared = (model,)  # in a tuple: its parameters are the model's, not the guide's
        self.initial_scale = initial_scale
        self.num_active = max(1, round(density * sum(a * b for a, b in self.shapes)))
        scores = [torch.rand(loc.shape) for loc in self.posterior.loc]
        for i, chosen in enumerate(self._best(scores, self.num_active)):
            self.register_buffer(f"active_{i}", chosen)
        self.dense = density == 1

    @property
    def active(self) -> list[Tensor]:
        """Which weights are not 0, layer by layer ``[*B, k_out, k_in + 1]``."""
        return [getattr(self, f"active_{i}") for i in range(len(self.shapes))]

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        if self.dense:
            return super().forward(data)
        self._check_tasks(data)
        values: dict[str, Tensor] = {}
        with task_plates(data.batch_shape, data.x.device):
            for i, site in enumerate(self.sites):
                loc, scale = self.posterior.moments(i)
                prior = self._shared[0].prior.layer(i, [])
                values[site] = pyro.sample(site, SparseNormal(loc, scale, self.active[i], prior))
        return values

    @torch.no_grad()
    @checked(share=number(0, 1, "(]"))
    def update_subspace(self, share: float = 0.1) -> None:
        """Exchanges a share of the active weights for others.

        Args:
            share: of the active weights.

        Raises:
            ValueError: a guide of several tasks, or of one, that :func:`.prune_weights` cut to other numbers.
        """
        if self.dense:
            return
        active = self.active
        counts = torch.stack([a.sum((-1, -2)) for a in active]).sum(0)
        if bool((counts != self.num_active).any()):
            raise ValueError(
                "guide: its weights were pruned, and tasks keep their own numbers; it must not be exchanged"
            )
        moments = [self.posterior.moments(i) for i in range(len(self.shapes))]
        signal = [loc.abs() / scale for loc, scale in moments]
        kept = self._best(
            [torch.where(a, s, -torch.ones_like(s)) for a, s in zip(active, signal, strict=True)],
            self.num_active - max(1, round(share * self.num_active)),
        )
        pull = [torch.rand_like(loc) if loc.grad is None else loc.grad.abs() + 1e-12 for loc in self.posterior.loc]
        # what was dropped just now does not come back at once
        chances = [torch.where(a, -torch.ones_like(p), p) for a, p in zip(active, pull, strict=True)]
        scores = [torch.where(k, torch.full_like(c, torch.inf), c) for k, c in zip(kept, chances, strict=True)]
        for i, (old, new) in enumerate(zip(active, self._best(scores, self.num_active), strict=True)):
            grown = new & ~old
            start = self.initial_scale / self.shapes[i][1] ** 0.5
            self.posterior.loc[i].masked_fill_(grown, 0.0)
            self.posterior.log_diagonal[i].masked_fill_(grown, float(torch.tensor(start).log()))
            old.copy_(new)

    def _best(self, scores: list[Tensor], count: int) -> list[Tensor]:
        """Masks of the ``count`` largest scores of each task, over all layers."""
        flat = torch.cat([score.flatten(-2) for score in scores], -1)
        chosen = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, flat.topk(count, -1).indices, True)
        parts = chosen.split([a * b for a, b in self.shapes], -1)
        return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]
