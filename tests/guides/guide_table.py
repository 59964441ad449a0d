"""The table of guides: how a small pair of each is made, and what it is exempt from, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from guides import (
    AdapterMeanFieldGuide,
    AmortisedImplicitGuide,
    AmortisedLowRankNormalGuide,
    AmortisedMeanFieldGuide,
    AmortisedMixtureNormalGuide,
    AmortisedMultivariateNormalGuide,
    AmortisedNormalGuide,
    BernoulliExpertGuide,
    BernoulliMaskGuide,
    BNNWeightGuide,
    BootstrapGuide,
    CAVIAGuide,
    ConjugateRefinement,
    ContextPointsGuide,
    DeterministicGateGuide,
    DirichletMixtureGuide,
    DirichletPosteriorGuide,
    DistanceInformedGuide,
    FlowGuide,
    GaussianVIGuide,
    GlobalInducingGuide,
    LaplaceAdapterGuide,
    LastLayerGuide,
    LogisticNormalGuide,
    MAMLGuide,
    MCDropoutAdapterGuide,
    MCDropoutGuide,
    ModulationGuide,
    ModuleDropoutGuide,
    ModuleLaplaceGuide,
    ModuleLowRankGuide,
    ModuleMeanFieldGuide,
    ModulePointGuide,
    ModuleSWAGGuide,
    NestedDropoutAdapterGuide,
    NeuralProcessGuide,
    PointAdapterGuide,
    RankwiseGuide,
    RefinedGuide,
    SparseVIGuide,
    StickBreakingGuide,
    SWAGGuide,
    UniformMixtureGuide,
    VBLLGuide,
)
from pp_models import (
    BayesianAttentionNetwork,
    BayesianModule,
    BayesianNetwork,
    ConvNeuralProcess,
    Dataset,
    DistanceInformedProcess,
    FiLMNetwork,
    ImplicitRepresentation,
    LearnedGaussianPrior,
    LogUniformPrior,
    LowRankAdapted,
    MaskedNetwork,
    MixtureDensityNetwork,
    ModulatedPrototypicalNetwork,
    NeuralProcess,
    PrototypicalNetwork,
    TransformerNeuralProcess,
)
from pp_models.contract import Guide, Model

#: invariants that a row may be exempt from
INVARIANTS = {
    "reads its data": "predictions depend on the data",
    "one for all": "one guide serves data of any task dimensions",
    "seeded by the set": "with one seed a draw is the same whatever the order of points and the padding",
    "density": "its draws have a density, as Trace_ELBO needs",
    "spread": "two particles differ",
    "empty code": "what stands for an empty context is learned",
    "elbo": "the ELBO trains it",
    "trained": "training moves its parameters",
}
#: exported classes that make no guide or model by themselves
BASES = {"AnyModelGuide", "FittedLaterGuide", "Guide", "Model", "ObservationModel", "WeightGuide"}
#: sites that hold one entry for each point, in the order of the points
LISTS = ("memory", "local")

Pair = tuple[Model, Guide]


@dataclass(frozen=True)
class Row:
    """One guide on one model.

    Args:
        build: from the task dimensions of the data to a small pair.
        objective: that of its paper, by name.
        exempt: the invariants of ``INVARIANTS`` that it does not keep, with the reason.
        unreached: endings of parameters that no loss on data with points reaches, with the reason.
        y: what y is, ``"real"``, ``"binary"`` or ``"class"`` (of two).
        dim_x: input width.
        shared: tasks share the latents, which have no task dimension.
    """

    build: Callable[[tuple[int, ...]], tuple[Any, Any]]
    objective: str = "elbo"
    exempt: Mapping[str, str] = field(default_factory=dict)
    unreached: Mapping[str, str] = field(default_factory=dict)
    y: str = "real"
    dim_x: int = 1
    shared: bool = False

    def make(self, batch: tuple[int, ...] = (3,), dtype: torch.dtype = torch.float64) -> Pair:
        """A pair for data of these task dimensions."""
        model, guide = self.build(batch)
        return model.to(dtype), guide.to(dtype)

    def data(self, *batch: int, n: int = 6, dtype: torch.dtype = torch.float64, mask: Tensor | None = None) -> Dataset:
        """Random points ``[*batch, n]``."""
        x = torch.rand(*batch, n, self.dim_x, dtype=dtype) * 2 - 1
        if self.y == "class":
            return Dataset(x, torch.randint(0, 2, (*batch, n)), mask)
        y = torch.randn(*batch, n, 1, dtype=dtype)
        return Dataset(x, (y > 0).to(dtype) if self.y == "binary" else y, mask)


def network(representation: int = 0, likelihood: str = "gaussian-head", **options: Any) -> BayesianNetwork:
    outputs = 1 if likelihood in ("bernoulli", "gaussian") else 2
    return BayesianNetwork([1, 6, 5, outputs], likelihood=likelihood, representation_dim=representation, **options)


def of_network(cls: Any, representation: int = 0, likelihood: str = "gaussian-head", prior: Any = None, **options: Any):
    def build(batch):
        model = network(representation, likelihood, **({} if prior is None else {"prior": prior()}))
        return model, cls(model, **options)

    return build


def of_attention(cls: Any, **options: Any):
    def build(batch):
        model = BayesianAttentionNetwork(1, 1, width=8, num_blocks=1, num_heads=2, likelihood="gaussian-head")
        return model, cls(model, width=8, **options)

    return build


def of_process(cls: Any = NeuralProcessGuide, guide: Mapping[str, Any] | None = None, **options: Any):
    def build(batch):
        model = NeuralProcess(1, 1, width=8, depth=3, **options)
        return model, cls(model, **({"width": 8} if guide is None else guide))

    return build


def of_points(make_model: Callable[[], Any]):
    def build(batch):
        model = make_model()
        return model, ContextPointsGuide(model)

    return build


def implicit(batch, basis="fourier"):
    model = ImplicitRepresentation(1, 1, latent_dim=4, width=8, depth=3, frequencies=4, basis=basis)
    return model, NeuralProcessGuide(model, width=8)


def modulation(batch):
    model = ModulatedPrototypicalNetwork(1, 3, FiLMNetwork([1, 5, 4], "tanh"))
    return model, ModulationGuide(model, width=8)


def distance_informed(batch):
    model = DistanceInformedProcess(1, 1, latent_dim=4, local_dim=4, width=8, embedding_depth=2, depth=2, num_heads=2)
    return model, DistanceInformedGuide(model, width=8)


def of_mixture(cls: Any, experts: str = "context", **options: Any):
    def build(batch):
        model = MixtureDensityNetwork(4, 1, 1, experts, width=8, representation_dim=8)
        return model, cls(model, width=8, **options)

    return build


def of_strict_mixture(batch):
    model = MixtureDensityNetwork(4, 1, 1, "strict", width=8)
    return model, FlowGuide(model, width=8, transforms=1, hidden=[8])


def of_refined(cls: Any, **options: Any):
    def build(batch):
        model = network()
        return model, RefinedGuide(cls(model, width=8, **options), steps=2, num_particles=1)

    return build


def refined(batch):
    model, guide = of_mixture(DirichletMixtureGuide)(batch)
    return model, ConjugateRefinement(model, guide=guide)


def own_gaussian(correlation: str):
    def build(batch):
        model = network()
        return model, GaussianVIGuide(model, correlation=correlation, batch_shape=batch)

    return build


def masked(batch):
    model = MaskedNetwork([1, 6, 5, 2], "gaussian-head")
    return model, BernoulliMaskGuide(model, width=8)


def sparse(batch):
    model = network()
    return model, SparseVIGuide(model, density=0.5, batch_shape=batch)


def inducing(batch):
    model = network(likelihood="gaussian")
    points = Dataset(torch.randn(*batch, 6, 1), torch.randn(*batch, 6, 1))
    return model, GlobalInducingGuide(model, data=points, num_inducing=3)


def moments_of_a_path(batch):
    model = network()
    size = sum(a * b for a, b in model.weight_shapes)
    mean, deviations = 0.5 * torch.randn(*batch, size), torch.randn(*batch, size, 3)
    return model, SWAGGuide(model, mean=mean, variance=torch.rand(*batch, size), deviations=deviations)


def of_adapter(cls: Any, model: Mapping[str, Any] | None = None, fit: bool = False, **options: Any):
    def build(batch):
        backbone = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
        adapted = LowRankAdapted(backbone, ["0", "2"], rank=2, likelihood="gaussian", noise_scale=0.3, **(model or {}))
        for module in adapted.rank_modules().values():
            nn.init.normal_(module.lora_B, std=0.3)
        guide = cls(adapted, **options)
        if fit:
            guide.fit_curvature(Dataset(torch.randn(5, 1)))
            guide.eval()
        return adapted, guide

    return build


def of_module(cls: Any, targets: Any = "all", fit: bool = False, **options: Any) -> Callable:
    """A guide over the weights of a torch module."""

    def build(batch):
        module = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))
        model = BayesianModule(module, targets, likelihood="gaussian", noise_scale=0.3, freeze=fit)
        guide = cls(model, **options)
        seen = Dataset(torch.randn(5, 1), torch.randn(5, 1))
        if fit:
            guide.fit(seen) if cls is LastLayerGuide else guide.fit_curvature(seen)
        return model, guide

    return build


def swag_of_module(batch):
    model, _ = of_module(ModulePointGuide)(batch)
    mean = torch.cat([value.flatten() for value in model.values().values()])
    size = len(mean)
    return model, ModuleSWAGGuide(
        model, mean=mean, variance=0.1 * torch.rand(size), deviations=0.1 * torch.randn(size, 3)
    )


GLOBAL = {"reads its data": "one posterior, or one rate, whatever the data", "empty code": "it has no encoder"}
ITS_OWN = GLOBAL | {"one for all": "each task that it was made for has numbers of its own"}
POINT = {"spread": "a point mass"}
NO_EMPTY = {"empty code": "an empty context adds nothing to what the model holds, or to the prior"}
DUAL = {"seeded by the set": "the dual form draws a noise for each point: the law, not the draw, is that of the set"}
#: the adapter rows' latents are outside every task plate
ADAPTER: dict[str, Any] = {"shared": True, "exempt": GLOBAL}

ROWS: dict[str, Row] = {
    "nvdp": Row(of_network(BernoulliExpertGuide, width=8), "conditional-prior"),
    "nvdp probability": Row(of_network(BernoulliExpertGuide, width=8, clip="probability"), "conditional-prior"),
    "nvdp layer": Row(of_network(BernoulliExpertGuide, width=8, rates="layer"), "conditional-prior"),
    "nvdp full": Row(of_network(BernoulliExpertGuide, width=8, rates="full"), "conditional-prior"),
    "nvdp class": Row(
        of_network(BernoulliExpertGuide, likelihood="categorical", width=8, rates="class"),
        "conditional-prior",
        y="class",
    ),
    "nvdp attention": Row(of_network(BernoulliExpertGuide, width=8, pooling="attention"), "conditional-prior"),
    "nvdp set-transformer": Row(
        of_network(BernoulliExpertGuide, width=8, pooling="set-transformer"), "conditional-prior"
    ),
    "nvdp representation": Row(of_network(BernoulliExpertGuide, 4, width=8), "conditional-prior"),
    "nvdp shared encoder": Row(of_network(BernoulliExpertGuide, 8, width=8, share_encoder=True), "conditional-prior"),
    "nvdp log-uniform": Row(of_network(BernoulliExpertGuide, prior=LogUniformPrior, width=8), "conditional-prior"),
    "bnn": Row(of_network(BNNWeightGuide, width=8, solver="primal"), "pp-avi", NO_EMPTY),
    "bnn dual": Row(of_network(BNNWeightGuide, width=8, solver="dual"), "pp-avi", NO_EMPTY | DUAL),
    "bnn auto": Row(of_network(BNNWeightGuide, width=8), "pp-avi", NO_EMPTY | DUAL),
    "bnn activation": Row(
        of_network(BNNWeightGuide, width=8, solver="primal", use_activation=True), "pp-avi", NO_EMPTY
    ),
    "bnn chunks": Row(of_network(BNNWeightGuide, width=8, solver="primal", chunk_size=4), "pp-avi", NO_EMPTY),
    "bnn representation": Row(of_network(BNNWeightGuide, 4, width=8, solver="primal"), "pp-avi"),
    "bnn real noise": Row(
        of_network(BNNWeightGuide, likelihood="gaussian", width=8, solver="primal", final_noise="real"),
        "pp-avi",
        NO_EMPTY,
    ),
    "bnn categorical": Row(
        of_network(BNNWeightGuide, likelihood="categorical", width=8, solver="primal"), "pp-avi", NO_EMPTY, y="class"
    ),
    **{
        f"bnn {granularity} prior, {solver}": Row(
            of_network(BNNWeightGuide, prior=lambda g=granularity: LearnedGaussianPrior(g), width=8, solver=solver),
            "pp-avi",
            NO_EMPTY | (DUAL if solver == "dual" else {}),
        )
        for granularity in ("unit", "layer", "network")
        for solver in ("primal", "dual")
    },
    "bnn transformer": Row(
        of_network(BNNWeightGuide, width=8, solver="primal", inference="transformer"), "pp-avi", NO_EMPTY
    ),
    "bnam": Row(of_attention(BNNWeightGuide, solver="primal"), "pp-avi", NO_EMPTY),
    "bnam dual": Row(of_attention(BNNWeightGuide, solver="dual"), "pp-avi", NO_EMPTY | DUAL),
    "bnam transformer": Row(of_attention(BNNWeightGuide, solver="primal", inference="transformer"), "pp-avi", NO_EMPTY),
    "bnam mean-field": Row(of_attention(AmortisedMeanFieldGuide)),
    "bnam nvdp": Row(of_attention(BernoulliExpertGuide)),
    "bnam mc-dropout": Row(of_attention(MCDropoutGuide), exempt=GLOBAL),
    "mean-field": Row(of_network(AmortisedMeanFieldGuide, width=8)),
    "mean-field attention": Row(of_network(AmortisedMeanFieldGuide, width=8, pooling="attention")),
    "mean-field set-transformer": Row(of_network(AmortisedMeanFieldGuide, width=8, pooling="set-transformer")),
    "mean-field representation": Row(of_network(AmortisedMeanFieldGuide, 4, width=8)),
    "mean-field student-t": Row(of_network(AmortisedMeanFieldGuide, likelihood="student-t-head", width=8)),
    "mean-field bernoulli": Row(of_network(AmortisedMeanFieldGuide, likelihood="bernoulli", width=8), y="binary"),
    "mc-dropout": Row(of_network(MCDropoutGuide), exempt=GLOBAL),
    "mc-dropout representation": Row(of_network(MCDropoutGuide, 4, width=8)),
    **{f"vi {c}": Row(own_gaussian(c), exempt=ITS_OWN) for c in ("weight", "unit", "layer", "network")},
    "mask": Row(masked, "log-variance"),
    "vi sparse": Row(sparse, exempt=ITS_OWN),
    "inducing": Row(inducing, exempt=ITS_OWN),
    "swag": Row(moments_of_a_path, exempt=ITS_OWN),
    "maml": Row(of_network(MAMLGuide), "npml", POINT | NO_EMPTY),
    "maml first order": Row(of_network(MAMLGuide, first_order=True), "npml", POINT | NO_EMPTY),
    "maml learned rates": Row(of_network(MAMLGuide, learn_rate=True), "npml", POINT | NO_EMPTY),
    "cavia": Row(
        of_process(CAVIAGuide, {"learn_rate": True}, latent_dim=0, representation_dim=8), "npml", POINT | NO_EMPTY
    ),
    "cnp": Row(of_process(latent_dim=0, representation_dim=8), "npml", POINT),
    "np": Row(of_process(latent_dim=4), "npvi"),
    "np bayesian": Row(of_process(guide={"width": 8, "pooling": "bayesian"}, latent_dim=4), "npvi", NO_EMPTY),
    "np+cnp": Row(of_process(latent_dim=4, representation_dim=8), "npvi"),
    "anp": Row(of_process(latent_dim=4, representation_dim=8, attention=True), "npvi"),
    "implicit": Row(implicit, "npvi"),
    "implicit siren": Row(lambda batch: implicit(batch, "siren"), "npvi"),
    "bootstrap": Row(
        of_process(BootstrapGuide, latent_dim=0, representation_dim=8),
        "npml",
        {
            "seeded by the set": "points are drawn by their places: the law, not the draw, is that of the set",
            "density": "a resample has none",
            "elbo": "its KL would need a density",
        },
    ),
    "convolutional": Row(
        of_points(lambda: ConvNeuralProcess(1, 1, width=4, levels=2, points_per_unit=8.0)), "npml", POINT | NO_EMPTY
    ),
    "convolutional image": Row(
        of_points(lambda: ConvNeuralProcess(2, 1, width=4, image_size=(40, 40), num_blocks=1)),
        "npml",
        POINT | NO_EMPTY,
        dim_x=2,
    ),
    "transformer process": Row(
        of_points(lambda: TransformerNeuralProcess(1, 1, width=8, num_layers=2, num_heads=2, feedforward=8)),
        "npml",
        POINT | NO_EMPTY,
    ),
    "prototypical": Row(
        of_points(lambda: PrototypicalNetwork(1, 3, nn.Linear(1, 4))), "npml", POINT | NO_EMPTY, y="class"
    ),
    "modulation": Row(modulation, "npvi", NO_EMPTY, y="class"),
    "distance-informed": Row(
        distance_informed,
        "npml",
        {"seeded by the set": "a latent of each point is drawn in the order of the points"},
        {"embedding.0.right": "with one input it is an orthogonal matrix of one entry, which cannot move"},
    ),
    "dirichlet": Row(of_mixture(DirichletMixtureGuide), "iw-em"),
    "dirichlet strict": Row(of_mixture(DirichletMixtureGuide, "strict"), "iw-em"),
    "dirichlet mean and concentration": Row(
        of_mixture(DirichletMixtureGuide, concentration_map="mean-and-concentration"), "iw-em"
    ),
    "dirichlet set-transformer": Row(of_mixture(DirichletMixtureGuide, pooling="set-transformer"), "iw-em"),
    "dirichlet posterior": Row(
        of_mixture(DirichletPosteriorGuide), "npvi", {"elbo": "it would not train the second encoder"}
    ),
    "logistic-normal": Row(of_mixture(LogisticNormalGuide), "npvi"),
    "stick-breaking": Row(of_mixture(StickBreakingGuide), "iw-em"),
    "gate": Row(of_mixture(DeterministicGateGuide), "npml", POINT),
    "uniform": Row(of_mixture(UniformMixtureGuide), "npml", POINT | NO_EMPTY),
    "refinement": Row(refined, exempt={"trained": "it wraps a trained pair, for prediction"}),
    "adapter point": Row(of_adapter(PointAdapterGuide), **(ADAPTER | {"exempt": GLOBAL | POINT})),
    "adapter mean-field": Row(of_adapter(AdapterMeanFieldGuide, {"factor_prior": 0.2}), **ADAPTER),
    "adapter dropout": Row(of_adapter(MCDropoutAdapterGuide), **ADAPTER),
    "adapter rank dropout": Row(of_adapter(MCDropoutAdapterGuide, rate=0.5, where="rank"), **ADAPTER),
    "adapter nested dropout": Row(
        of_adapter(NestedDropoutAdapterGuide, rate=0.5),
        **(ADAPTER | {"exempt": GLOBAL | {"spread": "for prediction nothing is dropped"}}),
    ),
    "lrvd": Row(of_adapter(RankwiseGuide), **ADAPTER),
    "lrvd half-cauchy": Row(of_adapter(RankwiseGuide, {"rank_prior": "half-cauchy"}), **ADAPTER),
    "lrvd ard": Row(of_adapter(RankwiseGuide, {"rank_prior": "ard"}), **ADAPTER),
    **{
        f"lrvd {family}": Row(of_adapter(RankwiseGuide, family=family), **ADAPTER)
        for family in ("weight_tied", "shared_sigma", "asym", "untied")
    },
    "module point": Row(of_module(ModulePointGuide), **(ADAPTER | {"exempt": GLOBAL | POINT})),
    "module mean-field": Row(of_module(ModuleMeanFieldGuide, init_scale=0.1), **ADAPTER),
    "module low-rank": Row(of_module(ModuleLowRankGuide, init_scale=0.1), **ADAPTER),
    "module dropout": Row(of_module(ModuleDropoutGuide), **ADAPTER),
    "module laplace": Row(of_module(ModuleLaplaceGuide, fit=True), **ADAPTER),
    "module laplace, full": Row(of_module(ModuleLaplaceGuide, fit=True, structure="full"), **ADAPTER),
    "module last layer": Row(of_module(LastLayerGuide, "last", fit=True), **ADAPTER),
    "module vbll": Row(of_module(VBLLGuide, "last"), **ADAPTER),
    "module swag": Row(swag_of_module, **ADAPTER),
    "any normal": Row(of_network(AmortisedNormalGuide, width=8)),
    "any multivariate normal": Row(of_network(AmortisedMultivariateNormalGuide, width=8), "iw-em"),
    "any low-rank normal": Row(of_network(AmortisedLowRankNormalGuide, width=8, rank=3)),
    "any mixture": Row(of_network(AmortisedMixtureNormalGuide, width=8, components=2)),
    "any implicit": Row(of_network(AmortisedImplicitGuide, width=8, hidden=[8], rank=3)),
    "any flow": Row(of_network(FlowGuide, width=8, transforms=1, hidden=[8]), "conditional-prior"),
    "any flow of a mixture": Row(of_strict_mixture, "iw-em"),
    "refined mean-field": Row(of_refined(AmortisedMeanFieldGuide)),
    "refined flow": Row(of_refined(FlowGuide, transforms=1, hidden=[8])),
    "laplace": Row(of_adapter(LaplaceAdapterGuide, {"factor_prior": 1.0}, fit=True), **ADAPTER),
    "laplace kronecker": Row(
        of_adapter(LaplaceAdapterGuide, {"factor_prior": 1.0}, fit=True, structure="kronecker"), **ADAPTER
    ),
}


def latent_sites(program: Any, d: Dataset, auxiliary: bool = False) -> dict[str, Any]:
    """The latent sites of a program on data, without plates, and without auxiliary draws unless asked for."""
    nodes = pyro.poutine.trace(program).get_trace(d).nodes
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample"
        and name != "y"
        and not name.startswith("tasks")
        and (auxiliary or not site["infer"].get("is_auxiliary", False))
    }
