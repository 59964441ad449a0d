"""Low-rank variational dropout as a LoRA variant of Hugging Face's peft; on disk it is a LoRA adapter."""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guides.adapters.adapter_seal import CONFIG, WEIGHTS, seal_config
from guides.adapters.lrvd_families import (
    FAMILIES,
    NOISES,
    check_family,
    check_family_prior,
    initial_parameters,
    needs_nonzero_B,
    noisy_output,
)
from guides.adapters.lrvd_layers import KLWatch, LayerState, LrvdModule, kl_divergence, rank_log_alpha, sampling
from pp_models.adapters.called_layers import check_called, watch_layers
from pp_models.adapters.low_rank_layer import RankParameter, linear_sizes, low_rank_output
from pp_models.files import write_atomically

try:
    from peft import LoraConfig
    from peft.config import PeftConfigMixin
    from peft.tuners.lora import LoraModel
    from peft.tuners.lora.layer import Linear, LoraVariant
    from peft.utils import hotswap

    from guides.adapters.whole_saves import save_whole
except ImportError as error:
    raise ImportError(f"LrvdConfig: {error.name or 'peft'} is missing; pip install guidebook[adapters]") from None

__all__ = ["LrvdConfig", "LrvdLinear", "kl_divergence", "rank_log_alpha", "sampling"]

#: LoRA options that do not go with variational ranks, and why
_CHANGES_BASE = "it changes the base weights, and an adapter pruned to rank 0 must be the base model"
_OTHER_FORM = "its update is not a sum of rank-one components with one multiplier each"
REFUSED = {
    "use_dora": _OTHER_FORM,
    "use_bdlora": _OTHER_FORM,
    "arrow_config": "it routes between adapters by their singular vectors, which pruning changes",
    "alora_invocation_tokens": "it switches the adapter on within a sequence, and draws are one for each sequence",
    "velora_config": "it replaces the backward pass of A, through which the noise levels are trained",
    "monteclora_config": "it is another posterior over the same adapter",
    "kasa_config": _CHANGES_BASE,
    "corda_config": _CHANGES_BASE,
    "lora_ga_config": _CHANGES_BASE,
    "megatron_config": "its parallel layers are not supported",
    "target_parameters": "only Linear and Conv1D modules are supported",
    "lora_bias": "a bias is no rank component, and an adapter pruned to rank 0 must be the base model",
    "ensure_weight_tying": "tied embeddings are not supported",
}
QUANTISED = re.compile(r"4bit|8bit|Quant|HQQ|Aqlm|WQLinear|Eetq|EETQ|Params4|Int8Params|AffineQuantized")


def _quantised(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    names = [c.__name__ for c in (*type(layer).__mro__, *type(weight).__mro__)]
    # torch's attention has a class of its own for its output projection, called so because it is not quantised
    return any(QUANTISED.search(name) for name in names if name != "NonDynamicallyQuantizableLinear")


class _Unsupported(type):
    """``isinstance(layer, Unsupported)``: anything that LRVD cannot adapt, quantised linear layers included."""

    def __instancecheck__(cls, layer: Any) -> bool:
        return linear_sizes(layer) is None or _quantised(layer)


class Unsupported(metaclass=_Unsupported):
    """Stands for every kind of layer that is refused, in the table of layers that peft looks through."""


def _refuse(target: nn.Module, adapter_name: str, config: Any, target_name: str = "", **_: Any) -> None:
    kind = type(getattr(target, "base_layer", target)).__name__
    if linear_sizes(target) is not None or _quantised(target):
        raise ValueError(
            f"target_modules: {target_name!r} is of type {kind}, quantised, which LRVD does not support; "
            "load the base model in bfloat16 or float32"
        )
    raise ValueError(
        f"target_modules: {target_name!r} is of type {kind}; LRVD adapts Linear and Conv1D layers only (name those in "
        "target_modules, or leave this one out by exclude_modules)"
    )


@dataclass
class LrvdConfig(LoraConfig):
    """A ``peft.LoraConfig`` whose rank components are variational; ``get_peft_model(base, LrvdConfig(...))`` as usual.

    In training every forward pass is a posterior draw; in evaluation it is the posterior mean, unless within
    :func:`guides.adapters.lrvd_layers.sampling`. The KL is yours to add to the loss (:func:`kl_divergence`),
    or the Trainer's (``LrvdTrainerMixin``). Saved adapters are LoRA adapters: peft without this
    library opens them as the posterior mean, with a warning of fields it does not know; ``lrvd_load`` opens them whole,
    checked, and so does ``PeftModel.from_pretrained``, unchecked, once this module is imported (``gb.adapters`` does).

    Args:
        family: ``"rank"`` (multipliers N(1, α_k) of the ranks, the default), ``"weight_tied"`` (N(μ, α_k μ²) for every
            weight of A and B), ``"shared_sigma"`` (one variance for row k of A and column k of B), ``"asym"`` (only A)
            or ``"untied"`` (a variance for every weight).
        noise: of training: ``"sequence"`` (a draw for each example), ``"call"``, ``"token"``, or ``"none"``.
        init_log_alpha: where log α (log variances in the families that have those) starts; None for -4 (-8).
        prior: ``"log-uniform"`` (the paper's, improper), or a proper one: ``"ard"`` (N(0, s²) with the best s² in
            closed form) or ``"half-cauchy"`` (of multipliers, thus for family ``"rank"`` alone).
        logit_temperature: what ``gb.adapters.predict`` divides logits by; ``gb.adapters.calibrate`` fits it.
        **options: those of ``peft.LoraConfig``.

    Raises:
        ValueError: an argument out of range, or an option that does not go with variational ranks.
    """

    family: str = field(default="rank", metadata={"help": "Variational family of LRVD.", "is_lora_variant": True})
    noise: str = field(default="sequence", metadata={"help": "Noise in training: sequence, call, token or none."})
    init_log_alpha: float | None = field(default=None, metadata={"help": "Where the log noise level starts."})
    prior: str = field(default="log-uniform", metadata={"help": "Prior: log-uniform, half-cauchy or ard."})
    logit_temperature: float = field(default=1.0, metadata={"help": "What predictions divide logits by."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_family(self.family)
        check_family_prior(self.family, self.prior)
        if self.noise not in NOISES:
            raise ValueError(f"noise: got {self.noise!r}; it must be one of {', '.join(NOISES)}")
        if not 0 < self.logit_temperature < float("inf"):
            raise ValueError(f"logit_temperature: got {self.logit_temperature}; it must be positive and finite")
        if self.r < 1:
            raise ValueError(f"r: got {self.r}; it must be at least 1 (prune_ranks takes modules to rank 0)")
        low = {path: r for path, r in (self.rank_pattern or {}).items() if r < 1}
        if low:
            path, r = next(iter(low.items()))
            raise ValueError(f"rank_pattern: got {r} for {path!r}; it must be at least 1 (leave modules out instead)")
        for name, reason in REFUSED.items():
            if getattr(self, name, None):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, which LRVD does not support: {reason}")
        if self.init_lora_weights not in (True, False, "gaussian"):
            raise ValueError(
                f"init_lora_weights: got {self.init_lora_weights!r}; with LRVD it must be True, False or 'gaussian' "
                "(others change the base weights or assume a full-rank start)"
            )
        from transformers.pytorch_utils import Conv1D

        layers: Any = {Unsupported: _refuse, nn.Linear: LrvdLinear, Conv1D: LrvdLinear}
        self._register_custom_module(layers)
        _guard_weighted_adapters()
        _guard_hotswap()
        _watch_injections()
        save_whole(lambda config: isinstance(config, LrvdConfig))

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As in peft, but patterns stay in their order: the first that matches counts, and peft sorts them.

        The file gets a checksum of itself, and of the weights where they are beside it.
        """
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        content |= {name: getattr(self, name) for name in ("rank_pattern", "alpha_pattern")}
        # of its two callers peft writes weights first, and transformers (without this argument) afterwards
        weights = folder / WEIGHTS if "auto_mapping_dict" in kwargs and (folder / WEIGHTS).is_file() else None
        write_atomically(folder / CONFIG, seal_config(content, weights))


def _guard_weighted_adapters() -> None:
    """Makes peft's ``add_weighted_adapter`` refuse LRVD adapters; it would mix A and B and start noise levels anew.

    peft asks neither the configuration nor the layers there, so its method is wrapped, once, when LRVD is first used;
    calls that name other adapters alone are as before.
    """
    original: Any = LoraModel.add_weighted_adapter
    if getattr(original, "refuses_lrvd", False):
        return

    @functools.wraps(original)
    def add_weighted_adapter(self: Any, adapters: list[str], *args: Any, **kwargs: Any) -> None:
        for name in adapters:
            if isinstance(self.peft_config.get(name), LrvdConfig):
                raise ValueError(
                    f"adapters: {name!r} is an LRVD adapter, and a weighted sum of posteriors has no noise levels of "
                    "its own; merge posterior means into the base model (merge_and_unload), or save the adapters, "
                    "open them as plain LoRA (with guides.as_plain_lora()) and combine those"
                )
        original(self, adapters, *args, **kwargs)

    add_weighted_adapter.refuses_lrvd = True  # type: ignore[attr-defined]
    LoraModel.add_weighted_adapter = add_weighted_adapter  # type: ignore[method-assign]


#: not empty within :func:`as_plain_lora`
_plain: list[bool] = []


@contextmanager
def as_plain_lora() -> Iterator[None]:
    """Within it peft opens saved LRVD adapters as plain LoRA, which is their posterior mean.

    .. code-block:: python

        with as_plain_lora():
            model = PeftModel.from_pretrained(base, "adapter")
    """
    _plain.append(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unexpected keyword arguments", UserWarning)
            yield
    finally:
        _plain.pop()


def open_as_lrvd() -> None:
    """Makes peft open a saved LRVD adapter as what it is; on disk it is of peft's type LORA.

    ``PeftModel.from_pretrained`` asks the configuration's class for one of the type that the file names, and would drop
    what it does not know. Wrapped once, as above, when this module is imported.
    """
    original: Any = PeftConfigMixin.from_peft_type.__func__  # type: ignore[attr-defined]
    if getattr(original, "opens_lrvd", False):
        return

    @functools.wraps(original)
    def from_peft_type(cls: Any, **kwargs: Any) -> Any:
        if not _plain and kwargs.get("peft_type") == "LORA" and {"family", "init_log_alpha", "noise"} <= set(kwargs):
            known = {f.name for f in fields(LrvdConfig) if f.init} - {"peft_type", "runtime_config"}
            return LrvdConfig(**{name: value for name, value in kwargs.items() if name in known})
        return original(cls, **kwargs)

    from_peft_type.opens_lrvd = True  # type: ignore[attr-defined]
    PeftConfigMixin.from_peft_type = classmethod(from_peft_type)  # type: ignore[assignment, method-assign]


def _watch_injections() -> None:
    """Makes peft watch the layers of a model that gets an LRVD adapter (``check_called``); wrapped once, as above."""
    original: Any = LoraModel.inject_adapter
    if getattr(original, "watches_lrvd", False):
        return

    @functools.wraps(original)
    def inject_adapter(self: Any, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        original(self, model, adapter_name, *args, **kwargs)
        if not isinstance(self.peft_config.get(adapter_name), LrvdConfig):
            return
        watch_layers(model)
        if check_called not in model._forward_hooks.values():
            model.register_forward_hook(check_called)
        bases = {id(m.get_base_layer()): name for name, m in model.named_modules() if isinstance(m, LrvdLinear)}
        for name, module in model.named_modules(remove_duplicate=False):
            if id(module) in bases and not name.endswith(".base_layer"):
                warnings.warn(
                    f"target_modules: {name!r} and {bases[id(module)]!r} are one layer, of which peft adapts the "
                    "latter alone",
                    stacklevel=2,
                )

    inject_adapter.watches_lrvd = True  # type: ignore[attr-defined]
    LoraModel.inject_adapter = inject_adapter  # type: ignore[method-assign]


def _guard_hotswap() -> None:
    """Makes peft's hot swap refuse LRVD adapters: half-way it meets noise levels, and it takes no pruned rank's scale.

    Wrapped once, as above.
    """
    for name in ("hotswap_adapter_from_state_dict", "prepare_model_for_compiled_hotswap"):
        original: Any = getattr(hotswap, name, None)
        if original is not None and not getattr(original, "refuses_lrvd", False):
            setattr(hotswap, name, _refusing_hotswap(original))


def _refusing_hotswap(original: Any) -> Any:
    @functools.wraps(original)
    def refusing(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tensors: Any = kwargs.get("state_dict", args[0] if args else ())
        saved = isinstance(tensors, dict) and any("lora_lrvd_" in key for key in tensors)
        if saved or any(isinstance(module, LrvdModule) for module in model.modules()):
            raise ValueError(
                "hotswap: LRVD adapters cannot be swapped in place, for their ranks and noise levels differ; open the "
                "other one beside by lrvd_load(model, path, adapter_name=...) and choose by set_adapter"
            )
        return original(model, *args, **kwargs)

    refusing.refuses_lrvd = True  # type: ignore[attr-defined]
    return refusing


class LrvdLinear(Linear, LrvdModule):
    """peft's LoRA layer over ``Linear`` or ``Conv1D``, with noise levels beside A and B. Made by peft."""

    #: by adapter; set where its variant is made
    lrvd_family: dict[str, str]
    lrvd_noise: dict[str, str]
    lrvd_prior: dict[str, str]
    lrvd_watch: dict[str, KLWatch]

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **options: Any) -> None:
        super().__init__(base_layer, adapter_name, config=config, **options)
        if not isinstance(self.get_base_layer(), nn.Linear):
            self.fan_in_fan_out = config.fan_in_fan_out = True  # Conv1D keeps the transpose
            self.is_target_conv_1d_layer = True

    @property
    def lora_variants(self) -> dict:
        return {(): None}  # no other variant combines with it

    def resolve_lora_variant(self, *, config: LoraConfig, **options: Any) -> Any:
        # a plain LoRA adapter may share the layer, but no other variant
        return (
            LrvdVariant() if isinstance(config, LrvdConfig) else super().resolve_lora_variant(config=config, **options)
        )

    def lrvd_states(self) -> dict[str, LayerState]:
        return {name: self.lrvd_state(name) for name in self.active_adapters if name in self.lora_variant}

    def lrvd_state(self, adapter: str) -> LayerState:
        """State of one adapter."""
        family = self.lrvd_family[adapter]
        parameters = {name: getattr(self, f"lora_lrvd_{name}")[adapter] for name in FAMILIES[family]}
        return LayerState(family, *self._factors(adapter), parameters, self.lrvd_prior[adapter])

    @property
    def weight(self) -> Any:
        self.read = True
        return self.get_base_layer().weight

    def kl_watches(self) -> list[KLWatch]:
        return [self.lrvd_watch[name] for name in self.active_adapters if name in self.lora_variant]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        tables: Any = self
        for name in tables.lora_A:
            there = state_dict.get(f"{prefix}lora_A.{name}.weight")
            if there is not None and len(there) != self.ranks_of(name):
                raise ValueError(
                    f"state_dict: adapter {name!r} has rank {len(there)} at {prefix.rstrip('.')!r}, and the model "
                    f"{self.ranks_of(name)}; a pruned adapter is opened by lrvd_load, or resumed by LrvdTrainerMixin"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def ranks_of(self, adapter: str) -> int:
        """Ranks that an adapter, active or not, has left here."""
        return len(self._factors(adapter)[0]) if adapter in self.lora_A else 0

    def _factors(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        tables: Any = self
        return tables.lora_A[adapter].weight, tables.lora_B[adapter].weight

    def factors(self) -> tuple[nn.Parameter, nn.Parameter] | None:
        return next((self._factors(name) for name in self.active_adapters if name in self.lora_A), None)

    def ranks(self) -> dict[str, int]:
        return {name: self.ranks_of(name) for name in self.active_adapters}

    def update_scale(self, adapter: str | None = None) -> float:
        return self.scaling[adapter or self._adapter()]

    def _adapter(self) -> str:
        """The first active adapter that has ranks here."""
        return next(name for name in self.active_adapters if name in self.lora_A)

    def rank_parameters(self, adapter: str | None = None) -> list[RankParameter]:
        name = adapter or self._adapter()
        found = [RankParameter(self.lora_A[name], "weight", 0), RankParameter(self.lora_B[name], "weight", 1)]
        for parameter in FAMILIES[self.lrvd_family[name]] if name in self.lora_variant else ():
            dim = 1 if parameter == "log_variance_B" else 0
            found.append(RankParameter(getattr(self, f"lora_lrvd_{parameter}"), name, dim))
        return found

    def set_rank(self, rank: int, adapter: str | None = None) -> None:
        name = adapter or self._adapter()
        tables: Any = self
        tables.r[name] = tables.lora_A[name].out_features = tables.lora_B[name].in_features = rank
        if rank == 0:  # peft passes a layer by that does not have the active adapter
            for attribute in (*self.adapter_layer_names, *self.other_param_names):
                table = getattr(self, attribute, None)
                if isinstance(table, dict | nn.ModuleDict | nn.ParameterDict) and name in table:
                    del table[name]
            self.lora_variant.pop(name, None)


class LrvdVariant(LoraVariant):
    """What peft calls where plain LoRA would compute B A x."""

    @staticmethod
    def init(module: Any, adapter_name: str, config: Any = None, **_: Any) -> None:
        """Adds the noise levels of a new adapter to a layer."""
        family = config.family
        lora_A, lora_B = module.lora_A[adapter_name].weight, module.lora_B[adapter_name].weight
        for name, value in initial_parameters(family, lora_A, lora_B, config.init_log_alpha).items():
            attribute = f"lora_lrvd_{name}"
            if not hasattr(module, attribute):
                setattr(module, attribute, nn.ParameterDict())
                module.adapter_layer_names = (*module.adapter_layer_names, attribute)
            getattr(module, attribute)[adapter_name] = nn.Parameter(value)
        if not hasattr(module, "lrvd_family"):
            module.lrvd_family, module.lrvd_noise, module.lrvd_prior, module.lrvd_watch = {}, {}, {}, {}
            tables = ("lrvd_family", "lrvd_noise", "lrvd_prior", "lrvd_watch")
            module.other_param_names = (*module.other_param_names, *tables)
        module.lrvd_family[adapter_name] = family
        module.lrvd_noise[adapter_name] = config.noise
        module.lrvd_prior[adapter_name] = config.prior
        watch = module.lrvd_watch[adapter_name] = config.__dict__.setdefault("kl_watch", KLWatch())  # of all its layers
        watch.layers += 1
        if needs_nonzero_B(family) and config.init_lora_weights and lora_B.device.type != "meta":
            nn.init.uniform_(lora_B, -1e-3, 1e-3)

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """The base layer's result plus the update under the noise that is due."""
        scaling = module.scaling[active_adapter]
        state = module.lrvd_state(active_adapter)
        x = module.lora_dropout[active_adapter](x)
        if module.draws is not None:
            return result + low_rank_output(x, state.lora_A, state.lora_B, module.draws) * scaling
        if module.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            module.lrvd_watch[active_adapter].called()
        noise = module.lrvd_sampling
        if noise is None:
            noise = module.lrvd_noise[active_adapter] if module.training else "none"
        if noise == "none" and module.training and torch.is_grad_enabled():
            # DistributedDataParallel wants what the KL depends on to take part in the forward pass as well
            result = result + 0.0 * torch.stack([p.sum() for p in state.parameters.values()]).sum()
        held = None if module.lrvd_held is None else module.lrvd_held.get(active_adapter)
        return (
            result + noisy_output(state.family, x, state.lora_A, state.lora_B, state.parameters, noise, held) * scaling
        )

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The base weight with the posterior mean in it."""
        return orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Adds the posterior mean to the base weight."""
        orig_weight.data += module.get_delta_weight(active_adapter)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The base weight without the posterior mean."""
        return orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)


open_as_lrvd()
