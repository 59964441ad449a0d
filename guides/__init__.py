"""How posteriors are amortised."""

from typing import Any

from guides.adapter_dropout import MCDropoutAdapterGuide
from guides.adapter_guide import PointAdapterGuide
from guides.adapter_laplace import LaplaceAdapterGuide
from guides.adapter_mean_field import AdapterMeanFieldGuide
from guides.amortised_mean_field import AmortisedMeanFieldGuide
from guides.bernoulli_dropout import BernoulliExpertGuide
from guides.bnn_weights import BNNWeightGuide
from guides.bootstrap import BootstrapGuide
from guides.conjugate_refinement import ConjugateRefinement
from guides.context_points import ContextPointsGuide
from guides.dirichlet_mixture import DirichletMixtureGuide, DirichletPosteriorGuide
from guides.distance_informed_guide import DistanceInformedGuide
from guides.expert_pruning import prune_experts
from guides.gaussian_vi import GaussianVIGuide
from guides.global_inducing import GlobalInducingGuide
from guides.gradient_adaptation import CAVIAGuide, MAMLGuide
from guides.local_reparameterization import local_reparameterization
from guides.logistic_normal_mixture import LogisticNormalGuide
from guides.mc_dropout import MCDropoutGuide
from guides.mixture_gates import DeterministicGateGuide, UniformMixtureGuide
from guides.neural_process_guide import NeuralProcessGuide
from guides.rankwise import RankwiseGuide
from guides.stick_breaking_mixture import StickBreakingGuide
from guides.swag import SWAGGuide

__all__ = [
    "AdapterMeanFieldGuide",
    "AmortisedMeanFieldGuide",
    "BNNWeightGuide",
    "BernoulliExpertGuide",
    "BootstrapGuide",
    "CAVIAGuide",
    "ConjugateRefinement",
    "ContextPointsGuide",
    "DeterministicGateGuide",
    "DirichletMixtureGuide",
    "DirichletPosteriorGuide",
    "DistanceInformedGuide",
    "GaussianVIGuide",
    "GlobalInducingGuide",
    "LaplaceAdapterGuide",
    "LogisticNormalGuide",
    "MAMLGuide",
    "MCDropoutAdapterGuide",
    "MCDropoutGuide",
    "NeuralProcessGuide",
    "PointAdapterGuide",
    "RankwiseGuide",
    "SWAGGuide",
    "StickBreakingGuide",
    "UniformMixtureGuide",
    "local_reparameterization",
    "prune_experts",
]


def __getattr__(name: str) -> Any:
    """What needs peft is imported when it is first asked for."""
    if name in ("LrvdConfig", "lrvd_load"):
        from guides import lrvd_peft

        return getattr(lrvd_peft, name)
    raise AttributeError(f"module 'guides' has no attribute {name!r}")
