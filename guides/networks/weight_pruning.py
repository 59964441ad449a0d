"""Removing the weights of a network whose noise drowns their signal: sparse variational dropout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guides.networks.gaussian_vi import GaussianVIGuide
from guides.networks.sparse_vi import SparseVIGuide
from pp_models.arguments import checked, instance, named, number
from pp_models.log_uniform import largest_gap, log_alpha_of
from pp_models.networks.bayesian_network import BayesianNetwork


@dataclass(frozen=True)
class WeightPruning:
    """What a pruning of weights did.

    Args:
        guide: the posterior without them: they are 0, the others as they were.
        kept: which weights are left, by site ``[*B, k_out, k_in + 1]``.
        log_alpha: log α of every weight before, the same.
        removed: how many were taken away, over all tasks.
        threshold: the value of log α above which they were.
    """

    guide: GaussianVIGuide
    kept: dict[str, Tensor]
    log_alpha: dict[str, Tensor]
    removed: int
    threshold: float


@checked(
    model=instance(BayesianNetwork),
    guide=instance(GaussianVIGuide),
    threshold=named("gap", other=number(endless=True)),
)
@torch.no_grad()
def prune_weights(model: BayesianNetwork, guide: GaussianVIGuide, threshold: float | str = 3.0) -> WeightPruning:
    """A copy of a mean-field posterior whose weights of log α = log σ²/μ² above a threshold are 0.

    Under ``LogUniformPrior`` training drives α of weights that the data do not need to infinity (sparse variational
    dropout, Molchanov et al. 2017), and little changes without them; 3, their choice, keeps weights whose |mean| is
    above 0.22 standard deviations. Under a Gaussian prior it is pruning by signal-to-noise ratio (Blundell et al.
    2015). The result is trained on, saved and compared as any guide is.

    Args:
        model: the network; left as it is.
        guide: its ``GaussianVIGuide`` with ``correlation="weight"``; left as it is.
        threshold: weights with log α above it go; infinity keeps all, and the posterior as it is. ``"gap"`` is the
            middle of the largest gap between values.

    Raises:
        ValueError: a guide with correlations or of another network, a prior that is neither Gaussian nor log-uniform,
            or a threshold that leaves no weight.

    Example:
        >>> pruning = prune_weights(model, guide, threshold=3.0)
        >>> pruning.removed, pruning.guide
    """
    if guide.posterior.granularity != "weight":
        raise ValueError(
            f"guide: got correlation {guide.posterior.granularity!r}, under which a weight has no noise of its own; it "
            "must be 'weight'"
        )
    if isinstance(guide, SparseVIGuide) and not guide.dense:
        raise ValueError("guide: got a SparseVIGuide, which is sparse already; it must be a GaussianVIGuide")
    if [*guide.shapes] != [*model.weight_shapes]:
        raise ValueError(
            f"guide: got one of weights {[*guide.shapes]}; it must be of the model's {[*model.weight_shapes]}"
        )
    moments = [guide.posterior.moments(i) for i in range(len(guide.shapes))]
    log_alpha = [log_alpha_of(loc, scale) for loc, scale in moments]
    together = torch.cat([values.double().flatten() for values in log_alpha])
    limit = largest_gap(together) if threshold == "gap" else float(threshold)
    kept = [values <= limit for values in log_alpha]
    left, total = (sum(int(f(mask)) for mask in kept) for f in (torch.sum, torch.numel))
    if not left:
        raise ValueError(
            f"threshold: got {threshold}; it would prune all {total} weights, and must be at least "
            f"{float(together.min()):.3g}, the lowest log alpha: train longer"
        )
    with torch.random.fork_rng(devices=[]):  # a new guide draws its start
        pruned = SparseVIGuide(model, left / total, guide.batch_shape)
    pruned.to(device=moments[0][0].device, dtype=moments[0][0].dtype)
    pruned.posterior.load_state_dict(guide.posterior.state_dict())
    for own, mask in zip(pruned.active, kept, strict=True):
        own.copy_(mask)
    pruned.train(guide.training)
    sites = guide.sites
    return WeightPruning(
        pruned, dict(zip(sites, kept, strict=True)), dict(zip(sites, log_alpha, strict=True)), total - left, limit
    )
