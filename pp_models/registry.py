"""Things known by name: one table a kind, one line an entry, and an error that says what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

Entry = TypeVar("Entry")

#: a table of up to this many names is printed whole where a name is unknown
PRINTED_WHOLE = 8


class Registry(dict[str, Entry], Generic[Entry]):
    """A table from name to entry.

    Args:
        argument: what a name of it is given as, for messages.
        entries: the table.
        listed_by: the command that lists it.

    Example:
        >>> Registry("guide", {"mean-field": 1}).find("mean-feild")
        Traceback (most recent call last):
        ...
        ValueError: guide: got 'mean-feild'; did you mean 'mean-field'?
    """

    def __init__(self, argument: str, entries: Mapping[str, Entry], listed_by: str = "") -> None:
        super().__init__(entries)
        self.argument, self.listed_by = argument, listed_by

    def find(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            ValueError: there is none; the message has the nearest names.
        """
        self.check(name)
        return self[name]

    def check(self, name: str, argument: str = "") -> None:
        """Refuses a name that is not in the table.

        Args:
            name: the name.
            argument: whose value it is, where that is not the table's own.

        Raises:
            ValueError: it is not; the message has the nearest names.
        """
        if name in self:
            return
        close = difflib.get_close_matches(str(name), self, n=3, cutoff=0.7)
        close = close or [known for known in self if known.startswith(str(name))][:3]
        if close:
            hint = f"did you mean {' or '.join(map(repr, close))}?"
        elif len(self) <= PRINTED_WHOLE:
            hint = f"it must be one of {', '.join(self)}"
        else:
            hint = f"it is none of {len(self)} names such as {', '.join(list(self)[:3])}"
        if self.listed_by and len(self) > PRINTED_WHOLE:
            hint += f" ({self.listed_by} lists all)"
        raise ValueError(f"{argument or self.argument}: got {name!r}; {hint}")


def load(place: str) -> Any:
    """What stands at ``"package.module:name"``, imported when it is asked for."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


class Classes(Mapping[str, type]):
    """Classes by name, each with a line of description; a class is loaded when it is asked for.

    Args:
        argument: what a name is given as, for messages.
        entries: ``"package.module:Class"`` and description by name.
        listed_by: the command that lists them.
    """

    def __init__(self, argument: str, entries: Mapping[str, tuple[str, str]], listed_by: str = "") -> None:
        self._entries = Registry(argument, entries, listed_by)

    def __getitem__(self, name: str) -> type:
        if name not in self._entries:
            raise KeyError(name)
        return load(self._entries[name][0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str) -> Any:
        """The class of that name.

        Raises:
            ValueError: there is none; the message has the nearest names.
        """
        self._entries.check(name)
        return self[name]

    def check(self, name: str, argument: str = "") -> None:
        """Refuses a name that is not in the table, see :meth:`Registry.check`."""
        self._entries.check(name, argument)

    def described(self) -> list[tuple[str, str]]:
        """Names and descriptions; nothing is loaded."""
        return [(name, description) for name, (_, description) in self._entries.items()]
