"""Diagnostics of draws and of importance weights, batched over tasks and sites, on the device where the draws are."""

from evaluation.diagnostics.pareto_smoothing import khat_threshold, psis, psis_weights

__all__ = ["khat_threshold", "psis", "psis_weights"]
