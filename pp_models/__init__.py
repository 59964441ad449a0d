"""What is believed: priors, likelihoods, models, tasks and data."""

from pp_models import tasks
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianHeadLikelihood,
    GaussianLikelihood,
    StudentTHeadLikelihood,
)
from pp_models.log_uniform import log_uniform_kl
from pp_models.mixtures.conjugate_sweeps import dirichlet_sweeps, stick_breaking_sweeps
from pp_models.mixtures.exact_mixture import exact_log_evidence
from pp_models.mixtures.mixture_density import MixtureDensityNetwork, effective_experts, unused_experts
from pp_models.mixtures.simplex_distributions import ExpertMixture, LogSpaceDirichlet, StickBreaking
from pp_models.networks.bayesian_attention import BayesianAttentionNetwork
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.networks.learned_prior import LearnedGaussianPrior
from pp_models.networks.log_uniform_prior import LogUniformPrior
from pp_models.networks.priors import FixedGaussianPrior, GivenGaussianPrior
from pp_models.processes.conv_neural_process import ConvNeuralProcess
from pp_models.processes.distance_informed_process import DistanceInformedProcess
from pp_models.processes.neural_process import NeuralProcess
from pp_models.processes.transformer_neural_process import TransformerNeuralProcess
from pp_models.tasks.gp_oracle import oracle_joint_log_likelihood, oracle_log_likelihood, oracle_predict

__all__ = [
    "BayesianAttentionNetwork",
    "BayesianNetwork",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "ConvNeuralProcess",
    "DataError",
    "Dataset",
    "DistanceInformedProcess",
    "ExpertMixture",
    "FixedGaussianPrior",
    "GaussianHeadLikelihood",
    "GaussianLikelihood",
    "GivenGaussianPrior",
    "LearnedGaussianPrior",
    "LogSpaceDirichlet",
    "LogUniformPrior",
    "LowRankAdapted",
    "MixtureDensityNetwork",
    "NeuralProcess",
    "StickBreaking",
    "StudentTHeadLikelihood",
    "TaskBatch",
    "TransformerNeuralProcess",
    "dirichlet_sweeps",
    "effective_experts",
    "exact_log_evidence",
    "log_uniform_kl",
    "oracle_joint_log_likelihood",
    "oracle_log_likelihood",
    "oracle_predict",
    "stick_breaking_sweeps",
    "tasks",
    "unused_experts",
]
