"""What came out: metrics, ArviZ, plots, experiments, reports and the command line."""

from evaluation import metrics, plots
from evaluation.arviz_conversion import to_arviz

__all__ = ["metrics", "plots", "to_arviz"]
