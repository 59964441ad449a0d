"""The table of guides that the command line and comparisons know by name: one line each.

Each is built as ``GUIDES[name](model, width)``; its other options are keywords.
"""

from __future__ import annotations

from pp_models.registry import Classes

GUIDES = Classes(
    "guide",
    {
        "bernoulli-expert": (
            "guides.networks.bernoulli_dropout:BernoulliExpertGuide",
            "NVDP: drop rates of every weight from the context",
        ),
        "bnn-weight": (
            "guides.networks.bnn_weights:BNNWeightGuide",
            "BNNP: conjugate posteriors layer by layer, from amortised pseudo-observations",
        ),
        "bootstrap": ("guides.processes.bootstrap:BootstrapGuide", "representations of resampled contexts"),
        "cavia": ("guides.processes.gradient_adaptation:CAVIAGuide", "a decoder's input adapted by gradient steps"),
        "context-points": (
            "guides.processes.context_points:ContextPointsGuide",
            "hands the context to conditional models as it is",
        ),
        "distance-informed": (
            "guides.processes.distance_informed_guide:DistanceInformedGuide",
            "a global latent, and local ones read by distance",
        ),
        "deterministic-gate": (
            "guides.mixtures.mixture_gates:DeterministicGateGuide",
            "mixture weights as a function of the context",
        ),
        "dirichlet-mixture": (
            "guides.mixtures.dirichlet_mixture:DirichletMixtureGuide",
            "NMDP: a Dirichlet over mixture weights from the context",
        ),
        "dirichlet-posterior": (
            "guides.mixtures.dirichlet_mixture:DirichletPosteriorGuide",
            "the same with a second encoder for the whole task",
        ),
        "logistic-normal": (
            "guides.mixtures.logistic_normal_mixture:LogisticNormalGuide",
            "a logistic normal over mixture weights",
        ),
        "maml": ("guides.processes.gradient_adaptation:MAMLGuide", "weights adapted by gradient steps from one start"),
        "mean-field": (
            "guides.networks.amortised_mean_field:AmortisedMeanFieldGuide",
            "an independent Gaussian for every weight, from the context",
        ),
        "mc-dropout": ("guides.networks.mc_dropout:MCDropoutGuide", "dropout at one fixed rate"),
        "neural-process": (
            "guides.processes.neural_process_guide:NeuralProcessGuide",
            "a Gaussian over the global latent, and the deterministic path",
        ),
        "stick-breaking": (
            "guides.mixtures.stick_breaking_mixture:StickBreakingGuide",
            "stick-breaking betas over mixture weights",
        ),
        "uniform-mixture": ("guides.mixtures.mixture_gates:UniformMixtureGuide", "equal mixture weights"),
    },
    "guidebook list families",
)
