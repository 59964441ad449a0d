"""Gaussian-process regression tasks on a line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pp_models.arguments import NOT_NEGATIVE, NUMBER, POINTS, checked, integer, interval
from pp_models.data import Dataset, TaskBatch
from pp_models.tasks.gp_kernels import (
    KERNELS,
    HyperParameters,
    Range,
    covariance,
    hyperparameter_ranges,
    kernel_names,
    noise_variance,
)
from pp_models.tasks.point_counts import PointCounts, random_subsets
from pp_models.tasks.task_stream import TaskStream


class GPTasks(TaskStream):
    """Each task is a function drawn from a zero-mean GP, seen through Gaussian noise at random inputs.

    The defaults are NVDP's training tasks (its 1-D regression experiment, code release): m ~ U{4..96} context points,
    m + 1 to 99 points in all, x ~ U[-2, 2], noise of standard deviation 0.02, an RBF kernel with random
    hyper-parameters. ``TNP_COUNTS`` gives the counts of the TNP sampler. With ``grid`` set, every task is seen on that
    many evenly spaced inputs, m of them (another random m for each task) as context and all others as target.

    Batches are ``x [T, N, 1]``, ``y [T, N, 1]``; ``truth`` holds ``kernel`` (long, index into ``gp_kernels.KERNELS``),
    ``lengthscale``, ``scale``, ``period`` and ``noise`` (standard deviation), float64 ``[T]``, for ``gp_oracle``.

    Args:
        kernel: ``"rbf"``, ``"matern52"``, ``"periodic"``, ``"weakly-periodic"``, ``"mix"`` (rbf, weakly-periodic and
            matern52), or several joined by ``+`` or in a sequence; a mix draws one uniformly for each task.
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
        hyperparameters: ``"random"``, ``"fixed"``, ``"convcnp"``, ``"dnp"``, or a ``HyperParameters``.
        noise_scale: standard deviation of the observation noise, in units of y.
        num_context, num_target, max_points: see ``PointCounts``; with ``grid`` only ``num_context`` counts.
        x_range: ends of the interval of inputs.
        grid: number of evenly spaced inputs of the test protocol; None for random inputs.
        dtype: of x and y; draws and Cholesky factors are float64 whatever it is.

    Raises:
        ValueError: a kernel or preset name is unknown, or a number is out of its range.

    Example:
        >>> batch = next(GPTasks("rbf+matern52", batch_size=8, seed=1))
        >>> batch.context.x.shape[0]
        8
    """

    @checked(noise_scale=NOT_NEGATIVE, x_range=interval(NUMBER), grid=POINTS)
    def __init__(
        self,
        kernel: str | Sequence[str] = "rbf",
        batch_size: int = 16,
        seed: int = 0,
        *,
        hyperparameters: str | HyperParameters = "random",
        noise_scale: float = 0.02,
        num_context: tuple[int, int] = (4, 96),
        num_target: tuple[int, int | None] = (1, None),
        max_points: int | None = 99,
        x_range: tuple[float, float] = (-2.0, 2.0),
        grid: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(batch_size, seed)
        self.kernels = kernel_names(kernel)
        self.ranges = hyperparameter_ranges(hyperparameters)
        if grid is not None:
            if grid <= (most := interval(integer(0), strict=False).check("num_context", num_context)[1]):
                raise ValueError(f"grid: got {grid}; it must exceed the most context points, {most}")
            num_target, max_points = (1, None), grid
        self.counts = PointCounts(num_context, num_target, max_points)
        self.noise_scale = noise_scale
        self.x_range = x_range
        self.grid = grid
        self.dtype = dtype

    @property
    def input_interval(self) -> tuple[float, float]:
        """Ends of the interval that holds the inputs."""
        return self.x_range

    def draw_truth(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Kernels and hyper-parameters of one batch, ``[T]`` each."""

        def uniform(bounds: Range) -> Tensor:
            u = torch.rand(self.batch_size, generator=generator, dtype=torch.float64)
            return bounds[0] + (bounds[1] - bounds[0]) * u

        choice = torch.randint(len(self.kernels), (self.batch_size,), generator=generator)
        kernel = torch.tensor([KERNELS.index(name) for name in self.kernels])[choice]
        r = self.ranges
        lengthscale, scale, period = uniform(r.lengthscale), uniform(r.scale), uniform(r.period)
        decay_lengthscale, decay_period = uniform(r.decay_lengthscale), uniform(r.decay_period)
        weakly_periodic = kernel == KERNELS.index("weakly-periodic")
        return {
            "kernel": kernel,
            "lengthscale": torch.where(weakly_periodic, decay_lengthscale, lengthscale),
            "scale": scale,
            "period": torch.where(weakly_periodic, decay_period, period),
            "noise": torch.full((self.batch_size,), self.noise_scale, dtype=torch.float64),
        }

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: counts, kernels, inputs, then outputs."""
        m, t = self.counts.draw(generator)
        truth = self.draw_truth(generator)
        low, high = self.x_range
        if self.grid is None:
            x = low + (high - low) * torch.rand(self.batch_size, m + t, 1, generator=generator, dtype=torch.float64)
        else:
            line = torch.linspace(low, high, self.grid, dtype=torch.float64)
            x = line[
                torch.cat(random_subsets(self.batch_size, self.grid, (m, self.grid - m), generator), -1)
            ].unsqueeze(-1)
        x = x.to(self.dtype)
        y = self.draw_outputs(x, truth, generator).to(self.dtype)
        return TaskBatch(Dataset(x[:, :m], y[:, :m]), Dataset(x[:, m:], y[:, m:]), truth)

    def draw_outputs(self, x: Tensor, truth: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Noisy values float64 ``[T, N, 1]`` at inputs ``[T, N, 1]``."""
        # the covariance is that of the rounded inputs, so that an oracle reading x back has the exact kernel
        wide = x.to(torch.float64)
        gram = covariance(truth["kernel"], truth["lengthscale"], truth["scale"], truth["period"], wide, wide)
        gram.diagonal(dim1=-2, dim2=-1).add_(noise_variance(truth["noise"], truth["scale"]).unsqueeze(-1))
        normal = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return torch.linalg.cholesky(gram) @ normal
