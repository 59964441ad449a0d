"""Guides that adapt to a context by gradient descent: MAML on the weights of a network, CAVIA on its input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from guides.networks.weight_guide import WeightGuide, initial_weight
from guides.processes.neural_process_guide import require_representation_alone
from pp_models.arguments import MOST_LAYERS, POSITIVE, checked, integer
from pp_models.contract import Guide
from pp_models.data import Dataset
from pp_models.likelihoods import Likelihood, of_observed
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.processes.neural_process import NeuralProcess
from pp_models.single_precision import single
from pp_models.task_plates import task_plates


class InnerGradientDescent(nn.Module):
    """A few steps of gradient descent on the mean negative log-likelihood of each task's context.

    The steps are differentiable, second derivatives included, with respect to where they begin, to the rates and to
    all else that the outputs depend on. Where gradients are off, as in prediction, the steps are taken all the same.

    Args:
        num_values: tensors that are adapted; each has its own rate.
        steps: gradient steps; 0 for none.
        learning_rate: of the steps (where it starts, if learned).
        learn_rate: whether the rates are trained, in log space (Meta-SGD, by tensor).
        first_order: leave out the second derivatives.
        max_grad_norm: each task's gradient is clipped to this norm; None not to.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_values: int,
        steps: int,
        learning_rate: float,
        learn_rate: bool,
        first_order: bool,
        max_grad_norm: float | None,
    ) -> None:
        super().__init__()
        self.steps, self.learning_rate, self.first_order = steps, float(learning_rate), first_order
        self.max_grad_norm = max_grad_norm
        self.log_rates = nn.Parameter(torch.full((num_values,), math.log(learning_rate))) if learn_rate else None

    def forward(
        self,
        data: Dataset,
        start: Sequence[Tensor],
        likelihood: Likelihood,
        outputs: Callable[[Sequence[Tensor]], Tensor],
    ) -> list[Tensor]:
        """The adapted values, ``[*B, *event]`` each.

        Args:
            data: the context, ``*B``; a task without points stays where it starts.
            start: where each value starts, ``[*B, *event]``.
            likelihood: from outputs to the distribution of a point's y.
            outputs: from values to the network's outputs ``[*B, N, K]`` at the context's inputs.
        """
        if data.y is None:
            raise ValueError("data: y is None; a guide reads observed points")
        outer = torch.is_grad_enabled()
        second_order = outer and not self.first_order
        values = list(start)
        for _ in range(self.steps if data.num_points else 0):
            # fused attention has no second derivative
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if second_order else nullcontext():
                at = [v if second_order and v.requires_grad else v.detach().requires_grad_() for v in values]
                loss = context_loss(likelihood(outputs(at)), data).sum()
                gradients = list(torch.autograd.grad(loss, at, create_graph=second_order))
            if self.max_grad_norm is not None:
                gradients = clipped(gradients, len(data.batch_shape), self.max_grad_norm)
            # from `values`, so that with first_order the identity part of the derivative stays
            origin = at if second_order else values
            values = [v - self.rate(i) * g for i, (v, g) in enumerate(zip(origin, gradients, strict=True))]
        return values

    def rate(self, index: int) -> float | Tensor:
        """The rate of a value."""
        return self.learning_rate if self.log_rates is None else self.log_rates[index].exp()


def context_loss(distribution: TorchDistribution, data: Dataset) -> Tensor:
    """Mean negative log-density over the existing points of each task ``[*B]``, 0 for a task without points."""
    assert data.y is not None
    log_density = of_observed(distribution, data.observed).log_prob(data.y)
    if data.mask is not None:
        log_density = torch.where(data.mask, log_density, torch.zeros_like(log_density))
    return -log_density.sum(-1) / data.counts.clamp_min(1.0)


def clipped(gradients: list[Tensor], batch_dims: int, most: float) -> list[Tensor]:
    """Gradients ``[*B, *event]`` scaled down where their joint norm in a task exceeds ``most``."""
    squares = sum(single(g).flatten(batch_dims).square().sum(-1) for g in gradients)
    # a square root has no derivative at 0, where the gradient of a task without points is
    factor = (most / (squares + 1e-12).sqrt()).clamp_max(1.0)  # type: ignore[union-attr]
    return [g * factor.to(g.dtype).reshape(*factor.shape, *[1] * (g.dim() - batch_dims)) for g in gradients]


class MAMLGuide(WeightGuide):
    """Point masses on the weights: one shared start, moved by gradient steps on the context (MAML, Finn et al. 2017).

    A step descends the mean negative log-likelihood of the context's points, each task by itself; the start is trained
    through the steps. Train with ``npml`` and one particle. Under an objective with a KL the prior's log-density at the
    adapted weights is added.

    Args:
        model: the network.
        width: not used, for there is no network here; every guide is made of a model and a width.
        steps: gradient steps on the context.
        learning_rate: of those steps (where it starts, if learned).
        learn_rate: train a rate for each layer.
        first_order: leave out second derivatives (FOMAML).
        max_grad_norm: clip each task's inner gradient to this norm; None not to.

    Raises:
        ValueError: an argument out of range, or a model with a representation.
    """

    name = "maml"
    description = "weights adapted by gradient steps from one start"

    @checked(steps=integer(0, MOST_LAYERS), learning_rate=POSITIVE, max_grad_norm=POSITIVE)
    def __init__(
        self,
        model: BayesianNetwork,
        width: int = 0,
        *,
        steps: int = 5,
        learning_rate: float = 0.1,
        learn_rate: bool = False,
        first_order: bool = False,
        max_grad_norm: float | None = 10.0,
    ) -> None:
        super().__init__(model)
        if model.representation_dim:
            raise ValueError(
                f"model: it has representation_dim = {model.representation_dim}, which MAMLGuide does not supply; it "
                "must be 0"
            )
        if model.path is not None:
            raise ValueError("model: it has a path, which MAMLGuide does not supply; build it with path=None")
        self._shared = (model,)  # in a tuple: its parameters are the model's, not the guide's
        self.weights = nn.ParameterList([nn.Parameter(initial_weight(shape)) for shape in self.shapes])
        self.descent = InnerGradientDescent(
            len(self.shapes), steps, learning_rate, learn_rate, first_order, max_grad_norm
        )

    def layer_distributions(self, data: Dataset) -> list[TorchDistribution]:
        model = self._shared[0]
        model.check(data)

        def outputs(weights: Sequence[Tensor]) -> Tensor:
            def layer(index: int, inputs: Tensor) -> Tensor:
                weight = weights[index]
                return inputs @ weight[..., :-1].mT + weight[..., -1].unsqueeze(-2)

            return model.propagate(model.network_input(data.x), layer, data.mask)

        start = [weight.expand(*data.batch_shape, *weight.shape) for weight in self.weights]
        return [dist.Delta(w, event_dim=2) for w in self.descent(data, start, model.likelihood, outputs)]


class CAVIAGuide(Guide):
    """A point mass on the representation: gradient steps from zero through the model's decoder (CAVIA, Zintgraf et al.
    2019).

    Only the task's representation, an input of the decoder, moves; the decoder's weights are shared by all tasks and
    trained through the steps. The guide has no parameters unless its rate is learned. Train with ``npml`` and one
    particle.

    Args:
        model: a NeuralProcess with ``latent_dim=0`` and without attention.
        width: not used, for there is no network here; every guide is made of a model and a width.
        steps: gradient steps on the context.
        learning_rate: of those steps (where it starts, if learned).
        learn_rate: train the rate.
        first_order: leave out second derivatives.
        max_grad_norm: clip each task's inner gradient to this norm; None not to.

    Raises:
        TypeError: another kind of model.
        ValueError: an argument out of range, or a model with a latent or with attention.
    """

    name = "cavia"
    description = "a decoder's input adapted by gradient steps"

    #: no site depends on another
    independent_sites = True

    @checked(steps=integer(0, MOST_LAYERS), learning_rate=POSITIVE, max_grad_norm=POSITIVE)
    def __init__(
        self,
        model: NeuralProcess,
        width: int = 0,
        *,
        steps: int = 5,
        learning_rate: float = 0.1,
        learn_rate: bool = False,
        first_order: bool = False,
        max_grad_norm: float | None = 10.0,
    ) -> None:
        super().__init__()
        require_representation_alone(model, "CAVIAGuide")
        self._shared = (model,)  # in a tuple: its parameters are the model's, not the guide's
        self.representation_dim = model.representation_dim
        self.descent = InnerGradientDescent(1, steps, learning_rate, learn_rate, first_order, max_grad_norm)

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Sets the site ``representation`` ``[*B, R]``; returns it by name."""
        model = self._shared[0]
        model.check(data)

        def outputs(values: Sequence[Tensor]) -> Tensor:
            return model.decode(data.x, [values[0]])

        start = data.x.new_zeros(*data.batch_shape, self.representation_dim)
        (found,) = self.descent(data, [start], model.likelihood, outputs)
        with task_plates(data.batch_shape, data.x.device):
            return {"representation": pyro.sample("representation", dist.Delta(found, event_dim=1))}
