"""Priors over the weights of a Bayesian network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pp_models.arguments import SCALE, TENSOR, checked, each, either
from pp_models.files import FileError, write_atomically
from pp_models.recorded_arguments import Recorded
from pp_models.sealed_tensors import read_sealed_tensors, sealed_tensors
from pp_models.single_precision import single

GRANULARITIES = ("weight", "unit", "layer", "network")
#: of a saved prior
MOST_PRIOR_BYTES = 2**32


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

    def single(self) -> GaussianBlocks:
        """The same in float32 where it is of a half precision."""
        return GaussianBlocks(single(self.loc), single(self.factor), self.diagonal)

    def whole(self, k_out: int) -> bool:
        """Whether one block holds the matrix of all ``k_out`` units."""
        return self.loc.shape[-2] != k_out


class WeightPrior(Recorded, nn.Module):
    """A distribution over the weight matrices of a network, layer by layer.

    A prior is made without knowing the network; the network calls :meth:`build` once with the shapes of
    its matrices.
    """

    #: whether no layer's prior depends on the weights of another
    independent_layers = True
    #: whether standard deviations are divided by the root of the fan-in
    scale_by_fan_in = False

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int]] = []

    def fan_in_scale(self, index: int) -> float:
        """What multiplies the standard deviations of a layer."""
        return 1.0 / math.sqrt(self.shapes[index][1]) if self.scale_by_fan_in else 1.0

    def build(self, shapes: list[tuple[int, int]]) -> None:
        """Sizes the prior for weight matrices of these shapes, ``(k_out, k_in + 1)`` layer by layer.

        Models whose weights have the same shapes may share a prior.

        Raises:
            ValueError: it has been sized for other shapes.
        """
        if self.shapes and self.shapes != list(shapes):
            raise ValueError(
                f"prior: it belongs to a network of weights {self.shapes}, and cannot serve {list(shapes)} as well"
            )
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


class _NamedByPrior:
    """A Gaussian that remembers which layer of which prior it is, so that a posterior under it knows its own prior."""

    prior: tuple[int, int] | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = super().expand(batch_shape, _instance)  # type: ignore[misc]
        new.prior = self.prior
        return new


class PriorNormal(_NamedByPrior, dist.Normal):
    """Normal; see above."""


class PriorMultivariateNormal(_NamedByPrior, dist.MultivariateNormal):
    """MultivariateNormal; see above."""


def _named(gaussian: Any, prior: WeightPrior, index: int) -> Any:
    if prior.independent_layers:
        gaussian.prior = (id(prior), index)
    return gaussian


class GaussianPrior(WeightPrior):
    """A Gaussian over the weights, correlated within entries, units, layers, or the whole network.

    Subclasses hold the numbers (:meth:`moments`). With ``scale_by_fan_in`` the covariance of a layer is that divided by
    its fan-in, the bias column counted (docs/papers/bnnp.md, eq. 2).
    """

    granularity = "weight"
    scale_by_fan_in = False

    def moments(self, index: int) -> tuple[Tensor, Tensor]:
        """Mean and lower Cholesky factor of a layer before the division by the fan-in.

        By granularity: ``[k_out, k]`` and its standard deviations ``[k_out, k]``; ``[k_out, k]`` and ``[k_out, k, k]``;
        ``[k_out k]`` and a square of that width. For ``"network"`` those of all weights, layer after layer, at index 0.
        """
        raise NotImplementedError

    def layer(self, index: int, previous: list[Tensor]) -> TorchDistribution:
        blocks = self.gaussian(index, previous)
        if self.granularity == "weight":
            return _named(PriorNormal(blocks.loc, blocks.factor), self, index).to_event(2)
        if self.granularity == "unit":
            gaussian = PriorMultivariateNormal(blocks.loc, scale_tril=blocks.factor)
            return _named(gaussian, self, index).to_event(1)
        gaussian = PriorMultivariateNormal(blocks.loc.squeeze(-2), scale_tril=blocks.factor.squeeze(-3))
        _named(gaussian, self, index)
        shape = torch.Size(self.shapes[index])
        return dist.TransformedDistribution(
            gaussian, [dist.transforms.ReshapeTransform(torch.Size([shape.numel()]), shape)]
        )

    def gaussian(self, index: int, previous: list[Tensor]) -> GaussianBlocks:
        factor = self.fan_in_scale(index)
        if self.granularity in ("weight", "unit"):
            loc, scale = self.moments(index)
            return GaussianBlocks(loc, factor * scale, self.granularity == "weight")
        if self.granularity == "layer":
            loc, tril = self.moments(index)
            return GaussianBlocks(loc.unsqueeze(-2), factor * tril.unsqueeze(-3), False)
        # Conditional of a block given those before it, from the joint Cholesky factor: with w = mu + L e and the
        # leading e's recovered by one triangular solve, w_b | w_<b ~ N(mu_b + L_b,<b e_<b, L_bb L_bb^T).
        counts = [a * b for a, b in self.shapes]
        start, stop = sum(counts[:index]), sum(counts[: index + 1])
        joint_loc, joint = self.moments(0)
        loc, tril = joint_loc[..., start:stop], factor * joint[..., start:stop, start:stop]
        if index:
            residuals, at = [], 0
            for i, weight in enumerate(previous[:index]):
                centred = weight.flatten(-2) - joint_loc[..., at : at + counts[i]]
                residuals.append(centred / self.fan_in_scale(i))
                at += counts[i]
            residual = torch.cat(residuals, -1).unsqueeze(-1)
            below = single(joint[..., :start, :start])
            noise = torch.linalg.solve_triangular(below, single(residual), upper=False).to(loc.dtype)
            loc = loc + factor * (joint[..., start:stop, :start] @ noise).squeeze(-1)
        return GaussianBlocks(loc.unsqueeze(-2), tril.unsqueeze(-3), False)

    def as_given(self) -> GivenGaussianPrior:
        """This prior as it is now, as constants, for another model of the same weights or another library.

        Later training of this prior does not change the copy.
        """
        if not self.shapes:
            raise ValueError("prior: it belongs to no model yet, so that its size is unknown")
        given = GivenGaussianPrior.__new__(GivenGaussianPrior)
        WeightPrior.__init__(given)
        with torch.no_grad():
            if self.granularity == "network":
                loc, tril = self.moments(0)
                rows = torch.cat([loc.new_full((a * b,), self.fan_in_scale(i)) for i, (a, b) in enumerate(self.shapes)])
                found = [(loc.clone(), rows.unsqueeze(-1) * tril)]
            else:
                found = []
                for i in range(len(self.shapes)):
                    loc, scale = self.moments(i)
                    found.append((loc.clone(), self.fan_in_scale(i) * scale))
        given._keep(self.granularity, found)
        return given


class FixedGaussianPrior(GaussianPrior):
    """Independent zero-mean Gaussians, N(0, scale²) or N(0, scale² / (k_in + 1)).

    Args:
        scale_by_fan_in: divide the variance by the fan-in, the bias column counted (docs/papers/bnnp.md, eq. 2).
        scale: standard deviation before that division.
    """

    _anchor: Tensor

    @checked(scale=SCALE)
    def __init__(self, scale_by_fan_in: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.scale_by_fan_in = scale_by_fan_in
        self.scale = scale
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)  # carries device and dtype

    def moments(self, index: int) -> tuple[Tensor, Tensor]:
        loc = self._anchor.expand(self.shapes[index])
        return loc, loc + self.scale


class GivenGaussianPrior(GaussianPrior):
    """A Gaussian prior whose means and covariances are given, and stay.

    What is correlated follows from the shapes: with ``k = k_in + 1``,

    - variances ``[k_out, k]``: nothing (``"weight"``);
    - covariances ``[k_out, k, k]``: the incoming weights of a unit;
    - ``[k_out k, k_out k]``: all of a layer, row after row;
    - tensors instead of lists, ``[all]`` and ``[all, all]``: the network, layer after layer.

    A learned prior becomes one by ``prior.as_given()``: put it into another model to transfer it.

    Args:
        means: one tensor a layer, ``[k_out, k]`` (``[k_out k]`` will do), or one for the network.
        covariances: as above, one a layer of the same kind.

    Raises:
        ValueError: shapes that do not fit, a value that is not finite, a variance that is not positive, or a covariance
            that is not symmetric and positive definite.
    """

    @checked(
        means=either(Tensor, list, tuple, other=each(TENSOR, 1)),
        covariances=either(Tensor, list, tuple, other=each(TENSOR, 1)),
    )
    def __init__(self, means: list[Tensor] | Tensor, covariances: list[Tensor] | Tensor) -> None:
        super().__init__()
        whole = isinstance(means, Tensor)
        if whole != isinstance(covariances, Tensor):
            raise ValueError("means, covariances: one is a tensor and one a list; both must be the same")
        locs: list[Tensor] = [means] if isinstance(means, Tensor) else list(means)
        found = [covariances] if isinstance(covariances, Tensor) else list(covariances)
        if len(locs) != len(found) or not locs:
            raise ValueError(f"means, covariances: got {len(locs)} and {len(found)} layers; it must be as many of both")
        kinds = {self._kind(i, loc, cov, whole) for i, (loc, cov) in enumerate(zip(locs, found, strict=True))}
        if len(kinds) > 1:
            raise ValueError(f"covariances: got layers of kinds {', '.join(sorted(kinds))}; all must be of one kind")
        kind = kinds.pop()
        if kind in ("layer", "network"):
            locs = [loc.reshape(-1) for loc in locs]
        factors = [self._factor(i, cov, kind) for i, cov in enumerate(found)]
        self._keep(kind, [(loc.detach().clone(), f) for loc, f in zip(locs, factors, strict=True)])

    @staticmethod
    def _kind(i: int, loc: Tensor, cov: Tensor, whole: bool) -> str:
        for name, value in (("means", loc), ("covariances", cov)):
            if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
                raise ValueError(f"{name}: that of layer {i} is no tensor of floating-point numbers")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name}: that of layer {i} has values that are not finite")
        n = loc.numel()
        if cov.shape == (n, n) and (whole or n > 1 or loc.dim() == 1):
            return "network" if whole else "layer"
        if not whole and loc.dim() == 2 and cov.shape == loc.shape:
            return "weight"
        if not whole and loc.dim() == 2 and cov.shape == (*loc.shape, loc.shape[-1]):
            return "unit"
        raise ValueError(
            f"covariances: that of layer {i} has shape {list(cov.shape)}; with means {list(loc.shape)} it must be "
            "[k_out, k], [k_out, k, k] or [k_out k, k_out k]"
        )

    @staticmethod
    def _factor(i: int, cov: Tensor, kind: str) -> Tensor:
        if kind == "weight":
            if not bool((cov > 0).all()):
                raise ValueError(f"covariances: layer {i} has a variance of {cov.min().item():.3g}; all are positive")
            return cov.detach().sqrt()
        if not torch.allclose(cov, cov.mT, rtol=1e-4, atol=1e-6 * float(cov.abs().max())):
            raise ValueError(f"covariances: that of layer {i} is not symmetric")
        lower, info = torch.linalg.cholesky_ex(cov.detach())
        if bool(info.any()):
            smallest = torch.linalg.eigvalsh(cov.detach().double()).min().item()
            raise ValueError(
                f"covariances: that of layer {i} is not positive definite (smallest eigenvalue {smallest:.3g})"
            )
        return lower

    @property
    def built_with(self) -> dict[str, Any]:
        """Shapes alone: the numbers are in the state."""
        shapes = [list(getattr(self, f"loc_{i}").shape) for i in range(self.count)]
        return {"class": type(self).__name__, "arguments": {"granularity": self.granularity, "shapes": shapes}}

    @classmethod
    def rebuilt(cls, granularity: str, shapes: list[list[int]]) -> GivenGaussianPrior:  # type: ignore[override]
        """Standard normal numbers of those shapes, in place of which a state is loaded.

        Raises:
            ValueError: a granularity that there is not.
        """
        if granularity not in GRANULARITIES or not shapes:
            raise ValueError(f"granularity: got {granularity!r}; it must be one of {', '.join(GRANULARITIES)}")
        found = []
        for shape in shapes:
            loc = torch.zeros(*shape)
            factor = torch.ones(*shape)
            if granularity != "weight":
                units, k = (shape[0], shape[1]) if granularity == "unit" else (1, shape[0])
                factor = torch.zeros(units, k, k) + torch.eye(k)
                factor = factor if granularity == "unit" else factor[0]
            found.append((loc, factor))
        given = cls.__new__(cls)
        WeightPrior.__init__(given)
        given._keep(granularity, found)
        return given

    def _keep(self, granularity: str, found: list[tuple[Tensor, Tensor]]) -> None:
        self.granularity = granularity
        self.independent_layers = granularity != "network"
        for i, (loc, factor) in enumerate(found):
            self.register_buffer(f"loc_{i}", loc)
            self.register_buffer(f"factor_{i}", factor)
        self.count = len(found)

    def build(self, shapes: list[tuple[int, int]]) -> None:
        sizes = [(a * b,) for a, b in shapes] if self.granularity == "layer" else list(shapes)
        if self.granularity == "network":
            sizes = [(sum(a * b for a, b in shapes),)]
        got = [tuple(self.moments(i)[0].shape) for i in range(self.count)]
        if got != sizes:
            raise ValueError(f"prior: it holds means of shapes {got}, but the network's weights need {sizes}")
        super().build(shapes)

    def moments(self, index: int) -> tuple[Tensor, Tensor]:
        return getattr(self, f"loc_{index}"), getattr(self, f"factor_{index}")

    def save(self, path: str | Path) -> None:
        """Writes the prior as a safetensors file, whole or not at all."""
        write_atomically(Path(path), sealed_tensors(self.state_dict(), {"granularity": self.granularity}))

    @classmethod
    def load(cls, path: str | Path) -> GivenGaussianPrior:
        """Reads a prior that :meth:`save` wrote.

        Raises:
            ValueError: the file is no such file.
        """
        try:
            tensors, facts = read_sealed_tensors(Path(path), MOST_PRIOR_BYTES)
        except FileError as error:
            raise ValueError(f"path: {path} cannot be read as a prior ({error})") from None
        granularity, layers = facts.get("granularity"), range(len(tensors) // 2)
        names = {f"{part}_{i}" for i in layers for part in ("loc", "factor")}
        if granularity not in GRANULARITIES or not layers or set(tensors) != names:
            raise ValueError(f"path: {path} holds no prior")
        for name, tensor in tensors.items():
            if not tensor.dtype.is_floating_point or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"path: {path} holds no prior ({name} is not of finite real numbers)")
        found = [(tensors[f"loc_{i}"], tensors[f"factor_{i}"]) for i in layers]
        given = cls.__new__(cls)
        WeightPrior.__init__(given)
        given._keep(granularity, found)
        return given
