"""Families of one-dimensional functions that a prior can be learned from (docs/papers/bnnp.md#experiments)."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pp_models.arguments import NOT_NEGATIVE, NUMBER, POINTS, POSITIVE, WIDTH, checked, each, interval, one_of
from pp_models.data import Dataset, TaskBatch
from pp_models.observation_model import ACTIVATIONS
from pp_models.tasks.gp_kernels import KERNELS
from pp_models.tasks.point_counts import ShareCounts, random_subsets
from pp_models.tasks.task_stream import TaskStream


class FunctionTasks(TaskStream):
    """Each task is a random function seen through Gaussian noise at uniform inputs.

    With ``grid`` set, every task is seen on that many evenly spaced inputs, m of them (another random m for each task,
    drawn as for training) as context and all others as target: the test protocol.

    Batches are ``x [T, N, 1]``, ``y [T, N, 1]``; ``truth`` holds ``f``, the noise-free values ``[T, N, 1]`` of context
    and target points in turn. Draws are float64 and then cast.

    Args:
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
        num_points, context_share, num_context: see ``ShareCounts``.
        x_range: ends of the interval of inputs.
        noise_scale: standard deviation of the noise.
        grid: number of evenly spaced inputs of the test protocol; None for random inputs.
        dtype: of x and y.

    Raises:
        ValueError: a range is empty, or a number out of its range.
    """

    @checked(x_range=interval(NUMBER), noise_scale=NOT_NEGATIVE, grid=POINTS)
    def __init__(
        self,
        batch_size: int = 5,
        seed: int = 0,
        *,
        num_points: tuple[int, int] = (40, 100),
        context_share: tuple[float, float] = (0.1, 0.5),
        num_context: int | None = None,
        x_range: tuple[float, float] = (-2.0, 2.0),
        noise_scale: float = 0.05,
        grid: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(batch_size, seed)
        self.counts = ShareCounts(num_points, context_share, num_context)
        if grid is not None and grid < self.counts.num_points[1]:
            raise ValueError(
                f"grid: got {grid}; it must be at least the most points a task, {self.counts.num_points[1]}"
            )
        self.x_range, self.noise_scale, self.grid, self.dtype = x_range, noise_scale, grid, dtype

    @property
    def input_interval(self) -> tuple[float, float]:
        """Ends of the interval that holds the inputs."""
        return self.x_range

    @abstractmethod
    def functions(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One function a task at inputs ``[T, N, 1]`` (float64), without noise; ``[T, N, 1]``."""

    def known(self) -> dict[str, Tensor]:
        """What else ``truth`` tells of a batch, tensors ``[T, ...]``; nothing unless a family says so."""
        return {}

    def on_grid(self, count: int, points: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Functions without noise on a grid over ``x_range``: x ``[points, 1]`` and values ``[count, points, 1]``."""
        x = torch.linspace(*self.x_range, points, dtype=torch.float64).unsqueeze(-1)
        generator = torch.Generator().manual_seed(seed)
        values = self.functions(x.expand(count, points, 1), generator)
        return x.to(self.dtype), values.to(self.dtype)

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: counts, inputs, functions, then noise."""
        m, n = self.counts.draw(generator)
        low, high = self.x_range
        if self.grid is None:
            x = low + (high - low) * torch.rand(self.batch_size, n, 1, generator=generator, dtype=torch.float64)
        else:
            line = torch.linspace(low, high, self.grid, dtype=torch.float64)
            parts = random_subsets(self.batch_size, self.grid, (m, self.grid - m), generator)
            x = line[torch.cat(parts, -1)].unsqueeze(-1)
        x = x.to(self.dtype)
        f = self.functions(x.double(), generator)  # at the rounded inputs, those that a reader sees
        y = (f + self.noise_scale * torch.randn(f.shape, generator=generator, dtype=torch.float64)).to(self.dtype)
        truth = {"f": f.to(self.dtype), **self.known()}
        return TaskBatch(Dataset(x[:, :m], y[:, :m]), Dataset(x[:, m:], y[:, m:]), truth)


class SawtoothTasks(FunctionTasks):
    """f(x) = 1.33 ((x mod 0.75) - 0.375) + a x / 3 + b / 4 with a, b ~ N(0, 1), on [-2, 2], noise 0.05."""

    def functions(self, x: Tensor, generator: torch.Generator) -> Tensor:
        a, b = torch.randn(2, len(x), 1, 1, generator=generator, dtype=torch.float64)
        return 1.33 * (torch.remainder(x, 0.75) - 0.375) + a * x / 3 + 0.25 * b


class SquaredExponentialTasks(FunctionTasks):
    """A zero-mean GP of unit variance with a squared-exponential kernel, on [-5, 5], noise 0.05.

    ``truth`` also holds what ``gp_oracle`` needs, so the exact predictive is known.

    Args:
        lengthscale: ℓ of exp(-d² / (2 ℓ²)).
        **options: see :class:`FunctionTasks`.
    """

    @checked(lengthscale=POSITIVE)
    def __init__(self, batch_size: int = 5, seed: int = 0, *, lengthscale: float = 0.5, **options) -> None:
        super().__init__(batch_size, seed, **{"x_range": (-5.0, 5.0), **options})
        self.lengthscale = lengthscale

    def functions(self, x: Tensor, generator: torch.Generator) -> Tensor:
        gram = torch.exp(-0.5 * ((x - x.mT) / self.lengthscale) ** 2)
        gram = gram + 1e-8 * torch.eye(x.shape[-2], dtype=x.dtype)
        normal = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return torch.linalg.cholesky(gram) @ normal

    def known(self) -> dict[str, Tensor]:
        values = {"lengthscale": self.lengthscale, "scale": 1.0, "period": 1.0, "noise": self.noise_scale}
        truth = {name: torch.full((self.batch_size,), v, dtype=torch.float64) for name, v in values.items()}
        return {"kernel": torch.full((self.batch_size,), KERNELS.index("rbf")), **truth}


class HeavisideTasks(SquaredExponentialTasks):
    """±1 by the sign of a smooth GP draw (ℓ = 1) less its mean over the task's points, on [-5, 5], noise 0.01."""

    @checked(lengthscale=POSITIVE)
    def __init__(self, batch_size: int = 5, seed: int = 0, *, lengthscale: float = 1.0, **options) -> None:
        super().__init__(batch_size, seed, lengthscale=lengthscale, **{"noise_scale": 0.01, **options})

    def functions(self, x: Tensor, generator: torch.Generator) -> Tensor:
        smooth = super().functions(x, generator)
        return torch.where(smooth >= smooth.mean(-2, keepdim=True), 1.0, -1.0).to(x.dtype)

    def known(self) -> dict[str, Tensor]:
        return {}  # the levels are no GP


class NetworkTasks(FunctionTasks):
    """Draws of a Bayesian network with weights N(0, 1/k), bias included, on [-5, 5], noise 0.05.

    Args:
        hidden: hidden widths.
        activation: ``"relu"``, ``"tanh"``, ``"silu"`` or ``"gelu"``.
        **options: see :class:`FunctionTasks`.
    """

    @checked(hidden=each(WIDTH, 1, must="hold at least one positive width"), activation=one_of(*ACTIVATIONS))
    def __init__(
        self,
        batch_size: int = 5,
        seed: int = 0,
        *,
        hidden: tuple[int, ...] = (128, 128),
        activation: str = "relu",
        **options,
    ) -> None:
        super().__init__(batch_size, seed, **{"x_range": (-5.0, 5.0), **options})
        self.hidden, self.activation = tuple(hidden), activation

    def functions(self, x: Tensor, generator: torch.Generator) -> Tensor:
        act = ACTIVATIONS[self.activation]
        features = x
        for i, k_out in enumerate((*self.hidden, 1)):
            k = features.shape[-1] + 1
            weight = torch.randn(len(x), k, k_out, generator=generator, dtype=torch.float64) / k**0.5
            features = (act(features) if i else features) @ weight[:, :-1] + weight[:, -1:]
        return features
