"""Priors over the weights of a Bayesian network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

GRANULARITIES = ("weight", "unit", "layer", "network")


@dataclass(frozen=True)
class GaussianBlocks:
    """A Gaussian over a weight matrix as independent blocks w = loc + factor u, u ~ N(0, I).

    A block is the incoming weights of a unit, or the whole matrix row after row.

    Args:
        loc: ``[..., blocks, k]``.
        factor: lower triangular ``[..., blocks, k, k]``, or its diagonal ``[..., blocks, k]``.
        diagonal: which of the two.
    """

    loc: Tensor
    factor: Tensor
    diagonal: bool

    def whole(self, k_out: int) -> bool:
        """Whether one block holds the matrix of all ``k_out`` units."""
        return self.loc.shape[-2] != k_out


class WeightPrior(nn.Module):
    """A distribution over the weight matrices of a network, layer by layer.

    A prior is made without knowing the network; the network calls :meth:`build` once with the shapes of
    its matrices.
    """

    #: whether no layer's prior depends on the weights of another
    independent_layers = True

    def build(self, shapes: list[tuple[int, int]]) -> None:
        """Sizes the prior for weight matrices of these shapes, ``(k_out, k_in + 1)`` layer by layer."""
        self.shapes = list(shapes)

    def layer(self, index: int, previous: list[Tensor]) -> TorchDistribution:
        """The prior of layer ``index``, event shape ``[k_out, k_in + 1]``, given the weights of the layers below."""
        raise NotImplementedError

    def gaussian(self, index: int, previous: list[Tensor]) -> GaussianBlocks:
        """The same prior as Gaussian blocks.

        Raises:
            ValueError: it is not Gaussian.
        """
        raise ValueError(f"prior: got {type(self).__name__}, which is not Gaussian; a conjugate update needs one")


class FixedGaussianPrior(WeightPrior):
    """Independent zero-mean Gaussians, N(0, scale²) or N(0, scale² / (k_in + 1)).

    Args:
        scale_by_fan_in: divide the variance by the fan-in, the bias column counted (BNNP, section 1).
        scale: standard deviation before that division.
    """

    _anchor: Tensor

    def __init__(self, scale_by_fan_in: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale: got {scale}; it must be positive")
        self.scale_by_fan_in = scale_by_fan_in
        self.scale = scale
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)  # carries device and dtype

    def layer(self, index: int, previous: list[Tensor]) -> TorchDistribution:
        shape = self.shapes[index]
        scale = self.scale / math.sqrt(shape[1]) if self.scale_by_fan_in else self.scale
        loc = self._anchor.expand(shape)
        return dist.Normal(loc, loc + scale).to_event(2)

    def gaussian(self, index: int, previous: list[Tensor]) -> GaussianBlocks:
        base = self.layer(index, previous).base_dist
        return GaussianBlocks(base.loc, base.scale, True)


class LearnedGaussianPrior(WeightPrior):
    """A Gaussian prior whose mean and covariance are parameters, meta-learned with the guide.

    Args:
        granularity: what is correlated a priori: ``"weight"`` (nothing), ``"unit"`` (the incoming weights of a unit),
            ``"layer"`` (a layer's weights) or ``"network"`` (everything; a layer is then conditioned on those below).
        scale_by_fan_in: divide the covariance by the fan-in, outside the learned parameters.
        trainable: proportion of the weights whose prior is learned; the rest keeps N(0, I), before the division,
            whatever an optimizer does (BNNP, section 4: between no learned prior and one that overfits few tasks).
        trainable_from: ``"last"`` counts from the output layer backwards, ``"first"`` from the input. Layers are taken
            whole; in the one where the proportion ends, weights are picked at random.
        seed: seed of that choice.

    All start at N(0, I), before the division (BNNP, section 1).

    Raises:
        ValueError: unknown granularity, or another argument out of range.
    """

    def __init__(
        self,
        granularity: str = "weight",
        scale_by_fan_in: bool = True,
        trainable: float = 1.0,
        trainable_from: str = "last",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity: got {granularity!r}; it must be one of {', '.join(GRANULARITIES)}")
        if not 0 <= trainable <= 1:
            raise ValueError(f"trainable: got {trainable}; it must lie in [0, 1]")
        if trainable_from not in ("last", "first"):
            raise ValueError(f"trainable_from: got {trainable_from!r}; it must be 'last' or 'first'")
        self.granularity = granularity
        self.scale_by_fan_in = scale_by_fan_in
        self.independent_layers = granularity != "network"
        self.trainable, self.trainable_from, self.seed = trainable, trainable_from, seed

    def build(self, shapes: list[tuple[int, int]]) -> None:
        super().build(shapes)
        if self.granularity == "weight":
            blocks: list[tuple[int, ...]] = list(self.shapes)
            full = False
        elif self.granularity == "unit":
            blocks, full = list(self.shapes), True
        else:
            counts = [a * b for a, b in self.shapes]
            blocks, full = [(n,) for n in (counts if self.granularity == "layer" else [sum(counts)])], True
        self.loc = nn.ParameterList([nn.Parameter(torch.zeros(block)) for block in blocks])
        self.log_diagonal = nn.ParameterList([nn.Parameter(torch.zeros(block)) for block in blocks])
        self.lower = nn.ParameterList([nn.Parameter(torch.zeros(*b, b[-1])) for b in blocks] if full else [])
        learned = self._choose()
        if self.granularity == "network":
            learned = [torch.cat([mask.flatten() for mask in learned])]
        for i, (mask, block) in enumerate(zip(learned, blocks, strict=True)):
            self.register_buffer(f"learned_{i}", mask.reshape(block), persistent=False)

    def _choose(self) -> list[Tensor]:
        """Which weights' priors are learned, ``[k_out, k_in + 1]`` layer by layer."""
        counts = [a * b for a, b in self.shapes]
        left = math.floor(self.trainable * sum(counts) + 1e-9)
        generator = torch.Generator().manual_seed(self.seed)
        masks: dict[int, Tensor] = {}
        order = range(len(counts))
        for i in reversed(order) if self.trainable_from == "last" else order:
            taken = min(left, counts[i])
            mask = torch.zeros(counts[i], dtype=torch.bool)
            mask[torch.randperm(counts[i], generator=generator)[:taken]] = True
            masks[i] = mask.reshape(self.shapes[i])
            left -= taken
        return [masks[i] for i in order]

    def _learned(self, values: Tensor, i: int, pairs: bool = False) -> Tensor:
        """Parameters where they are learned, their initial zeros elsewhere: neither momentum nor decay moves those."""
        if self.trainable == 1.0:
            return values
        mask = getattr(self, f"learned_{i}")
        if pairs:
            mask = mask.unsqueeze(-1) & mask.unsqueeze(-2)
        return torch.where(mask, values, values.new_zeros(()))

    def _scale_tril(self, i: int) -> Tensor:
        lower = self._learned(self.lower[i], i, pairs=True)
        return lower.tril(-1) + torch.diag_embed(self._learned(self.log_diagonal[i], i).exp())

    def layer(self, index: int, previous: list[Tensor]) -> TorchDistribution:
        blocks = self.gaussian(index, previous)
        if self.granularity == "weight":
            return dist.Normal(blocks.loc, blocks.factor).to_event(2)
        if self.granularity == "unit":
            return dist.MultivariateNormal(blocks.loc, scale_tril=blocks.factor).to_event(1)
        gaussian = dist.MultivariateNormal(blocks.loc.squeeze(-2), scale_tril=blocks.factor.squeeze(-3))
        shape = torch.Size(self.shapes[index])
        return dist.TransformedDistribution(
            gaussian, [dist.transforms.ReshapeTransform(torch.Size([shape.numel()]), shape)]
        )

    def gaussian(self, index: int, previous: list[Tensor]) -> GaussianBlocks:
        shape = self.shapes[index]
        factor = 1.0 / math.sqrt(shape[1]) if self.scale_by_fan_in else 1.0
        if self.granularity == "weight":
            scale = self._learned(self.log_diagonal[index], index).exp()
            return GaussianBlocks(self._learned(self.loc[index], index), factor * scale, True)
        if self.granularity == "unit":
            return GaussianBlocks(self._learned(self.loc[index], index), factor * self._scale_tril(index), False)
        if self.granularity == "layer":
            loc, tril = self._learned(self.loc[index], index), factor * self._scale_tril(index)
        else:
            # Conditional of a block given those before it, from the joint Cholesky factor: with w = mu + L e and the
            # leading e's recovered by one triangular solve, w_b | w_<b ~ N(mu_b + L_b,<b e_<b, L_bb L_bb^T).
            counts = [a * b for a, b in self.shapes]
            start, stop = sum(counts[:index]), sum(counts[: index + 1])
            joint, joint_loc = self._scale_tril(0), self._learned(self.loc[0], 0)
            loc, tril = joint_loc[start:stop], factor * joint[start:stop, start:stop]
            if index:
                residuals, at = [], 0
                for weight, (k_out, k_in) in zip(previous, self.shapes, strict=False):
                    centred = weight.flatten(-2) - joint_loc[at : at + k_out * k_in]
                    residuals.append(centred * (math.sqrt(k_in) if self.scale_by_fan_in else 1.0))
                    at += k_out * k_in
                residual = torch.cat(residuals, -1).unsqueeze(-1)
                noise = torch.linalg.solve_triangular(joint[:start, :start], residual, upper=False)
                loc = loc + factor * (joint[start:stop, :start] @ noise).squeeze(-1)
        return GaussianBlocks(loc.unsqueeze(-2), tril.unsqueeze(-3), False)


class LogUniform(TorchDistribution):
    """Log-uniform over magnitudes with a symmetric sign: density ∝ 1/|w| on ``low <= |w| <= high``.

    Cutting the magnitudes makes the improper prior of variational dropout (Kingma et al. 2015) one that can be sampled;
    outside the cut the density is continued as ∝ 1/|w|, so that gradients are those of the improper prior.

    Args:
        low: smallest magnitude.
        high: largest magnitude.
    """

    arg_constraints: ClassVar[dict] = {"low": constraints.positive, "high": constraints.positive}
    support = constraints.real
    has_rsample = False

    def __init__(self, low: Tensor, high: Tensor, validate_args: bool | None = None) -> None:
        self.low, self.high = torch.broadcast_tensors(low, high)
        super().__init__(self.low.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(LogUniform, _instance)
        new.low, new.high = self.low.expand(batch_shape), self.high.expand(batch_shape)
        super(LogUniform, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.low.dtype, device=self.low.device)
        sign = torch.randint(0, 2, shape, device=self.low.device) * 2 - 1
        return sign * torch.exp(self.low.log() + uniform * (self.high / self.low).log())

    def log_prob(self, value):
        return -value.abs().clamp_min(1e-30).log() - torch.log(2 * (self.high / self.low).log())


class LogUniformPrior(WeightPrior):
    """The scale-free prior of variational dropout: every order of magnitude of a weight is as likely as any other.

    Args:
        low: smallest magnitude kept when the prior is sampled.
        high: largest one.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: float = 1e-4, high: float = 1.0) -> None:
        super().__init__()
        if not 0 < low < high:
            raise ValueError(f"low, high: got {low}, {high}; they must satisfy 0 < low < high")
        self.register_buffer("low", torch.tensor(float(low)))
        self.register_buffer("high", torch.tensor(float(high)))

    def layer(self, index: int, previous: list[Tensor]) -> TorchDistribution:
        return LogUniform(self.low, self.high).expand(self.shapes[index]).to_event(2)
