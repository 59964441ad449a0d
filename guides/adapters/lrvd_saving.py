"""Opening saved LRVD adapters: configuration, weights and noise levels, checked before anything is changed."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from guides.adapters.lrvd_peft import LrvdConfig  # says in one line where peft is missing

from peft import PeftModel, get_peft_model, set_peft_model_state_dict  # isort: skip
from peft.utils.other import get_pattern_key

from guides.adapters.adapter_seal import CONFIG, WEIGHTS, check_fields, read_adapter_config, read_weights
from guides.adapters.lrvd_layers import lrvd_modules
from pp_models.adapters.low_rank_layer import linear_sizes


def _file(path: str | os.PathLike, name: str) -> Path:
    """A file of a saved adapter: in a folder, or of a repository of the Hugging Face hub."""
    if Path(path).is_dir():
        found = Path(path) / name
        if found.is_file():
            return found
        pickled = name == WEIGHTS and (Path(path) / "adapter_model.bin").is_file()
        why = "holds adapter_model.bin, a pickle that is not read" if pickled else f"holds no {name}"
        raise ValueError(
            f"path: {path} {why}; save the adapter by model.save_pretrained(path), which writes safetensors"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise ValueError(f"path: {path} is not a folder, nor the name of a repository, owner/name")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(path), name))


def read_config(path: str | os.PathLike) -> LrvdConfig:
    """The configuration of a saved LRVD adapter, from its JSON.

    Raises:
        ValueError: there is none, or it is of another kind of adapter.
    """
    file = _file(path, CONFIG)
    content, _ = read_adapter_config(file)
    kind = content.get("peft_type")
    if kind != "LORA" or "family" not in content or "init_log_alpha" not in content:
        raise ValueError(
            f"path: {file} is of a {kind} adapter without LRVD's fields; load it by peft.PeftModel.from_pretrained"
        )
    check_fields(content, file)
    known = {f.name for f in fields(LrvdConfig) if f.init}
    options = {k: v for k, v in content.items() if k in known and k not in ("peft_type", "runtime_config")}
    try:
        return LrvdConfig(**options)
    except (ValueError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"path: {file} is not an adapter configuration ({reason})") from None


def _tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    return read_weights(_file(path, WEIGHTS), read_adapter_config(_file(path, CONFIG))[1])


def take_ranks(model: nn.Module, path: str | os.PathLike, adapter_name: str = "default") -> None:
    """Gives an adapter of a model the ranks of a saved one, whose weights can then be loaded into it.

    Layers of other ranks start anew, in new parameters: make the optimizer afterwards.

    Args:
        model: a model with that adapter.
        path: see :func:`lrvd_load`.
        adapter_name: its name here.

    Raises:
        ValueError: no such adapter, another kind, or one of another architecture.
    """
    saved, tensors = read_config(path), _tensors(path)
    keeper: Any = next(m for m in model.modules() if adapter_name in (getattr(m, "peft_config", None) or ()))
    config = keeper.peft_config[adapter_name]
    _check_fits(model, tensors)
    for name in ("rank_pattern", "alpha_pattern", "exclude_modules"):
        setattr(config, name, getattr(saved, name))
    for where, module in lrvd_modules(model).items():
        layer: Any = module
        factor = tensors.get(f"base_model.model.{where}.lora_A.weight")
        rank = 0 if factor is None else len(factor)
        if rank == 0 and adapter_name in layer.lora_A:
            layer.set_rank(0, adapter_name)
        elif rank != layer.ranks_of(adapter_name):
            pattern = get_pattern_key(config.alpha_pattern, where)
            alpha = config.alpha_pattern.get(pattern, config.lora_alpha)
            layer.update_layer(adapter_name, rank, lora_alpha=alpha, config=config)


def _check_fits(base: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Refuses an adapter whose matrices do not fit the base model's layers; before anything is changed."""
    inner: Any = base
    if isinstance(base, PeftModel):
        inner = inner.base_model.model
    modules: dict[str, nn.Module] = dict(inner.named_modules())
    for key, tensor in tensors.items():
        path, mark, rest = key.removeprefix("base_model.model.").partition(".lora_")
        if not mark:
            continue
        layer = modules.get(path)
        sizes = None if layer is None else linear_sizes(getattr(layer, "base_layer", layer))
        if sizes is None:
            raise ValueError(
                f"base: the adapter has weights for {path!r}, and {type(inner).__name__} has no linear layer of that "
                "name; it was trained on another architecture"
            )
        expected = {"A.weight": (tensor.shape[0], sizes[0]), "B.weight": (sizes[1], tensor.shape[-1])}.get(rest)
        if expected is not None and tensor.shape != expected:
            raise ValueError(
                f"base: the adapter's lora_{rest[0]} for {path!r} has shape {list(tensor.shape)}, and the layer has "
                f"{sizes[0]} inputs and {sizes[1]} outputs; it was trained on another architecture"
            )


def lrvd_load(
    base: nn.Module, path: str | os.PathLike, adapter_name: str = "default", is_trainable: bool = False
) -> Any:
    """Opens a saved LRVD adapter whole: A, B and noise levels, pruned ranks included.

    Args:
        base: the base model, or a peft model that is to get another adapter.
        path: a folder that ``save_pretrained`` wrote, or a repository of the hub. Only safetensors are read.
        adapter_name: its name here.
        is_trainable: whether it is to be trained further.

    Returns:
        the ``PeftModel``, in evaluation mode.

    Raises:
        ValueError: no such adapter, another kind, or one of another architecture.
    """
    config = read_config(path)
    weights = _file(path, WEIGHTS)
    config.inference_mode = not is_trainable
    tensors = _tensors(path)
    if not any(".lora_A." in key for key in tensors):
        raise ValueError(f"path: {weights} holds no rank: pruned to rank 0 everywhere, it is the base model")
    _check_fits(base, tensors)
    if isinstance(base, PeftModel):
        model = base
        model.add_adapter(adapter_name, config)
    else:
        model = get_peft_model(base, config, adapter_name=adapter_name)
    result: Any = set_peft_model_state_dict(model, tensors, adapter_name=adapter_name)
    missing = [key for key in result.missing_keys if ".lora_" in key and key.split(".")[-1] == adapter_name]
    if missing or result.unexpected_keys:
        name = (missing or result.unexpected_keys)[0]
        raise ValueError(f"path: {weights} and its configuration differ, first in {name}; the folder is damaged")
    return model.eval()
