"""What came out: ArviZ, diagnostics, scores, plots, verdicts, comparisons, reports and experiments."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation import diagnostics, plots
    from evaluation.adapters import rank_analysis
    from evaluation.adapters.rank_analysis import rank_summary
    from evaluation.arviz import arviz_store, arviz_summary
    from evaluation.arviz.arviz_conversion import to_arviz
    from evaluation.arviz.arviz_store import write_zarr
    from evaluation.arviz.arviz_summary import summarise
    from evaluation.arviz.guide_loo import approximate_loo
    from evaluation.arviz.pyro_conversion import from_pyro_mcmc, from_pyro_svi
    from evaluation.arviz.resampling import resample
    from evaluation.comparison.swap_matrix import compare
    from evaluation.grading import grade
    from evaluation.outlier_ratio import likelihood_ratio
    from evaluation.posterior_collapse import collapse
    from evaluation.scores import metrics, mixture_uncertainty, task_representation
    from evaluation.trust import verdict

__all__ = [
    "approximate_loo",
    "arviz_store",
    "arviz_summary",
    "collapse",
    "compare",
    "diagnostics",
    "from_pyro_mcmc",
    "from_pyro_svi",
    "grade",
    "likelihood_ratio",
    "metrics",
    "mixture_uncertainty",
    "plots",
    "rank_analysis",
    "rank_summary",
    "resample",
    "summarise",
    "task_representation",
    "to_arviz",
    "verdict",
    "write_zarr",
]

#: public name -> the module that has it, or is it
_HOMES = {
    "approximate_loo": "arviz.guide_loo",
    "to_arviz": "arviz.arviz_conversion",
    "from_pyro_svi": "arviz.pyro_conversion",
    "from_pyro_mcmc": "arviz.pyro_conversion",
    "collapse": "posterior_collapse",
    "likelihood_ratio": "outlier_ratio",
    "compare": "comparison.swap_matrix",
    "verdict": "trust",
    "grade": "grading",
    "diagnostics": "diagnostics",
    "plots": "plots",
    "arviz_store": "arviz.arviz_store",
    "arviz_summary": "arviz.arviz_summary",
    "metrics": "scores.metrics",
    "mixture_uncertainty": "scores.mixture_uncertainty",
    "rank_analysis": "adapters.rank_analysis",
    "rank_summary": "adapters.rank_analysis",
    "resample": "arviz.resampling",
    "summarise": "arviz.arviz_summary",
    "task_representation": "scores.task_representation",
    "write_zarr": "arviz.arviz_store",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: what is not asked for, ArviZ and matplotlib among it, is not loaded."""
    if name not in _HOMES:
        raise AttributeError(f"module 'evaluation' has no attribute {name!r}")
    module = import_module(f"evaluation.{_HOMES[name]}")
    return module if _HOMES[name].rpartition(".")[2] == name else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
