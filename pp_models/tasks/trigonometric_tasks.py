"""A toy with three families of functions that a few context points cannot tell apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pp_models.arguments import NUMBER, POINTS, checked, interval
from pp_models.data import Dataset, TaskBatch
from pp_models.tasks.point_counts import PointCounts, random_subsets
from pp_models.tasks.task_stream import TaskStream

#: Names by family index (``TaskBatch.truth["family"]``).
FAMILIES = ("sin", "cos", "tanh")


def trigonometric_function(family: Tensor, amplitude: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    """``A g(2x - b π)`` with g = sin, cos or tanh.

    Args:
        family: indices into ``FAMILIES``, ``[*B]`` long.
        amplitude, shift: A and b, ``[*B]``.
        x: inputs ``[*B, N, 1]``.

    Returns:
        ``[*B, N, 1]``.
    """
    family, amplitude, shift = (t[..., None, None] for t in (family, amplitude, shift))
    angle = 2 * x - shift * math.pi
    wave = torch.where(family == 0, angle.sin(), torch.where(family == 1, angle.cos(), angle.tanh()))
    return amplitude * wave


class TrigonometricTasks(TaskStream):
    """``y = A g(2x - b π)`` without noise: g is sin, cos or tanh with equal chance, A ~ U[1, 2], b ~ U[-0.1, 0.1].

    Inputs are points of ``grid`` evenly spaced ones on [-π, π], each task with its own random subset: m of them as
    context and another 1 to ``max_points - m`` as target (NVDP's trigonometry experiment, code release). Start
    ``num_context`` at 1 to train for ambiguity among the families. Batches are ``x [T, N, 1]``, ``y [T, N, 1]``;
    ``truth`` holds ``family`` (long, index into ``FAMILIES``), ``amplitude`` and ``shift``, float64 ``[T]``.

    Args:
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
        num_context, num_target, max_points: see ``PointCounts``.
        amplitude: ends of the range of A.
        shift: ends of the range of b.
        grid: number of grid inputs.
        full_grid: the test mode, where all points of the grid that are no context are target.
        dtype: of x and y.

    Raises:
        ValueError: a range is empty, or the counts exceed the grid.
    """

    @checked(amplitude=interval(NUMBER, strict=False), shift=interval(NUMBER, strict=False), grid=POINTS)
    def __init__(
        self,
        batch_size: int = 16,
        seed: int = 0,
        *,
        num_context: tuple[int, int] = (4, 96),
        num_target: tuple[int, int | None] = (1, None),
        max_points: int | None = 100,
        amplitude: tuple[float, float] = (1.0, 2.0),
        shift: tuple[float, float] = (-0.1, 0.1),
        grid: int = 200,
        full_grid: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(batch_size, seed)
        if full_grid:
            num_target, max_points = (1, None), grid
        self.counts = PointCounts(num_context, num_target, max_points)
        if self.counts.most_points > grid:
            raise ValueError(f"grid: got {grid}; it must be at least {self.counts.most_points}, the most points a task")
        self.amplitude = amplitude
        self.shift = shift
        self.grid = grid
        self.full_grid = full_grid
        self.dtype = dtype

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: counts, functions, then inputs."""
        m, t = self.counts.draw(generator)
        if self.full_grid:
            t = self.grid - m

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(self.batch_size, generator=generator, dtype=torch.float64)

        truth = {
            "family": torch.randint(len(FAMILIES), (self.batch_size,), generator=generator),
            "amplitude": uniform(*self.amplitude),
            "shift": uniform(*self.shift),
        }
        line = torch.linspace(-math.pi, math.pi, self.grid, dtype=torch.float64)
        index = torch.cat(random_subsets(self.batch_size, self.grid, (m, t), generator), -1)
        x = line[index].unsqueeze(-1)
        y = trigonometric_function(truth["family"], truth["amplitude"], truth["shift"], x)
        x, y = x.to(self.dtype), y.to(self.dtype)
        return TaskBatch(Dataset(x[:, :m], y[:, :m]), Dataset(x[:, m:], y[:, m:]), truth)
