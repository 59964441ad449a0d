"""What came out: metrics, ArviZ, plots, experiments, reports and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation import diagnostics, metrics, plots
    from evaluation.arviz_conversion import to_arviz
    from evaluation.grading import grade
    from evaluation.pyro_conversion import from_pyro_svi
    from evaluation.swap_matrix import compare
    from evaluation.trust import verdict

__all__ = ["compare", "diagnostics", "from_pyro_svi", "grade", "metrics", "plots", "to_arviz", "verdict"]

_CALLS = {
    "to_arviz": "arviz_conversion",
    "from_pyro_svi": "pyro_conversion",
    "compare": "swap_matrix",
    "verdict": "trust",
    "grade": "grading",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: the command line lives in this package, and its --help must not wait for torch."""
    from importlib import import_module

    if name in _CALLS:
        return getattr(import_module(f"evaluation.{_CALLS[name]}"), name)
    if name in __all__:
        return import_module(f"evaluation.{name}")
    raise AttributeError(f"module 'evaluation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
