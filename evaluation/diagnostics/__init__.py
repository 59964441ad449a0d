"""Diagnostics of draws and of importance weights, batched over tasks and sites, on the device where the draws are.

Draws and weights come in as ``[chain, draw, *batch]`` and results go out as ``[*batch]``. In float64 ``psis``, ``ess``,
``rhat``, ``mcse`` and ``loo`` are ArviZ's numbers.
"""

from evaluation.diagnostics.convergence import ess, mcse, rhat
from evaluation.diagnostics.distances import c2st, energy_distance, mmd, wasserstein
from evaluation.diagnostics.leave_one_out import LOO, loo
from inference.pareto_smoothing import khat_threshold, psis, psis_weights

__all__ = [
    "LOO",
    "c2st",
    "energy_distance",
    "ess",
    "khat_threshold",
    "loo",
    "mcse",
    "mmd",
    "psis",
    "psis_weights",
    "rhat",
    "wasserstein",
]
