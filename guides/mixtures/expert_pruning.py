"""Dropping the experts of a mixture that no task uses."""

from __future__ import annotations

from copy import deepcopy

import torch

from guides.mixtures.mixture_guide import MixtureGuide
from pp_models.arguments import OPEN_SHARE, checked, instance
from pp_models.data import Dataset
from pp_models.mixtures.mixture_density import MixtureDensityNetwork, unused_experts


@torch.no_grad()
@checked(model=instance(MixtureDensityNetwork), guide=instance(MixtureGuide), threshold=OPEN_SHARE)
def prune_experts(
    model: MixtureDensityNetwork, guide: MixtureGuide, data: Dataset, threshold: float = 1e-3
) -> tuple[MixtureDensityNetwork, MixtureGuide, list[int]]:
    """Copies of a trained pair without the experts whose mean weight is below a threshold.

    The others keep their relative weights, so that predictions change by about the weight dropped: exactly so for
    Dirichlet and gated weights, nearly so for a stick, whose last kept expert takes what is left.

    Args:
        model: the mixture; left as it is.
        guide: its guide; left as it is.
        data: contexts of many tasks ``[T, N]``, which the mean is taken over.
        threshold: experts below this mean weight go.

    Returns:
        The smaller model, its guide, and the indices of the experts that were kept.

    Raises:
        ValueError: a threshold out of range, one that would drop every expert, or a guide that cannot drop any.
    """
    usage = guide.mean_weights(data)
    gone = set(unused_experts(usage, threshold).tolist())
    kept = [i for i in range(model.num_experts) if i not in gone]
    if not kept:
        raise ValueError(f"threshold: got {threshold}, above the mean weight of every expert; none would be left")
    if len(kept) == 1 and not guide.point_mass and guide.num_experts > 1 and guide.concentration(data) is None:
        kept = sorted({*kept, int(usage.mean(0).argsort(descending=True)[1])})  # a stick needs two ends
    model, guide = deepcopy(model), deepcopy(guide)
    if gone:
        model.keep(kept)
        guide.keep(kept)
    return model, guide, kept
