"""Models and guides that can be swapped freely, under the names that the comparison uses."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from evaluation.methods import (
    TaskShape,
    convolutional,
    distance_informed,
    mixture,
    network,
    neural_process,
    transformer,
)
from guides import (
    AmortisedMeanFieldGuide,
    BernoulliExpertGuide,
    BNNWeightGuide,
    BootstrapGuide,
    CAVIAGuide,
    ContextPointsGuide,
    DeterministicGateGuide,
    DirichletMixtureGuide,
    DirichletPosteriorGuide,
    DistanceInformedGuide,
    LogisticNormalGuide,
    MAMLGuide,
    MCDropoutGuide,
    NeuralProcessGuide,
    StickBreakingGuide,
    UniformMixtureGuide,
)
from pp_models import BayesianAttentionNetwork, GaussianHeadLikelihood, LearnedGaussianPrior

#: name -> (what it is, how it is built)
MODELS: dict[str, tuple[str, Callable[[TaskShape], nn.Module]]] = {
    "network": ("network with latent weights, a Gaussian head at each point", network),
    "network+path": ("the same with a deterministic task representation", lambda t: network(t, t.width)),
    "network-learned-prior": (
        "the same with a learned prior, correlated by unit",
        lambda t: network(t, prior=LearnedGaussianPrior("unit")),
    ),
    "network-attention": (
        "transformer with latent weights (BNAM), a Gaussian head at each point",
        lambda t: BayesianAttentionNetwork(
            t.dim_x, t.dim_y, t.width, 1, 4, likelihood=GaussianHeadLikelihood(t.min_scale)
        ),
    ),
    "network-shared-noise": ("network with latent weights, noise sd 0.1", lambda t: network(t, likelihood="gaussian")),
    "mixture": ("mixture of experts that read the context, weights latent in every task", mixture),
    "mixture-strict": ("the same, experts see x alone", lambda t: mixture(t, "strict")),
    "np": ("neural process: one global latent", lambda t: neural_process(t, True, False)),
    "np+cnp": ("neural process with a deterministic path", lambda t: neural_process(t, True, True)),
    "cnp": ("deterministic path alone", lambda t: neural_process(t, False, True)),
    "anp": ("attentive neural process", lambda t: neural_process(t, True, True, attention=True)),
    "canp": ("attention alone, no latent", lambda t: neural_process(t, False, True, attention=True)),
    "convcnp": ("convolutional conditional neural process", convolutional),
    "dnp": ("distance-informed process: global and local latents", distance_informed),
    "tnp-d": ("transformer over the context's points and the inputs asked", transformer),
}

#: name -> (class, how it is built from a model and a width)
GUIDES: dict[str, tuple[type[nn.Module], Callable[[nn.Module, int], nn.Module]]] = {
    "bernoulli-expert": (BernoulliExpertGuide, lambda m, w: BernoulliExpertGuide(m, w)),  # type: ignore[arg-type]
    "bnn-weight": (BNNWeightGuide, lambda m, w: BNNWeightGuide(m, width=w)),  # type: ignore[arg-type]
    "bootstrap": (BootstrapGuide, lambda m, w: BootstrapGuide(m, w)),  # type: ignore[arg-type]
    "cavia": (CAVIAGuide, lambda m, w: CAVIAGuide(m)),  # type: ignore[arg-type]
    "context-points": (ContextPointsGuide, lambda m, w: ContextPointsGuide(m)),  # type: ignore[arg-type]
    "distance-informed": (DistanceInformedGuide, lambda m, w: DistanceInformedGuide(m, w)),  # type: ignore[arg-type]
    "deterministic-gate": (DeterministicGateGuide, lambda m, w: DeterministicGateGuide(m, w)),  # type: ignore[arg-type]
    "dirichlet-mixture": (DirichletMixtureGuide, lambda m, w: DirichletMixtureGuide(m, w)),  # type: ignore[arg-type]
    "dirichlet-posterior": (DirichletPosteriorGuide, lambda m, w: DirichletPosteriorGuide(m, w)),  # type: ignore[arg-type]
    "logistic-normal": (LogisticNormalGuide, lambda m, w: LogisticNormalGuide(m, w)),  # type: ignore[arg-type]
    "maml": (MAMLGuide, lambda m, w: MAMLGuide(m)),  # type: ignore[arg-type]
    "mean-field": (AmortisedMeanFieldGuide, lambda m, w: AmortisedMeanFieldGuide(m, w)),  # type: ignore[arg-type]
    "mc-dropout": (MCDropoutGuide, lambda m, w: MCDropoutGuide(m, width=w)),  # type: ignore[arg-type]
    "neural-process": (NeuralProcessGuide, lambda m, w: NeuralProcessGuide(m, w)),  # type: ignore[arg-type]
    "stick-breaking": (StickBreakingGuide, lambda m, w: StickBreakingGuide(m, w)),  # type: ignore[arg-type]
    "uniform-mixture": (UniformMixtureGuide, lambda m, w: UniformMixtureGuide(m, w)),  # type: ignore[arg-type]
}
