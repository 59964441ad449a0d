"""The public surface, as the fuzzer calls it: every public callable with right values of what it needs."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from hypothesis import strategies as st
from pyro import poutine
from torch import Tensor, nn

import guidebook as gb
import guides
from evaluation import diagnostics, metrics
from evaluation.scores import calibration_metrics, mixture_uncertainty, task_representation
from inference import objectives
from inference.objectives.table import REGISTRY
from pp_models import Dataset, TaskBatch
from pp_models.tasks import (
    frame_tasks,
    function_tasks,
    gp_tasks,
    image_tasks,
    mixed_offset_tasks,
    regression_tasks,
    task_stream,
)
from pp_models.tasks import trigonometric_tasks as trigonometric
from tests.fuzz.running import Surface
from tests.fuzz.values import FLAGS, floats, integers, names


def stream(batch_size: int = 2) -> Any:
    return gb.tasks.gp("rbf", batch_size, 0, num_context=(3, 4), num_target=(2, 3), max_points=None)


@cache
def batch() -> TaskBatch:
    return stream().batch(0)


def level(y: Tensor) -> None:
    pyro.sample("y", pyro.distributions.Normal(pyro.sample("z", pyro.distributions.Normal(0.0, 1.0)), 1.0), obs=y)


@cache
def level_draws() -> Any:
    return gb.nuts(level, torch.tensor(0.5), num_warmup=2, num_samples=2)


def network() -> Any:
    return gb.BayesianNetwork([1, 4, 2], likelihood="gaussian-head")


def network_pair() -> tuple[Any, Any]:
    model = network()
    return model, guides.AmortisedMeanFieldGuide(model, 4)


def mixture() -> Any:
    return gb.MixtureDensityNetwork(3, 1, 1, width=4, depth=2, representation_dim=4, num_heads=2)


def process(latent: int = 4, representation: int = 0) -> Any:
    return gb.NeuralProcess(1, 1, latent, representation, width=4, depth=2)


def adapted() -> Any:
    backbone = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    return gb.LowRankAdapted(backbone, ["0", "2"], rank=2, likelihood="gaussian", noise_scale=0.3)


def outputs_of(model: Any) -> Any:
    """What a model samples at a few inputs."""
    if isinstance(model, gb.LowRankAdapted):
        return model(Dataset(torch.rand(3, 1)))
    data = Dataset(torch.rand(2, 3, model.dim_x) - 0.5)
    trace = poutine.trace(model).get_trace(data)
    return [site["value"] for site in trace.nodes.values() if site["type"] == "sample"]


def process_outputs(model: Any) -> Any:
    """A process of the size that was asked for, below its guide."""
    own = {gb.NeuralProcess: guides.NeuralProcessGuide, gb.DistanceInformedProcess: guides.DistanceInformedGuide}
    guide = own.get(type(model), guides.ContextPointsGuide)(model, 4)
    x = torch.rand(2, 3, model.dim_x) - 0.5
    return gb.predict(model, guide, Dataset(x, torch.rand(2, 3, model.dim_y)), x, 2).mean


def prior_draws(prior: Any) -> Any:
    return outputs_of(gb.BayesianNetwork([1, 3, 2], prior=prior, likelihood="gaussian-head"))


def likelihood_draws(likelihood: Any) -> Any:
    return likelihood(torch.randn(2, 3, 2)).sample()


def guide_draws(guide: Any) -> Any:
    data = batch().context
    if isinstance(guide, guides.LaplaceAdapterGuide):  # it draws once a curvature is fitted
        return []
    if getattr(guide, "batch_shape", (2,)) == ():
        data = data[0]
    trace = poutine.trace(guide).get_trace(data)
    return [site["value"] for site in trace.nodes.values() if site["type"] == "sample"]


def one_batch(tasks: Any) -> Any:
    found = tasks.batch(0)
    return found.full.x, found.full.y


def loss_of(objective: Any) -> Any:
    model, guide = network_pair()
    if objective.name in ("iw-em",):
        guide = guides.MCDropoutGuide(model)
    with contextlib.suppress(NotImplementedError):
        objective.differentiable_loss(model, guide, batch()).backward()
        return [p.grad for p in [*model.parameters(), *guide.parameters()] if p.grad is not None]
    return []


def fitted(result: Any) -> Any:
    return [p.detach() for p in [*result.model.parameters(), *result.guide.parameters()]]


def fit(**options: Any) -> Any:
    if "model" not in options:
        model, guide = network_pair()
        options = {"model": model, "guide": guide} | options
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(options.get("checkpoint_dir"), str) and options["checkpoint_dir"] == "a folder":
            options["checkpoint_dir"] = folder
        return gb.fit(**options)


def in_folder(call: Any, argument: str) -> Any:
    """A call that writes, in a folder that is gone afterwards."""

    def inside(**options: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            if isinstance(options.get(argument), str) and options[argument] == "a folder":
                options[argument] = str(Path(folder) / "new")
            return call(**options)

    inside.__signature__ = __import__("inspect").signature(call)  # type: ignore[attr-defined]
    return inside


def prediction(draws: int = 8) -> Any:
    model, guide = network_pair()
    return gb.predict(model, guide, batch().context, batch().full.x, draws, seed=0)


def tensors(*shape: int, low: float | None = None, **options: Any) -> st.SearchStrategy:
    """Random tensors of a shape."""

    def make(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (value if low is None else low + value.abs()).to(options.get("dtype", torch.float32))

    return st.builds(make, st.integers(0, 5))


def made(make: Any) -> st.SearchStrategy:
    """What is made anew for each call."""
    return st.builds(make)


@cache
def readings() -> pd.DataFrame:
    """A table of six tasks."""
    table = pd.DataFrame({"id": np.repeat(np.arange(6), 3), "x": np.arange(18) % 5 / 3.0, "y": np.arange(18) % 7 / 2.0})
    return table.assign(kind=["a", "b"] * 9)


def table_tasks() -> Any:
    return gb.tasks.from_dataframe(readings(), "id", "x", "y", batch_size=2)


def pairs() -> dict[str, st.SearchStrategy]:
    """A model, and a guide that fits it only by its shapes, which is all that one of another instance needs."""
    return {"model": made(network), "guide": made(lambda: network_pair()[1])}


#: a fit that comes with the tests
SAVED = str(Path(__file__).parents[1] / "guidebook" / "saved_by_0_1")
CONTEXT, BATCH = made(lambda: batch().context), made(batch)
SCALED = floats(0.1, 1.0)


def model_surface() -> list[Surface]:
    sizes = {"num_experts": integers(2, 3), "experts": names("context", "strict"), "concentration": SCALED}
    convolution = {"dim_x": integers(1), "points_per_unit": floats(4.0, 8.0), "extent": floats(2.0, 4.0),
                   "margin": floats(0.1), "kernel_size": integers(3), "likelihood": names("gaussian-head")}  # fmt: skip
    distance = {"width": integers(4), "embedding_depth": integers(1, 2), "singular_values": names((0.1, 1.0)),
                "likelihood": names("gaussian-head")}  # fmt: skip
    return [
        Surface("BayesianNetwork", gb.BayesianNetwork, {
            "layer_sizes": names([1, 4, 2], (1, 3, 4, 2), np.array([1, 4, 2])), "activation": names("relu", "tanh"),
            "prior": made(gb.FixedGaussianPrior), "representation_dim": integers(0),
        }, outputs_of, 8),
        Surface("BayesianAttentionNetwork", gb.BayesianAttentionNetwork, {
            "width": integers(4, 8), "activation": names("relu"), "prior": made(gb.FixedGaussianPrior),
        }, outputs_of),
        Surface("MixtureDensityNetwork", gb.MixtureDensityNetwork, sizes | {"spread": SCALED}, lambda model: [
            p.detach() for p in model.parameters()
        ]),
        Surface("NeuralProcess", gb.NeuralProcess, {"attention": FLAGS}, process_outputs),
        Surface("ImplicitRepresentation", gb.ImplicitRepresentation, {
            "width": integers(4, 8), "depth": integers(2, 3), "likelihood": names("gaussian-head"),
            "basis": names("fourier", "siren"), "frequencies": integers(1, 4), "lengthscale": SCALED,
            "latent_dim": integers(1, 4), "representation_dim": integers(0, 4), "missing_outputs": FLAGS,
        }, lambda model: [p.detach() for p in model.parameters()]),
        Surface("FiLMNetwork", gb.FiLMNetwork, {
            "layer_sizes": names([1, 4, 1], (1, 3, 1)), "activation": names("relu", "tanh", "sine"),
        }, lambda module: [p.detach() for p in module.parameters()]),
        Surface("ConvNeuralProcess", gb.ConvNeuralProcess, convolution, process_outputs),
        Surface("TransformerNeuralProcess", gb.TransformerNeuralProcess, {}, process_outputs),
        Surface("ConvEmbedding", gb.ConvEmbedding, {
            "image_size": names((8, 8), (9, 12)), "channels": integers(1, 3), "width": integers(4, 8),
            "blocks": integers(1, 2), "groups": integers(1, 2),
        }, lambda module: [p.detach() for p in module.parameters()]),
        Surface("MaskedNetwork", gb.MaskedNetwork, {
            "layer_sizes": names([1, 4, 1], (1, 3, 1)), "activation": names("relu", "tanh"), "keep": floats(0.2, 0.9),
            "likelihood": names("gaussian"), "noise_scale": SCALED, "missing_outputs": FLAGS,
        }, lambda model: [p.detach() for p in model.parameters()]),
        Surface("SpikeAndSlabPrior", gb.SpikeAndSlabPrior, {
            "inclusion": floats(0.1, 0.9), "slab": floats(1.0, 2.0), "spike": floats(0.01, 0.1),
            "scale_by_fan_in": FLAGS,
        }),
        Surface("StudentTPrior", gb.StudentTPrior, {
            "df": floats(0.5, 10.0), "scale": floats(0.1, 2.0), "scale_by_fan_in": FLAGS,
        }),
        Surface("PrototypicalNetwork", gb.PrototypicalNetwork, {
            "num_classes": integers(2, 3), "embedding": made(lambda: nn.Linear(1, 4)),
        }, lambda model: [p.detach() for p in model.parameters()]),
        Surface("ModulatedPrototypicalNetwork", gb.ModulatedPrototypicalNetwork, {
            "num_classes": integers(2, 3), "embedding": made(lambda: gb.FiLMNetwork([1, 4, 3])), "prior_scale": SCALED,
        }, lambda model: [p.detach() for p in model.parameters()]),
        Surface("DistanceInformedProcess", gb.DistanceInformedProcess, distance, process_outputs),
        Surface("LowRankAdapted", gb.LowRankAdapted, {
            "backbone": made(lambda: nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))), "targets": names(["0"], "0"),
            "rank": integers(1, 2), "likelihood": names("gaussian"), "rank_prior": names("log-uniform", "ard"),
            "factor_prior": names("log-uniform", "ard", 0.5), "lora_dropout": floats(0.0, 0.1),
            "trainable": names((), ("1",)), "base_dropout": FLAGS, "fold_draws": names(True, False, None),
        }, lambda model: [p.detach() for p in model.parameters()]),
        Surface("BayesianModule", gb.BayesianModule, {
            "module": made(lambda: nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))),
            "targets": names("all", "last", ["0"]),
            "likelihood": names("gaussian"), "prior": names("fan-in", "normal", "initial"), "prior_scale": SCALED,
            "input_shape": names(None, (1,)), "freeze": FLAGS, "vectorize": FLAGS,
        }, lambda model: [p.detach() for p in model.parameters()]),
        Surface("FixedGaussianPrior", gb.FixedGaussianPrior, {"scale": SCALED, "scale_by_fan_in": FLAGS}, prior_draws),
        Surface("LogUniformPrior", gb.LogUniformPrior, {"low": floats(1e-3), "high": floats(1.0)}, None),
        Surface("LearnedGaussianPrior", gb.LearnedGaussianPrior, {
            "granularity": names("weight", "unit", "layer", "network"), "scale_by_fan_in": FLAGS, "trainable": floats(
            0.0, 0.5, 1.0), "trainable_from": names("last", "first"), "covariance": names("full"), "rank": integers(1),
            "density": SCALED,
        }, prior_draws),
        Surface("GivenGaussianPrior", gb.GivenGaussianPrior, {
            "means": made(lambda: [torch.zeros(3, 2), torch.zeros(2, 4)]),
            "covariances": made(lambda: [torch.ones(3, 2), torch.ones(2, 4)]),
        }, prior_draws),
        Surface("GaussianLikelihood", gb.GaussianLikelihood, {"learn_noise": FLAGS}, likelihood_draws),
        Surface("GaussianHeadLikelihood", gb.GaussianHeadLikelihood, {}, likelihood_draws),
        Surface("DiscretizedLogisticLikelihood", gb.DiscretizedLogisticLikelihood, {
            "components": integers(1, 3), "levels": integers(2, 16), "low": floats(-1.0, 0.0), "high": floats(0.5, 1.0),
        }),
        Surface("MultinomialLikelihood", gb.MultinomialLikelihood, {"total_count": integers(1, 9)}, likelihood_draws),
        Surface("StudentTHeadLikelihood", gb.StudentTHeadLikelihood, {"degrees_of_freedom": floats(3.0, 5.0)},
                likelihood_draws),
        Surface("Dataset", Dataset, {"x": tensors(2, 3, 1), "y": tensors(2, 3, 1)}, None, 6),
        Surface("TaskBatch", TaskBatch, {"context": CONTEXT, "target": made(lambda: batch().target)}, None, 2),
        Surface("TaskBatch.split", TaskBatch.split, {"data": CONTEXT, "n_context": integers(0, 1)}, None, 2),
        Surface("Dataset.pad", Dataset.pad, {"datasets": made(lambda: [batch().context])}, None, 2),
    ]  # fmt: skip


def guide_surface() -> list[Surface]:
    found = []
    own: dict[str, dict[str, Any]] = {
        "AmortisedMeanFieldGuide": {},
        "BernoulliExpertGuide": {"clip": names("logit", "probability"), "rates": names("product", "layer")},
        "BNNWeightGuide": {"hidden": names([4], [4, 4]), "use_activation": FLAGS, "solver": names("primal", "dual")},
        "GaussianVIGuide": {"correlation": names("weight", "unit"), "batch_shape": names((2,), [2])},
        "GlobalInducingGuide": {"data": CONTEXT, "num_inducing": integers(1, 2)},
        "AmortisedNormalGuide": {},
        "AmortisedMultivariateNormalGuide": {},
        "AmortisedLowRankNormalGuide": {"rank": integers(1, 2)},
        "AmortisedImplicitGuide": {
            "rank": integers(1, 2),
            "hidden": names([4], ()),
            "entropy": names("bound", "local"),
        },
        "FlowGuide": {"flow": names("nsf", "maf"), "transforms": integers(1, 2), "hidden": names([4], [4, 4])},
        "MCDropoutGuide": {"rate": floats(0.1, 0.5), "initial_rate": floats(0.1, 0.5)},
        "MAMLGuide": {"steps": integers(0, 2), "learn_rate": FLAGS, "first_order": FLAGS},
    }
    for name, right in own.items():
        right = {"model": made(network)} | right
        # what a guide of other tasks says of the data
        found.append(Surface(f"guides.{name}", getattr(guides, name), right, guide_draws, also=("data",)))
    found.append(
        Surface(
            "guides.RefinedGuide",
            guides.RefinedGuide,
            {
                "guide": made(lambda: network_pair()[1]),
                "model": made(network),
                "steps": integers(0, 2),
                "num_particles": integers(1, 2),
                "gradient": names("stopped", "through"),
            },
            guide_draws,
            1,
        )
    )
    mixtures: dict[str, dict[str, Any]] = {
        "DirichletMixtureGuide": {"concentration_map": names("softplus")},
        "DirichletPosteriorGuide": {},
        "LogisticNormalGuide": {},
        "StickBreakingGuide": {},
        "DeterministicGateGuide": {},
        "UniformMixtureGuide": {},
        "ConjugateRefinement": {"guide": made(lambda: guides.DirichletMixtureGuide(mixture(), 4))},
    }
    for name, right in mixtures.items():
        right = {"model": made(mixture), "path_blocks": integers(0, 1)} | right
        then = guide_draws if name != "ConjugateRefinement" else None
        found.append(Surface(f"guides.{name}", getattr(guides, name), right, then, 2))
    adapters: dict[str, dict[str, Any]] = {
        "RankwiseGuide": {"family": names("rank", "untied"), "init_log_alpha": floats(-4.0, 0.0)},
        "AdapterMeanFieldGuide": {"init_scale": SCALED},
        "MCDropoutAdapterGuide": {"rate": floats(0.1), "where": names("input", "rank")},
        "NestedDropoutAdapterGuide": {"rate": floats(0.1, 0.5), "keep": integers(0, 2)},
        "LaplaceAdapterGuide": {"prior_precision": SCALED, "structure": names("diagonal", "kronecker")},
        "PointAdapterGuide": {},
    }
    for name, right in adapters.items():
        found.append(Surface(f"guides.{name}", getattr(guides, name), {"model": made(adapted)} | right, guide_draws, 2))
    representation = made(partial(process, 0, 4))
    found += [
        Surface("guides.NeuralProcessGuide", guides.NeuralProcessGuide, {"model": made(process)}, guide_draws, 2),
        Surface("guides.BootstrapGuide", guides.BootstrapGuide, {"model": representation}, None, 2),
        Surface("guides.CAVIAGuide", guides.CAVIAGuide, {"model": representation, "steps": integers(0, 1)},
                guide_draws, 2),
        Surface("guides.prune_weights", guides.prune_weights, {
            "model": made(network), "guide": made(lambda: guides.GaussianVIGuide(network())),
            "threshold": floats(3.0, 100.0),
        }, None, 2),
        Surface("guides.prune_experts", guides.prune_experts, {
            "model": made(mixture), "guide": made(lambda: guides.DirichletMixtureGuide(mixture(), 4)), "data": CONTEXT,
            "threshold": floats(0.001, 0.01),
        }, None, 2),
    ]  # fmt: skip
    return found


def objective_surface() -> list[Surface]:
    found = []
    flags = dict.fromkeys(("normalize", "vectorize_particles", "local_reparameterization", "stop_prior_gradient",
                           "doubly_reparameterized", "noise_per_example"), FLAGS)  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "rws": {"wake_theta": floats(1.0), "wake_phi": floats(0.5), "sleep_phi": floats(0.0)},
        "chi2": {"bound": names("forward", "cubo"), "order": floats(2.0)},
        "npml": {"average": names("logmeanexp"), "score": names("target", "full")},
        "iw-em": {"score": names("target", "full"), "min_ess": floats(0.1, 0.5), "inner_steps": integers(1)},
        "tempered-elbo": {"kl_weight": names("elbo")},
        "log-variance": {"exploration": floats(0.0), "temperature": floats(1.0)},
        "program": {"baseline": names("leave-one-out", "running-mean"), "estimators": names("score", "pathwise"),
                    "minimize": FLAGS, "stopped": FLAGS},
    }  # fmt: skip
    for name, entry in REGISTRY.items():
        found.append(
            Surface(f"objectives {name}", entry.load(), flags | own.get(name, {}), loss_of, 3, also=("model", "guide"))
        )
    found.append(
        Surface("objectives.make", objectives.make, {"name": names("elbo", "iwae")}, None, 2, also=("objective",))
    )
    return found


def task_surface() -> list[Surface]:
    numbers = {"num_context": names((1, 2), [1, 3]), "num_target": names((1, 2)), "noise_scale": SCALED,
               "x_range": names((-1.0, 1.0)), "num_points": names((6, 8)),
               "context_share": names((0.2, 0.5))}  # fmt: skip
    of_functions = {k: v for k, v in numbers.items() if k not in ("num_context", "num_target")}
    streams: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("gp", gb.tasks.gp, gp_tasks.GPTasks, numbers | {"kernel": names("rbf", "matern52", "mix", ["rbf"])}),
        ("gp_test", gb.tasks.gp_test, gp_tasks.GPTasks, numbers | {"kernel": names("rbf"), "grid": integers(20)}),
        ("trigonometric", gb.tasks.trigonometric, trigonometric.TrigonometricTasks, {
            "num_context": names((1, 3)), "amplitude": names((1.0, 2.0)), "grid": integers(200), "full_grid": FLAGS}),
        ("sawtooth", gb.tasks.sawtooth, function_tasks.SawtoothTasks, of_functions),
        ("heaviside", gb.tasks.heaviside, function_tasks.HeavisideTasks, of_functions | {"lengthscale": SCALED}),
        ("squared_exponential", gb.tasks.squared_exponential, function_tasks.SquaredExponentialTasks, of_functions),
        ("network_draws", gb.tasks.network_draws, function_tasks.NetworkTasks, of_functions | {"hidden": names((4,))}),
        ("mixed_offset", gb.tasks.mixed_offset, mixed_offset_tasks.MixedOffsetTasks, {"offset": SCALED}),
        ("branches", gb.tasks.branches, None, {"num_target": integers(2)}),
        ("multi_output", gb.tasks.multi_output, regression_tasks.RegressionTasks, {}),
        ("images", gb.tasks.images, image_tasks.ImageTasks, {"name": names("digits"), "split": names("train", "test")}),
    ]  # fmt: skip
    found = [
        Surface(f"tasks.{name}", call, right, one_batch, 3 if name not in ("images", "multi_output") else 1, extra,
                ("images", "table"))
        for name, call, extra, right in streams
    ]  # fmt: skip
    assert task_stream is not None
    own = {"num_context": names((0, None), (1, 2)), "split": names((0.5, 0.25, 0.25)), "max_points": integers(2, 5)}
    arrays = made(lambda: [np.arange(4.0)[:, None], np.arange(3.0)[:, None], np.arange(5.0)[:, None]])
    return found + [
        Surface("tasks.from_dataframe", gb.tasks.from_dataframe, own | {
            "frame": made(readings), "task": names("id", ["id"]), "x": names("x", ["x", "kind"]),
            "y": names("y", ["y"]), "time": names(None), "categorical": names((), []), "classes": names(None, False),
        }, one_batch, 3, frame_tasks.from_dataframe, ("group", "keep_constant", "forecast")),
        Surface("tasks.from_arrays", gb.tasks.from_arrays, own | {"x": arrays, "y": arrays}, one_batch, 3,
                frame_tasks.from_dataframe,
                ("group", "keep_constant", "forecast", "classes", "frame", "task", "time", "categorical")),
        Surface("oracle_predict", gb.oracle_predict, {"batch": BATCH, "x": tensors(2, 3, 1)}, lambda f: f, 2),
        Surface("oracle_log_likelihood", gb.oracle_log_likelihood, {
            "batch": BATCH, "points": names("target", "context", "full")}, lambda f: f, 2),
        Surface("oracle_joint_log_likelihood", gb.oracle_joint_log_likelihood, {"batch": BATCH}, lambda f: f, 2),
    ]  # fmt: skip


def inference_surface() -> list[Surface]:
    rows = [{"loss": float(1 / (i + 1))} for i in range(30)]
    return [
        Surface("fit", fit, {
            "steps": integers(1, 2), "tasks": made(stream), "objective": names("elbo", "iwae", "pp-avi"),
            "schedule": names("constant", "linear", "cosine"), "warmup": floats(0.0, 0.4), "compile": names("auto"),
            "final_learning_rate": floats(1e-4), "stop": names("plateau"), "log_every": integers(1, 5),
            "checkpoint_every": integers(1, 5), "precision": names("32-true", "64-true"),
            "checkpoint_dir": names("a folder"), "resume": FLAGS, "device": names("cpu"),
            "release": names({"model": 1}), "accumulate": integers(1, 2),
        }, fitted, 10, gb.fit, ("model", "guide")),
        Surface("predict", gb.predict, pairs() | {
            "context": CONTEXT, "x": tensors(2, 3, 1), "weights": names("samples", "mean"),
        }, lambda p: (p.mean, p.samples), 6),
        Surface("predict_frame", gb.predict_frame, pairs() | {
            "frame": made(lambda: readings().assign(y=[None, 1.0, 2.0] * 6)), "tasks": made(table_tasks),
            "weights": names("samples", "mean"),
        }, lambda p: (p.mean, p.samples), 3),
        Surface("save", in_folder(gb.save, "folder"), pairs() | {
            "folder": names("a folder"), "tasks": made(table_tasks), "objective": names("elbo", None), "rows": FLAGS,
        }, None, 2),
        Surface("load", gb.load, {"folder": names(SAVED)}, fitted, 2),
        Surface("sample_posterior", gb.sample_posterior, pairs() | {
            "data": CONTEXT, "correct": names("sir", "psis", None)}, lambda f: f, 4),
        Surface("prior_predictive", gb.prior_predictive, {"model": made(network), "x": tensors(2, 3, 1)},
                lambda p: (p.mean, p.samples)),
        Surface("nuts", lambda model, data, num_warmup=2, num_samples=2, num_chains=1, seed=0, target_accept=0.8,
                progress=False: gb.nuts(model, data, num_warmup=num_warmup, num_samples=num_samples, seed=seed,
                                        num_chains=num_chains, target_accept=target_accept, progress=progress), {
            "model": made(network), "data": made(lambda: batch().context[0]), "num_warmup": integers(2),
            "num_samples": integers(2), "num_chains": integers(1), "target_accept": floats(0.5, 0.8),
        }, lambda r: r.draws, 1),
        Surface("swag", gb.swag, {
            "model": made(network), "data": made(lambda: batch().context[0]), "steps": integers(4, 6),
            "warmup": integers(0, 2), "every": integers(1, 2), "rank": integers(2), "path_learning_rate": floats(1e-4),
            "batch_size": integers(1, 2),
        }, None, 2),
        Surface("compare_objectives", gb.compare_objectives, pairs() | {
            "batch": BATCH, "objectives": names(["elbo"], ["iwae"]), "num_particles": names((1, 2), [1]),
            "repeats": integers(2, 3),
        }, None, 2, also=("objective",)),
        Surface("acquisition_scores", gb.acquisition_scores, pairs() | {
            "context": CONTEXT, "x": CONTEXT, "acquisition": names("information")}, lambda f: f, 2),
        Surface("acquire", gb.acquire, pairs() | {
            "pool": CONTEXT, "start": integers(1), "budget": integers(2), "acquisition": names("information", "random"),
        }, None, 2),
        Surface("load_pretrained", gb.load_pretrained, {"name": names("bnnp-gp-rbf-fixed")}, fitted, 2),
        Surface("pretrained", gb.pretrained, {}, lambda table: torch.tensor(table["pll"].to_numpy()), 1),
        Surface("settled", gb.settled, {
            "history": made(lambda: rows), "key": names("loss"), "tolerance": floats(0.01), "errors": floats(2.0)}),
        Surface("log_alpha_learning_rate", gb.log_alpha_learning_rate, {
            "steps": integers(1, 10), "travel": floats(1.0), "schedule": names("linear")}, lambda f: f, 2),
        Surface("parameter_groups", gb.parameter_groups, {
            "model": made(adapted), "steps": integers(1, 10), "travel": floats(1.0), "weight_decay": floats(0.0, 0.1),
            "warmup_steps": integers(0),
        }, lambda groups: [g["lr"] for g in groups], 2),
        Surface("prune_ranks", gb.prune_ranks, {
            "model": made(adapted), "guide": made(lambda: guides.RankwiseGuide(adapted())), "budget": integers(1, 2),
            "min_steps": integers(0), "threshold": names(1.0, "gap"), "allow_empty": FLAGS,
        }, None, 2),
        Surface("LrvdObjective", gb.LrvdObjective, {"num_data": integers(10), "kl_weight": names("elbo", 1e-6)},
                None, 2),
        Surface("LrvdCallback", gb.LrvdCallback, {"prune_every": integers(0, 5), "budget": integers(2)}, None, 2),
    ]  # fmt: skip


def resampled(idata: Any, num_samples: Any = None, seed: Any = 0) -> Any:
    """:func:`guidebook.resample`, whose warning of bad weights is right here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gb.resample(idata, num_samples, seed=seed)


def evaluation_surface() -> list[Surface]:
    container = {"data": CONTEXT, "container": names("auto")}
    found = [
        Surface("to_arviz", gb.to_arviz, pairs() | container, None, 2),
        Surface("from_pyro_svi", lambda model, guide, num_samples=2, seed=None, container="auto", prior=True:
                gb.from_pyro_svi(model, guide, batch().context, num_samples=num_samples, seed=seed, container=container,
                                 prior=prior), pairs() | {"prior": FLAGS}, None, 2),
        Surface("from_pyro_mcmc", gb.from_pyro_mcmc, {
            "mcmc": made(level_draws), "container": names("auto"), "prior": FLAGS}, None, 1),
        Surface("resample", resampled, {
            "idata": made(lambda: gb.to_arviz(*network_pair(), batch().context, 20)), "num_samples": integers(2, 8)},
            None, 1),
        Surface("approximate_loo", gb.approximate_loo, {
            "idata": made(lambda: gb.to_arviz(*network_pair(), batch().context, 20)), "var_name": names(None, "y")},
            None, 1),
        Surface("write_zarr", in_folder(gb.write_zarr, "path"), pairs() | {"data": CONTEXT, "path": names("a folder")},
                None, 1, None, ("path",)),
        Surface("verdict", gb.verdict, pairs() | {
            "tasks": BATCH, "objective": names("elbo", None), "kind": names("posterior", "prediction"),
            "num_simulations": integers(20), "num_samples": integers(50),
        }, None, 1),
        Surface("grade", gb.grade, pairs() | {
            "data": CONTEXT, "reference": made(lambda: gb.sample_posterior(*network_pair(), batch().context, 4)),
            "num_samples": integers(4, 8)}, None, 2),
        Surface("compare", gb.compare, {
            "models": names(["network"]), "guides": names(["mean-field"]), "objectives": names(["elbo"]),
            "tasks": made(stream), "steps": integers(1), "num_simulations": integers(0), "test_tasks": integers(2),
            "draws": integers(2), "snr_repeats": integers(2), "snr_particles": names((1,), ()), "seeds": names((0,)),
            "retry_failed": FLAGS,
        }, None, 1, None, ("out",)),
        Surface("rank_summary", gb.rank_summary, {
            "model": made(adapted), "guide": made(lambda: guides.RankwiseGuide(adapted()))}, None, 1),
    ]  # fmt: skip
    draws, points = tensors(2, 8, 3), made(lambda: batch().full.y)
    weights = {"log_weights": tensors(2, 8, 3)}
    tests = {"a": tensors(6, 2), "b": tensors(6, 2)}
    scored = {"prediction": made(prediction), "y": points}
    classes = {"probs": made(lambda: torch.full((4, 2), 0.5)), "labels": made(lambda: torch.tensor([0, 1, 1, 0]))}
    found += [
        Surface("psis", diagnostics.psis, weights, lambda khat: 0 / (~khat.isnan()).double(), 2),
        Surface("psis_weights", diagnostics.psis_weights, weights, lambda f: f[0], 2),
    ]
    chains: list[tuple[Any, dict[str, Any]]] = [  # of chains of fewer than four draws they are NaN, as in ArviZ
        (diagnostics.rhat, {"draws": draws}),
        (diagnostics.ess, {"draws": draws, "method": names("bulk", "tail", "mean"), "prob": floats(0.5)}),
        (diagnostics.mcse, {"draws": draws, "method": names("mean", "sd")}),
    ]
    found += [Surface(call.__name__, call, right, lambda f: f[~f.isnan()], 2) for call, right in chains]
    table: list[tuple[Any, dict[str, Any]]] = [
        (diagnostics.khat_threshold, {"num_draws": integers(1, 100)}),
        (diagnostics.loo, {"log_likelihood": tensors(2, 8, 3)}), (diagnostics.mmd, tests),
        (diagnostics.energy_distance, tests), (diagnostics.wasserstein, tests),
        (diagnostics.c2st, tests | {"steps": integers(1, 3)}),
        (metrics.log_likelihoods, {"prediction": made(prediction), "batch": BATCH}), (metrics.rmse, scored),
        (metrics.sigma_coverage, scored | {"sigmas": names((1.0,), [0.5, 2.0])}), (metrics.pit, scored),
        (metrics.calibration_error, scored | {"levels": integers(3, 5)}),
        (metrics.interval_coverage, scored | {"levels": names((0.5,), [0.5, 0.9])}),
        (metrics.crps, scored | {"method": names("samples", "gaussian")}),
        (metrics.gaussian_crps, {"mean": tensors(3), "std": tensors(3, low=0.1), "y": tensors(3)}),
        (metrics.mixture_crps, {"weights": made(lambda: torch.full((3, 2), 0.5)), "means": tensors(3, 2),
                                "scales": tensors(3, 2, low=0.1), "y": tensors(3)}),
        (metrics.sample_crps, {"samples": tensors(4, 3), "y": tensors(3)}),
        (metrics.paired_difference, {"a": tensors(4), "b": tensors(4)}),
        (calibration_metrics.accuracy, classes), (calibration_metrics.matthews_correlation, classes),
        (calibration_metrics.negative_log_likelihood, classes), (calibration_metrics.brier_score, classes),
        (calibration_metrics.expected_calibration_error, classes | {"bins": integers(2, 5)}),
        (calibration_metrics.fit_temperature, {"logits": tensors(4, 2), "labels": classes["labels"]}),
        (mixture_uncertainty.mixture_uncertainty, {"alpha": tensors(2, 3, low=0.5)}),
        (mixture_uncertainty.auroc, {"inside": tensors(4), "outside": tensors(4)}),
        (task_representation.picture_coordinates, {"features": tensors(6, 3), "method": names("pca")}),
        (gb.dirichlet_sweeps, {"concentration": tensors(2, 3, low=0.5), "expert_log_likelihood": tensors(2, 4, 3)}),
        (gb.stick_breaking_sweeps, {"a": tensors(2, 2, low=0.5), "b": tensors(2, 2, low=0.5),
                                    "expert_log_likelihood": tensors(2, 4, 3)}),
        (gb.exact_log_evidence, {"expert_log_likelihood": tensors(2, 4, 3), "concentration": tensors(3, low=0.5)}),
        (gb.log_uniform_kl, {"log_alpha": tensors(3), "approximate": FLAGS}),
        (gb.effective_experts, {"usage": made(lambda: torch.full((2, 4), 0.25))}),
        (gb.unused_experts, {"usage": made(lambda: torch.full((2, 4), 0.25))}),
    ]  # fmt: skip
    return found + [Surface(call.__name__, call, right, lambda f: f, 2) for call, right in table]


def command(name: str, **options: Any) -> Any:
    """A command of the command line, its options as words; what it ends with is raised as an error of one line."""
    from guidebook.command_line import main

    with tempfile.TemporaryDirectory() as folder:
        words = [name, "--out", folder] if name != "list" else [name]
        for option, value in options.items():
            words += [f"--{option.replace('_', '-')}", str(value)]
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                main(words)
        except SystemExit as stop:
            if stop.code:
                raise ValueError(
                    errors.getvalue().strip().removeprefix("error: ").replace("--", "").replace("-", "_")
                ) from None


def fit_command(model="nvdp", tasks="gp-rbf", objective="elbo", steps="1", seed="0", width="4", batch_size="1",
                learning_rate="0.001", beta="1", num_particles="1", device="cpu", precision="32-true",
                checkpoint_every="1"):  # fmt: skip
    command("fit", model=model, tasks=tasks, objective=objective, steps=steps, seed=seed, width=width,
            batch_size=batch_size, learning_rate=learning_rate, beta=beta, num_particles=num_particles, device=device,
            precision=precision, checkpoint_every=checkpoint_every)  # fmt: skip


def command_surface() -> list[Surface]:
    """Words that people type."""
    words = names("-1", "0", "nan", "inf", "1e9", "1000000000", "2.5", "no", "", "1")
    right = dict.fromkeys(
        ("steps", "seed", "width", "batch_size", "learning_rate", "beta", "num_particles", "checkpoint_every"), words
    )
    odd = right | {"device": names("cpu", "gpu"), "precision": names("32-true", "half"), "model": names("nvdp", "nvpd")}
    odd["steps"] = names("-1", "0", "nan", "no", "1")
    return [Surface("guidebook fit", fit_command, odd, None, 1, None, tuple(odd) + ("objective", "tasks"))]


def surface() -> list[Surface]:
    """All of it."""
    return [
        *model_surface(), *guide_surface(), *objective_surface(), *task_surface(), *inference_surface(),
        *evaluation_surface(), *command_surface(),
    ]  # fmt: skip
