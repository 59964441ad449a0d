"""The variational families of low-rank variational dropout, as functions of one layer's factors and noise levels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from pp_models.adapters.low_rank_priors import check_rank_prior, rank_prior_kl
from pp_models.single_precision import single

#: by family the names of its parameters
FAMILIES: dict[str, tuple[str, ...]] = {
    "rank": ("log_alpha",),
    "shared_sigma": ("log_variance",),
    "asym": ("log_variance",),
    "weight_tied": ("log_alpha",),
    "untied": ("log_variance_A", "log_variance_B"),
}
NOISES = ("call", "sequence", "token", "none")
COUNTS = ("rank", "weights")
#: bounds within which noise levels count, in the forward pass and in the KL (for pruning they are not clamped)
LOG_ALPHA_RANGE = (-10.0, 8.0)
LOG_VARIANCE_RANGE = (-20.0, 2.0)
_FLOOR = 1e-8

Parameters = dict[str, Tensor]


def check_family(family: str) -> None:
    """Refuses an unknown family.

    Raises:
        ValueError: it is.
    """
    if family not in FAMILIES:
        raise ValueError(f"family: got {family!r}; it must be one of {', '.join(FAMILIES)}")


def check_family_prior(family: str, prior: str, name: str = "prior") -> None:
    """Refuses an unknown prior, and one that a family cannot have.

    Raises:
        ValueError: it is.
    """
    check_rank_prior(prior, name)
    if prior == "half-cauchy" and family != "rank":
        raise ValueError(
            f"{name}: got 'half-cauchy', which is of one scale and goes with multipliers around 1 (family 'rank'); the "
            f"weights of family {family!r} may have any size: take 'log-uniform' or 'ard'"
        )


def initial_parameters(family: str, lora_A: Tensor, lora_B: Tensor, value: float | None = None) -> Parameters:
    """Noise levels of a fresh layer: log α = -4, log variances -8 (float32 at least).

    Args:
        family: its name.
        lora_A: ``[r, k_in]``, for the shapes.
        lora_B: ``[k_out, r]``.
        value: another start.
    """
    if value is None:
        value = -4.0 if "log_alpha" in FAMILIES[family] else -8.0
    rank = lora_A.shape[0]
    shapes = {"log_variance_A": tuple(lora_A.shape), "log_variance_B": tuple(lora_B.shape)}
    dtype = torch.promote_types(lora_A.dtype, torch.float32)
    return {
        name: torch.full(shapes.get(name, (rank,)), value, dtype=dtype, device=lora_A.device)
        for name in FAMILIES[family]
    }


def needs_nonzero_B(family: str) -> bool:
    """Whether α is infinite where a weight of B is 0, so that B must not start there."""
    return family in ("shared_sigma", "untied")


def factor_scales(
    family: str, lora_A: Tensor, lora_B: Tensor, parameters: Parameters
) -> tuple[Tensor | None, Tensor | None]:
    """Standard deviations of A and B, broadcastable to them; None where a factor is not random."""
    if family == "rank":
        return None, None
    if family == "weight_tied":
        root = torch.exp(0.5 * parameters["log_alpha"].clamp(*LOG_ALPHA_RANGE))
        return root.unsqueeze(-1) * lora_A.abs(), root * lora_B.abs()
    if family == "untied":
        return tuple(torch.exp(0.5 * parameters[f"log_variance_{k}"].clamp(*LOG_VARIANCE_RANGE)) for k in "AB")  # type: ignore[return-value]
    scale = torch.exp(0.5 * parameters["log_variance"].clamp(*LOG_VARIANCE_RANGE))
    return scale.unsqueeze(-1), None if family == "asym" else scale.unsqueeze(0)


def log_alpha_of_weights(
    family: str, lora_A: Tensor, lora_B: Tensor, parameters: Parameters, clamp: bool = True
) -> list[Tensor]:
    """log α of every random weight, each ``[r, weights of the rank]``."""

    def within(t: Tensor) -> Tensor:
        return t.clamp(*LOG_VARIANCE_RANGE) if clamp else t

    if family == "untied":
        a, b = within(parameters["log_variance_A"]), within(parameters["log_variance_B"]).mT
    else:
        a = b = within(parameters["log_variance"]).unsqueeze(-1)
    found = [a - torch.log(single(lora_A).square() + _FLOOR)]
    if family != "asym":
        found.append(b - torch.log(single(lora_B).mT.square() + _FLOOR))
    return found


def rank_statistic(family: str, lora_A: Tensor, lora_B: Tensor, parameters: Parameters) -> Tensor:
    """The log noise-to-signal ratio of each rank ``[r]`` that pruning goes by.

    Where α belongs to weights it is their median over the row of A, averaged with that over the column of B
    (docs/papers/lrvd.md, eq. 14).
    """
    if "log_alpha" in parameters:
        return parameters["log_alpha"]
    medians = [m.median(-1).values for m in log_alpha_of_weights(family, lora_A, lora_B, parameters, clamp=False)]
    return sum(medians[1:], medians[0]) / len(medians)


def weights_per_rank(family: str, lora_A: Tensor, lora_B: Tensor) -> int:
    """Weights that one noise level of the family speaks for."""
    return lora_A.shape[1] + (0 if family == "asym" else lora_B.shape[0])


def scored_ratios(
    family: str, lora_A: Tensor, lora_B: Tensor, parameters: Parameters, count: str, approximate: bool | None
) -> tuple[list[Tensor], bool, float]:
    """What the KL of one layer is a sum over.

    Returns:
        log α in rows, whether their KL is the sigmoid fit, and what each entry counts for; see :func:`family_kl`.
    """
    per_rank = weights_per_rank(family, lora_A, lora_B)
    if "log_alpha" in parameters:
        log_alpha = parameters["log_alpha"].clamp(*LOG_ALPHA_RANGE)
        return [log_alpha], bool(approximate), float(per_rank) if count == "weights" else 1.0
    ratios = [ratio.flatten() for ratio in log_alpha_of_weights(family, lora_A, lora_B, parameters)]
    return ratios, approximate is not False, 1.0 if count == "weights" else 1.0 / per_rank


def family_kl(
    family: str,
    lora_A: Tensor,
    lora_B: Tensor,
    parameters: Parameters,
    count: str = "rank",
    approximate: bool | None = None,
    prior: str = "log-uniform",
) -> Tensor:
    """KL to the prior of one layer, a scalar in nats.

    Args:
        family: its name.
        lora_A: ``[r, k_in]``.
        lora_B: ``[k_out, r]``.
        parameters: noise levels.
        count: ``"weights"`` sums over weights (as the released code does), ``"rank"`` counts each rank once (the mean
            over its weights).
        approximate: see ``log_uniform_kl``; by default for the families with a ratio for every weight.
        prior: see ``rank_prior_kl``.

    Raises:
        ValueError: an unknown prior, or one that the family cannot have.
    """
    check_family_prior(family, prior)
    ratios, fit, weight = scored_ratios(family, lora_A, lora_B, parameters, count, approximate)
    return weight * torch.stack([rank_prior_kl(ratio, prior, fit).sum() for ratio in ratios]).sum()


def _noisy_linear(x: Tensor, weight: Tensor, scale: Tensor, noise: str, held: Tensor | None) -> Tensor:
    """``x W^T`` with W ~ N(weight, scale²): one W a call, one for each of x's first dimension, or one at each place.

    The last is local reparameterisation: the outputs' own Gaussian, without a draw of W.
    """
    if noise == "token" and held is None:
        mean = linear(x, weight)
        # squares leave float16 at both ends, whatever autocast would like; the root's slope at 0 is infinite
        with torch.autocast(x.device.type, enabled=False):
            variance = linear(single(x).square(), single(scale).square().expand_as(weight))
            spread = (variance + 1e-12).sqrt()
        return mean + spread.to(mean.dtype) * torch.randn_like(mean)
    scale = scale.to(weight.dtype)  # noise levels are kept in float32 where the factors are not
    # the mean goes into the drawn weight: one product, forward and backward, and no second output to add
    if held is not None or noise == "call" or x.dim() == 1:
        eps = torch.randn_like(weight) if held is None else held
        return linear(x, torch.addcmul(weight, scale, eps))
    eps = torch.randn(x.shape[0], *weight.shape, dtype=weight.dtype, device=weight.device)
    blocks = x.reshape(x.shape[0], -1, x.shape[-1])
    # transposed before it is drawn: the product is then twice as fast for the wide side of B
    outputs = torch.bmm(blocks, torch.addcmul(weight.mT, scale.mT, eps.mT))
    return outputs.reshape(*x.shape[:-1], weight.shape[0])


def held_noise(family: str, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
    """Standard normal noise of one posterior draw, to be used by several calls."""
    if family == "rank":
        return {"z": torch.randn_like(lora_A[:, 0])}
    found = {"A": torch.randn_like(lora_A)}
    return found if family == "asym" else found | {"B": torch.randn_like(lora_B)}


def noisy_output(
    family: str,
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    parameters: Parameters,
    noise: str,
    held: dict[str, Tensor] | None = None,
) -> Tensor:
    """The update B A x, before the scale, under a posterior draw (docs/papers/lrvd.md, eq. 9).

    Args:
        family: its name.
        x: ``[..., k_in]``; for ``"sequence"`` the first dimension is that of examples.
        lora_A: ``[r, k_in]``, means.
        lora_B: ``[k_out, r]``, means.
        parameters: noise levels.
        noise: ``"call"`` one draw for everything in x, ``"sequence"`` one for each example, ``"token"`` one at each
            place, ``"none"`` the means.
        held: noise of a draw that outlasts this call (:func:`held_noise`).

    Returns:
        ``[..., k_out]``. For ``"rank"`` (any noise) and ``"call"``, ``"sequence"`` (any family) this is exact: the
        outputs are distributed as those of drawn weights. At ``"token"`` the factors are drawn independently at each
        place.
    """
    if noise == "none" and held is None:
        return linear(linear(x, lora_A), lora_B)
    if family == "rank":
        hidden = linear(x, lora_A)
        root = torch.exp(0.5 * parameters["log_alpha"].clamp(*LOG_ALPHA_RANGE))
        if held is not None:
            eps = held["z"]
        elif noise == "token":
            eps = torch.randn_like(hidden)
        elif noise == "sequence" and x.dim() > 1:
            shape = (x.shape[0], *(1,) * (x.dim() - 2), hidden.shape[-1])
            eps = torch.randn(shape, dtype=root.dtype, device=x.device)
        else:
            eps = torch.randn_like(root)
        return linear(hidden * (1 + root * eps).to(hidden.dtype), lora_B)
    held = held or {}
    scale_A, scale_B = factor_scales(family, lora_A, lora_B, parameters)
    assert scale_A is not None
    hidden = _noisy_linear(x, lora_A, scale_A, noise, held.get("A"))
    return linear(hidden, lora_B) if scale_B is None else _noisy_linear(hidden, lora_B, scale_B, noise, held.get("B"))
