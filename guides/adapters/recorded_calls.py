"""What modules were called with, and what they gave, in a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Call = tuple[Tensor, Tensor]


class RecordedCalls:
    """Calls of modules since they were last taken; a module may be called several times in one forward pass."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._seen: dict[nn.Module, list[Call]] = {module: [] for module in modules}

    def add(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keeps one call, as a forward hook."""
        self._seen[module].append((inputs[0].detach(), output))

    def take(self) -> list[list[Call]]:
        """By module its calls (inputs without their graph, outputs with it), which are then forgotten."""
        taken = list(self._seen.values())
        self._seen = {module: [] for module in self._seen}
        return taken


def are_per_example(calls: Sequence[Sequence[Call]], examples: int) -> bool:
    """Whether the first dimension of every call's inputs is that of examples.

    It is not where examples share a call: DeBERTa projects its relative positions once for a whole batch.
    """
    return all(inputs.shape[0] == examples for each in calls for inputs, _ in each)


@contextmanager
def recorded_calls(modules: Sequence[nn.Module]) -> Iterator[RecordedCalls]:
    """Records calls of modules until the block ends."""
    calls = RecordedCalls(modules)
    hooks = [module.register_forward_hook(calls.add) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
