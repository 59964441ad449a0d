"""What rank scales say of low-rank updates: kept ranks, energy against the SVD bound, stability, the cost of a gauge.

An update is ΔW = s Σ_k b_k a_kᵀ with B ``[*S, o, r]`` and A ``[*S, r, i]``; ``*S`` may be seeds. A component with a
small log noise-to-signal ratio log α_k is one that the posterior is sure of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from guides.adapters.adapter_guide import AdapterGuide
from guides.adapters.lrvd_layers import layer_states, lrvd_modules, rank_log_alpha
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.arguments import NUMBER, checked, instance, optional
from pp_models.log_uniform import log_uniform_kl


def kept_ranks(log_alpha: Mapping[str, Tensor], threshold: float = 1.0) -> dict[str, int]:
    """Components with log α below the threshold, by module; log α is ``[r]`` a module."""
    return {name: int((value < threshold).sum()) for name, value in log_alpha.items()}


def gap_threshold(log_alpha: Tensor) -> Tensor:
    """The middle of the largest gap between sorted log α ``[*S, r]``, one threshold a row ``[*S]``.

    Raises:
        ValueError: fewer than two components.
    """
    if log_alpha.shape[-1] < 2:
        raise ValueError(f"log_alpha: got {log_alpha.shape[-1]} component(s); a gap needs at least 2")
    ordered = log_alpha.sort(-1).values
    place = ordered.diff(dim=-1).argmax(-1, keepdim=True)
    return (ordered.gather(-1, place) + ordered.gather(-1, place + 1)).squeeze(-1) / 2


class EnergyCurve(NamedTuple):
    """Shares of the energy of ΔW that its first m components carry, m = 1 to r, and their means over m.

    Args:
        energy: E(m) = 1 - |ΔW - ΔW_m|² / |ΔW|² in the given order ``[*S, r]``; negative for a bad order
            (docs/papers/lrvd.md, eq. 15).
        bound: Eckart and Young's, from the singular values ``[*S, r]``.
        random: mean over random orders ``[*S, r]``.
        auc, auc_bound, auc_random: means over m ``[*S]``.
    """

    energy: Tensor
    bound: Tensor
    random: Tensor
    auc: Tensor
    auc_bound: Tensor
    auc_random: Tensor


def _partial_energies(b: Tensor, a: Tensor) -> Tensor:
    """E(m) of components in the order they stand, ``[*S, r]``, by Gram matrices: no ΔW is formed."""
    gram = (b.mT @ b) * (a @ a.mT)  # inner products of the rank-one matrices
    total = gram.sum((-1, -2))
    rest = gram.flip(-1, -2).cumsum(-1).cumsum(-2).diagonal(dim1=-1, dim2=-2).flip(-1)  # |Σ_{k >= m} b_k a_kᵀ|²
    left_over = torch.cat([rest[..., 1:], torch.zeros_like(rest[..., :1])], -1)
    return 1 - left_over / total.unsqueeze(-1)


def energy_curve(b: Tensor, a: Tensor, order_by: Tensor, permutations: int = 30, seed: int = 0) -> EnergyCurve:
    """Cumulative energy of an update's components, most certain first, beside the best and a random order.

    Args:
        b, a: factors ``[*S, o, r]`` and ``[*S, r, i]``.
        order_by: ``[*S, r]``, ascending: log α, or minus the magnitude for a magnitude order.
        permutations: random orders to average.
        seed: of the random orders.

    Raises:
        ValueError: shapes that do not match.
    """
    rank = a.shape[-2]
    if b.shape[-1] != rank or order_by.shape != a.shape[:-1]:
        raise ValueError(
            f"order_by: got shape {list(order_by.shape)} with b {list(b.shape)} and a {list(a.shape)}; it must be "
            f"{list(a.shape[:-1])}, one number a component"
        )
    b, a = b.detach().double(), a.detach().double()

    def ordered(order: Tensor) -> Tensor:
        columns = order.unsqueeze(-2).expand(b.shape)
        return _partial_energies(b.gather(-1, columns), a.gather(-2, order.unsqueeze(-1).expand(a.shape)))

    energy = ordered(order_by.argsort(-1))
    generator = torch.Generator().manual_seed(seed)
    drawn = [ordered(torch.rand(order_by.shape, generator=generator).argsort(-1)) for _ in range(permutations)]
    random = torch.stack(drawn).mean(0)
    squares = singular_values(b, a).square()
    bound = squares.cumsum(-1) / squares.sum(-1, keepdim=True)
    return EnergyCurve(energy, bound, random, energy.mean(-1), bound.mean(-1), random.mean(-1))


def singular_values(b: Tensor, a: Tensor) -> Tensor:
    """The r leading singular values of BA ``[*S, r]``, from two small QR factors."""
    upper_b = torch.linalg.qr(b)[1]
    upper_a = torch.linalg.qr(a.mT)[1]
    found = torch.linalg.svdvals(upper_b @ upper_a.mT)
    missing = a.shape[-2] - found.shape[-1]
    return torch.nn.functional.pad(found, (0, missing)) if missing > 0 else found[..., : a.shape[-2]]


def entropy_rank(b: Tensor, a: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of BA, ``[*S]``: a smooth rank; 0 for BA = 0."""
    values = singular_values(b.detach().double(), a.detach().double())
    total = values.sum(-1, keepdim=True)
    share = values / total.clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(total.squeeze(-1) > 0, (-torch.special.xlogy(share, share).sum(-1)).exp(), 0.0)


def gauge_cost(b: Tensor, a: Tensor, precision: float = 1.0, kl_count: float = 1.0) -> Tensor:
    """What the rank-wise posterior pays for a factorisation of a linear-Gaussian layer, α optimised out, ``[*S]`` nats.

    Σ_k min_α (½ precision e_k α + kl_count KL(α)) with e_k = |b_k|² |a_k|², for white inputs. ΔW is the same for BG and
    G⁻¹A, the cost is not: this is what breaks the symmetry (docs/papers/lrvd.md, eq. 17).

    Args:
        b, a: factors ``[*S, o, r]`` and ``[*S, r, i]``.
        precision: number of observations over the noise variance.
        kl_count: κ, the weight of a component's KL.
    """
    energy = (b.square().sum(-2) * a.square().sum(-1)).double()
    grid = torch.linspace(-16.0, 12.0, 1_401, dtype=torch.float64)  # the minimum is flat: a step of 0.02 is plenty
    kl = kl_count * log_uniform_kl(grid)
    return (0.5 * precision * energy.unsqueeze(-1) * grid.exp() + kl).amin(-1).sum(-1)


class RankPlace(NamedTuple):
    """Where a module stands: its layer's number (-1 for none) and its kind."""

    layer: int
    kind: str


#: kinds by the end of a module's path, first match wins (an attention's dense is not the MLP's)
_KINDS = (
    (r"attention\.output\.dense$|o_proj$|attn\.c_proj$|out_proj$", "O"),
    (r"(query(_proj)?|q_proj)$", "Q"),
    (r"(key(_proj)?|k_proj)$", "K"),
    (r"(value(_proj)?|v_proj)$", "V"),
    (r"c_attn$", "QKV"),
    (r"intermediate\.dense$|c_fc$|up_proj$|gate_proj$|fc1$", "MLP in"),
    (r"output\.dense$|mlp\.c_proj$|down_proj$|fc2$", "MLP out"),
)


def place_of(module: str) -> RankPlace:
    """Layer and kind of a transformer's linear, from its path: ``encoder.layer.3.attention.self.query`` is (3, Q)."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    kind = next((kind for pattern, kind in _KINDS if re.search(pattern, module)), module.rsplit(".", 1)[-1])
    return RankPlace(int(number[1]) if number else -1, kind)


@torch.no_grad()
@checked(model=instance(nn.Module), guide=optional(instance(AdapterGuide)), threshold=NUMBER)
def rank_summary(model: nn.Module, guide: Any = None, threshold: float = 1.0) -> pd.DataFrame:
    """What a trained adapter uses of its ranks, one row a module.

    Where log α of the kept ranks is below -4 or so, draws hardly differ from the posterior mean, and whatever
    calibration was gained comes from elsewhere.

    Args:
        model: with LRVD layers (a peft model), or a ``LowRankAdapted``; then give its guide.
        guide: whose log α count.
        threshold: ranks with log α below it count as kept; nothing is removed.

    Returns:
        Columns module, layer, kind, rank (what is there), kept, lowest (log α), median_kept (log α of the kept), energy
        (E of the kept ranks, see :class:`EnergyCurve`) and entropy_rank (of the whole update); NaN where there is
        nothing to say.

    Raises:
        ValueError: the model has no LRVD layer, or the guide is of no adapter.
    """
    if guide is None:
        log_alpha: Mapping[str, Tensor] = rank_log_alpha(model)
        factors = dict.fromkeys(lrvd_modules(model)) | {
            path: (state.lora_A, state.lora_B) for path, state in layer_states(model).items()
        }
    else:
        instance(LowRankAdapted).check("model", model)
        log_alpha = guide.rank_log_alpha()
        factors = {path: module.factors() for path, module in model.rank_modules().items()}  # type: ignore[operator]
    rows: list[dict[str, Any]] = []
    for module, pair in factors.items():
        row: dict[str, Any] = {"module": module, **place_of(module)._asdict(), "rank": 0, "kept": 0}
        if pair is not None:
            a, b = pair
            found = log_alpha[module].detach()
            kept = found[found < threshold]
            row |= {"rank": len(found), "kept": len(kept), "lowest": float(found.min())}
            if len(kept):
                row["median_kept"] = float(kept.median())
            if bool(b.any()):
                curve = energy_curve(b, a, found, permutations=1)
                row["energy"] = float(curve.energy[len(kept) - 1]) if len(kept) else 0.0
                row["entropy_rank"] = float(entropy_rank(b, a))
        rows.append(row)
    columns = ["module", "layer", "kind", "rank", "kept", "lowest", "median_kept", "energy", "entropy_rank"]
    return pd.DataFrame(rows, columns=columns)


def rank_table(history: Iterable[tuple[int, Mapping[str, Tensor]]], threshold: float = 1.0) -> pd.DataFrame:
    """Kept ranks over training, one row a step and module: step, module, layer, kind, kept.

    Args:
        history: pairs of step and log α by module path.
        threshold: components with log α below it are kept.
    """
    rows = []
    for step, log_alpha in history:
        for module, kept in kept_ranks(log_alpha, threshold).items():
            rows.append({"step": step, "module": module, **place_of(module)._asdict(), "kept": kept})
    return pd.DataFrame(rows, columns=["step", "module", "layer", "kind", "kept"])


def threshold_curve(
    log_alpha: Mapping[str, Tensor], score: Callable[[float], float], thresholds: Sequence[float]
) -> pd.DataFrame:
    """Total rank and a score (accuracy, say) of the model pruned at each threshold: columns threshold, rank, score.

    Args:
        log_alpha: by module.
        score: what the model pruned at a threshold reaches; called once a threshold.
        thresholds: in any order.
    """
    rows = [{"threshold": t, "rank": sum(kept_ranks(log_alpha, t).values()), "score": score(t)} for t in thresholds]
    return pd.DataFrame(rows, columns=["threshold", "rank", "score"])


def rank_stability(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Mean and standard deviation over seeds of the total rank at each step: columns step, mean, std, seeds.

    Args:
        tables: one :func:`rank_table` a seed.
    """
    totals = pd.concat([table.groupby("step").kept.sum() for table in tables], axis=1)
    found = pd.DataFrame(
        {"mean": totals.mean(axis=1), "std": totals.std(axis=1, ddof=1), "seeds": totals.count(axis=1)}
    )
    return found.rename_axis("step").reset_index()
