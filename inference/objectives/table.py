"""The table of objectives by name, and how one is made.

An objective is in it where its class declares a ``name`` and ``inference/objectives/__init__.pyi`` exports it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from pp_models.registry import Declared, Registry, declared

if TYPE_CHECKING:
    from inference.objectives.task_objective import TaskObjective

REGISTRY: Registry[Declared] = declared("inference.objectives", "objective", "guidebook list objectives")


def make(name: str, **options: Any) -> TaskObjective:
    """The objective of that name.

    Args:
        name: a name of ``REGISTRY``.
        **options: keyword arguments of its class.

    Raises:
        ValueError: unknown name or unknown option.
    """
    from inference.objectives.task_objective import TaskObjective

    cls = REGISTRY.find(name).load()
    known = set()
    for owner in cls.__mro__:
        if "__init__" in vars(owner) and issubclass(owner, TaskObjective):
            known |= set(inspect.signature(owner.__init__).parameters)
    unknown = set(options) - (known - {"self", "options"})
    for option in unknown & set(cls.has_no):
        raise ValueError(f"{option}: {cls.has_no[option].format(options[option])}")
    if unknown:
        raise ValueError(
            f"{sorted(unknown)[0]}: objective {name!r} has no such option; it has "
            f"{', '.join(sorted(known - {'self', 'options'}))}"
        )
    return cls(**options)
