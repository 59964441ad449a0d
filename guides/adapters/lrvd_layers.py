"""What is asked of a model with LRVD layers: its KL, its noise-to-signal ratios, posterior draws. No peft needed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from guides.adapters.lrvd_families import (
    COUNTS,
    NOISES,
    held_noise,
    rank_statistic,
    scored_ratios,
)
from pp_models.adapters.low_rank_layer import RankModule
from pp_models.adapters.low_rank_priors import rank_prior_kl
from pp_models.arguments import DRAWS, SEED, checked, one_of


class LayerState(NamedTuple):
    """One layer's family, factors A ``[r, k_in]`` and B ``[k_out, r]``, noise levels by name, and prior."""

    family: str
    lora_A: Tensor
    lora_B: Tensor
    parameters: dict[str, Tensor]
    prior: str = "log-uniform"


class KLWatch:
    """Notices that an adapter trains and its KL is never asked for; one object for all layers of an adapter."""

    #: training calls of each layer without a KL before something is said; a step may accumulate batches
    PATIENCE = 32

    def __init__(self) -> None:
        self.layers, self.calls, self.asked = 0, 0, False

    def called(self) -> None:
        """A layer was called in training."""
        if not self.asked:
            self.calls += 1
            if self.calls == self.PATIENCE * self.layers:
                self.warn()

    def warn(self) -> None:
        """Says once that no KL is trained."""
        if not self.asked:
            self.asked = True
            warnings.warn(
                "LRVD layers train without their KL, so that no rank will ever be found useless; derive the Trainer "
                "from LrvdTrainerMixin, or add LrvdObjective(num_data).penalty(model, step) to the loss",
                stacklevel=2,
            )


class LrvdModule(RankModule):
    """A layer that draws its own noise: from its training noise in training, from :func:`sampling` elsewhere."""

    #: noise of posterior draws while :func:`sampling` is on
    lrvd_sampling: str | None = None

    def lrvd_states(self) -> dict[str, LayerState]:
        """State of each active adapter that is variational and has a rank left."""
        raise NotImplementedError

    def kl_watches(self) -> list[KLWatch]:
        """Of the active variational adapters."""
        return []

    def hold(self, held: dict[str, dict[str, Tensor]] | None) -> None:
        """Sets the noise of the next calls by adapter; None draws anew at each."""
        self.lrvd_held = held

    #: noise of the draw in use, by adapter
    lrvd_held: dict[str, dict[str, Tensor]] | None = None


def module_path(name: str) -> str:
    """A module's path inside the base model: without what peft, DDP and ``torch.compile`` put before it."""
    for prefix in ("module.", "_orig_mod.", "base_model.model."):
        name = name.removeprefix(prefix)
    return name


def lrvd_modules(model: nn.Module) -> dict[str, LrvdModule]:
    """The LRVD layers of a model by module path.

    Raises:
        ValueError: it has none.
    """
    found = {module_path(name): m for name, m in model.named_modules() if isinstance(m, LrvdModule)}
    if not found:
        raise ValueError(f"model: {type(model).__name__} has no LRVD layer; adapt it with guides.LrvdConfig first")
    return found


def layer_states(model: nn.Module) -> dict[str, LayerState]:
    """State of every variational layer by module path (by ``path:adapter`` beyond the first active adapter)."""
    return {
        rank_key(path, module, adapter): state
        for path, module in lrvd_modules(model).items()
        for adapter, state in module.lrvd_states().items()
    }


def rank_key(path: str, module: RankModule, adapter: str) -> str:
    """What the ranks of one adapter in one layer go by: the path, and the adapter's name unless it is the first."""
    return path if adapter == next(iter(module.ranks())) else f"{path}:{adapter}"


def rank_log_alpha(model: nn.Module) -> dict[str, Tensor]:
    """log noise-to-signal ratio of every rank of the active adapter, ``[r]`` by module path, copied.

    Where the family has a ratio for every weight it is the median over the rank's weights. Modules without ranks are
    left out.

    Raises:
        ValueError: the model has no LRVD layer.
    """
    return {path: rank_statistic(*state[:4]).detach().clone() for path, state in layer_states(model).items()}


def kl_divergence(model: nn.Module, count: str = "rank", approximate: bool | None = None) -> Tensor:
    """KL of all active LRVD adapters to their priors, summed over modules: a scalar in nats.

    Args:
        model: a model with LRVD layers.
        count: ``"rank"`` counts each rank once, ``"weights"`` once for each weight that its noise level speaks for (a
            thousand times more for a transformer; what the released code sums).
        approximate: the sigmoid fit instead of the exact value; by default only for the families with a ratio for every
            weight.

    Raises:
        ValueError: the model has no LRVD layer, or an unknown count.
    """
    check_count(count)
    for module in lrvd_modules(model).values():
        for watch in module.kl_watches():
            watch.asked = True
    # log α of all modules that are scored alike in one row, with what each of them counts for
    rows: dict[tuple[str, bool], list[tuple[Tensor, float]]] = {}
    for state in layer_states(model).values():
        parts, fit, weight = scored_ratios(*state[:4], count, approximate)
        rows.setdefault((state.prior, fit), []).extend((part, weight) for part in parts)
    total = torch.zeros((), device=next(model.parameters()).device)
    for (prior, fit), row in rows.items():
        values = rank_prior_kl(torch.cat([part for part, _ in row]), prior, fit)
        each = values.split([len(part) for part, _ in row])
        total = total + torch.stack([v.sum() * weight for v, (_, weight) in zip(each, row, strict=True)]).sum()
    return total


def check_count(count: str) -> None:
    """Refuses an unknown way to count.

    Raises:
        ValueError: it is.
    """
    if count not in COUNTS:
        raise ValueError(f"count: got {count!r}; it must be 'rank' or 'weights'")


class PosteriorDraws:
    """What :func:`sampling` yields; iterate over it for draws that each outlast several calls."""

    def __init__(self, modules: list[LrvdModule], noise: str, num_samples: int) -> None:
        self.modules, self.noise, self.num_samples = modules, noise, num_samples
        self._iterating = False

    def refresh(self) -> None:
        """Takes the next posterior draw."""
        for module in self.modules:
            held = None
            if self.noise == "call":
                held = {name: held_noise(*s[:3]) for name, s in module.lrvd_states().items()}
            module.hold(held)

    def before_call(self, *_: Any) -> None:
        """Hook of the model: a call outside an iteration is a draw of its own."""
        if not self._iterating:
            self.refresh()

    def __iter__(self) -> Iterator[int]:
        self._iterating = True
        try:
            for i in range(self.num_samples):
                self.refresh()
                yield i
        finally:
            self._iterating = False

    def __len__(self) -> int:
        return self.num_samples


@checked(num_samples=DRAWS, seed=SEED, noise=one_of(*NOISES[:3]))
@contextmanager
def sampling(
    model: nn.Module, num_samples: int = 1, seed: int | None = None, noise: str = "call"
) -> Iterator[PosteriorDraws]:
    """Within it, calls of the model are posterior draws, whether it trains or not; after it they are what they were.

    .. code-block:: python

        with sampling(model, num_samples=10, seed=0) as draws:
            probabilities = torch.stack([model(**batch).logits.softmax(-1) for _ in draws]).mean(0)

    Within one turn of the loop every call uses the same draw, so a text that is generated is one function's. Outside
    the loop each call of ``model`` itself is a new draw.

    Args:
        model: a model with LRVD layers; usually in evaluation mode, so that its own dropout is off.
        num_samples: turns of the loop.
        seed: of these draws; the global random state is then put back afterwards. None draws from the global one.
        noise: ``"call"`` for one draw of the adapter a call; ``"sequence"`` for one for each example; ``"token"``.

    Raises:
        ValueError: an argument out of range, or a model without LRVD layers.
    """
    modules = list(lrvd_modules(model).values())
    before = [(m.lrvd_sampling, m.lrvd_held) for m in modules]
    draws = PosteriorDraws(modules, noise, num_samples)
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        hook = model.register_forward_pre_hook(draws.before_call)
        try:
            for module in modules:
                module.lrvd_sampling = noise
            draws.refresh()
            yield draws
        finally:
            hook.remove()
            for module, (mode, held) in zip(modules, before, strict=True):
                module.lrvd_sampling = mode
                module.hold(held)
