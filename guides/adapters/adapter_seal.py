"""What a saved LRVD adapter says of itself: format and checksums, checked before anything is built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from pp_models.files import FORMAT, LENIENT, FileError, checked, read_regular
from pp_models.sealed_tensors import check_finite

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
#: the key of the configuration that holds them; peft leaves out what it does not know
SEAL = "guidebook"
MOST_CONFIG_BYTES = 2**24
MOST_RANK = 2**12


@dataclass(frozen=True)
class AdapterFields:
    """What must hold of a configuration's fields before a peft configuration is made of them; peft has more."""

    r: int
    lora_alpha: float
    family: str
    noise: str
    init_log_alpha: float | None
    prior: str = "log-uniform"
    logit_temperature: float = 1.0
    lora_dropout: float = 0.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"

    __pydantic_config__ = LENIENT

    def __post_init__(self) -> None:
        for name, rank in {"r": self.r, **(self.rank_pattern or {})}.items():
            if rank > MOST_RANK:
                raise ValueError(f"{name}: a rank of {rank}; there are at most {MOST_RANK}")


def seal_config(content: Mapping[str, Any], weights: Path | None) -> bytes:
    """A configuration with its format and checksums.

    Args:
        content: what peft writes.
        weights: the file that it belongs to, if that is written.
    """
    digest = None if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest()
    whole = json.loads(json.dumps({name: value for name, value in content.items() if name != SEAL}))
    seal = {"format": FORMAT, "sha256": _digest(whole, digest), "weights": digest}
    return json.dumps(whole | {SEAL: seal}, indent=2).encode()


def read_adapter_config(file: Path) -> tuple[dict[str, Any], str | None]:
    """The contents of a configuration, and the SHA-256 of the weights that it belongs to where it says one.

    One without a seal is of peft's own or of an earlier version, and taken as it is.

    Raises:
        ValueError: it is no configuration, of another format, or altered.
    """
    try:
        content = dict(json.loads(read_regular(file, MOST_CONFIG_BYTES)))
        seal = content.pop(SEAL, None)
        if seal is None:
            return content, None
        form, digest, weights = seal["format"], seal["sha256"], seal["weights"]
        own = _digest(content, weights)
    except (ValueError, TypeError, KeyError, OSError, RecursionError, FileError) as error:
        reason = f"{type(error).__name__}: {str(error)[:100]}"
        raise ValueError(f"path: {file} is not an adapter configuration ({reason})") from None
    if digest != own:
        raise ValueError(
            f"path: {file} was altered (SHA-256 differs); if you changed it yourself, remove its key {SEAL!r}"
        )
    if form != FORMAT:
        raise ValueError(f"path: {file} is of format {form!r}; this version reads format {FORMAT}")
    return content, weights


def check_fields(content: Mapping[str, Any], file: Path) -> None:
    """Refuses a field of another type or out of range.

    Raises:
        ValueError: the message names file and field.
    """
    try:
        checked(content, AdapterFields)
    except ValueError as error:
        raise ValueError(f"path: {file} is not an adapter configuration ({error})") from None


def read_weights(file: Path, digest: str | None) -> dict[str, Tensor]:
    """Tensors of an adapter.

    Args:
        file: the weights.
        digest: SHA-256 that its configuration says, if it says one.

    Raises:
        ValueError: not readable, of another adapter or altered, or with values that no training writes.
    """
    try:
        content = read_regular(file)
        tensors = dict(sorted(safetensors.torch.load(content).items()))
        for name, tensor in tensors.items():
            if not tensor.dtype.is_floating_point:
                raise ValueError(f"{name} has dtype {tensor.dtype}; an adapter's are floating point")
            check_finite(name, tensor, file.name)
    except Exception as error:  # whatever a parser makes of bytes that are not its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"path: {file} is not readable ({reason})") from None
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"path: {file} was altered, or does not belong to its {CONFIG} (SHA-256 differs)")
    return tensors


def _digest(content: Mapping[str, Any], weights: str | None) -> str:
    return hashlib.sha256(json.dumps([content, weights], sort_keys=True).encode()).hexdigest()
