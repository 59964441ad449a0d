"""Objectives, fitting, prediction and reference samplers."""

from inference import objectives
from inference.adapters.rank_pruning import RankPruning, prune_ranks
from inference.checkpoint import CheckpointError
from inference.compare_objectives import compare_objectives
from inference.fit import FitResult, TrainingDiverged, fit
from inference.posterior_draws import sample_posterior
from inference.predict import predict
from inference.prediction import Prediction
from inference.prior_predictive import prior_predictive
from inference.reference.nuts import NutsResult, nuts
from inference.reference.swag import swag

__all__ = [
    "CheckpointError",
    "FitResult",
    "NutsResult",
    "Prediction",
    "RankPruning",
    "TrainingDiverged",
    "compare_objectives",
    "fit",
    "nuts",
    "objectives",
    "predict",
    "prior_predictive",
    "prune_ranks",
    "sample_posterior",
    "swag",
]
