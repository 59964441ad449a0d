"""GP functions with a jump of unknown sign: a process whose predictive has two modes, and its exact answer."""

from __future__ import annotations

import torch
from torch import Tensor

from pp_models.arguments import NOT_NEGATIVE, NUMBER, POINTS, checked, interval
from pp_models.data import Dataset, TaskBatch
from pp_models.tasks.gp_kernels import HyperParameters
from pp_models.tasks.gp_oracle import oracle_joint_log_likelihood, oracle_log_likelihood, oracle_predict
from pp_models.tasks.gp_tasks import GPTasks
from pp_models.tasks.point_counts import PointCounts
from pp_models.tasks.task_stream import TaskStream

SIGNS = (-1.0, 1.0)


class MixedOffsetTasks(TaskStream):
    """y = f(x) + s (d / 2) 1[x > 0] + noise, f a GP and s = ±1 a fair coin for each task.

    By default contexts lie in x < 0, where nothing tells s: the predictive at x > 0 is an equal mixture of two GPs, and
    all target points of a task share the mode. A model with one Gaussian a point can be right in neither mode, and one
    without a latent of the task can only mix point by point. It is the ``mix-*`` idea of the neuralprocesses package,
    whose offset is at all x.

    Batches are ``x [T, N, 1]``, ``y [T, N, 1]``; ``truth`` holds that of ``GPTasks``, ``sign`` and ``offset`` (d),
    float64 ``[T]``.

    Args:
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
        offset: d, the distance between the modes, in units of y.
        kernel: of f, as for ``GPTasks``.
        hyperparameters: of f; by default lengthscale 0.5 and scale 0.3, so that d = 2 leaves two modes.
        noise_scale: standard deviation of the noise.
        num_context, num_target, max_points: see ``PointCounts``.
        context_range: where contexts are; give (-2, 2) for a sign that a context can tell.
        target_range: where targets are.
        grid: number of evenly spaced targets over ``target_range``, instead of random ones.
        dtype: of x and y.

    Raises:
        ValueError: a range is empty, or a number out of its range.
    """

    @checked(
        offset=NOT_NEGATIVE,
        noise_scale=NOT_NEGATIVE,
        context_range=interval(NUMBER),
        target_range=interval(NUMBER),
        grid=POINTS,
    )
    def __init__(
        self,
        batch_size: int = 16,
        seed: int = 0,
        *,
        offset: float = 2.0,
        kernel: str = "rbf",
        hyperparameters: str | HyperParameters | None = None,
        noise_scale: float = 0.05,
        num_context: tuple[int, int] = (1, 16),
        num_target: tuple[int, int | None] = (3, 24),
        max_points: int | None = None,
        context_range: tuple[float, float] = (-2.0, 0.0),
        target_range: tuple[float, float] = (-2.0, 2.0),
        grid: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(batch_size, seed)
        if hyperparameters is None:
            hyperparameters = HyperParameters(lengthscale=(0.5, 0.5), scale=(0.3, 0.3))
        self.functions = GPTasks(
            kernel, batch_size, hyperparameters=hyperparameters, noise_scale=noise_scale, dtype=dtype
        )
        if grid is not None:
            num_target, max_points = (grid, grid), None
        self.counts = PointCounts(num_context, num_target, max_points)
        self.offset = offset
        self.context_range, self.target_range = context_range, target_range
        self.grid = grid
        self.dtype = dtype

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: counts, kernels, signs, inputs, then outputs."""
        m, t = self.counts.draw(generator)
        truth = self.functions.draw_truth(generator)
        sign = 2.0 * torch.randint(2, (self.batch_size,), generator=generator).double() - 1.0

        def inputs(ends: tuple[float, float], count: int) -> Tensor:
            u = torch.rand(self.batch_size, count, 1, generator=generator, dtype=torch.float64)
            return ends[0] + (ends[1] - ends[0]) * u

        if self.grid is None:
            targets = inputs(self.target_range, t)
        else:
            targets = torch.linspace(*self.target_range, self.grid, dtype=torch.float64)[:, None]
            targets = targets.expand(self.batch_size, -1, -1)
        x = torch.cat([inputs(self.context_range, m), targets], 1).to(self.dtype)
        y = self.functions.draw_outputs(x, truth, generator)
        y = (y + step(x.double(), sign, torch.tensor(self.offset))).to(self.dtype)
        truth |= {"sign": sign, "offset": torch.full_like(sign, self.offset)}
        return TaskBatch(Dataset(x[:, :m], y[:, :m]), Dataset(x[:, m:], y[:, m:]), truth)


def step(x: Tensor, sign: Tensor, offset: Tensor) -> Tensor:
    """s (d / 2) 1[x > 0] at ``[*B, N, 1]``, sign and offset ``[*B]``."""
    return (sign * offset / 2)[..., None, None] * (x > 0)


def _without_step(batch: TaskBatch, sign: float) -> TaskBatch:
    """The GP task that is left when the jump has the given sign."""
    if "offset" not in batch.truth:
        raise ValueError("batch.truth: it lacks offset; this oracle needs a batch of mixed-offset tasks")
    offset = batch.truth["offset"]

    def part(data: Dataset) -> Dataset:
        y = None if data.y is None else data.y.double() - step(data.x, torch.full_like(offset, sign), offset)
        return Dataset(data.x.double(), y, data.mask, data.observed)

    return TaskBatch(part(batch.context), part(batch.target), batch.truth)


def sign_log_probabilities(batch: TaskBatch) -> Tensor:
    """ln p(s | context) for s = -1 and +1, float64 ``[2, *B]``: by the exact evidence of the context under either."""
    found = []
    for sign in SIGNS:
        context = _without_step(batch, sign).context
        if context.num_points == 0:
            found.append(torch.zeros(batch.batch_shape, dtype=torch.float64))
            continue
        empty = context.points(slice(0, 0))
        alone = TaskBatch.unchecked(empty, context, batch.truth)
        found.append(oracle_joint_log_likelihood(alone) * context.counts)
    return torch.log_softmax(torch.stack(found), 0)


def mixed_offset_predict(batch: TaskBatch, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The exact predictive at ``x``, a mixture of two Gaussians at each point.

    Args:
        batch: a batch of ``MixedOffsetTasks``.
        x: inputs ``[*B, N, 1]``, or ``[N, 1]`` shared by all tasks.

    Returns:
        Probabilities of the signs ``[2, *B]``, and mean and standard deviation under either ``[2, *B, N, 1]``, float64.

    Raises:
        ValueError: the batch is not one of mixed-offset tasks.
    """
    parts = [oracle_predict(_without_step(batch, sign), x) for sign in SIGNS]
    offset = batch.truth["offset"]
    wide = x.double().expand(*batch.batch_shape, *x.shape[-2:])
    means = [mean + step(wide, torch.full_like(offset, s), offset) for s, (mean, _) in zip(SIGNS, parts, strict=True)]
    return sign_log_probabilities(batch).exp(), torch.stack(means), torch.stack([sd for _, sd in parts])


def mixed_offset_log_likelihood(batch: TaskBatch, points: str = "target", min_scale: float | None = None) -> Tensor:
    """Exact marginal log-density of each point given the context: see ``oracle_log_likelihood``.

    Returns:
        float64 ``[*B, N]`` in nats.
    """
    given = torch.stack([oracle_log_likelihood(_without_step(batch, s), points, min_scale) for s in SIGNS])
    return torch.logsumexp(sign_log_probabilities(batch).unsqueeze(-1) + given, 0)


def mixed_offset_joint_log_likelihood(
    batch: TaskBatch, points: str = "target", min_scale: float | None = None
) -> Tensor:
    """Exact joint log-density of a task's points given the context, divided by their number.

    Returns:
        float64 ``[*B]`` in nats per existing point.
    """
    parts = [_without_step(batch, s) for s in SIGNS]
    count = getattr(parts[0], points).counts.clamp_min(1) if points in ("target", "context", "full") else 1
    given = torch.stack([oracle_joint_log_likelihood(part, points, min_scale) * count for part in parts])
    return torch.logsumexp(sign_log_probabilities(batch) + given, 0) / count
