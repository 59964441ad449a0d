"""What came out: metrics, diagnostics, ArviZ, plots, experiments and the command line."""

from evaluation.arviz_conversion import to_arviz

__all__ = ["to_arviz"]
