"""The methods that experiments, the demo and the command line know by name: a model, a guide and an objective each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import guides  # names of the rooms are looked up where they are needed: a list of methods loads no torch
import pp_models
from inference import objectives
from pp_models.registry import Registry

if TYPE_CHECKING:
    import pyro.infer
    from torch import nn

    from pp_models.contract import Likelihood
    from pp_models.processes.conditional_process import ConditionalProcess


@dataclass
class Method:
    """A model and guide with the objective they are trained with.

    Args:
        name: the method's name.
        model: the model.
        guide: its guide.
        objective: what trains them.
    """

    name: str
    model: nn.Module
    guide: nn.Module
    objective: pyro.infer.ELBO


@dataclass(frozen=True)
class TaskShape:
    """What a method needs to know of a task distribution.

    Args:
        dim_x: input width.
        dim_y: output width.
        width: hidden width of every network.
        beta: weight of the KL for the dropout guide (1.4 for GP regression, 0.5 for images in NVDP's code).
        shared_path: NVDP reads the representation that also drives its rates (the trigonometric experiment).
        min_scale: floor of the standard deviation of every per-point Gaussian head. It bounds the log-likelihood of a
            value by -log(min_scale) - 0.919: methods are comparable at one floor alone.
        image_size: height and width in pixels of the images of an image task; models on a grid need it.
        extent: length of the interval that holds the inputs of tasks on a line; models on a grid cover it.
        recipe: ``"best"``, or ``"paper"`` for NVDP and NMDP as their papers have them (mean pooling, temperature 1.5,
            attention in the experts), which the papers' experiments use.
        pooling: of the encoder of a guide; this and the rest are None for the method's own, and ``PARTS`` says which
            methods take them.
        path: of the decoder.
        input_features: sines and cosines of x, each, that a network reads beside x.
        experts: of a mixture.
        num_classes: of tasks whose y is a class, with ``dim_y`` as many; 0 for numbers.
        missing_outputs: whether single outputs may be missing, so that guides are to be told which.
    """

    dim_x: int
    dim_y: int
    width: int = 64
    beta: float = 1.4
    shared_path: bool = False
    min_scale: float = 0.1
    image_size: tuple[int, int] | None = None
    extent: float = 4.0
    recipe: str = "best"
    pooling: str | None = None
    path: str | None = None
    input_features: int | None = None
    experts: str | None = None
    num_classes: int = 0
    missing_outputs: bool = False

    @property
    def head(self) -> Likelihood:
        """What its networks predict at each point: a Gaussian with a scale of its own, or a class."""
        if self.num_classes:
            return pp_models.CategoricalLikelihood()
        return pp_models.GaussianHeadLikelihood(self.min_scale)

    @property
    def regression(self) -> str:
        """Closed-form regressions by Fourier features on a line, by learned ones elsewhere."""
        return "regression" if self.dim_x == 1 else "learned-regression"

    @classmethod
    def of(cls, stream: Any, width: int = 64, **options: Any) -> TaskShape:
        """The task of a stream: widths and, for models on a grid, its images' size or the interval of its inputs.

        Args:
            stream: a TaskStream; where its y is a class, ``num_classes`` is among the options.
            width: hidden width of every network.
            **options: other fields.
        """
        options.setdefault("missing_outputs", getattr(stream, "missing_outputs", False))
        batch = stream.batch(0)
        x, y = batch.full.x, batch.full.y
        if x.shape[-1] == 2 and stream.image_size is not None:
            options.setdefault("image_size", stream.image_size)
        elif x.shape[-1] == 1:
            # inputs of other batches may reach further than those seen
            low, high = stream.input_interval or (0.0, 1.25 * float(x.max() - x.min()))
            options.setdefault("extent", float(high - low))
        return cls(x.shape[-1], options.get("num_classes") or y.shape[-1], width, **options)


def network(
    task: TaskShape,
    representation: int = 0,
    depth: int = 5,
    likelihood: str | None = None,
    prior: Any = None,
    **options: Any,
) -> pp_models.BayesianNetwork:
    """A network of ``depth`` weight matrices for a task distribution."""
    if task.path is not None:
        options |= {"path": task.path, "path_dim": task.width}
    if task.input_features is not None:
        options["input_features"] = task.input_features
    options.setdefault("missing_outputs", task.missing_outputs)
    found: Any = task.head if likelihood is None else likelihood
    outputs = task.dim_y if task.num_classes or likelihood is not None else 2 * task.dim_y
    sizes = [task.dim_x, *[task.width] * (depth - 1), outputs]
    return pp_models.BayesianNetwork(sizes, prior=prior, likelihood=found, representation_dim=representation, **options)


def neural_process(
    task: TaskShape, latent: bool, path: bool, attention: bool = False, reads: str | None = None
) -> pp_models.NeuralProcess:
    """A decoder for a task distribution, with a global latent, a deterministic path (of a kind), or both."""
    if task.path is not None:
        attention, reads = False, task.path
    return pp_models.NeuralProcess(
        task.dim_x,
        task.dim_y,
        latent_dim=128 if latent else 0,
        representation_dim=task.width if path else 0,
        attention=attention,
        width=task.width,
        likelihood=task.head,
        path=reads,
        missing_outputs=task.missing_outputs,
    )


def implicit(task: TaskShape) -> pp_models.ImplicitRepresentation:
    """An implicit network of x that a global latent modulates, for a task distribution."""
    return pp_models.ImplicitRepresentation(
        task.dim_x,
        task.dim_y,
        width=task.width,
        likelihood=task.head,
        missing_outputs=task.missing_outputs,
    )


def convolutional(task: TaskShape) -> pp_models.ConvNeuralProcess:
    """A ConvCNP for a task distribution on a line, or on images whose size the task gives."""
    head = pp_models.GaussianHeadLikelihood(task.min_scale)
    return pp_models.ConvNeuralProcess(
        task.dim_x, task.dim_y, task.width, extent=task.extent, image_size=task.image_size, likelihood=head
    )


def distance_informed(task: TaskShape) -> pp_models.DistanceInformedProcess:
    """A process with global and local latents for a task distribution."""
    return pp_models.DistanceInformedProcess(
        task.dim_x,
        task.dim_y,
        task.width,
        task.width,
        task.width,
        likelihood=task.head,
        missing_outputs=task.missing_outputs,
    )


def transformer(task: TaskShape) -> pp_models.TransformerNeuralProcess:
    """A TNP-D for a task distribution: 6 layers of 4 heads."""
    return pp_models.TransformerNeuralProcess(
        task.dim_x,
        task.dim_y,
        task.width,
        feedforward=2 * task.width,
        likelihood=task.head,
        missing_outputs=task.missing_outputs,
    )


def _nvdp(
    task: TaskShape,
    deterministic: bool = False,
    guide: dict[str, Any] | None = None,
    path: str | None = None,
    **objective: Any,
) -> tuple:
    options = dict(guide or {})
    features: Any = 0
    depth = 5
    if task.recipe != "paper":
        options = {"pooling": task.regression, "temperature": 0.5, **options}
        features, depth = INPUT_FEATURES, 4
        if task.image_size is not None:
            from pp_models.context_regression import FourierFeatures  # here: a list of methods loads no torch

            features, depth = FourierFeatures(task.dim_x, INPUT_FEATURES, axes=True), 5
    if task.pooling is not None:
        options["pooling"] = task.pooling
    if task.shared_path:
        model = network(task, task.width, depth=4, input_features=features)
        options["share_encoder"] = True
    else:
        representation = task.width if deterministic else 0
        model = network(task, representation, depth, path=path, path_dim=task.width, input_features=features)
    built = guides.BernoulliExpertGuide(model, width=task.width, **options)
    return model, built, objectives.make("conditional-prior", **{"beta": task.beta, **objective})


def _nvdp_class(task: TaskShape) -> tuple:
    if not task.num_classes:
        raise ValueError("model: got nvdp-class, which predicts classes; of numbers take nvdp")
    model = network(task, depth=2)
    guide = guides.BernoulliExpertGuide(model, width=task.width, rates="class", temperature=0.5)
    return model, guide, objectives.make("conditional-prior", beta=task.beta)


def _neural_process(task: TaskShape, latent: bool, path: bool, objective: str, attention: bool = False) -> tuple:
    model = neural_process(task, latent, path, attention)
    pooling = task.pooling or "mean"
    return (
        model,
        guides.NeuralProcessGuide(
            model, task.width, pooling=pooling, path_pooling="mean" if pooling == "bayesian" else pooling
        ),
        objectives.make(objective, kl_reduction="sum", normalize=True),
    )


def _conditional(model: ConditionalProcess) -> tuple:
    return model, guides.ContextPointsGuide(model), objectives.make("npml", num_particles=1, normalize=True)


def _bnp(task: TaskShape) -> tuple:
    model = neural_process(task, False, True)
    return (
        model,
        guides.BootstrapGuide(model, task.width),
        objectives.make("npml", num_particles=4, normalize=True),
    )


def _si_np(task: TaskShape) -> tuple:
    model = neural_process(task, True, False)
    return (
        model,
        guides.NeuralProcessGuide(model, task.width),
        objectives.make("iw-em", num_particles=8, normalize=True),
    )


def _dnp(task: TaskShape) -> tuple:
    model = distance_informed(task)
    return (
        model,
        guides.DistanceInformedGuide(model, task.width),
        objectives.make("npml", num_particles=4, normalize=True),
    )


def _tv_inr(task: TaskShape) -> tuple:
    model = implicit(task)
    return (
        model,
        guides.NeuralProcessGuide(model, task.width, pooling=task.pooling or "mean"),
        objectives.make("npvi", kl_reduction="sum", normalize=True),
    )


def _metamodulation(task: TaskShape) -> tuple:
    if not task.num_classes:
        raise ValueError("model: got metamodulation, which predicts classes; of numbers take np or tv-inr")
    embedding = pp_models.FiLMNetwork([task.dim_x, task.width, task.width])
    model = pp_models.ModulatedPrototypicalNetwork(task.dim_x, task.num_classes, embedding)
    guide = guides.ModulationGuide(model, task.width)
    return model, guide, objectives.make("npvi", kl_reduction="sum", normalize=True)


def _maml(task: TaskShape) -> tuple:
    model = network(task)
    return model, guides.MAMLGuide(model), objectives.make("npml", num_particles=1, normalize=True)


def _cavia(task: TaskShape) -> tuple:
    model = neural_process(task, False, True)
    return model, guides.CAVIAGuide(model), objectives.make("npml", num_particles=1, normalize=True)


def mixture(
    task: TaskShape, experts: str = "context", features: str | None = None, number: int | None = None
) -> pp_models.MixtureDensityNetwork:
    """A mixture of eight experts that read the context, or sixteen strict ones, for a task distribution."""
    if task.num_classes:
        raise ValueError("model: got a mixture of experts, which predict numbers; of classes take nvdp, bnnp or cnp")
    if task.path is not None and experts != "context":
        raise ValueError(f"path: got {task.path!r}, but {experts} experts read no path; take experts='context' as well")
    return pp_models.MixtureDensityNetwork(
        number or (16 if experts == "strict" else 8),
        task.dim_x,
        task.dim_y,
        experts,
        min_scale=task.min_scale,
        width=task.width,
        representation_dim=task.width,
        path=task.path or "attention",
        features=features or ("fourier" if task.dim_x == 1 else "learned"),
        missing_outputs=task.missing_outputs,
    )


def _nmdp(task: TaskShape, experts: str | None = None, **objective: Any) -> tuple:
    paper = task.recipe == "paper"
    model = mixture(task, task.experts or experts or ("context" if paper else "conjugate"))
    # experts that condition on the context exactly learn nothing from it but to copy
    score = "full" if paper or model.experts != "conjugate" else "target"
    return (
        model,
        guides.DirichletMixtureGuide(model, 2 * task.width, pooling=task.pooling or "mean"),
        objectives.make("iw-em", normalize=True, **{"score": score, **objective}),
    )


def _kernel_experts(task: TaskShape) -> tuple:
    from pp_models.context_path import KERNEL_HEADS  # here: a list of methods loads no torch

    model = mixture(task, "conjugate", "kernels", KERNEL_HEADS)
    guide = guides.DirichletMixtureGuide(
        model, 2 * task.width, pooling=task.pooling or "mean", concentration_map="evidence"
    )
    return model, guide, objectives.make("iw-em", normalize=True, score="target")


def _path_alone(task: TaskShape, kind: str = "learned-regression") -> tuple:
    model = neural_process(task, False, True, reads=kind)
    return (
        model,
        guides.NeuralProcessGuide(model, task.width),
        objectives.make("conditional-prior", kl_reduction="sum", normalize=True),
    )


def _bnnp(task: TaskShape, attention: bool = False) -> tuple:
    likelihood: Any = pp_models.GaussianLikelihood(0.1, learn_noise=True, max_noise=0.5)
    if task.num_classes:
        likelihood = task.head
    prior = pp_models.LearnedGaussianPrior("unit")
    if attention:
        model: pp_models.BayesianNetwork = pp_models.BayesianAttentionNetwork(
            task.dim_x,
            task.dim_y,
            task.width,
            1,
            4,
            prior=prior,
            likelihood=likelihood,
            activation="silu",
            missing_outputs=task.missing_outputs,
        )
    else:
        paper = task.recipe == "paper"
        features = task.input_features
        if features is None:
            features = 0 if paper else INPUT_FEATURES
        hidden = [task.width, task.width] if paper else [min(task.width, BNNP_WIDTH)]
        sizes = [task.dim_x, *hidden, task.dim_y]
        model = pp_models.BayesianNetwork(
            sizes,
            prior=prior,
            likelihood=likelihood,
            activation="silu",
            input_features=features,
            missing_outputs=task.missing_outputs,
        )
    return model, guides.BNNWeightGuide(model), objectives.make("pp-avi", num_particles=8)


def _mean_field(task: TaskShape) -> tuple:
    model = network(task)
    return (
        model,
        guides.AmortisedMeanFieldGuide(model, task.width, pooling=task.pooling or "mean"),
        objectives.make("elbo", normalize=True, local_reparameterization=True),
    )


def _mc_dropout(task: TaskShape) -> tuple:
    model = network(task)
    return (
        model,
        guides.MCDropoutGuide(model),
        objectives.make("elbo", normalize=True, local_reparameterization=True),
    )


#: sines and cosines of x, each, that the networks of NVDP and BNNP read beside x
INPUT_FEATURES = 8
#: most hidden units of BNNP's one layer: a step costs as the square of them
BNNP_WIDTH = 20

#: name -> (what it is, how it is built)
METHODS: Registry[tuple[str, Callable[[TaskShape], tuple]]] = Registry(
    "model",
    {
        "nvdp": ("Neural Variational Dropout Process: context through dropout rates only", _nvdp),
        "nvdp+det": ("NVDP with a deterministic path as well", lambda t: _nvdp(t, deterministic=True)),
        "nvdp+path": (
            "NVDP whose network also reads closed-form regressions of the context at x",
            lambda t: _nvdp(t, path="learned-regression"),
        ),
        "nvdp-no-prior": ("NVDP without its variational prior (β = 0)", lambda t: _nvdp(t, beta=0.0)),
        "nvdp-stop-prior": (
            "NVDP with no gradient through the prior branch",
            lambda t: _nvdp(t, stop_prior_gradient=True),
        ),
        "nvdp-sum": (
            "NVDP with the literal summed KL, β = 1",
            lambda t: _nvdp(t, beta=1.0, kl_reduction="sum", normalize=True),
        ),
        "nvdp-layer": ("NVDP with one rate a layer", lambda t: _nvdp(t, guide={"rates": "layer"})),
        "nvdp-full": ("NVDP with a rate for every weight", lambda t: _nvdp(t, guide={"rates": "full"})),
        "nvdp-class": ("NVDP for few-shot classes: rates of a class's weights from its own examples", _nvdp_class),
        "bnnp": (
            "Bayesian neural network process: layerwise posteriors, learned prior, noise learned below 0.5",
            _bnnp,
        ),
        "bnam": ("BNNP's attention network: points attend to one another", lambda t: _bnnp(t, attention=True)),
        "nmdp": ("Neural Mixture Density Process, experts that are closed-form regressions of the context", _nmdp),
        "nmdp-kernels": (
            "NMDP whose experts are Gaussian processes with kernels of their own, weighed by their evidence",
            _kernel_experts,
        ),
        "nmdp-attention": ("NMDP whose experts read the context by attention", lambda t: _nmdp(t, "context")),
        "nmdp-conjugate": ("NMDP with the conjugate proposal", lambda t: _nmdp(t, proposal="conjugate")),
        "nmdp-strict": (
            "NMDP as printed: experts that see x alone",
            lambda t: _nmdp(t, "strict", proposal="conjugate"),
        ),
        "cnp": ("Conditional Neural Process", lambda t: _neural_process(t, False, True, "conditional-prior")),
        "np": ("Neural Process", lambda t: _neural_process(t, True, False, "npvi")),
        "np+vp": ("Neural Process, variational prior", lambda t: _neural_process(t, True, False, "conditional-prior")),
        "np+cnp": ("Neural Process with a deterministic path", lambda t: _neural_process(t, True, True, "npvi")),
        "np+cnp+vp": (
            "Neural Process with a deterministic path, variational prior",
            lambda t: _neural_process(t, True, True, "conditional-prior"),
        ),
        "anp": (
            "Attentive Neural Process",
            lambda t: _neural_process(t, True, True, "npvi", attention=True),
        ),
        "cnp+path": ("decoder of closed-form regressions of the context at x, no latent: the path alone", _path_alone),
        "cnp+kernels": (
            "the same path, of Gaussian processes with learned kernels: what they know, without a latent",
            lambda t: _path_alone(t, "kernels"),
        ),
        "canp": (
            "Conditional Neural Process with attention, no latent",
            lambda t: _neural_process(t, False, True, "conditional-prior", attention=True),
        ),
        "bnp": ("Bootstrapping Neural Process: particles are resamples of the context", _bnp),
        "si-np": ("Neural Process trained by importance-weighted EM, the guide as prior and proposal", _si_np),
        "convcnp": ("Convolutional Conditional Neural Process", lambda t: _conditional(convolutional(t))),
        "tnp-d": ("Transformer Neural Process, diagonal", lambda t: _conditional(transformer(t))),
        "dnp": ("distance-informed process: a global latent, local ones read by distance", _dnp),
        "tv-inr": ("temporal variational implicit representation: a network of time that a latent modulates", _tv_inr),
        "metamodulation": (
            "few-shot classes: prototypes in a space whose layers a latent scales and shifts",
            _metamodulation,
        ),
        "maml": ("network weights adapted by gradient steps from one start", _maml),
        "cavia": ("a decoder's input adapted by gradient steps from zero", _cavia),
        "mean-field": ("amortised mean-field Gaussian over the weights", _mean_field),
        "mc-dropout": ("dropout at one fixed rate: cannot adapt to a task", _mc_dropout),
    },
    "guidebook list models",
)


#: which parts of a method a TaskShape may name
PARTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("nvdp", "nvdp+path", "nvdp-no-prior", "nvdp-stop-prior", "nvdp-sum", "nvdp-layer", "nvdp-full", "mean-field"),
        ("pooling", "path", "input_features"),
    ),
    "nvdp+det": ("pooling", "input_features"),
    "mc-dropout": ("path", "input_features"),
    "bnnp": ("input_features",),
    **dict.fromkeys(("nmdp", "nmdp-conjugate"), ("pooling", "path", "experts")),
    "nmdp-attention": ("pooling", "path"),
    **dict.fromkeys(("nmdp-strict", "nmdp-kernels"), ("pooling",)),
    **dict.fromkeys(("np", "np+vp", "tv-inr"), ("pooling",)),
    **dict.fromkeys(("cnp", "np+cnp", "np+cnp+vp", "anp"), ("pooling", "path")),
    "canp": ("path",),
    "cnp+path": ("path",),
}


def build(name: str, task: TaskShape) -> Method:
    """Builds a method.

    Raises:
        ValueError: unknown name, or a part that the method does not have.
    """
    built = METHODS.find(name)[1]
    has = PARTS.get(name, ())
    for part in ("pooling", "path", "input_features", "experts"):
        value = getattr(task, part)
        if value is not None and part not in has:
            raise ValueError(f"{part}: got {value!r}; of {name} one can name {' and '.join(has) or 'no part'}")
    model, guide, objective = built(task)
    return Method(name, model, guide, objective)
