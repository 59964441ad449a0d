"""The checks of arguments, one for the whole public surface: what breaks a rule is refused in one line, at the door.

A call says beside its signature what its arguments must be; the kinds (an integer, a finite number, a flag, a name, a
tensor) are read off the annotations. NumPy's integers and arrays without dimensions serve where Python's do.

Example:
    >>> @checked(steps=integer(1), rate=POSITIVE)
    ... def call(steps: int, rate: float = 1e-3, loud: bool = False):
    ...     return steps
    >>> call(2.5)
    Traceback (most recent call last):
    ...
    ValueError: steps: got 2.5; it must be an integer, at least 1
"""

from __future__ import annotations

import inspect
import itertools
import math
import numbers
import operator
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Call = TypeVar("Call", bound=Callable[..., Any])

#: what is refused as a slip before memory is asked for it
MOST_FEATURES, MOST_WIDTH, MOST_LAYERS = 2**17, 2**14, 2**10
MOST_DRAWS, MOST_TASKS, MOST_POINTS = 2**24, 2**20, 2**24
#: beyond it float32 overflows
MOST_NUMBER = 1e30
#: of 64 bits
MOST_INTEGER = 2**63 - 1
#: weights of one network
MOST_WEIGHTS = 2**31


class _Refused(Exception):
    """A value breaks a rule; the message ends ``it must ...``."""

    error: type[ValueError] = ValueError


@dataclass(frozen=True)
class Rule:
    """What an argument must be.

    Args:
        read: from what was given to what is used; raises ``_Refused`` with what it must do ("be at least 1").
    """

    read: Callable[[Any], Any]

    def check(self, name: str, value: Any) -> Any:
        """The value as it is used.

        Args:
            name: the argument's.
            value: what was given.

        Raises:
            ValueError: it breaks the rule; one line with name, value and rule.
        """
        try:
            return self.read(value)
        except _Refused as refused:
            raise refused.error(f"{name}: got {shown(value)}; it must {refused}") from None


def shown(value: Any) -> str:
    """A value in a few words of one line."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return f"a {type(value).__name__} of shape {list(value.shape)} and dtype {value.dtype}"
    if isinstance(value, torch.nn.Module) or callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    short = reprlib.Repr()
    short.maxother = short.maxlong = 60
    return " ".join(short.repr(value).split())


def integer(low: int | None = None, high: int | None = None) -> Rule:
    """An integer between two ends, both allowed; None leaves one open. A bool is none, nor is 2.0."""
    least = "" if low is None else f", at least {low}"

    def read(value: Any) -> int:
        if _is_bool(value) or getattr(value, "shape", ()) != ():
            raise _Refused(f"be an integer{least}")
        try:
            found = operator.index(value)
        except (TypeError, RuntimeError):
            raise _Refused(f"be an integer{least}") from None
        if low is not None and found < low:
            raise _Refused(f"be at least {low}")
        if high is not None and found > high:
            raise _Refused(f"be at most {high}")
        if abs(found) > MOST_INTEGER:
            raise _Refused(f"be at most {MOST_INTEGER:.1e} in size")
        return found

    return Rule(read)


def number(
    low: float = -math.inf, high: float = math.inf, ends: str = "[]", endless: bool = False, why: str = ""
) -> Rule:
    """A finite number of an interval, whose ``ends`` are closed (``[``, ``]``) or open (``(``, ``)``).

    ``endless`` takes infinity as well; ``why`` ends the line that refuses the rest.
    """
    if math.isinf(high):
        words = {
            (-math.inf, "["): "be finite",
            (0, "("): "be positive and finite",
            (0, "["): "be finite and not negative",
        }
        must = words.get((low, ends[0]), f"be finite and {'above' if ends[0] == '(' else 'at least'} {low:g}")
    else:
        must = f"lie in {ends[0]}{low:g}, {high:g}{ends[1]}"
    must += why

    def read(value: Any) -> float:
        found = as_number(value)
        if found is None:
            raise _Refused(f"be a number that {'is' if must.startswith('be') else 'lies'}{must[must.index(' ') :]}")
        inside = low <= found <= high and math.isfinite(found)
        if inside and abs(found) > MOST_NUMBER:
            raise _Refused(f"be at most {MOST_NUMBER:g} in size")
        if inside and low == 0 and ends[0] == "(" and 0 < found < 1 / MOST_NUMBER:
            raise _Refused(f"be at least {1 / MOST_NUMBER:g}, which single precision can tell from 0")
        inside = inside or (endless and found == math.inf)
        if not inside or (ends[0] == "(" and found == low) or (ends[1] == ")" and found == high):
            raise _Refused(must)
        return found

    return Rule(read)


def as_number(value: Any) -> float | None:
    """A real number of any make as Python's, infinite and NaN among them; None for what is none."""
    if _is_bool(value) or getattr(value, "shape", ()) != ():
        return None
    if isinstance(value, Tensor):
        return None if value.is_complex() else value.item()
    if isinstance(value, np.ndarray):
        value = value.item()
    if type(value) not in (int, float) or abs(value) >= 2**63:
        if not isinstance(value, numbers.Real):
            return None
        try:
            value = float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return value


def one_of(*names: Any) -> Rule:
    """One of a few names."""

    def read(value: Any) -> Any:
        if not isinstance(value, str | int | float | None) or not any(value is n or value == n for n in names):
            raise _Refused(f"be one of {', '.join(map(str, names))}" if len(names) > 2 else f"be {_either(names)}")
        return next(n for n in names if value is n or value == n)

    return Rule(read)


def each(rule: Rule, least: int = 0, most: int | None = None, must: str = "") -> Rule:
    """A sequence, whose members keep a rule; a string is none, nor is what has no end.

    Args:
        rule: of the members.
        least: how many there are at least.
        most: and at most; None for any number.
        must: the rule in words.
    """

    def read(value: Any) -> list:
        if not isinstance(value, Sequence | np.ndarray | Tensor | range | set | frozenset) or isinstance(
            value, str | bytes
        ):
            raise _Refused(must or "be a sequence")
        if getattr(value, "ndim", 1) != 1 or len(value) < least or (most is not None and len(value) > most):
            raise _Refused(must or f"have at least {least} members")
        try:
            return [rule.read(member) for member in value]
        except _Refused as refused:
            raise _Refused(f"{must or 'be a sequence'}, and each must {refused}") from None

    return Rule(read)


def interval(rule: Rule, strict: bool = True, open_end: bool = False) -> Rule:
    """Two ends ``(low, high)`` that keep a rule, in order.

    Args:
        rule: of an end.
        strict: whether they must differ.
        open_end: whether the higher may be None.
    """
    order = "low < high" if strict else "low <= high"

    def read(value: Any) -> tuple:
        if (
            not isinstance(value, Sequence | np.ndarray | Tensor)
            or isinstance(value, str)
            or getattr(value, "ndim", 1) != 1
            or len(value) != 2
        ):
            raise _Refused(f"be (low, high) with {order}")
        try:
            low = rule.read(value[0])
            high = None if open_end and value[1] is None else rule.read(value[1])
        except _Refused as refused:
            raise _Refused(f"be (low, high) with {order}, and each must {refused}") from None
        if high is not None and (low > high or (strict and low == high)):
            raise _Refused(f"be (low, high) with {order}")
        return low, high

    return Rule(read)


def mapping(rule: Rule | None = None, must: str = "be a mapping with names as its keys") -> Rule:
    """A mapping from strings, whose values keep a rule.

    Args:
        rule: of the values; None for any.
        must: the rule in words.
    """

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _Refused(must)
        try:
            return {key: found if rule is None else rule.read(found) for key, found in value.items()}
        except _Refused as refused:
            raise _Refused(f"{must}, and each value must {refused}") from None

    return Rule(read)


def nesting(most: int = 1000) -> Rule:
    """A number of plates, or infinity where that is to be found out."""

    def read(value: Any) -> float:
        return math.inf if as_number(value) == math.inf else integer(0, most).read(value)

    return Rule(read)


def optional(rule: Rule) -> Rule:
    """What keeps a rule, or None."""

    def read(value: Any) -> Any:
        try:
            return None if value is None else rule.read(value)
        except _Refused as refused:
            raise _Refused(f"{refused}, or None") from None

    return Rule(read)


def named(*names: Any, other: Rule) -> Rule:
    """One of a few names, or what keeps another rule."""

    def read(value: Any) -> Any:
        if isinstance(value, str | bool) and value in names:
            return value
        try:
            return other.read(value)
        except _Refused as refused:
            line = str(refused)
            if line.startswith("be a"):
                raise _Refused(f"be {_either(names, line.removeprefix('be '))}") from None
            raise _Refused(f"be {_either(names)}, or {line}") from None

    return Rule(read)


def either(*kinds: type, other: Rule) -> Rule:
    """An object of one of some types, or what keeps another rule."""
    return Rule(lambda value: value if isinstance(value, kinds) else other.read(value))


def instance(*kinds: type, instead: str = "") -> Rule:
    """An object of one of some types; ``instead`` ends the line that refuses others: what serves them."""

    def read(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise _Refused(f"be a {' or a '.join(kind.__name__ for kind in kinds)}{instead}")
        return value

    return Rule(read)


def check_weights(name: str, widths: Sequence[int]) -> None:
    """Refuses a network too large to be meant.

    Args:
        name: the argument that sets its widths.
        widths: of its layers, from input to output.

    Raises:
        ValueError: it has more than ``MOST_WEIGHTS`` weights.
    """
    total = sum(k_in * k_out for k_in, k_out in itertools.pairwise(widths))
    if total > MOST_WEIGHTS:
        raise ValueError(
            f"{name}: got a network of {total:.2g} weights; it must have at most {MOST_WEIGHTS:.2g}: take fewer or less"
        )


def tensor(dims: int | None = None, least: int = 0, finite: bool = True, entries: bool = False) -> Rule:
    """A tensor of floating-point numbers.

    Args:
        dims: how many dimensions it has.
        least: how many at least, where that varies.
        finite: whether NaN and infinities are refused.
        entries: whether one without any entry is refused.
    """
    size = f" of {dims} dimensions" if dims is not None else f" of at least {least} dimensions" if least else ""

    def read(value: Any) -> Tensor:
        right = isinstance(value, Tensor) and value.dtype.is_floating_point
        if not right or (dims is not None and value.dim() != dims) or value.dim() < least:
            raise _Refused(f"be a floating-point tensor{size}")
        if entries and not value.numel():
            raise _Refused("hold at least one entry")
        if finite and not bool(torch.isfinite(value).all()):
            raise _Refused("hold no NaN or infinity")
        return value

    return Rule(read)


def _either(names: Iterable[Any], *others: str) -> str:
    *first, last = [*map(repr, names), *others]
    return f"{', '.join(first)} or {last}" if first else last


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) in (torch.bool, np.dtype(bool))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _Refused("be True or False")
    return bool(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused("be a string")
    return value


def _dtype(value: Any) -> torch.dtype:
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise _Refused("be a floating-point dtype, such as torch.float64")
    return value


def _callable(value: Any) -> Any:
    if not callable(value) or isinstance(value, type):
        raise _Refused("be a module or a function")
    return value


def _mask(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise _Refused("be a tensor of dtype torch.bool")
    return value


def _path(value: Any) -> Any:
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise _Refused("be the path of a folder or file")
    return value


def _scale(value: Any) -> float:
    found = POSITIVE.read(value)
    if not MOST_NUMBER**-0.5 <= found <= MOST_NUMBER**0.5:
        raise _Refused(f"lie in [{MOST_NUMBER**-0.5:g}, {MOST_NUMBER**0.5:g}], whose squares single precision can hold")
    return found


def _values(value: Any) -> Any:
    sized = hasattr(value, "__len__") and hasattr(value, "__iter__") and getattr(value, "ndim", 1) == 1
    if not sized or isinstance(value, str | bytes | Mapping):
        raise _Refused("be a sequence")
    return value


def data_set(*names: str, instead: str = "") -> Rule:
    """Data of one of our kinds; what breaks the rule is a ``DataError``.

    Args:
        names: ``"Dataset"``, ``"TaskBatch"`` or both.
        instead: what serves a Pyro model of other arguments, where the call is one that such a model may be given to.
    """
    serves = f". For a Pyro model of other arguments there is {instead}" if instead else ""

    def read(value: Any) -> Any:
        from pp_models.data import DataError, Dataset, TaskBatch  # here, for data has arguments of its own

        kinds = {"Dataset": Dataset, "TaskBatch": TaskBatch}
        if not isinstance(value, tuple(kinds[name] for name in names)):
            refused = _Refused(f"be a {' or a '.join(names)}, such as Dataset(x, y){serves}")
            refused.error = DataError
            raise refused
        return value

    return Rule(read)


FLAG, TEXT, NUMBER = Rule(_flag), Rule(_text), number()
TENSOR, MASK, CALLABLE, PATH = instance(Tensor), Rule(_mask), Rule(_callable), Rule(_path)
#: a sequence of any make, a pandas one too
VALUES = Rule(_values)
POSITIVE, NOT_NEGATIVE = number(0, ends="()"), number(0)
#: a standard deviation, whose square single precision can hold
SCALE = Rule(_scale)
SHARE, OPEN_SHARE = number(0, 1), number(0, 1, "()")
SEED = integer(0, 2**63 - 1)
FEATURES, WIDTH, LAYERS = integer(1, MOST_FEATURES), integer(1, MOST_WIDTH), integer(1, MOST_LAYERS)
DRAWS, TASKS, POINTS = integer(1, MOST_DRAWS), integer(1, MOST_TASKS), integer(1, MOST_POINTS)

#: what an annotation says already
BY_ANNOTATION = {
    "int": integer(),
    "float": NUMBER,
    "bool": FLAG,
    "str": TEXT,
    "Tensor": TENSOR,
    "torch.dtype": Rule(_dtype),
    "torch.Generator": instance(torch.Generator),
    "Dataset": data_set("Dataset"),
    "TaskBatch": data_set("TaskBatch"),
    "Dataset | TaskBatch": data_set("Dataset", "TaskBatch"),
}


def checked(**rules: Rule) -> Callable[[Call], Call]:
    """A call that checks its arguments before it begins.

    Args:
        rules: by argument, beyond what the annotation says. ``| None`` in the annotation allows None as well.

    Raises:
        TypeError: where it is written: a rule for an argument that the call does not have.
    """

    def decorate(call: Call) -> Call:
        signature = inspect.signature(call)
        if unknown := set(rules) - set(signature.parameters):
            raise TypeError(f"{call.__qualname__}: it has no argument {sorted(unknown)[0]!r}")
        table = {
            name: rule for name, p in signature.parameters.items() if (rule := _rule(rules.get(name), p)) is not None
        }

        @wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError:  # an argument is missing or unknown: in Python's own words
                return call(*args, **kwargs)
            for name, value in given.arguments.items():
                if name in table:
                    given.arguments[name] = table[name].check(name, value)
            return call(*given.args, **given.kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def _rule(rule: Rule | None, parameter: inspect.Parameter) -> Rule | None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return None
    annotation = str(parameter.annotation)
    if rule is None:
        rule = BY_ANNOTATION.get(annotation.removesuffix(" | None"))
    return optional(rule) if rule is not None and annotation.endswith("| None") else rule
