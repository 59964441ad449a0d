"""Ways to train a low-rank adapter, by name: LRVD, its controls, and what users would compare it with.

Every method adapts the same linear layers of the same frozen transformer by ``peft``, and differs only in what it adds:
noise, a penalty, a gate. All are fitted by :func:`inference.fit`. ``peft`` is imported inside the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from evaluation.adapters.adapter_method import AdapterBudget, PlainLora
from evaluation.adapters.contract_methods import Lrvd, Ordered
from evaluation.adapters.peft_methods import AdaLora, Blob, LoraDropout, MonteClora, Pvera, Sora, SparseSubspace

#: by name; each is called with the budget and N
ADAPTER_METHODS: dict[str, Callable[[AdapterBudget, int], PlainLora]] = {
    "lora": PlainLora,
    "lora-dropout": LoraDropout,
    "adalora": AdaLora,
    "sora": Sora,
    "ordered": Ordered,
    "blob": Blob,
    "sparse-subspace": SparseSubspace,
    "fixed-noise": partial(Lrvd, frozen=0.0),
    "pvera": Pvera,
    "monteclora": MonteClora,
    "lrvd": Lrvd,
    "lrvd-kappa-3": partial(Lrvd, kappa=3.0),
    "lrvd-shared-sigma": partial(Lrvd, family="shared_sigma"),
}
