"""How good a prediction is: log-likelihoods, coverage, CRPS, RMSE, paired comparisons, and the spread of rates.

Every score is computed per task, so that two models can be compared on the same tasks; ``paired_difference`` does it.
Scores read a prediction only through the attributes of :class:`Prediction`. Nothing is broadcast; a NaN or infinity
among the outputs that are scored is refused, and one in the prediction makes the score of its task NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from evaluation.scores.scored_data import check_outputs
from pp_models.arguments import OPEN_SHARE, POINTS, POSITIVE, Rule, checked, each, one_of, shown, tensor
from pp_models.data import Dataset, TaskBatch
from pp_models.mixtures.simplex_distributions import ExpertMixture


class Prediction(Protocol):
    """What the scores need of a prediction at N points; its draws are of y, observation noise included."""

    @property
    def mean(self) -> Tensor: ...  # [*B, N, Dy]

    @property
    def std(self) -> Tensor: ...  # [*B, N, Dy]

    @property
    def samples(self) -> Tensor: ...  # [S, *B, N, Dy]

    def log_prob(self, y: Tensor, mask: Tensor | None = None) -> Tensor: ...  # [*B, N]

    def joint_log_prob(self, y: Tensor, mask: Tensor | None = None) -> Tensor: ...  # [*B]


def _prediction(value: Any) -> Any:
    if not all(isinstance(getattr(value, name, None), Tensor) for name in ("mean", "std", "samples")):
        raise ValueError(f"prediction: got {shown(value)}; it must be what predict gives, with mean, std and samples")
    return value


PREDICTION = Rule(_prediction)


@dataclass(frozen=True)
class LogLikelihoods:
    """Log densities per point and per output dimension, in nats, one value a task ``[*B]``.

    ``ll`` averages over all points, ``rll`` (reconstructive) over the context, ``pll`` (predictive) over the target.
    The ``joint_`` forms are the log density of all those points together, divided by their number and by Dy: they
    reward coherent functions, which the marginal forms cannot see. NaN where a task has no such point.
    """

    ll: Tensor
    rll: Tensor
    pll: Tensor
    joint_ll: Tensor
    joint_rll: Tensor
    joint_pll: Tensor

    def as_dict(self) -> dict[str, Tensor]:
        """The six tensors by name."""
        return asdict(self)

    def mean(self) -> dict[str, float]:
        """The mean of each over the tasks that have such points."""
        return {name: float(value.nanmean()) for name, value in self.as_dict().items()}


@checked(
    prediction=PREDICTION,
)
def log_likelihoods(prediction: Prediction, batch: TaskBatch) -> LogLikelihoods:
    """LL, RLL and PLL of a prediction made at ``batch.full.x`` (context points first, then target).

    Args:
        prediction: at the N = N_context + N_target points of ``batch.full``.
        batch: the observed points; masked points and missing outputs count nowhere.

    Raises:
        ValueError: the target's y is unknown, or the prediction is at another number of points.
    """
    full = batch.full
    if full.y is None:
        raise ValueError("batch: target.y is None; outputs must be known to be scored")
    existing, observed = full.full_mask(), full.observed
    y = _without_padding(full.y, full.output_mask())
    log_prob = prediction.log_prob(y) if observed is None else prediction.log_prob(y, observed)
    if log_prob.shape != existing.shape:
        raise ValueError(
            f"prediction: log_prob has shape {list(log_prob.shape)}; it must be made at batch.full.x, "
            f"shape {list(existing.shape)}"
        )
    is_context = torch.arange(full.num_points, device=existing.device) < batch.context.num_points
    parts = {"ll": existing, "rll": existing & is_context, "pll": existing & ~is_context}
    outputs = 1 if full.y.dtype == torch.long else full.y.shape[-1]
    scores = {}
    for name, mask in parts.items():
        known = mask if observed is None else mask.unsqueeze(-1) & observed
        count = mask.sum(-1) * outputs if observed is None else known.sum((-1, -2))
        total = torch.where(mask, log_prob, torch.zeros_like(log_prob)).sum(-1)
        for score, value in ((name, total), ("joint_" + name, prediction.joint_log_prob(y, known))):
            scores[score] = torch.where(mask.any(-1), value / count, torch.nan)
    return LogLikelihoods(**scores)


@checked(prediction=PREDICTION, sigmas=each(POSITIVE, 1, must="hold positive numbers"))
def sigma_coverage(
    prediction: Prediction, y: Tensor, mask: Tensor | None = None, sigmas: Sequence[float] = (1.0, 2.0)
) -> Tensor:
    """The fraction of outputs within k standard deviations of the mean, ``[len(sigmas), *B]``.

    A calibrated Gaussian gives erf(k / sqrt 2): 0.683 at k = 1 and 0.954 at k = 2.

    Args:
        prediction: at N points.
        y: ``[*B, N, Dy]``.
        mask: True where the point ``[*B, N]``, or the single output ``[*B, N, Dy]``, is known.
        sigmas: the values of k.

    Raises:
        ValueError: y or mask do not fit, or y is not finite.
    """
    y = check_outputs(y, prediction.mean.shape, mask)
    distance = (y - prediction.mean).abs() / prediction.std
    return torch.stack([_masked_mean(_share(distance, k), mask) for k in sigmas])


@checked(
    prediction=PREDICTION,
)
def pit(prediction: Prediction, y: Tensor) -> Tensor:
    """Probability integral transform of each output under the S draws, ``[*B, N, Dy]`` in (0, 1).

    (rank + 1/2) / (S + 1), with ties split: uniform on its S + 1 values if y and the draws come from one distribution.
    NaN where y or a draw is NaN.

    Raises:
        ValueError: y has another shape than a draw.
    """
    samples = prediction.samples
    if y.shape != samples.shape[1:]:
        raise ValueError(f"y: got shape {list(y.shape)}; the prediction has shape {list(samples.shape[1:])}")
    below = (samples < y).sum(0) + 0.5 * (samples == y).sum(0)
    found = (below.to(samples.dtype) + 0.5) / (len(samples) + 1)
    return torch.where(samples.isnan().any(0) | y.isnan(), torch.nan, found)


@checked(prediction=PREDICTION, levels=POINTS)
def calibration_error(prediction: Prediction, y: Tensor, mask: Tensor | None = None, levels: int = 19) -> Tensor:
    """How far the PIT is from uniform: the mean over levels q of abs(share of outputs with PIT <= q - q), a number.

    Outputs of all tasks and dimensions are pooled; a calibrated prediction gives 0 up to the grain of its draws and the
    noise of a finite sample (Kuleshov et al. 2018, with absolute distances).

    Args:
        prediction: at N points; its draws are used.
        y: ``[*B, N, Dy]``.
        mask: True where the point ``[*B, N]``, or the single output ``[*B, N, Dy]``, is known.
        levels: evenly spaced between 0 and 1, ends left out.

    Raises:
        ValueError: fewer than one level; y or mask do not fit, or y is not finite.
    """
    found = pit(prediction, check_outputs(y, prediction.samples.shape[1:], mask))
    found = found[mask] if mask is not None else found.flatten(0, -2)
    grid = torch.arange(1, levels + 1, dtype=found.dtype, device=found.device) / (levels + 1)
    share = torch.stack([_share(found, q).mean() for q in grid])
    return (share - grid).abs().mean()


@checked(prediction=PREDICTION, levels=each(OPEN_SHARE, 1, must="hold levels"))
def interval_coverage(
    prediction: Prediction, y: Tensor, mask: Tensor | None = None, levels: Sequence[float] = (0.5, 0.9)
) -> Tensor:
    """The fraction of outputs inside the draws' central interval of each level, ``[len(levels), *B]``.

    Read from the PIT, so a calibrated prediction gives the level up to the grain 1 / (S + 1).

    Raises:
        ValueError: a level is outside (0, 1); y or mask do not fit, or y is not finite.
    """
    distance = (2 * pit(prediction, check_outputs(y, prediction.samples.shape[1:], mask)) - 1).abs()
    return torch.stack([_masked_mean(_share(distance, level), mask) for level in levels])


@checked(mean=tensor(finite=False), std=tensor(finite=False), y=tensor(finite=False))
def gaussian_crps(mean: Tensor, std: Tensor, y: Tensor) -> Tensor:
    """The continuous ranked probability score of Normal(mean, std) at y, elementwise, in the units of y.

    Gneiting and Raftery (2007): std * (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt pi), z = (y - mean) / std; lower is
    better.

    Raises:
        ValueError: shapes that differ.
    """
    if not mean.shape == std.shape == y.shape:
        raise ValueError(
            f"y: got shape {list(y.shape)} with mean {list(mean.shape)} and std {list(std.shape)}; all three must agree"
        )
    z = (y - mean) / std
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return std * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


@checked(
    weights=tensor(least=1, finite=False),
    means=tensor(finite=False),
    scales=tensor(finite=False),
    y=tensor(finite=False),
)
def mixture_crps(weights: Tensor, means: Tensor, scales: Tensor, y: Tensor) -> Tensor:
    """The CRPS of a mixture of Gaussians at y, in closed form (Grimit et al. 2006), in the units of y.

    Σ_i w_i A(y - μ_i, σ_i²) - ½ Σ_ij w_i w_j A(μ_i - μ_j, σ_i² + σ_j²), A(m, s²) = E|N(m, s²)|; lower is better.

    Args:
        weights: ``[*B, L]``, summing to one.
        means: ``[*B, L]``.
        scales: standard deviations ``[*B, L]``.
        y: ``[*B]``.

    Returns:
        ``[*B]``.

    Raises:
        ValueError: y has another shape than the mixtures.
    """
    if not weights.shape == means.shape == scales.shape:
        raise ValueError(
            f"means: got shape {list(means.shape)} with weights {list(weights.shape)} and scales {list(scales.shape)}; "
            "all three must agree"
        )
    if y.shape != weights.shape[:-1]:
        raise ValueError(f"y: got shape {list(y.shape)}; the mixtures have shape {list(weights.shape[:-1])}")

    def absolute(mean: Tensor, scale: Tensor) -> Tensor:
        z = mean / scale
        density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        return mean * torch.erf(z / math.sqrt(2)) + 2 * scale * density

    error = (weights * absolute(y.unsqueeze(-1) - means, scales)).sum(-1)
    gaps = means.unsqueeze(-1) - means.unsqueeze(-2)
    both = (scales.unsqueeze(-1) ** 2 + scales.unsqueeze(-2) ** 2).sqrt()
    pairs = weights.unsqueeze(-1) * weights.unsqueeze(-2)
    return error - 0.5 * (pairs * absolute(gaps, both)).sum((-1, -2))


@checked(samples=tensor(least=1, finite=False), y=tensor(finite=False))
def sample_crps(samples: Tensor, y: Tensor) -> Tensor:
    """The fair (unbiased) estimate of the CRPS from draws ``[S, *shape]`` at y ``[*shape]``, elementwise.

    Ferro (2014): mean |x_i - y| - sum_{i,j} |x_i - x_j| / (2 S (S - 1)); the double sum comes from the sorted draws,
    so the cost is S log S.

    Raises:
        ValueError: fewer than two draws, or y of another shape than a draw.
    """
    num = len(samples)
    if y.shape != samples.shape[1:]:
        raise ValueError(f"y: got shape {list(y.shape)}; a draw has shape {list(samples.shape[1:])}")
    if num < 2:
        raise ValueError(f"samples: got {num} draw(s); the fair CRPS needs at least 2")
    ordered = samples.sort(0).values
    rank = torch.arange(1, num + 1, dtype=samples.dtype, device=samples.device)
    weight = (2 * rank - num - 1).reshape(-1, *[1] * (samples.dim() - 1))
    return (samples - y).abs().mean(0) - (weight * ordered).sum(0) / (num * (num - 1))


@checked(prediction=PREDICTION, method=one_of("samples", "gaussian", "mixture"))
def crps(prediction: Prediction, y: Tensor, mask: Tensor | None = None, method: str = "samples") -> Tensor:
    """The mean CRPS over points and output dimensions, ``[*B]``, in the units of y; lower is better.

    Args:
        prediction: at N points.
        y: ``[*B, N, Dy]``.
        mask: True where the point ``[*B, N]``, or the single output ``[*B, N, Dy]``, is known.
        method: "samples" (fair estimate from the draws), "gaussian" (closed form from mean and std) or "mixture"
            (closed form for a mixture of Gaussian experts predicted with mean weights).

    Raises:
        ValueError: an unknown method, or "mixture" for another prediction; y or mask do not fit, or y is not finite.
    """
    y = check_outputs(y, prediction.mean.shape, mask)
    if method == "samples":
        score = sample_crps(prediction.samples, y)
    elif method == "gaussian":
        score = gaussian_crps(prediction.mean, prediction.std, y)
    elif method == "mixture":
        score = mixture_crps(*gaussian_parts(prediction), y)
    else:
        raise ValueError(f"method: got {method!r}; it must be 'samples', 'gaussian' or 'mixture'")
    return _masked_mean(score, mask)


def gaussian_parts(prediction: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and standard deviations ``[*B, N, Dy, L]`` of a predictive that is one mixture of Gaussians.

    Raises:
        ValueError: it is something else, or a mixture over several draws.
    """
    likelihood = getattr(prediction, "likelihood", None)
    parts = likelihood.gaussian_parts() if isinstance(likelihood, ExpertMixture) else None
    if parts is None:
        raise ValueError("method: 'mixture' needs the prediction of a mixture of Gaussian experts")
    if prediction.num_samples != 1:
        raise ValueError(f"method: 'mixture' needs weights='mean'; this prediction has {prediction.num_samples} draws")
    log_weights, means, scales = (part[0] for part in parts)
    return log_weights.exp().unsqueeze(-2).expand_as(means.mT), means.mT, scales.mT


@checked(
    prediction=PREDICTION,
)
def rmse(prediction: Prediction, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root mean squared error of the mean over points and output dimensions, ``[*B]``, in the units of y.

    Raises:
        ValueError: y or mask do not fit, or y is not finite.
    """
    y = check_outputs(y, prediction.mean.shape, mask)
    return _masked_mean((y - prediction.mean) ** 2, mask).sqrt()


@dataclass(frozen=True)
class PairedDifference:
    """The mean over tasks of a - b, its standard error, and the number of tasks it rests on."""

    mean: float
    standard_error: float
    num_tasks: int

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.standard_error:.4f} ({self.num_tasks} tasks)"


@checked(a=tensor(finite=False), b=tensor(finite=False))
def paired_difference(a: Tensor, b: Tensor) -> PairedDifference:
    """Compares two models' scores on the same tasks.

    Args:
        a, b: one score a task, same shape; a task that is NaN in either (an empty context has no RLL) is left out.

    Returns:
        the mean of a - b and its standard error (NaN for a single task).

    Raises:
        ValueError: the shapes differ, or no task is left.
    """
    if a.shape != b.shape:
        raise ValueError(f"b: got shape {list(b.shape)}; it must be the shape of a, {list(a.shape)}: the same tasks")
    difference = (a - b).detach().double().flatten()
    difference = difference[~difference.isnan()]
    num = len(difference)
    if num == 0:
        raise ValueError("a, b: no task has both scores; at least one is needed")
    error = float(difference.std(correction=1)) / math.sqrt(num) if num > 1 else math.nan
    return PairedDifference(float(difference.mean()), error, num)


@dataclass(frozen=True)
class RateSpread:
    """Dropout rates of one layer: mean, and across-task standard deviation averaged over the layer's entries."""

    weight_mean: float
    weight_spread: float
    bias_mean: float
    bias_spread: float


def rate_spread(guide: Any, data: Dataset) -> dict[str, RateSpread]:
    """Mean and across-task spread of a dropout guide's rates, by layer.

    A spread near 0 means that the guide ignores the context (docs/papers/nvdp.md#traps).

    Args:
        guide: has ``rates(data)``, a dict from site name to drop probabilities ``[*B, k_out, k_in + 1]``, bias last.
        data: at least two tasks.

    Raises:
        ValueError: fewer than two tasks.
    """
    spreads = {}
    with torch.no_grad():
        for site, rates in guide.rates(data).items():
            rates = rates.flatten(0, -3) if rates.dim() > 2 else rates[None]
            if len(rates) < 2:
                raise ValueError(f"data: got {len(rates)} task(s); a spread across tasks needs at least 2")
            mean, spread = rates.mean(0), rates.std(0, correction=1)
            spreads[site] = RateSpread(
                weight_mean=float(mean[:, :-1].mean()),
                weight_spread=float(spread[:, :-1].mean()),
                bias_mean=float(mean[:, -1].mean()),
                bias_spread=float(spread[:, -1].mean()),
            )
    return spreads


def _without_padding(y: Tensor, mask: Tensor) -> Tensor:
    """y with zeros where nothing is known, so that padding (possibly NaN) reaches no density."""
    return torch.where(mask, y, torch.zeros_like(y))


def _share(value: Tensor, most: float | Tensor) -> Tensor:
    """1 where a value is at most so much and 0 where it is more; NaN stays NaN."""
    return torch.where(value.isnan(), value, (value <= most).to(value.dtype))


def _masked_mean(value: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of ``[*B, N, D]`` over what exists by a mask of points or outputs, ``[*B]``; NaN where nothing does."""
    if mask is None:
        mask = torch.ones(value.shape[:-1], dtype=torch.bool, device=value.device)
    if mask.shape == value.shape:
        value, mask = value.flatten(-2), mask.flatten(-2)
    else:
        value = value.mean(-1)
    total = torch.where(mask, value, torch.zeros_like(value)).sum(-1)
    return torch.where(mask.any(-1), total / mask.sum(-1), torch.nan)
