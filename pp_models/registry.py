"""Things known by name: one table a kind, one line an entry, and an error that says what was meant."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
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
        if isinstance(name, str) and name in self:
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
        from pp_models.arguments import shown  # here, for it loads torch, and a list of names should not wait for that

        raise ValueError(f"{argument or self.argument}: got {shown(name)}; {hint}")


def load(place: str) -> Any:
    """What stands at ``"package.module:name"``, imported when it is asked for."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Declared:
    """A class by name, as its own source declares it.

    Args:
        place: ``"package.module:Class"``.
        description: one line.
        reference: where it comes from; empty for what is new here.
    """

    place: str
    description: str
    reference: str = ""

    def load(self) -> Any:
        """The class."""
        return load(self.place)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """An instance of it."""
        return self.load()(*args, **kwargs)


def declared(package: str, argument: str, listed_by: str = "") -> Registry[Declared]:
    """The exported classes of a package that declare a ``name``, read from their sources; nothing is imported.

    A class declares ``name``, ``description`` and perhaps ``reference`` as strings in its body; the package's
    ``__init__.pyi`` exports it.

    Args:
        package: whose ``__init__.pyi`` is read.
        argument: what a name is given as, for messages.
        listed_by: the command that lists the table.
    """
    found: dict[str, Declared] = {}
    for place, statement in exported_classes(package):
        facts = _strings(statement)
        if facts.get("name"):
            found[facts["name"]] = Declared(place, facts.get("description", ""), facts.get("reference", ""))
    return Registry(argument, found, listed_by)


def exported_classes(package: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """``"package.module:Class"`` and source of every class that a package's ``__init__.pyi`` exports."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    room = Path(spec.origin).parent
    for node in ast.parse((room / "__init__.pyi").read_text(encoding="utf-8")).body:
        source = room.joinpath(*(getattr(node, "module", None) or "").split(".")).with_suffix(".py")
        if isinstance(node, ast.ImportFrom) and node.module and source.is_file():
            for statement in ast.parse(source.read_text(encoding="utf-8")).body:
                if isinstance(statement, ast.ClassDef) and statement.name == node.names[0].name:
                    yield f"{package}.{node.module}:{statement.name}", statement


def _strings(statement: ast.ClassDef) -> dict[str, str]:
    """The strings that a class assigns in its body, by name."""
    found: dict[str, str] = {}
    for node in statement.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    return found
