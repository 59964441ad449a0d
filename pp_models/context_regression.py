"""Bayesian linear regressions of a context on features of x, in closed form: a part that anything may read.

Kin: ALPaCA (Harrison et al. 2018), deep kernel transfer (Patacchiola et al. 2020), Bayesian last layers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pp_models.outputs_apart import OutputsApart, apart, state_apart, together
from pp_models.parameter_module import mlp, part_of
from pp_models.recorded_arguments import Recorded

FEATURES = ("fourier", "learned")
#: shortest and longest lengthscale of the heads' kernels at the start, for inputs of unit scale
LENGTHSCALES = (0.12, 0.8)
#: sines and cosines of x that a network of learned features reads beside x
LEARNED_FROM = 8


class FourierFeatures(Recorded, nn.Module):
    """Inputs and, beside them, sines and cosines of them at learned frequencies (Rahimi and Recht 2007).

    Args:
        dim_x: input width.
        count: frequencies.
        lengthscale: the frequencies start as normal draws over it.
        axes: they start along the axes instead, as many on each, at multiples of π/2: for inputs on the square
            [-1, 1]², as pixels are.

    Raises:
        ValueError: frequencies along the axes that the number of inputs does not divide.
    """

    def __init__(self, dim_x: int, count: int = 8, lengthscale: float = 0.25, axes: bool = False) -> None:
        super().__init__()
        if axes and count % dim_x:
            raise ValueError(f"count: got {count}; along {dim_x} axes it must be a multiple of {dim_x}")
        self.dim_out = dim_x + 2 * count
        start = _along_axes(dim_x, count // dim_x) if axes else _frequencies(dim_x, count) / lengthscale
        self.frequencies = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, N, dim_x]`` to ``[*B, N, dim_x + 2 count]``."""
        angle = x @ self.frequencies
        return torch.cat([x, angle.sin(), angle.cos()], -1)


class RegressionState(NamedTuple):
    """What a context says, in float64: enough to predict, and to take in further points.

    Args:
        precision: of the coefficients ``[*B, H, K, K]``, prior I included.
        information: precision times their mean ``[*B, H, K, Dy]``.
        squares: Σ y² / σ² ``[*B, H]``.
        points: their number ``[*B, 1]``.
        cholesky: of the precision.
        coefficients: posterior means ``[*B, H, K, Dy]``.
        log_evidence: log-density of the context under each head ``[*B, H]``, nats, all outputs together.
    """

    precision: Tensor
    information: Tensor
    squares: Tensor
    points: Tensor
    cholesky: Tensor
    coefficients: Tensor
    log_evidence: Tensor


class ContextRegression(nn.Module):
    """H regressions y = φ_h(x) w + m(x) + ε, w ~ N(0, I), ε ~ N(0, σ_h²), conditioned on a context exactly.

    Features φ_h are random Fourier features whose frequencies, amplitudes and scale are learned (head h starts with a
    lengthscale of its own), or the outputs of a network that reads a few such features. What a context says of the
    coefficients is Gaussian, with a Cholesky factor of K x K in float64, whatever the dtype of the data; the prior
    keeps it from being singular, so that an empty context, a repeated input and a padded point are all right, gradients
    too.

    Args:
        dim_x: input width.
        dim_y: output width; outputs share features and noise, and are independent given x.
        heads: H.
        features: K; even for Fourier features.
        kind: ``"fourier"`` or ``"learned"``.
        width: hidden width of the learned features and of the mean function.
        mean: learn a mean function m(x), a network; 0 otherwise.
        noise: σ_h at the start.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        heads: int = 8,
        features: int = 32,
        kind: str = "fourier",
        *,
        width: int = 64,
        mean: bool = False,
        noise: float = 0.05,
    ) -> None:
        super().__init__()
        for name, value in (("dim_x", dim_x), ("dim_y", dim_y), ("heads", heads), ("features", features)):
            if value < 1:
                raise ValueError(f"{name}: got {value}; it must be at least 1")
        if kind not in FEATURES:
            raise ValueError(f"kind: got {kind!r}; it must be one of {', '.join(FEATURES)}")
        if kind == "fourier" and features % 2:
            raise ValueError(f"features: got {features}; Fourier features come in pairs, take an even number")
        if not 0 < noise < math.inf:
            raise ValueError(f"noise: got {noise}; it must be positive and finite")
        self.dim_x, self.dim_y, self.heads, self.features, self.kind = dim_x, dim_y, heads, features, kind
        if kind == "fourier":
            scales = torch.logspace(math.log10(LENGTHSCALES[0]), math.log10(LENGTHSCALES[1]), heads)
            start = _frequencies(dim_x, features // 2)
            self.frequencies = nn.Parameter(start / scales.reshape(-1, 1, 1))  # [H, Dx, K / 2]
            self.log_amplitude = nn.Parameter(torch.zeros(heads, features // 2))
        else:
            read = FourierFeatures(dim_x, LEARNED_FROM, 0.4)
            self.network = nn.Sequential(read, *mlp([read.dim_out, width, width, heads * features]))
        self.log_scale = nn.Parameter(torch.zeros(heads))
        self.log_noise = nn.Parameter(torch.full((heads,), math.log(noise)))
        self.mean_function = mlp([dim_x, width, dim_y]) if mean else None

    @property
    def amplitude(self) -> Tensor:
        """Prior standard deviation of y that each feature brings ``[H, K]``; for learned features, of each at 1."""
        scale = self.log_scale.exp().unsqueeze(-1)
        if self.kind == "learned":
            return (scale / math.sqrt(self.features)).expand(-1, self.features)
        return (scale * self.log_amplitude.exp() / math.sqrt(self.features // 2)).repeat(1, 2)

    def feature_map(self, x: Tensor) -> Tensor:
        """φ: ``[*B, N, Dx]`` to ``[*B, H, N, K]``."""
        if self.kind == "learned":
            found = self.network(x).unflatten(-1, (self.heads, self.features)).movedim(-2, -3)
        else:
            angle = torch.einsum("...nd,hdk->...hnk", x, self.frequencies)
            found = torch.cat([angle.sin(), angle.cos()], -1)
        return found * self.amplitude.unsqueeze(-2)

    def mean(self, x: Tensor) -> Tensor | None:
        """m(x) ``[*B, N, Dy]``; None without a mean function."""
        return None if self.mean_function is None else self.mean_function(x)

    @property
    def noise_variance(self) -> Tensor:
        """σ_h² ``[H]``."""
        return (2 * self.log_noise).exp()

    def keep(self, heads: list[int]) -> None:
        """Drops all heads but these, in place."""
        names = ["log_scale", "log_noise", *(["frequencies", "log_amplitude"] if self.kind == "fourier" else [])]
        for name in names:
            setattr(self, name, nn.Parameter(getattr(self, name).detach()[heads].clone()))
        if self.kind == "learned":
            rows = [h * self.features + k for h in heads for k in range(self.features)]
            self.network[-1] = part_of(self.network[-1], rows)
        self.heads = len(heads)

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        state: RegressionState | OutputsApart | None = None,
        observed: Tensor | None = None,
    ) -> RegressionState | OutputsApart:
        """Conditions on points, after those of ``state`` if one is given: one by one equals all at once.

        Args:
            x: ``[*B, N, Dx]``.
            y: ``[*B, N, Dy]``; what it holds at points that do not exist is never read.
            mask: ``[*B, N]``, True where a point exists.
            state: of earlier points.
            observed: ``[*B, N, Dy]``, True where an output is known (nowhere at a point that does not exist); None
                where all are.

        Raises:
            ValueError: a state of points with a mask of outputs, and points without one, or the reverse.
        """
        mean = self.mean(x)
        y = (y if mean is None else y - mean).double()
        phi = self.feature_map(x).double()
        earlier = state_apart(state, observed)
        if observed is None:
            return self._condition(phi, y, mask, earlier)
        return OutputsApart(self._condition(phi.unsqueeze(-4), *apart(y, observed), earlier))

    def _condition(self, phi: Tensor, y: Tensor, mask: Tensor | None, state: RegressionState | None) -> RegressionState:
        """The state after points of features ``[*B, H, N, K]``."""
        if mask is None:
            count = y.new_full((*y.shape[:-2], 1), y.shape[-2])
        else:
            exists = mask.unsqueeze(-1)
            phi = torch.where(exists.unsqueeze(-3), phi, torch.zeros_like(phi))
            y = torch.where(exists, y, torch.zeros_like(y))
            count = mask.sum(-1, keepdim=True).double()
        y = y.unsqueeze(-3)
        noise = self.noise_variance.double()
        precision = phi.mT @ phi / noise[:, None, None]
        information = phi.mT @ y / noise[:, None, None]
        squares = y.square().sum((-1, -2)) / noise
        if state is None:
            precision = precision + torch.eye(self.features, dtype=precision.dtype, device=precision.device)
        else:
            precision, information = precision + state.precision, information + state.information
            squares, count = squares + state.squares, count + state.points
        cholesky = torch.linalg.cholesky(precision)
        coefficients = torch.cholesky_solve(information, cholesky)
        explained = (information * coefficients).sum((-1, -2))
        log_det = 2 * cholesky.diagonal(dim1=-1, dim2=-2).log().sum(-1)
        normaliser = count * (2 * math.pi * noise).log() + log_det
        evidence = -0.5 * (squares - explained + y.shape[-1] * normaliser)
        return RegressionState(precision, information, squares, count, cholesky, coefficients, evidence)

    def predict(self, x: Tensor, state: RegressionState | OutputsApart) -> tuple[Tensor, Tensor]:
        """Mean and variance of the noiseless function of each head.

        Args:
            x: ``[*B, N, Dx]``.
            state: of the context.

        Returns:
            Mean ``[*B, H, N, Dy]`` and variance ``[*B, H, N]``, in the dtype of x; outputs share the variance, but
            where single ones are missing: then it is ``[*B, H, N, Dy]``.
        """
        phi = self.feature_map(x)
        if isinstance(state, OutputsApart):
            found, variance = self._predict(phi.unsqueeze(-4), state.state)
            found, variance = together(found.squeeze(-1), 2), together(variance, 2)
        else:
            found, variance = self._predict(phi, state)
        mean = self.mean(x)
        return (found if mean is None else found + mean.unsqueeze(-3)), variance

    def _predict(self, phi: Tensor, state: RegressionState) -> tuple[Tensor, Tensor]:
        """The same at features ``[*B, H, N, K]``, without the mean function."""
        found = phi @ state.coefficients.to(phi.dtype)
        # the factor's inverse in float64, once a task; a sum of squares then loses nothing in float32
        identity = torch.eye(self.features, dtype=state.cholesky.dtype, device=phi.device).expand_as(state.cholesky)
        inverse = torch.linalg.solve_triangular(state.cholesky, identity, upper=False)
        return found, (phi @ inverse.mT.to(phi.dtype)).square().sum(-1)


def relative_evidence(log_evidence: Tensor, dtype: torch.dtype) -> Tensor:
    """Evidences of the heads beside one another, of a size that networks take: in [-2, 0] ``[*B, H]``."""
    return (torch.log_softmax(log_evidence, -1).clamp_min(-8) / 4).to(dtype)


def _along_axes(dim_x: int, each: int) -> Tensor:
    """Frequencies ``[dim_x, dim_x * each]``: π/2, π, … along each axis."""
    steps = (torch.arange(each) + 1.0) * (math.pi / 2)
    return torch.block_diag(*steps.expand(dim_x, each).unsqueeze(1).unbind(0))


def _frequencies(dim_x: int, count: int) -> Tensor:
    """Standard normal frequencies ``[dim_x, count]``; quantiles where there is one input, draws else."""
    if dim_x == 1:
        levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        return torch.special.ndtri(levels).to(torch.get_default_dtype()).unsqueeze(0)
    return torch.randn(dim_x, count)
