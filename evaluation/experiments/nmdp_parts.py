"""What NMDP's experiments share: pairs of one size and one floor, how they are trained, and how they are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from evaluation.experiments.experiment import Workshop
from guides import DirichletMixtureGuide, NeuralProcessGuide
from inference import predict
from inference.objectives import make
from pp_models import GaussianHeadLikelihood, MixtureDensityNetwork, NeuralProcess, TaskBatch

Pair = tuple[nn.Module, nn.Module]


class Size(NamedTuple):
    """Size of a run.

    Args:
        steps: optimizer steps.
        width: hidden width of every network.
        num_experts: L.
        particles: B.
        batch_size: tasks a step.
        test_tasks: test tasks.
        draws: posterior draws that a joint log-likelihood rests on.
        learning_rate: of Adam, falling linearly to a hundredth.
    """

    steps: int
    width: int
    num_experts: int
    particles: int
    batch_size: int
    test_tasks: int
    draws: int
    learning_rate: float = 1e-3


def mixture(
    dim_x: int,
    dim_y: int,
    size: Size,
    experts: str,
    min_scale: float,
    pooling: str = "mean",
    num_experts: int = 0,
    spread: float = 1.0,
) -> Callable[[], Pair]:
    """Builds NMDP: a mixture of "strict" or "context" experts and its Dirichlet guide; ``spread`` as for the model."""

    def build() -> Pair:
        model = MixtureDensityNetwork(
            num_experts or size.num_experts,
            dim_x,
            dim_y,
            experts,
            min_scale=min_scale,
            width=size.width,
            representation_dim=size.width,
            spread=spread,
        )
        return model, DirichletMixtureGuide(model, size.width, pooling=pooling)

    return build


#: latent path, deterministic path, attention
PROCESSES = {
    "CNP": (False, True, False),
    "CANP": (False, True, True),
    "NP": (True, False, False),
    "ANP": (True, True, True),
}


def process(kind: str, dim_x: int, dim_y: int, size: Size, min_scale: float) -> Callable[[], Pair]:
    """Builds a neural process with the same widths and floor."""
    latent, path, attention = PROCESSES[kind]

    def build() -> Pair:
        model = NeuralProcess(
            dim_x,
            dim_y,
            latent_dim=size.width if latent else 0,
            representation_dim=size.width if path else 0,
            attention=attention,
            width=size.width,
            likelihood=GaussianHeadLikelihood(min_scale),
        )
        return model, NeuralProcessGuide(model, size.width)

    return build


def objective(name: str, size: Size) -> Any:
    """What trains a method of this name: importance-weighted EM for NMDP, the neural processes' own for the others."""
    if name.startswith("NMDP"):
        return make("iw-em", num_particles=size.particles, normalize=True)
    latent = PROCESSES[name][0]
    return make("npvi" if latent else "conditional-prior", kl_reduction="sum", normalize=True)


def train_with(
    workshop: Workshop,
    key: str,
    label: str,
    build: Callable[[], Pair],
    objective: Any,
    stream: Any,
    seed: int,
    size: Size,
) -> tuple[Pair, list[dict[str, float]]]:
    """A pair trained with a seed (or read back from its checkpoint), ready to predict, and its history."""
    model, guide, history = workshop.fit(
        key,
        label,
        build,
        stream,
        seed,
        objective=objective,
        steps=size.steps,
        learning_rate=size.learning_rate,
        final_learning_rate=size.learning_rate / 100,
        max_grad_norm=10.0,
    )
    return (model.eval(), guide.eval()), history


def train(
    workshop: Workshop, key: str, name: str, build: Callable[[], Pair], stream: Any, seed: int, size: Size
) -> Pair:
    """A pair trained with the objective that belongs to its name."""
    short = name.lower().replace(", ", "-").replace(" ", "-")
    return train_with(workshop, key, short, build, objective(name, size), stream, seed, size)[0]


def scores(pair: Pair, batches: Iterable[TaskBatch], draws: int, seed: int = 0) -> pd.DataFrame:
    """Scores at the target points, one row a task.

    Columns: ``m`` (context points); ``ll``, the marginal log-likelihood (nats a point, summed over outputs): in closed
    form with the mean weights for a mixture, the log of the mean density over draws for a latent of another kind;
    ``joint_ll``, of all target points together, by the log of the mean over draws, divided by their number; ``mse`` of
    the predictive mean.
    """
    model, guide = pair
    rows = []
    for i, batch in enumerate(batches):
        y = batch.target.y
        assert y is not None
        drawn = predict(model, guide, batch.context, batch.target.x, draws, seed=seed + i)
        closed = isinstance(model, MixtureDensityNetwork)
        shown = predict(model, guide, batch.context, batch.target.x, 1, weights="mean", seed=seed) if closed else drawn
        columns = {
            "m": batch.context.counts,
            "ll": shown.log_prob(y).mean(-1),
            "joint_ll": drawn.joint_log_prob(y) / y.shape[-2],
            "mse": (shown.mean - y).square().mean((-1, -2)),
        }
        rows.append(pd.DataFrame({name: value.double().cpu().numpy() for name, value in columns.items()}))
    return pd.concat(rows, ignore_index=True)


def ceiling(min_scale: float, outputs: int = 1) -> float:
    """The largest log-likelihood a point that a Gaussian floored at ``min_scale`` can reach, summed over outputs."""
    return outputs * float(torch.distributions.Normal(0.0, min_scale).log_prob(torch.tensor(0.0)))


def description(size: Size, experts: str, min_scale: float, outputs: int = 1) -> str:
    """The sentence that every table of NMDP needs: experts, floor and ceiling, L, B, steps."""
    return (
        f"Experts: {experts}. Every scale is at least {min_scale:g}, so no point scores above "
        f"{ceiling(min_scale, outputs):.3f} nats"
        f"{f' (summed over {outputs} outputs)' if outputs > 1 else ''}. L = {size.num_experts} experts, B = "
        f"{size.particles} particles, width {size.width}, {size.steps} steps of {size.batch_size} tasks, Adam "
        f"{size.learning_rate:g} falling to a hundredth; joint log-likelihoods rest on {size.draws} draws."
    )
