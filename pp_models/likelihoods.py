"""Likelihoods: from the outputs of a network to a distribution over y at each point."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from pp_models.arguments import SCALE, checked, number, shown
from pp_models.contract import Likelihood
from pp_models.data import DataError
from pp_models.single_precision import single


class GaussianLikelihood(Likelihood):
    """One noise scale shared by all points.

    Args:
        noise_scale: its standard deviation (where it starts, if learned).
        learn_noise: whether it is trained (in log space).
        max_noise: a bound that a learned one stays below, as bound * sigmoid(raw); without it a model may
            explain its first tasks as noise and never leave (docs/papers/bnnp.md, eq. 3).

    Raises:
        ValueError: a scale that is not positive, or a bound that is not above it or not needed.
    """

    @checked(noise_scale=SCALE, max_noise=SCALE)
    def __init__(self, noise_scale: float = 0.1, learn_noise: bool = False, max_noise: float | None = None) -> None:
        super().__init__()
        if max_noise is not None and not learn_noise:
            raise ValueError(f"max_noise: got {max_noise}, but the noise is not learned; pass learn_noise=True")
        if max_noise is not None and not max_noise > noise_scale:
            raise ValueError(f"max_noise: got {max_noise}; it must be above noise_scale = {noise_scale}")
        self.noise_scale = float(noise_scale)
        self.max_noise = max_noise
        start = math.log(noise_scale)
        if max_noise is not None:
            start -= math.log(max_noise - noise_scale)
        self.raw_noise_scale = nn.Parameter(torch.tensor(start)) if learn_noise else None

    def scale(self) -> float | Tensor:
        """The noise's standard deviation, a number unless it is learned."""
        if self.raw_noise_scale is None:
            return self.noise_scale
        if self.max_noise is None:
            return self.raw_noise_scale.exp()
        return self.max_noise * self.raw_noise_scale.sigmoid()

    def forward(self, outputs: Tensor) -> TorchDistribution:
        return dist.Normal(outputs, self.scale()).to_event(1)


class GaussianHeadLikelihood(Likelihood):
    """A mean and a scale per point from the network: sigma = min_scale + (1 - min_scale) softplus(u).

    With NVDP's floor of 0.1 no log-density per output dimension exceeds 1.3836 (docs/papers/nvdp.md, eq. 12 and 13).

    Args:
        min_scale: the floor of the standard deviation.
    """

    @checked(min_scale=number(0, 1, "[)"))
    def __init__(self, min_scale: float = 0.1) -> None:
        super().__init__()
        self.min_scale = min_scale

    def dim_y(self, outputs: int) -> int:
        if outputs % 2:
            raise ValueError(f"layer_sizes: the last width is {outputs}; a per-point Gaussian head needs 2 Dy outputs")
        return outputs // 2

    def forward(self, outputs: Tensor) -> TorchDistribution:
        mean, raw = outputs.chunk(2, dim=-1)
        return dist.Normal(mean, self.min_scale + (1 - self.min_scale) * softplus(raw)).to_event(1)


def floor_of(model: object) -> float | None:
    """The least standard deviation that a model predicts; None where its noise has no floor, or is not known."""
    likelihood = getattr(model, "likelihood", None)
    return float(likelihood.min_scale) if isinstance(likelihood, GaussianHeadLikelihood) else None


class StudentTHeadLikelihood(GaussianHeadLikelihood):
    """A mean and a scale per point, as for the Gaussian head, with Student-t noise: outliers cost less.

    Args:
        min_scale: the floor of the scale.
        degrees_of_freedom: above 2, so that the variance exists.
    """

    @checked(degrees_of_freedom=number(2, ends="()"))
    def __init__(self, min_scale: float = 0.1, degrees_of_freedom: float = 4.0) -> None:
        super().__init__(min_scale)
        self.degrees_of_freedom = degrees_of_freedom

    def forward(self, outputs: Tensor) -> TorchDistribution:
        normal = super().forward(single(outputs)).base_dist  # torch draws no gamma variate in a half precision
        df = torch.full_like(normal.loc, self.degrees_of_freedom)
        return dist.StudentT(df, normal.loc, normal.scale).to_event(1)


class BernoulliLikelihood(Likelihood):
    """Independent Bernoulli outputs in {0, 1} (or grey values between) from logits."""

    def check(self, y: Tensor, outputs: int) -> None:
        super().check(y, outputs)
        if y.device.type == "cpu" and y.numel() and not torch.compiler.is_compiling():
            low, high = float(y.min()), float(y.max())
            if not 0 <= low <= high <= 1:
                raise DataError(
                    f"y: got values from {low:g} to {high:g}; a BernoulliLikelihood needs them in 0..1, 0 for no and 1 "
                    "for yes"
                )

    def forward(self, outputs: Tensor) -> TorchDistribution:
        return dist.Bernoulli(logits=outputs, validate_args=False).to_event(1)


class CategoricalLikelihood(Likelihood):
    """Class indices ``[*B, N]`` from logits."""

    discrete = True

    def dim_y(self, outputs: int) -> int:
        return outputs

    def forward(self, outputs: Tensor) -> TorchDistribution:
        return categorical(outputs)


def of_observed(distribution: TorchDistribution, observed: Tensor | None) -> TorchDistribution:
    """The distribution of what is known of each point: the others' outputs are integrated out, exactly.

    Args:
        distribution: of one point's y, batch ``[..., N]``, event ``[Dy]``.
        observed: ``[*B, N, Dy]``, True where an output is known; None where all are.

    Raises:
        DataError: a density that ties the outputs of a point to one another, of which no marginal is known here.
    """
    if observed is None:
        return distribution
    found = distribution.observed(observed) if isinstance(distribution, PartlyObserved) else None
    if isinstance(distribution, torch.distributions.Independent) and not distribution.base_dist.event_shape:
        ndims = distribution.reinterpreted_batch_ndims
        found = distribution.base_dist.mask(observed).to_event(ndims)
    if found is None:
        raise DataError(
            f"observed: got single missing outputs, which {type(distribution).__name__} ties to the others of their "
            "point; it must be None (mask the points that lack some), or the likelihood one of independent outputs"
        )
    return found


class PartlyObserved:
    """A distribution that knows its marginal over some of a point's outputs."""

    def observed(self, observed: Tensor) -> TorchDistribution:
        """The same with the outputs that are not observed ``[*B, N, Dy]`` integrated out."""
        raise NotImplementedError


def categorical(logits: Tensor) -> dist.Categorical:
    """Class indices by their logits ``[..., C]``; of no points too, whose logits torch cannot validate."""
    return dist.Categorical(logits=logits, validate_args=None if logits.numel() else False)


def make_likelihood(likelihood: str | Likelihood, noise_scale: float = 0.1, min_scale: float = 0.1) -> Likelihood:
    """A likelihood by name: ``gaussian``, ``gaussian-head``, ``student-t-head``, ``bernoulli`` or ``categorical``.

    Args:
        likelihood: a name, or a Likelihood that is returned as it is.
        noise_scale: noise standard deviation of ``gaussian``.
        min_scale: floor of the scale of the heads.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    known: dict[str, Callable[[], Likelihood]] = {
        "gaussian": lambda: GaussianLikelihood(noise_scale),
        "gaussian-head": lambda: GaussianHeadLikelihood(min_scale),
        "student-t-head": lambda: StudentTHeadLikelihood(min_scale),
        "bernoulli": BernoulliLikelihood,
        "categorical": CategoricalLikelihood,
    }
    if not isinstance(likelihood, str) or likelihood not in known:
        raise ValueError(f"likelihood: got {shown(likelihood)}; it must be one of {', '.join(known)}, or a Likelihood")
    return known[likelihood]()
