"""What is believed: priors, likelihoods, models, tasks and data."""

from pp_models.data import DataError, Dataset, TaskBatch

__all__ = ["DataError", "Dataset", "TaskBatch"]
