"""How posteriors are amortised."""

from importlib import import_module
from typing import Any

from guides.adapters.adapter_dropout import MCDropoutAdapterGuide
from guides.adapters.adapter_guide import PointAdapterGuide
from guides.adapters.adapter_laplace import LaplaceAdapterGuide
from guides.adapters.adapter_mean_field import AdapterMeanFieldGuide
from guides.adapters.rankwise import RankwiseGuide
from guides.mixtures.conjugate_refinement import ConjugateRefinement
from guides.mixtures.dirichlet_mixture import DirichletMixtureGuide, DirichletPosteriorGuide
from guides.mixtures.expert_pruning import prune_experts
from guides.mixtures.logistic_normal_mixture import LogisticNormalGuide
from guides.mixtures.mixture_gates import DeterministicGateGuide, UniformMixtureGuide
from guides.mixtures.stick_breaking_mixture import StickBreakingGuide
from guides.networks.amortised_mean_field import AmortisedMeanFieldGuide
from guides.networks.bernoulli_dropout import BernoulliExpertGuide
from guides.networks.bnn_online import OnlinePosterior
from guides.networks.bnn_weights import BNNWeightGuide
from guides.networks.gaussian_vi import GaussianVIGuide
from guides.networks.global_inducing import GlobalInducingGuide
from guides.networks.local_reparameterization import local_reparameterization
from guides.networks.mc_dropout import MCDropoutGuide
from guides.networks.swag import SWAGGuide
from guides.processes.bootstrap import BootstrapGuide
from guides.processes.context_points import ContextPointsGuide
from guides.processes.distance_informed_guide import DistanceInformedGuide
from guides.processes.gradient_adaptation import CAVIAGuide, MAMLGuide
from guides.processes.neural_process_guide import NeuralProcessGuide

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
    "OnlinePosterior",
    "PointAdapterGuide",
    "RankwiseGuide",
    "SWAGGuide",
    "StickBreakingGuide",
    "UniformMixtureGuide",
    "local_reparameterization",
    "prune_experts",
]


#: what needs peft, by the module that has it
_NEEDS_PEFT = {"LrvdConfig": "lrvd_peft", "lrvd_load": "lrvd_saving"}


def __getattr__(name: str) -> Any:
    """What needs peft is imported when it is first asked for; so are modules that docs import by name."""
    if name in _NEEDS_PEFT:
        return getattr(import_module(f"guides.adapters.{_NEEDS_PEFT[name]}"), name)
    if name in ("lrvd_layers", "lrvd_peft"):
        return import_module(f"guides.adapters.{name}")
    raise AttributeError(f"module 'guides' has no attribute {name!r}")
