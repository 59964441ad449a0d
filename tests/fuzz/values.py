"""What is passed to calls: right values by the name of an argument, and values that people pass by mistake."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st


class Box:
    """An object of no use to anybody."""

    def __repr__(self) -> str:
        return "Box()"


#: mistakes: of kind, of range, of size, of shape
WRONG: list[Any] = [
    None, True, False, "no", "", "3", "nan\nnan", float("nan"), float("inf"), -float("inf"), -1, 0, 2.5, -0.5, 1e-320,
    10**9, 10**30, -(10**9), 1e300, 3 + 1j, b"3", [], [1, 2], ["a"], (), {}, {"a": 1}, Box(), Box, len,
    np.float64("nan"), np.array([1, 2]), np.array("x"), torch.tensor(float("nan")), torch.zeros(0),
    torch.zeros(2, 0, 1), torch.ones(2, 3), torch.tensor(True), torch.tensor([1, 2]),
    torch.full((2, 3, 1), float("nan")),
    torch.ones(1, dtype=torch.complex64), torch.device("cpu"), torch.float32, range(3), iter([1]), torch.nn.Identity(),
]  # fmt: skip


def integers(*values: int) -> st.SearchStrategy:
    """These, as Python's, NumPy's or torch's integers."""
    makes = [int, np.int64, np.array, torch.tensor]
    return st.builds(lambda make, value: make(value), st.sampled_from(makes), st.sampled_from(values))


def floats(*values: float) -> st.SearchStrategy:
    """These, as Python's, NumPy's or torch's numbers."""
    makes = [float, np.float64, np.float32, torch.tensor]
    return st.builds(lambda make, value: make(value), st.sampled_from(makes), st.sampled_from(values))


def names(*values: Any) -> st.SearchStrategy:
    """One of these."""
    return st.sampled_from(values)


FLAGS = names(True, False, np.bool_(True))
LIKELIHOODS = names("gaussian", "gaussian-head", "student-t-head")

#: right values of arguments that mean the same wherever they stand
RIGHT: dict[str, st.SearchStrategy] = {
    "seed": integers(0, 1, 2**31),
    "width": integers(4, 8),
    "depth": integers(2, 3),
    "num_particles": integers(1, 2, 3),
    "num_samples": integers(1, 2, 3),
    "batch_size": integers(1, 3),
    "num_heads": integers(1, 2),
    "num_blocks": integers(1, 2),
    "num_layers": integers(1, 2),
    "levels": integers(1, 2),
    "dim_x": integers(1),
    "dim_y": integers(1),
    "likelihood": LIKELIHOODS,
    "noise_scale": floats(0.1, 0.5),
    "min_scale": floats(0.01, 0.1),
    "learning_rate": floats(1e-3, 1e-2),
    "max_grad_norm": floats(0.5, 10.0),
    "pooling": names("mean", "attention"),
    "latent_dim": integers(2, 4),
    "local_dim": integers(4, 8),
    "representation_dim": integers(4, 8),
    "feedforward": integers(4, 8),
    "dtype": names(torch.float32, torch.float64),
    "progress": names(False),
    "lora_alpha": floats(2.0, 16.0),
    "temperature": floats(0.5, 1.0),
    "kl_count": names("rank", "weights"),
    "warmup_steps": integers(0, 2),
    "num_data": integers(10, 100),
    "beta": floats(0.0, 1.0),
    "alpha": floats(0.0, 0.5, 2.0),
    "estimator": names("pathwise"),
    "on": names("full", "context"),
    "threshold": floats(0.5, 1.0),
    "reff": floats(0.5, 1.0),
    "rounding": names("up", "down"),
    "folds": integers(2, 3),
    "bandwidth": floats(0.5, 2.0),
    "chunk_size": integers(1, 2),
    "sweeps": integers(1, 3),
    "initial_scale": floats(0.05, 0.1),
    "min_concentration": floats(0.05, 0.5),
}


def arguments(call: Any) -> dict[str, inspect.Parameter]:
    """The arguments of a call, with those that a constructor hands on to its base class."""
    signature = inspect.signature(call)
    found = dict(signature.parameters)
    if inspect.isclass(call) and any(p.kind is p.VAR_KEYWORD for p in found.values()):
        for base in call.__mro__[1:]:
            own = vars(base).get("__init__")
            if own is None or not base.__module__.startswith(("pp_models", "guides", "inference")):
                continue
            theirs = dict(list(inspect.signature(own).parameters.items())[1:])
            found |= {name: p for name, p in theirs.items() if name not in found}
            if not any(p.kind is p.VAR_KEYWORD for p in theirs.values()):
                break
    return {name: p for name, p in found.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def is_wrong_kind(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether a value cannot be what the annotation says: to take it is nonsense that nobody sees."""
    kind = str(parameter.annotation)
    if isinstance(value, float) and value == parameter.default:  # an infinity that is the default
        return False
    if value is None:
        return kind.removesuffix(" | None") in KINDS and not kind.endswith("| None")
    test = KINDS.get(kind.removesuffix(" | None"))
    return test is not None and not test(value)


def _integral(value: Any) -> bool:
    is_bool = isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) in (torch.bool, np.dtype(bool))
    if is_bool or getattr(value, "shape", ()) != ():
        return False
    dtype = str(getattr(value, "dtype", ""))
    return isinstance(value, int | np.integer) or "int" in dtype


def _real(value: Any) -> bool:
    if _integral(value):
        return abs(int(value)) < 10**300
    is_number = isinstance(value, float | np.floating) or "float" in str(getattr(value, "dtype", ""))
    return is_number and getattr(value, "shape", ()) == () and bool(np.isfinite(float(value)))


KINDS = {
    "int": _integral,
    "float": _real,
    "bool": lambda value: isinstance(value, bool | np.bool_),
    "str": lambda value: isinstance(value, str),
    "Tensor": lambda value: isinstance(value, torch.Tensor),
}
