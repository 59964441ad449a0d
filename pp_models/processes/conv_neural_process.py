"""Convolutional conditional neural processes: on a line, and on the pixels of an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from pp_models.arguments import FEATURES, LAYERS, MOST_LAYERS, NOT_NEGATIVE, POSITIVE, WIDTH, checked, each, integer
from pp_models.data import DataError, Dataset
from pp_models.likelihoods import Likelihood
from pp_models.parameter_module import mlp
from pp_models.processes.conditional_process import ConditionalProcess
from pp_models.single_precision import single

#: points of a lattice, or pixels
MOST_LATTICE = 2**22


class ConvNeuralProcess(ConditionalProcess):
    """ConvCNP (Gordon et al. 2020): context onto a grid, a convolutional network on the grid, the grid to the inputs.

    One input dimension: a set convolution smooths the context onto a lattice (how dense it is there, and its weighted
    mean), a U-Net transforms the lattice, a second set convolution reads it at the inputs asked. Each task has its own
    stretch of lattice, as long for all, with its middle near that of the task's inputs. The lattice points are
    multiples of a spacing whatever the task, so that inputs moved by a multiple of ``2**levels / points_per_unit`` give
    the same predictions, and other inputs asked change a prediction through the ends of the stretch alone.

    Two input dimensions: images, ``image_size`` pixels whose coordinates span [-1, 1]² (as image tasks have them). The
    first convolution, with positive weights, is normalised by that of the mask; residual blocks of depthwise-separable
    convolutions follow. An input between pixels is taken at the nearest, and of two context points in a pixel one
    counts.

    Args:
        dim_x: input width, 1 or 2.
        dim_y: output width (number of classes for a categorical likelihood).
        width: channels.
        points_per_unit: lattice points per unit of x (one dimension).
        extent: the longest stretch of inputs, contexts and targets together, in units of x (one dimension).
        margin: lattice on each side beyond that, in units of x (one dimension).
        levels: halvings of the U-Net (one dimension).
        image_size: height and width in pixels (two dimensions).
        num_blocks: residual blocks (two dimensions).
        kernel_size: of the convolutions.
        likelihood: as for BayesianNetwork; the per-point Gaussian head (floor 0.1) by default.

    Raises:
        ValueError: an argument out of range, or an image model without its size.
    """

    @checked(
        dim_x=FEATURES,
        dim_y=FEATURES,
        width=WIDTH,
        points_per_unit=POSITIVE,
        extent=POSITIVE,
        margin=NOT_NEGATIVE,
        levels=integer(1, 16),
        image_size=each(WIDTH, 2, 2, "be (height, width), each at least 1"),
        num_blocks=LAYERS,
        kernel_size=integer(1, MOST_LAYERS),
    )
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        width: int = 64,
        *,
        points_per_unit: float = 32.0,
        extent: float = 4.0,
        margin: float = 0.5,
        levels: int = 4,
        image_size: tuple[int, int] | None = None,
        num_blocks: int = 4,
        kernel_size: int = 5,
        likelihood: str | Likelihood = "gaussian-head",
    ) -> None:
        super().__init__(dim_x, dim_y, likelihood)
        if dim_x not in (1, 2):
            raise ValueError(f"dim_x: got {dim_x}; it must be 1 (a line) or 2 (an image)")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {kernel_size}; it must be odd and positive")
        if dim_x == 2 and image_size is None:
            raise ValueError("image_size: got None; with dim_x = 2 it must be (height, width)")
        if dim_x == 1 and (points := (extent + 2 * margin) * points_per_unit) > MOST_LATTICE:
            raise ValueError(
                f"points_per_unit: got {points_per_unit:g} over extent + 2 margin = {extent + 2 * margin:g}, a lattice "
                f"of {points:.2g} points; it must have at most {MOST_LATTICE:,}"
            )
        if dim_x == 2 and image_size is not None and math.prod(image_size) > MOST_LATTICE:
            raise ValueError(f"image_size: got {tuple(image_size)}; it must have at most {MOST_LATTICE:,} pixels")
        channels = dim_y + 1
        self.grid: LineConvolution | ImageConvolution
        if dim_x == 1:
            self.grid = LineConvolution(channels, width, points_per_unit, extent, margin, levels, kernel_size)
        else:
            assert image_size is not None
            self.grid = ImageConvolution(channels, width, image_size, num_blocks, kernel_size)
        self.head = mlp([width, width, self.outputs])

    def check(self, data: Dataset) -> None:
        super().check(data)
        if isinstance(self.grid, LineConvolution) and data.num_points:
            x = data.x.squeeze(-1)
            self.grid.stretch(x, data.full_mask())

    def decode(self, asked: Dataset, context: Dataset, *latents: Tensor) -> Tensor:
        """See :meth:`ConditionalProcess.decode`.

        Raises:
            DataError: a task's inputs stretch over more than ``extent``.
        """
        return self.head(self.grid(asked, context))


def share(smoothed: Tensor, density: Tensor) -> Tensor:
    """Smoothed values by the density of the points that they are of, near 0 where there is none; by float32 at least,
    for the square of a small density, which the gradient is divided by, has no place in 16 bits."""
    return (single(smoothed) / (single(density) + 1e-5)).to(smoothed.dtype)


class LineConvolution(nn.Module):
    """Set convolution, U-Net and set convolution on a lattice; see :class:`ConvNeuralProcess`."""

    def __init__(
        self,
        channels: int,
        width: int,
        points_per_unit: float,
        extent: float,
        margin: float,
        levels: int,
        kernel_size: int,
    ) -> None:
        super().__init__()
        self.extent, self.spacing = float(extent), 1.0 / points_per_unit
        self.coarse = 2**levels
        # one coarse cell more, for the stretch begins at a multiple of the coarse spacing
        cells = (extent + 2 * margin) * points_per_unit / self.coarse
        self.size = self.coarse * (math.ceil(cells) + 1)
        self.log_scales = nn.Parameter(torch.full((2,), math.log(2 * self.spacing)))
        self.lift = nn.Conv1d(channels, width, 1)
        self.net = UNet(width, levels, kernel_size)

    def lattice(self, asked: Dataset, context: Dataset) -> Tensor:
        """Positions ``[P, size]`` of each task's lattice points.

        Raises:
            DataError: the inputs of a task stretch over more than ``extent``.
        """
        # one place more, which holds no point, for an extremum over none is not defined
        x = torch.cat([asked.x, context.x, asked.x.new_zeros(asked.x.shape[0], 1, 1)], -2).squeeze(-1)
        mask = torch.cat([asked.full_mask(), context.full_mask(), torch.zeros_like(x[..., -1:], dtype=torch.bool)], -1)
        low, high = self.stretch(x, mask)
        middle = torch.where(mask.any(-1), 0.5 * (low + high), torch.zeros_like(low))
        step = self.coarse * self.spacing
        first = torch.floor(middle / step - 0.5 * self.size / self.coarse + 0.5) * step
        return first.unsqueeze(-1) + self.spacing * torch.arange(self.size, dtype=x.dtype, device=x.device)

    def stretch(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest input of each task ``[P]``, of inputs and mask ``[P, N]``.

        Raises:
            DataError: they are further apart than ``extent``.
        """
        low = x.masked_fill(~mask, torch.inf).amin(-1)
        high = x.masked_fill(~mask, -torch.inf).amax(-1)
        # as in Dataset, looked at on the host alone; of a compiled step by ConvNeuralProcess.check
        if x.numel() and x.device.type == "cpu" and not torch.compiler.is_compiling():
            widest = float((high - low).max())
            if widest > self.extent * (1 + 1e-6):
                raise DataError(f"x: a task's inputs stretch over {widest:g}; this model was built for {self.extent:g}")
        return low, high

    def forward(self, asked: Dataset, context: Dataset) -> Tensor:
        """Features ``[P, N, width]`` at the inputs asked."""
        assert context.y is not None and context.mask is not None
        lattice = self.lattice(asked, context)
        inward, outward = -0.5 * (-2 * self.log_scales).exp()
        near = torch.exp(inward * (lattice.unsqueeze(-1) - context.x.mT).square()) * context.mask.unsqueeze(-2)
        density = near.sum(-1, keepdim=True)
        if context.observed is None:
            mean = share(near @ context.y, density)
        else:  # of each output the mean of the points where it is known
            mean = share(near @ context.y, near @ context.observed.to(near.dtype))
        features = self.net(self.lift(torch.cat([density, mean], -1).mT))
        weights = torch.softmax(outward * (asked.x - lattice.unsqueeze(-2)).square(), -1)
        return weights @ features.mT


class UNet(nn.Module):
    """A one-dimensional U-Net: each level halves the lattice, and on the way up reads what it was on the way down."""

    def __init__(self, width: int, levels: int, kernel_size: int) -> None:
        super().__init__()
        pad = kernel_size // 2
        self.down = nn.ModuleList([nn.Conv1d(width, width, kernel_size, 2, pad) for _ in range(levels)])
        self.up = nn.ModuleList([nn.Conv1d(2 * width, width, kernel_size, 1, pad) for _ in range(levels)])

    def forward(self, grid: Tensor) -> Tensor:
        """``[P, width, size]`` to the same shape; the size is a multiple of ``2**levels``."""
        hidden, passed = grid, []
        for conv in self.down:
            passed.append(hidden)
            hidden = relu(conv(hidden))
        for conv in self.up:
            wide = hidden.repeat_interleave(2, -1)
            hidden = relu(conv(torch.cat([wide, passed.pop()], -2)))
        return hidden


class ImageConvolution(nn.Module):
    """Normalised convolution of the context's pixels and residual blocks; see :class:`ConvNeuralProcess`."""

    def __init__(
        self, channels: int, width: int, image_size: tuple[int, int], num_blocks: int, kernel_size: int
    ) -> None:
        super().__init__()
        self.height, self.width = (int(size) for size in image_size)
        # the smoothing of the first layer reaches further, to the nearest of few context pixels
        self.smooth = nn.Conv2d(1, 1, 2 * kernel_size - 1, padding=kernel_size - 1, bias=False)
        self.lift = nn.Conv2d(channels, width, 1)
        self.blocks = nn.ModuleList([ResidualBlock(width, kernel_size) for _ in range(num_blocks)])

    def pixel(self, x: Tensor) -> Tensor:
        """Index ``[P, N]`` of the nearest pixel, row-major, of coordinates ``[P, N, 2]``."""
        size = x.new_tensor([self.height - 1, self.width - 1])
        place = (0.5 * (x + 1) * size).round().clamp(min=x.new_zeros(2), max=size).long()
        return place[..., 0] * self.width + place[..., 1]

    def forward(self, asked: Dataset, context: Dataset) -> Tensor:
        """Features ``[P, N, width]`` at the inputs asked."""
        assert context.y is not None and context.mask is not None
        pixels = self.height * self.width
        # points that do not exist go to one more place, which is then dropped
        index = self.pixel(context.x).masked_fill(~context.mask, pixels).unsqueeze(-1)
        values = torch.cat([torch.ones_like(context.y[..., :1]), context.y], -1)
        if context.observed is not None:
            values = torch.cat([values, context.observed.to(values.dtype)], -1)
        image = values.new_zeros(values.shape[0], pixels + 1, values.shape[-1])
        image = image.scatter(-2, index.expand(values.shape), values)[:, :-1]
        image = image.mT.unflatten(-1, (self.height, self.width))
        smoothed = torch.nn.functional.conv2d(
            single(image.flatten(0, 1).unsqueeze(1)), single(self.smooth.weight.abs()), padding=self.smooth.padding
        ).reshape(image.shape)
        channels = context.y.shape[-1]
        density, sums, known = smoothed.split([1, channels, smoothed.shape[1] - 1 - channels], 1)
        # of each output the mean of the pixels where it is known
        mean = share(sums, known if known.shape[1] else density)
        hidden = self.lift(torch.cat([density, mean], 1).to(image.dtype))
        for block in self.blocks:
            hidden = block(hidden)
        hidden = hidden.flatten(-2).mT
        at = self.pixel(asked.x).unsqueeze(-1).expand(*asked.x.shape[:-1], hidden.shape[-1])
        return hidden.gather(-2, at)


class ResidualBlock(nn.Module):
    """Two depthwise-separable convolutions around a residual connection."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2, groups=width),
                nn.Conv2d(width, width, 1),
            )
            for _ in range(2)
        )

    def forward(self, grid: Tensor) -> Tensor:
        """``[P, width, H, W]`` to the same shape."""
        hidden = grid
        for convolution in self.convolutions:
            hidden = convolution(relu(hidden))
        return grid + hidden
