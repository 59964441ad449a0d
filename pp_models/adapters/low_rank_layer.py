"""A frozen linear layer with a low-rank update whose factors, or the multipliers of its ranks, may be latent."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True)
class FactorDraws:
    """S draws of what is latent in one layer; None for what is a parameter.

    Args:
        rank_scale: ``[S, r]``, multipliers z of the rank-one components.
        lora_A: ``[S, r, k_in]``.
        lora_B: ``[S, k_out, r]``.
        input_mask: ``[S, k_in]``, multipliers of the update's inputs (dropout).
    """

    rank_scale: Tensor | None = None
    lora_A: Tensor | None = None
    lora_B: Tensor | None = None
    input_mask: Tensor | None = None
    #: whether there is a draw for every row of the data; what a layer reads for all rows at once takes the first
    of_rows: bool = False

    @property
    def count(self) -> int:
        """S."""
        given = (self.rank_scale, self.lora_A, self.lora_B, self.input_mask)
        return max((t.shape[0] for t in given if t is not None), default=1)

    def select(self, start: int, size: int) -> FactorDraws:
        """``size`` of the draws, beginning at ``start``; what all draws share stays."""
        parts: dict[str, Any] = {
            name: value[start : start + size]
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and value.shape[0] > 1
        }
        return replace(self, **parts)


class RankParameter(NamedTuple):
    """``getattr(owner, name)`` has the ranks along ``dim``."""

    owner: nn.Module
    name: str
    dim: int


class RankModule:
    """What :class:`LowRankAdapted` and the guides ask of an adapted layer; mixed into ours and into peft's.

    ``draws`` is the noise hook: a Pyro program sets it, the layer's next calls use it, and it is taken away again.
    """

    draws: FactorDraws | None = None
    #: whether the layer was called, and whether its weight was read by somebody else, since it was adapted
    called, read = False, False

    def factors(self) -> tuple[nn.Parameter, nn.Parameter] | None:
        """A ``[r, k_in]`` and B ``[k_out, r]``; None where no rank is left."""
        raise NotImplementedError

    def ranks(self) -> dict[str, int]:
        """Ranks left by active adapter; of a layer that knows no adapters, under one empty name."""
        factors = self.factors()
        return {"": 0 if factors is None else len(factors[0])}

    def update_scale(self, adapter: str | None = None) -> float:
        """s = lora_alpha / r of the ranks there were at first; pruning does not change it."""
        raise NotImplementedError

    def rank_parameters(self, adapter: str | None = None) -> list[RankParameter]:
        """The parameters that have an entry for each rank, of the first active adapter where none is named."""
        raise NotImplementedError

    def set_rank(self, rank: int, adapter: str | None = None) -> None:
        """Called when those have been cut down to ``rank`` entries."""


def low_rank_output(x: Tensor, lora_A: Tensor, lora_B: Tensor, draws: FactorDraws | None = None) -> Tensor:
    """B diag(z) A x, before the scale.

    Args:
        x: ``[rows, ..., k_in]``. With S draws, rows are S blocks of equal size, one for each draw.
        lora_A: ``[r, k_in]``, used where the draws hold none.
        lora_B: ``[k_out, r]``, likewise.
        draws: of S draws; None for the parameters themselves.

    Raises:
        ValueError: rows do not split into S blocks.
    """
    if draws is None:
        return linear(linear(x, lora_A), lora_B)
    if draws.of_rows and x.shape[0] == 1:
        draws = draws.select(0, 1)
    if x.shape[0] % draws.count:
        raise ValueError(
            f"x: got {x.shape[0]} rows for {draws.count} draws; they must split into blocks of equal size "
            "(pass fold_draws=False to run the draws one by one)"
        )
    blocks = x.reshape(draws.count, -1, x.shape[-1])
    if draws.input_mask is not None:
        blocks = blocks * draws.input_mask.unsqueeze(-2)
    hidden = blocks @ (lora_A if draws.lora_A is None else draws.lora_A).mT
    if draws.rank_scale is not None:
        hidden = hidden * draws.rank_scale.unsqueeze(-2)
    outputs = hidden @ (lora_B if draws.lora_B is None else draws.lora_B).mT
    return outputs.reshape(*x.shape[:-1], outputs.shape[-1])


def linear_sizes(layer: nn.Module) -> tuple[int, int] | None:
    """``(k_in, k_out)`` of a torch ``Linear`` or of the ``Conv1D`` of Hugging Face's GPT-2; None for other modules."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    weight = getattr(layer, "weight", None)
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and isinstance(weight, Tensor):
        return weight.shape[0], weight.shape[1]  # it keeps the transpose
    return None


class LowRankLinear(nn.Module, RankModule):
    """A linear layer, frozen, plus s B diag(z) A.

    A is drawn as LoRA's (U(-1/√k_in, 1/√k_in)) and B is 0, so that a fresh layer computes what the frozen one does.

    Args:
        base_layer: a torch ``Linear`` or Hugging Face ``Conv1D``.
        rank: r.
        lora_alpha: s = lora_alpha / r.
        dropout: rate of dropout on the update's inputs while training (LoRA dropout).

    Raises:
        ValueError: another kind of layer, or a rank below 1.
    """

    def __init__(self, base_layer: nn.Module, rank: int, lora_alpha: float = 16.0, dropout: float = 0.0) -> None:
        super().__init__()
        sizes = linear_sizes(base_layer)
        if sizes is None:
            raise ValueError(f"base_layer: got {type(base_layer).__name__}; it must be a Linear or Conv1D layer")
        if rank < 1:
            raise ValueError(f"rank: got {rank}; it must be at least 1")
        k_in, k_out = sizes
        weight = base_layer.weight
        assert isinstance(weight, Tensor)
        self.base_layer = base_layer.requires_grad_(False)
        # variational parameters underflow in half precision: an adapter on a bf16 base stays float32
        dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
        self.lora_A = nn.Parameter(torch.empty(rank, k_in, dtype=dtype, device=weight.device))
        self.lora_B = nn.Parameter(torch.zeros(k_out, rank, dtype=dtype, device=weight.device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scaling = lora_alpha / rank
        self.lora_dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def factors(self) -> tuple[nn.Parameter, nn.Parameter] | None:
        return (self.lora_A, self.lora_B) if self.lora_A.shape[0] else None

    def update_scale(self, adapter: str | None = None) -> float:
        return self.scaling

    def rank_parameters(self, adapter: str | None = None) -> list[RankParameter]:
        return [RankParameter(self, "lora_A", 0), RankParameter(self, "lora_B", 1)]

    @property
    def weight(self) -> Any:
        """The frozen weight, for networks that ask for its dtype before they call the layer."""
        self.read = True
        return self.base_layer.weight

    @property
    def bias(self) -> Any:
        """The frozen bias."""
        return getattr(self.base_layer, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., k_in]`` to ``[..., k_out]``."""
        outputs = self.base_layer(x)
        if not self.lora_A.shape[0]:
            return outputs
        inputs = self.lora_dropout(x.to(self.lora_A.dtype))
        update = low_rank_output(inputs, self.lora_A, self.lora_B, self.draws) * self.scaling
        return (outputs + update).to(outputs.dtype)


def adapt(
    backbone: nn.Module,
    targets: str | Sequence[str] | None,
    rank: int,
    lora_alpha: float = 16.0,
    dropout: float = 0.0,
    trainable: Sequence[str] = (),
) -> None:
    """Freezes a module and puts low-rank updates around some of its linear layers, in place.

    Raises:
        ValueError: targets that name no linear layer, a rank below 1, or a backbone that is adapted already.
    """
    adapted = [m for m in backbone.modules() if isinstance(m, RankModule)]
    if targets is None:
        if not adapted:
            raise ValueError("targets: got None, but the backbone has no LRVD layer; name the linear layers to adapt")
        several = [m.ranks() for m in adapted if len(m.ranks()) > 1]
        if several:  # the multipliers of one would be those of the others too
            raise ValueError(
                f"backbone: adapters {', '.join(map(repr, several[0]))} are active together; leave one by set_adapter"
            )
        for name, parameter in backbone.named_parameters():
            if "lora_lrvd_" in name:
                parameter.requires_grad_(False)  # a guide has its own
        return
    if adapted or hasattr(backbone, "peft_config"):
        raise ValueError("backbone: it is adapted already; pass targets=None for a peft model with guides.LrvdConfig")
    if rank < 1:
        raise ValueError(f"rank: got {rank}; it must be at least 1")
    linears = {n: m for n, m in backbone.named_modules(remove_duplicate=False) if linear_sizes(m) is not None}
    chosen = [name for name in linears if _matches(name, targets)]
    wanted = [] if isinstance(targets, str) else list(targets)
    missing = [t for t in wanted if not any(_matches(name, [t]) for name in linears)]
    if missing or not chosen:
        unknown = missing[0] if missing else targets
        raise ValueError(
            f"targets: no Linear or Conv1D layer of {type(backbone).__name__} is named {unknown!r}; it has "
            f"{', '.join(sorted({name.rpartition('.')[2] for name in linears})[:8]) or 'none'}"
        )
    backbone.requires_grad_(False)
    layers: dict[int, LowRankLinear] = {}
    names: dict[int, list[str]] = {}
    for name, module in linears.items():
        names.setdefault(id(module), []).append(name)
    for name in chosen:
        layer = linears[name]
        if id(layer) in layers:
            continue
        layers[id(layer)] = LowRankLinear(layer, rank, lora_alpha, dropout)
        same = names[id(layer)]
        if len(same) > 1:
            warnings.warn(
                f"targets: {' and '.join(map(repr, same))} are one layer, which has one adapter", stacklevel=3
            )
        for each in same:
            parent, _, child = each.rpartition(".")
            setattr(backbone.get_submodule(parent) if parent else backbone, child, layers[id(layer)])
    for ending in trainable:
        found = [m for name, m in backbone.named_modules() if _matches(name, [ending])]
        if not found:
            raise ValueError(f"trainable: {type(backbone).__name__} has no module named {ending!r}")
        for module in found:
            module.requires_grad_(True)


def _matches(name: str, targets: str | Sequence[str]) -> bool:
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == t or name.endswith(f".{t}") for t in targets)
