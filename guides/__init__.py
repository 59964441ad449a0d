"""How posteriors are amortised."""

from guides.amortised_mean_field import AmortisedMeanFieldGuide
from guides.bernoulli_dropout import BernoulliExpertGuide
from guides.bnn_weights import BNNWeightGuide
from guides.bootstrap import BootstrapGuide
from guides.context_points import ContextPointsGuide
from guides.distance_informed_guide import DistanceInformedGuide
from guides.gaussian_vi import GaussianVIGuide
from guides.global_inducing import GlobalInducingGuide
from guides.gradient_adaptation import CAVIAGuide, MAMLGuide
from guides.local_reparameterization import local_reparameterization
from guides.mc_dropout import MCDropoutGuide
from guides.neural_process_guide import NeuralProcessGuide
from guides.swag import SWAGGuide

__all__ = [
    "AmortisedMeanFieldGuide",
    "BNNWeightGuide",
    "BernoulliExpertGuide",
    "BootstrapGuide",
    "CAVIAGuide",
    "ContextPointsGuide",
    "DistanceInformedGuide",
    "GaussianVIGuide",
    "GlobalInducingGuide",
    "MAMLGuide",
    "MCDropoutGuide",
    "NeuralProcessGuide",
    "SWAGGuide",
    "local_reparameterization",
]
