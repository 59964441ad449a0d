"""The curvature that Laplace's approximations of adapters share: roots of the Fisher information, Kronecker moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pp_models.likelihoods import of_observed
from pp_models.single_precision import single

STRUCTURES = ("diagonal", "kronecker")


def check_structure(structure: str) -> None:
    """Refuses a structure that no curvature has.

    Raises:
        ValueError: it is not one of ``STRUCTURES``.
    """
    if structure not in STRUCTURES:
        raise ValueError(f"structure: got {structure!r}; it must be 'diagonal' or 'kronecker'")


def fisher_roots(likelihood: Any, outputs: Tensor, observed: Tensor | None = None) -> Iterator[Tensor]:
    """Vectors v ``[rows, K]`` whose sum of v vᵀ is the Fisher information of each row's outputs.

    For Gaussian outputs of fixed noise, Bernoulli and categorical logits that is the Hessian of the NLL (the
    generalised Gauss-Newton matrix of what lies before); for other likelihoods one label is drawn from the model.

    Args:
        likelihood: the distribution of labels at the outputs.
        outputs: ``[rows, K]``.
        observed: ``[rows, Dy]``, True where an output is known: the others say nothing; None where all are.
    """
    base = likelihood
    while isinstance(base, dist.Independent | torch.distributions.Independent):
        base = base.base_dist
    if isinstance(base, torch.distributions.Categorical):
        probs = base.probs.detach()
        for c in range(probs.shape[-1]):
            one = torch.nn.functional.one_hot(torch.tensor(c, device=probs.device), probs.shape[-1])
            yield probs[:, c : c + 1].sqrt() * (one.to(probs.dtype) - probs)
        return
    weight = None
    if isinstance(base, torch.distributions.Bernoulli):
        weight = (base.probs * (1 - base.probs)).detach().sqrt()
    # a head that makes a scale of its outputs too has fewer means than outputs
    if isinstance(base, torch.distributions.Normal) and base.loc.shape == outputs.shape:
        weight = base.scale.detach().reciprocal().expand_as(outputs)
    if weight is None:
        known = of_observed(likelihood, observed)
        (gradient,) = torch.autograd.grad(known.log_prob(likelihood.sample()).sum(), outputs, retain_graph=True)
        yield gradient
        return
    if observed is not None:
        weight = weight * observed
    for k in range(weight.shape[-1]):
        mask = torch.zeros_like(weight)
        mask[:, k] = 1.0
        yield weight * mask


class KroneckerMoments:
    """Second moments of factors W ``[k_out, k_in]`` whose curvature is taken to be G ⊗ Q.

    G is the mean of the outer products of the gradients at a factor's outputs over the places where the factor is used
    (tokens that the network's outputs depend on), Q the sum of those of its inputs (Martens and Grosse 2015).

    Args:
        weights: the factors.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._gradients = [w.detach().new_zeros(w.shape[0], w.shape[0]) for w in weights]
        self._inputs = [w.detach().new_zeros(w.shape[1], w.shape[1]) for w in weights]
        self._places = [w.detach().new_zeros(()) for w in weights]

    def add_gradients(self, number: int, rows: Tensor) -> None:
        """Gradients at the outputs of the ``number``-th factor, one root a place: ``[..., k_out]``."""
        flat = rows.flatten(0, -2)
        self._gradients[number] += flat.mT @ flat

    def add_inputs(self, number: int, rows: Tensor, used: Tensor) -> None:
        """Inputs ``[places, k_in]`` of the ``number``-th factor; those count where ``used`` ``[places]`` is True."""
        kept = rows * used.unsqueeze(-1)
        self._inputs[number] += kept.mT @ kept
        self._places[number] += used.sum()

    def factors(self, scale: float = 1.0) -> list[tuple[Tensor, Tensor]]:
        """G ``[k_out, k_out]`` and Q ``[k_in, k_in]`` times ``scale``, factor by factor."""
        sums = zip(self._gradients, self._inputs, self._places, strict=True)
        return [(g / places.clamp_min(1.0), q * scale) for g, q, places in sums]


def eigenbases(g: Tensor, q: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Eigenvalues and eigenvectors of G and of Q."""
    left, right = (tuple(t.to(m.dtype) for t in torch.linalg.eigh(single(m.detach()))) for m in (g, q))
    return (left[0], left[1]), (right[0], right[1])
