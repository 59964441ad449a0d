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


def remade(objective: TaskObjective, **options: Any) -> TaskObjective:
    """The same objective with other options, which its constructor checks.

    Args:
        objective: one of the library's.
        **options: those that change.

    Raises:
        ValueError: an option that it cannot have, or one of its own that it does not keep under its name.
    """
    kept = {option: getattr(objective, option) for option in options_of(type(objective)) - set(options)
            if hasattr(objective, option)}  # fmt: skip
    lost = options_of(type(objective)) - set(options) - set(kept)
    if lost:
        raise ValueError(f"{min(options)}: {objective.name!r} is made anew with it by objectives.make alone")
    return type(objective)(**kept, **options)


def options_of(cls: type[TaskObjective]) -> set[str]:
    """The keyword arguments of an objective's class."""
    from inference.objectives.task_objective import TaskObjective

    known = set()
    for owner in cls.__mro__:
        if "__init__" in vars(owner) and issubclass(owner, TaskObjective):
            known |= set(inspect.signature(owner.__init__).parameters)
    return known - {"self", "options"}


def make(name: str, **options: Any) -> TaskObjective:
    """The objective of that name.

    Args:
        name: a name of ``REGISTRY``.
        **options: keyword arguments of its class.

    Raises:
        ValueError: unknown name or unknown option.
    """
    cls = REGISTRY.find(name).load()
    known = options_of(cls)
    unknown = set(options) - known
    for option in unknown & set(cls.has_no):
        raise ValueError(f"{option}: {cls.has_no[option].format(options[option])}")
    if unknown:
        raise ValueError(
            f"{sorted(unknown)[0]}: objective {name!r} has no such option; it has {', '.join(sorted(known))}"
        )
    return cls(**options)
