"""Gradients of one optimizer step: eager or compiled, of one batch or several, in one process or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from inference.compile_step import CompiledStep
from inference.objectives import TaskObjective
from inference.step_backend import INDUCTOR, mark, marker
from inference.training_step import Sealed, TrainingStep


class StepGradients:
    """Sets the gradients of a step; returns its loss and statistics.

    Several batches, and several processes, are as one batch that holds the tasks of all: a loss that is a sum over
    tasks is summed, one that is a mean is averaged.

    Args:
        fabric: a launched Fabric.
        wrapped: the module as Fabric set it up.
        module: model, guide and objective.
        backend: ``"eager"`` or ``"inductor"``.
    """

    def __init__(self, fabric: Any, wrapped: Any, module: TrainingStep, backend: str) -> None:
        self.fabric, self.wrapped, self.module = fabric, wrapped, module
        self.several = fabric.world_size > 1
        objective = module.objective
        self.summed = isinstance(objective, TaskObjective) and not objective.normalize
        self._compiled: CompiledStep | None = None
        self._mark: Callable[[], None] | None = None
        if backend == INDUCTOR:
            precision = fabric.strategy.precision
            self._compiled = CompiledStep(
                module, self._eager, precision=precision.forward_context, finish=precision.convert_output
            )
            path = marker(module, fabric.device, precision.precision)
            self._mark = lambda: mark(path)

    def __call__(self, batches: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Loss and ``STATISTICS`` ``[4]`` of the batches: their sum where the objective is a sum over tasks, else mean.

        Args:
            batches: the tasks of the step, on the device.
        """
        # Fabric's processes average; a sum over tasks is restored by their number
        scale = 1.0 if self.summed else 1.0 / len(batches)
        if self.several and self.summed:
            scale *= self.fabric.world_size
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        losses, found = [], []
        for number, batch in enumerate(batches, start=1):
            loss, statistics = self._one(batch, scale, number == len(batches), parameters)
            losses.append(loss.detach())
            found.append(statistics)
        if len(batches) == 1:
            return losses[0], found[0]
        total = torch.stack(losses)
        return total.sum() if self.summed else total.mean(), torch.stack(found).nanmean(0)

    def _one(self, batch: Any, scale: float, last: bool, parameters: list[Any]) -> tuple[Tensor, Tensor]:
        if self._compiled is None:
            with self.fabric.no_backward_sync(self.wrapped, enabled=not last):
                return self._eager(batch, scale)
        before = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        # DDP's hooks do not fire for a graph, and processes must agree even where one of them falls back to eager
        with self.fabric.no_backward_sync(self.wrapped, enabled=True):
            loss, statistics = self._compiled(batch)
        own = [p.grad for p in parameters if p.grad is not None]
        if scale != 1.0 and own:
            torch._foreach_mul_(own, scale)
        for p, earlier in zip(parameters, before, strict=True):
            if earlier is not None:
                p.grad = earlier if p.grad is None else p.grad.add_(earlier)
        if last and self.several:
            self._average(parameters)
        if self._mark is not None and self._compiled.count:
            self._mark()
            self._mark = None
        return loss, statistics

    def _eager(self, batch: Any, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        loss, statistics = self.wrapped(Sealed(batch))
        self.fabric.backward(loss if scale == 1.0 else loss * scale)
        return loss, statistics

    def _average(self, parameters: list[Any]) -> None:
        """The mean gradient of all processes, as one flat vector."""
        held = [p for p in parameters if p.grad is not None]
        flat = torch.cat([p.grad.reshape(-1) for p in held])
        torch.distributed.all_reduce(flat)
        flat /= self.fabric.world_size
        for p, part in zip(held, flat.split([p.numel() for p in held]), strict=True):
            p.grad = part.view_as(p)


def of_all_tasks(fabric: Any, loss: Tensor, statistics: Tensor, summed: bool) -> tuple[Tensor, Tensor]:
    """Loss and statistics over the processes, as of one that had the tasks of all."""
    if fabric.world_size == 1:
        return loss, statistics
    return (
        fabric.all_reduce(loss.detach().clone(), reduce_op="sum" if summed else "mean"),
        fabric.all_reduce(statistics.detach().clone(), reduce_op="mean"),
    )
