"""The architecture of a model and guide as plain data: what they were built with, from a closed list of classes.

Nothing of it is code: reading looks a class up in that list and calls it with checked numbers and words.
"""

from __future__ import annotations

import math
import platform
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from inference.data_dtype import parameter_dtype
from pp_models.contract import Guide, Model
from pp_models.files import STRICT, FileError, read_checked_json, sealed_json
from pp_models.recorded_arguments import UNKNOWN, Recorded
from pp_models.registry import Declared, Registry, exported_classes

ARCHITECTURE = "architecture.json"
#: classes that are built as arguments of others, and are in no room's table
PARTS = {
    "ContextAttention": "pp_models.attention:ContextAttention",
    "FourierFeatures": "pp_models.context_regression:FourierFeatures",
    "RegressionPath": "pp_models.context_path:RegressionPath",
}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: modules in modules in modules
DEEPEST = 12
#: whose versions a saved fit names
PACKAGES = ("guidebook", "torch", "pyro-ppl")


@dataclass(frozen=True)
class Built:
    """A module: its class, and what its constructor is called with.

    Args:
        kind: name of the class.
        arguments: by name; one that is a module is ``{"class": ..., "arguments": ...}``.
    """

    __pydantic_config__ = STRICT

    kind: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A pair, as ``architecture.json`` has it.

    Args:
        model: how the model was built.
        guide: how the guide was; the model among its arguments is this one.
        dtype: of the parameters.
        objective: name of the objective that trained them; None where that is not known.
        versions: of the packages that wrote it.
    """

    __pydantic_config__ = STRICT

    model: Built
    guide: Built
    dtype: str
    objective: str | None
    versions: dict[str, str]


@cache
def _classes() -> Registry[Declared]:
    """The classes that a file may name."""
    found = {}
    for package in ("pp_models", "guides"):
        for place, source in exported_classes(package):
            found[source.name] = Declared(place, "")
    return Registry("class", found | {name: Declared(place, "") for name, place in PARTS.items()})


class _AtMost(TorchFunctionMode):
    """Refuses to make tensors of more numbers than the weights of a file need: a description may say any size."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = numbers

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in _FILLED:  # an empty one first, which takes no memory until it is written to
            sizes = args[:1] if func is torch.full else args
            size = given["size"] if "size" in given else sizes[0] if isinstance(sizes[0], list | tuple) else sizes
            self._take(math.prod(size))
        found = func(*args, **given)
        if func is torch.empty or func is torch.eye:
            self._take(found.numel())
        return found

    def _take(self, numbers: int) -> None:
        self.left -= numbers
        if self.left < 0:
            raise ValueError("it describes a larger pair than the weights are of")


#: what makes a tensor and fills it
_FILLED = (torch.randn, torch.rand, torch.zeros, torch.ones, torch.full)
#: numbers that a pair may make beside its weights, such as grids, and how often it may make those of its weights
SPARE_NUMBERS, TIMES = 2**22, 4


def describe(model: nn.Module, guide: nn.Module, objective: str | None = None) -> Architecture:
    """The architecture of a pair.

    Args:
        model: built by the library's own classes.
        guide: the same.
        objective: name of what trained them.

    Raises:
        ValueError: a class is not the library's, an argument is no plain data, or a part was exchanged after building.
    """
    parts = {}
    for name, module in (("model", model), ("guide", guide)):
        if not isinstance(module, Recorded):
            raise ValueError(
                f"{name}: got {type(module).__name__}; it must be one of guidebook's own classes: save others by their "
                "state_dict(), and build them anew by your own code"
            )
        _check(module, name)
        parts[name] = module.built_with
    dtype = next((word for word, found in DTYPES.items() if found == parameter_dtype(model, guide)), "float32")
    versions = {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}
    found = {name: Built(built["class"], built["arguments"]) for name, built in parts.items()}
    return Architecture(found["model"], found["guide"], dtype, objective, versions)


def rebuild(architecture: Architecture, shapes: dict[str, list[int]] | None = None) -> tuple[Any, Any]:
    """A model and guide of that architecture, with initial parameters; the random state is left as it was.

    Args:
        architecture: what to build.
        shapes: of the tensors that will be loaded, by ``model.`` or ``guide.`` and their names; a description may come
            from anybody, and what is much larger than they are is not built.

    Raises:
        ValueError: it names a class or argument that there is not, or one out of range, or shapes differ.
    """
    if architecture.dtype not in DTYPES:
        raise ValueError(f"dtype: got {architecture.dtype!r}; it must be one of {', '.join(DTYPES)}")
    bound: Any = nullcontext()
    if shapes is not None:
        bound = _AtMost(SPARE_NUMBERS + TIMES * sum(math.prod(shape) for shape in shapes.values()))
    with torch.random.fork_rng(devices=[]), bound:
        model, guide = _pair(architecture)
    if shapes is not None:
        _check_shapes((model, guide), shapes)
    dtype = DTYPES[architecture.dtype]
    return model.to(dtype).eval(), guide.to(dtype).eval()


def architecture_bytes(model: nn.Module, guide: nn.Module, objective: str | None = None) -> bytes:
    """The file that :func:`read_architecture` reads.

    Raises:
        ValueError: see :func:`describe`; or the pair was changed after it was built, by pruning, say.
    """
    found = describe(model, guide, objective)
    held = {f"{key}.{name}": list(t.shape) for key, m in (("model", model), ("guide", guide)) for name, t in _state(m)}
    try:
        with torch.random.fork_rng(devices=[]):
            _check_shapes(_pair(found), held)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model, guide: they cannot be built anew by what they were built with ({reason})") from None
    return sealed_json(asdict(found))


def read_architecture(path: Path) -> Architecture:
    """What :func:`architecture_bytes` wrote.

    Raises:
        OSError: it cannot be opened or read.
        FileError: it is something else, or altered.
    """
    return read_checked_json(path, Architecture, "an architecture")


def checked_rebuild(path: Path, shapes: dict[str, list[int]]) -> tuple[Any, Any, Architecture]:
    """The pair of an ``architecture.json`` whose weights have those shapes.

    Raises:
        FileError: the file is damaged, names what there is not, or is of other weights.
    """
    try:
        found = read_architecture(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        return *rebuild(found, shapes), found
    except Exception as error:  # whatever a constructor makes of what a file says
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(f"{path}: is no architecture that this version can build ({reason[:200]})") from None


def _pair(architecture: Architecture) -> tuple[Any, Any]:
    """Model and guide, sharing the model."""
    described = {"class": architecture.model.kind, "arguments": architecture.model.arguments}
    if architecture.guide.arguments.get("model") != described:
        raise ValueError("the guide was built with another model")
    model = _build(described, [])
    guide = _build({"class": architecture.guide.kind, "arguments": architecture.guide.arguments}, [(described, model)])
    if not isinstance(model, Model) or not isinstance(guide, Guide):
        raise ValueError(f"got {type(model).__name__} and {type(guide).__name__}; it must be a model and a guide")
    return model, guide


def _build(built: dict[str, Any], known: list[tuple[dict[str, Any], Any]], depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise ValueError(f"modules are nested more than {DEEPEST} deep")
    if set(built) != {"class", "arguments"} or not isinstance(built["arguments"], dict):
        raise ValueError("a module needs a class and arguments, and has no more")
    cls = _classes().find(built["class"]).load()
    if not (isinstance(cls, type) and issubclass(cls, Recorded)):
        raise ValueError(f"class: got {built['class']!r}; it is no module that a file can build")
    arguments = {name: _value(value, known, depth) for name, value in built["arguments"].items()}
    return cls.rebuilt(**arguments)


def _value(value: Any, known: list[tuple[dict[str, Any], Any]], depth: int) -> Any:
    if isinstance(value, list):
        return [_value(each, known, depth + 1) for each in value]
    if isinstance(value, dict):
        for described, module in known:
            if value == described:
                return module
        return _build(value, known, depth + 1)
    return value


def _check(module: Any, where: str) -> None:
    """Whether what a module was built with can be said, and is what it still has."""
    built = module.built_with
    table = _classes()
    if built["class"] not in table or table[built["class"]].load() is not type(module):
        raise ValueError(
            f"{where}: got {type(module).__name__}, which is not one of guidebook's own classes; save "
            "its state_dict(), "
            "and build it anew by your own code"
        )
    _check_value(built["arguments"], f"{where} {type(module).__name__}")
    for name, value in built["arguments"].items():
        now = module.__dict__.get("_modules", {}).get(name)
        if isinstance(now, Recorded):
            if isinstance(value, dict) and now.built_with != value:
                raise ValueError(f"{where}: its {name} was exchanged after it was built; build it with the new one")
            _check(now, f"{where}.{name}")


def _check_value(value: Any, where: str) -> None:
    if isinstance(value, list):
        for each in value:
            _check_value(each, where)
    elif isinstance(value, dict) and UNKNOWN in value:
        raise ValueError(
            f"{where}, which is a {value[UNKNOWN]}, cannot be said in a file; save the state_dict(), and build it anew "
            "by your own code"
        )
    elif isinstance(value, dict) and "class" in value:
        _check_value(value["arguments"], f"{where}, {value['class']}")
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_value(each, f"{where}: its {name}")


def _check_shapes(pair: tuple[nn.Module, nn.Module], shapes: dict[str, list[int]]) -> None:
    built = {f"{key}.{n}": list(t.shape) for key, m in zip(("model", "guide"), pair, strict=True) for n, t in _state(m)}
    for name in sorted(set(built) ^ set(shapes)):
        raise ValueError(f"{name} is in {'the architecture' if name in built else 'the weights'} alone")
    for name, shape in built.items():
        if shape != shapes[name]:
            raise ValueError(f"{name} has shape {shapes[name]} in the weights, and {shape} in the architecture")


def _state(module: nn.Module) -> list[tuple[str, Any]]:
    return list(module.state_dict().items())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
