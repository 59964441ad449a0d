"""Modules that remember, as plain data, what they were built with, so that a file can say it without any code."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
from torch import nn

#: in place of a value that no file can say
UNKNOWN = "unknown"


class Recorded:
    """Base of a module whose constructor's arguments are kept, defaults included, in ``built_with``.

    Numbers, words, lists of them and other such modules are kept as they are written in a file; of anything else only
    what it was.
    """

    _built: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        new = super().__new__(cls)
        new.__dict__["_built"] = {"class": cls.__name__, "arguments": _arguments(cls, args, kwargs)}
        return new

    @property
    def built_with(self) -> dict[str, Any]:
        """``class`` and ``arguments`` by name; a value that is no plain data is ``{"unknown": its type}``."""
        return self.__dict__["_built"]

    @classmethod
    def rebuilt(cls, **arguments: Any) -> Any:
        """A module by the ``arguments`` of :attr:`built_with`, its state to be loaded; its constructor's by default."""
        return cls(**arguments)


def _arguments(cls: type, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    try:
        given = signature.bind_partial(None, *args, **kwargs)
    except TypeError:  # the constructor will say so in its own words
        return {}
    given.apply_defaults()
    found: dict[str, Any] = {}
    for name, parameter in list(signature.parameters.items())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= {key: _plain(value) for key, value in given.arguments[name].items()}
        elif parameter.kind is parameter.VAR_POSITIONAL:
            if given.arguments[name]:
                found[name] = _plain(given.arguments[name])
        elif name in given.arguments:
            found[name] = _plain(given.arguments[name])
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Recorded) and isinstance(value, nn.Module):
        return value.built_with
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return {UNKNOWN: type(value).__name__}
