"""Few-shot tasks between tasks: examples of two, class by class, mixed in one proportion."""

from __future__ import annotations

import torch
from torch import Tensor

from pp_models.arguments import POSITIVE, SHARE, checked, instance
from pp_models.data import Dataset, TaskBatch
from pp_models.tasks.few_shot_tasks import FewShotTasks
from pp_models.tasks.task_stream import TaskStream


class InterpolatedTasks(TaskStream):
    """Tasks λ T_1 + (1 - λ) T_2: each example is mixed with one of the second task's class of the same number.

    So a few classes make many (meta-learning with task interpolation, Yao et al. 2022, whose hidden layers are mixed as
    well; MetaModulation's setting of few tasks). λ ~ Beta(a, a) anew for each task; a share of the tasks is left as it
    is. Batches are as those of the tasks; ``truth`` holds also ``other_classes [T, ways]`` and ``weight [T]``, λ.

    Args:
        tasks: what is mixed.
        concentration: a; small ones stay near the tasks.
        share: of the tasks that are mixed.
        weight: λ itself, in place of a draw; 1 is the first task.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> tasks = InterpolatedTasks(few_shot("omniglot", ways=5, shots=1))
    """

    @checked(tasks=instance(FewShotTasks), concentration=POSITIVE, share=SHARE, weight=SHARE)
    def __init__(
        self, tasks: FewShotTasks, concentration: float = 0.5, share: float = 0.5, weight: float | None = None
    ) -> None:
        super().__init__(tasks.batch_size, tasks.seed)
        self.tasks, self.concentration, self.share, self.weight = tasks, concentration, share, weight

    @property
    def ways(self) -> int:
        """Classes a task."""
        return self.tasks.ways

    @property
    def dim_x(self) -> int:
        """Numbers of an example."""
        return self.tasks.dim_x

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws two batches and mixes them."""
        first, second = self.tasks.sample(generator), self.tasks.sample(generator)
        shape = torch.full((2, self.batch_size), self.concentration, dtype=torch.float64)
        gamma = torch._standard_gamma(shape, generator=generator).clamp_min(1e-300)
        weight = gamma[0] / gamma.sum(0)
        if self.weight is not None:
            weight = torch.full_like(weight, self.weight)
        mixed = torch.rand(self.batch_size, generator=generator) < self.share
        weight = torch.where(mixed, weight, torch.ones_like(weight)).to(first.context.x.dtype)
        context, target = (
            _between(a, b, weight) for a, b in ((first.context, second.context), (first.target, second.target))
        )
        truth = first.truth | {"other_classes": second.truth["classes"], "weight": weight}
        return TaskBatch(context, target, truth)


def _between(first: Dataset, second: Dataset, weight: Tensor) -> Dataset:
    """Mixtures of the points of two data sets ``[T, N]``, paired by their labels, of which both have as many each."""
    assert first.y is not None and second.y is not None
    places, others = (y.argsort(dim=-1, stable=True) for y in (first.y, second.y))
    order = torch.empty_like(others).scatter(-1, places, others)
    other = second.x.gather(1, order.unsqueeze(-1).expand_as(second.x))
    share = weight[:, None, None]
    mixed = torch.where(share == 1, first.x, share * first.x + (1 - share) * other)
    return Dataset(mixed, first.y)
