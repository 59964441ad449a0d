"""The bootstrapping neural process: a guide whose draws are resamples of the context."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from guides.processes.neural_process_guide import require_representation_alone
from guides.set_encoder import SetEncoder
from pp_models.arguments import WIDTH, checked
from pp_models.contract import Guide
from pp_models.data import Dataset
from pp_models.outputs_apart import apart
from pp_models.processes.neural_process import NeuralProcess
from pp_models.task_plates import task_plates


class BootstrapGuide(Guide):
    """r + A r̃, with r the encoding of the context and r̃ that of a bootstrap resample of it (BNP, Lee et al. 2020).

    A resample is drawn by the residual bootstrap: from a resample of the points with replacement the model predicts at
    the context's inputs, and the standardised residuals of the observed outputs, centred, resampled and scaled back,
    are added to that prediction. Nothing of this has a gradient. A, linear and without bias, is the paper's adaptation
    layer: it adds to the first layer of the decoder. Each draw is one resample; predictions average over them, and
    ``weights="mean"`` predicts with the context itself in place of a resample.

    The draws have no density: train with ``npml`` and several particles. Differences from the paper: ``npml`` averages
    the likelihood of all targets jointly, not point by point, and there is no second loss for a decoder without r̃;
    instead the prediction inside the residual bootstrap uses the resample for r̃ as well.

    Args:
        model: a NeuralProcess with ``latent_dim=0`` and without attention.
        width: width of the encoder.
        residual: the residual bootstrap; False for resampled points alone (always so for class indices).

    Raises:
        TypeError: another kind of model.
        ValueError: a model with a latent or with attention.
    """

    name = "bootstrap"
    description = "representations of resampled contexts"

    #: no site depends on another
    independent_sites = True

    @checked(width=WIDTH)
    def __init__(self, model: NeuralProcess, width: int = 128, *, residual: bool = True) -> None:
        super().__init__()
        require_representation_alone(model, "BootstrapGuide")
        self._shared = (model,)  # in a tuple: its parameters are the model's, not the guide's
        self.residual = residual and not model.likelihood.discrete
        size = model.representation_dim
        self.encoder = SetEncoder(model.dim_x, model.dim_y, width, size, missing_outputs=model.missing_outputs)
        self.adapt = nn.Linear(size, size, bias=False)

    def representation(self, data: Dataset, resample: Dataset) -> Tensor:
        """r + A r̃ ``[*B, R]``; leading dimensions broadcast."""
        return self.encoder(data) + self.adapt(self.encoder(resample))

    @torch.no_grad()
    def resampled(self, data: Dataset, shape: torch.Size) -> Dataset:
        """One resample of every context: data ``[*B]`` to ``shape``, which ends in ``*B``.

        A task keeps its number of points and, in the residual bootstrap, their inputs.
        """
        wide = Dataset.unchecked(
            data.x.expand(*shape, *data.x.shape[-2:]),
            None if data.y is None else data.y.expand(*shape, *data.y.shape[len(data.batch_shape) :]),
            data.full_mask().expand(*shape, -1),
            None if data.observed is None else data.observed.expand(*shape, *data.observed.shape[-2:]),
        )
        if not data.num_points:
            return wide
        points = with_replacement(wide)
        if not self.residual:
            return points
        assert wide.y is not None and wide.mask is not None
        model = self._shared[0]
        predicted = model.likelihood(model.decode(wide.x, [self.representation(points, points)]))
        mean, std = predicted.mean, predicted.stddev
        mask = (wide.mask.unsqueeze(-1) if wide.observed is None else wide.observed).to(mean.dtype)
        residuals = (wide.y - mean) / std
        residuals = residuals - (residuals * mask).sum(-2, keepdim=True) / mask.sum(-2, keepdim=True).clamp_min(1.0)
        if wide.observed is None:
            drawn = with_replacement(Dataset.unchecked(wide.x, residuals, wide.mask)).y
        else:  # of each output the residuals that there are
            each, there = apart(residuals, wide.observed)
            found = with_replacement(Dataset.unchecked(each, each, there)).y
            assert found is not None
            drawn = found.squeeze(-1).mT
        return Dataset.unchecked(wide.x, (mean + std * drawn) * mask, wide.mask, wide.observed)

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        """Draws the site ``representation`` ``[*B, R]``; returns it by name."""
        model = self._shared[0]
        model.check(data)
        if data.y is None:
            raise ValueError("data: y is None; a guide reads observed points")
        fn = Resampled(
            lambda shape: self.representation(data, self.resampled(data, shape)),
            lambda: self.representation(data, data),
            data.batch_shape,
            model.representation_dim,
        )
        with task_plates(data.batch_shape, data.x.device):
            return {"representation": pyro.sample("representation", fn)}


def with_replacement(data: Dataset) -> Dataset:
    """As many of each task's existing points, drawn uniformly with replacement, in the places of the old ones."""
    mask = data.full_mask()
    # a task without points draws any place, all of which its mask excludes
    chances = (mask | ~mask.any(-1, keepdim=True)).to(torch.float32).reshape(-1, data.num_points)
    index = torch.multinomial(chances, data.num_points, replacement=True).reshape(mask.shape).unsqueeze(-1)

    def pick(t: Tensor) -> Tensor:
        return t.gather(-2, index.expand(*index.shape[:-1], t.shape[-1]))

    assert data.y is not None
    flat = data.y.dtype == torch.long
    y = pick(data.y.unsqueeze(-1)).squeeze(-1) if flat else pick(data.y)
    return Dataset.unchecked(pick(data.x), y, mask, None if data.observed is None else pick(data.observed))


class NoDensityError(NotImplementedError, ValueError):
    """A density was asked of a distribution that has none."""


class Resampled(TorchDistribution):
    """What a function of resamples gives: it can be drawn and has a central value, but no density.

    Args:
        draw: from a batch shape to values of that shape and one event dimension.
        central: the value without resampling, ``[*B, size]``; its :attr:`mean`.
        batch_shape: ``*B``, or an expansion of it.
        size: of the event.
    """

    arg_constraints = {}  # noqa: RUF012 - torch's own name and type
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        draw: Callable[[torch.Size], Tensor],
        central: Callable[[], Tensor],
        batch_shape: torch.Size,
        size: int,
    ) -> None:
        self._draw, self._central = draw, central
        super().__init__(batch_shape, torch.Size([size]), validate_args=False)

    def expand(self, batch_shape, _instance=None) -> Resampled:
        """The same, drawn anew for each element of the wider batch."""
        return Resampled(self._draw, self._central, torch.Size(batch_shape), self.event_shape[0])

    def rsample(self, sample_shape=()) -> Tensor:
        """Draws ``[*sample_shape, *B, size]``."""
        return self._draw(torch.Size(sample_shape) + self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """The central value, which a mean over draws is not where the function is not linear."""
        return self._central().expand(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Refuses.

        Raises:
            NoDensityError: always.
        """
        raise NoDensityError("guide: the draws of BootstrapGuide are resamples and have no density; train it with npml")
