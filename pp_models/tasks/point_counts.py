"""How many context and target points a batch of tasks gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pp_models.arguments import MOST_POINTS, POINTS, Rule, integer, interval, number, optional


def uniform_integer(low: int, high: int, generator: torch.Generator) -> int:
    """One integer from {low, ..., high}, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def given(owner: Any, name: str, rule: Rule) -> Any:
    """A field of a frozen dataclass, as the rule reads it; kept so."""
    value = rule.check(name, getattr(owner, name))
    object.__setattr__(owner, name, value)
    return value


@dataclass(frozen=True)
class PointCounts:
    """Uniform counts: ``m`` context points, then ``t`` new target points such that ``m + t <= max_points``.

    ``m ~ U{num_context}`` and ``t ~ U{num_target[0], ..., min(num_target[1], max_points - m)}``, all ends included;
    every task of a batch shares them.

    Args:
        num_context: smallest and largest number of context points.
        num_target: smallest and largest number of target points; None as the largest leaves it to ``max_points``.
        max_points: largest number of points a task, context and target together; None for no such bound.

    Raises:
        ValueError: a range is empty or negative, or the counts cannot be met.
    """

    num_context: tuple[int, int] = (4, 96)
    num_target: tuple[int, int | None] = (1, None)
    max_points: int | None = 99

    def __post_init__(self) -> None:
        _, high = given(self, "num_context", interval(integer(0, MOST_POINTS), strict=False))
        few, many = given(self, "num_target", interval(POINTS, strict=False, open_end=True))
        given(self, "max_points", optional(POINTS))
        if self.max_points is None and many is None:
            raise ValueError("num_target: its upper end is None, so max_points must be given")
        if self.max_points is not None and high + few > self.max_points:
            raise ValueError(
                f"max_points: got {self.max_points}; it must be at least {high + few}, "
                "the most context points plus the fewest target points"
            )

    @property
    def most_points(self) -> int:
        """The largest number of points a task can have."""
        if self.max_points is not None and self.num_target[1] is None:
            return self.max_points
        most = self.num_context[1] + (self.num_target[1] or 0)
        return most if self.max_points is None else min(most, self.max_points)

    def draw(self, generator: torch.Generator) -> tuple[int, int]:
        """Numbers of context and of target points for one batch."""
        context = uniform_integer(*self.num_context, generator)
        few, many = self.num_target
        if self.max_points is not None:
            room = self.max_points - context
            many = room if many is None else min(many, room)
        assert many is not None
        return context, uniform_integer(few, many, generator)


@dataclass(frozen=True)
class ShareCounts:
    """N points a task, of which a random share is context: N ~ U{num_points}, m = ⌊share N⌋, share ~ U[context_share].

    At least one point is context and one is target; every task of a batch shares the counts.

    Args:
        num_points: smallest and largest N.
        context_share: smallest and largest share.
        num_context: this many context points instead of a share; may be 0.

    Raises:
        ValueError: a range is empty, or the counts cannot be met.
    """

    num_points: tuple[int, int] = (40, 100)
    context_share: tuple[float, float] = (0.1, 0.5)
    num_context: int | None = None

    def __post_init__(self) -> None:
        low, _ = given(self, "num_points", interval(integer(2, MOST_POINTS), strict=False))
        given(self, "context_share", interval(number(0, 1, "[)"), strict=False))
        count = given(self, "num_context", optional(integer(0)))
        if count is not None and count >= low:
            raise ValueError(f"num_context: got {count}; it must lie in 0..{low - 1}, below num_points")

    def draw(self, generator: torch.Generator) -> tuple[int, int]:
        """Numbers of context points and of all points for one batch."""
        n = uniform_integer(*self.num_points, generator)
        low, high = self.context_share
        share = low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
        return (min(max(int(share * n), 1), n - 1) if self.num_context is None else self.num_context), n


def random_subsets(
    batch_size: int, num_points: int, sizes: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Disjoint random subsets of {0, ..., num_points - 1}, of the given sizes, drawn anew for each task.

    Returns:
        Sorted indices ``[T, size]`` (long) for each size.
    """
    order = torch.rand(batch_size, num_points, generator=generator, dtype=torch.float64).argsort(-1)
    return tuple(part.sort(-1).values for part in order[:, : sum(sizes)].split(list(sizes), -1))
