"""Models and guides that can be swapped freely, under the names that the comparison uses."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from evaluation.methods import Task
from guides import (
    AmortisedMeanFieldGuide,
    BernoulliExpertGuide,
    BNNWeightGuide,
    MCDropoutGuide,
    NeuralProcessGuide,
)
from pp_models import BayesianNetwork, LearnedGaussianPrior, NeuralProcess


def _network(task: Task, representation: int = 0, learned: bool = False, shared_noise: bool = False) -> BayesianNetwork:
    outputs = task.dim_y if shared_noise else 2 * task.dim_y
    return BayesianNetwork(
        [task.dim_x, *[task.width] * 4, outputs],
        prior=LearnedGaussianPrior("unit") if learned else None,
        likelihood="gaussian" if shared_noise else "gaussian-head",
        representation_dim=representation,
    )


def _process(task: Task, latent: int, path: int, attention: bool = False) -> NeuralProcess:
    return NeuralProcess(task.dim_x, task.dim_y, latent, path, attention, task.width)


#: name -> (what it is, how it is built)
MODELS: dict[str, tuple[str, Callable[[Task], nn.Module]]] = {
    "network": ("network with latent weights, a Gaussian head at each point", _network),
    "network+path": ("the same with a deterministic task representation", lambda t: _network(t, t.width)),
    "network-learned-prior": ("the same with a learned prior, correlated by unit", lambda t: _network(t, learned=True)),
    "network-shared-noise": ("network with latent weights, noise sd 0.1", lambda t: _network(t, shared_noise=True)),
    "np": ("neural process: one global latent", lambda t: _process(t, 128, 0)),
    "np+cnp": ("neural process with a deterministic path", lambda t: _process(t, 128, t.width)),
    "cnp": ("deterministic path alone", lambda t: _process(t, 0, t.width)),
    "anp": ("attentive neural process", lambda t: _process(t, 128, t.width, attention=True)),
}

#: name -> (class, how it is built from a model and a width)
GUIDES: dict[str, tuple[type[nn.Module], Callable[[nn.Module, int], nn.Module]]] = {
    "bernoulli-expert": (BernoulliExpertGuide, lambda m, w: BernoulliExpertGuide(m, w)),  # type: ignore[arg-type]
    "bnn-weight": (BNNWeightGuide, lambda m, w: BNNWeightGuide(m, width=w)),  # type: ignore[arg-type]
    "mean-field": (AmortisedMeanFieldGuide, lambda m, w: AmortisedMeanFieldGuide(m, w)),  # type: ignore[arg-type]
    "mc-dropout": (MCDropoutGuide, lambda m, w: MCDropoutGuide(m, width=w)),  # type: ignore[arg-type]
    "neural-process": (NeuralProcessGuide, lambda m, w: NeuralProcessGuide(m, w)),  # type: ignore[arg-type]
}
