"""Amortised variational inference you can swap and compare: ``import guidebook as gb``.

The day in one name: data and tasks, models, priors and likelihoods, ``gb.guides``, ``gb.objectives``, ``gb.fit``,
``gb.predict``, ``gb.sample_posterior``, ``gb.nuts``, ``gb.to_arviz``, ``gb.verdict``, ``gb.compare``,
``gb.diagnostics``, ``gb.plots``. Names are loaded when they are first asked for; ``__init__.pyi`` says which room has
each.

Example:
    >>> import guidebook as gb
    >>> model = gb.BayesianNetwork([1, 16, 2], likelihood="gaussian-head")
    >>> guide = gb.guides.BernoulliExpertGuide(model, width=16)
    >>> result = gb.fit(model, guide, gb.tasks.gp("rbf"), "conditional-prior", steps=2, progress=False)
"""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOMS = ("pp_models", "guides", "inference", "evaluation")


def _check_rooms() -> None:
    """Refuses to go on where another installed package has taken the name of a room.

    Raises:
        ImportError: one has; the message says which and where.
    """
    home = Path(__file__).resolve().parents[1]
    for room in ROOMS:
        spec = find_spec(room)
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if found != home / room / "__init__.py":
            where = "is missing" if found is None else f"is {found.parent}, another package of that name"
            raise ImportError(
                f"guidebook: {room} {where}; guidebook needs its own at {home / room}, so install it into an "
                "environment of its own, or remove the other one"
            )


def _homes() -> dict[str, str]:
    """Public name -> what it is imported from, as ``__init__.pyi`` has it."""
    stub = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    nodes = ast.parse(stub).body
    rooms = {a.name: a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return rooms | {alias.name: str(node.module) for node in imports for alias in node.names}


_check_rooms()
_HOMES = _homes()
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'guidebook' has no attribute {name!r}")
    found: Any
    if _HOMES[name] == name:
        found = import_module(name)
    elif _HOMES[name] == __name__:
        found = import_module(f"{__name__}.{name}")
    else:
        room = import_module(_HOMES[name])
        found = getattr(room, name) if hasattr(room, name) else import_module(f"{_HOMES[name]}.{name}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
