"""What is believed: priors, likelihoods, models, tasks and data."""

from pp_models import tasks
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.gp_oracle import oracle_joint_log_likelihood, oracle_log_likelihood, oracle_predict

__all__ = [
    "DataError",
    "Dataset",
    "TaskBatch",
    "oracle_joint_log_likelihood",
    "oracle_log_likelihood",
    "oracle_predict",
    "tasks",
]
