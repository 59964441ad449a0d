"""What came out: metrics, ArviZ, plots, experiments, reports and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation import metrics, plots
    from evaluation.arviz_conversion import to_arviz

__all__ = ["metrics", "plots", "to_arviz"]


def __getattr__(name: str) -> Any:
    """Imports on first use: the command line lives in this package, and its --help must not wait for torch."""
    from importlib import import_module

    if name == "to_arviz":
        return import_module("evaluation.arviz_conversion").to_arviz
    if name in __all__:
        return import_module(f"evaluation.{name}")
    raise AttributeError(f"module 'evaluation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
