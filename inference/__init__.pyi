"""Objectives, fitting, prediction and reference samplers."""

from . import objectives as objectives
from .adapters.rank_pruning import RankPruning as RankPruning
from .adapters.rank_pruning import prune_ranks as prune_ranks
from .checkpoint import CheckpointError as CheckpointError
from .compare_objectives import compare_objectives as compare_objectives
from .fit import FitResult as FitResult
from .fit import fit as fit
from .plateau import settled as settled
from .posterior_draws import sample_posterior as sample_posterior
from .predict import predict as predict
from .prediction import Prediction as Prediction
from .prior_predictive import prior_predictive as prior_predictive
from .reference.nuts import NutsResult as NutsResult
from .reference.nuts import nuts as nuts
from .reference.swag import swag as swag
from .skipped_steps import TrainingDiverged as TrainingDiverged
