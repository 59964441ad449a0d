"""How posteriors are amortised."""

from guides.amortised_mean_field import AmortisedMeanFieldGuide
from guides.bernoulli_dropout import BernoulliExpertGuide
from guides.bnn_weights import BNNWeightGuide
from guides.local_reparameterization import local_reparameterization
from guides.mc_dropout import MCDropoutGuide
from guides.neural_process_guide import NeuralProcessGuide

__all__ = [
    "AmortisedMeanFieldGuide",
    "BNNWeightGuide",
    "BernoulliExpertGuide",
    "MCDropoutGuide",
    "NeuralProcessGuide",
    "local_reparameterization",
]
