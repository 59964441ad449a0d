"""Data sets and task batches: the only two containers that models, guides and objectives exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pp_models.arguments import checked, integer, shown


class DataError(ValueError):
    """A data set or task batch that breaks a rule; the message names the argument, the value and the rule."""


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Points of one task, or of a batch of tasks padded to the same number of points.

    Args:
        x: inputs ``[*B, N, Dx]``, floating point; ``*B`` is any number of task dimensions (none for one data set).
        y: outputs ``[*B, N, Dy]`` floating point, or class indices ``[*B, N]`` of dtype ``long``; None where unknown.
        mask: ``[*B, N]`` bool, True where the point exists; None means that every point exists.
        observed: ``[*B, N, Dy]`` bool, True where a point's output is known; None means that every output of an
            existing point is. A missing output has no density and teaches nothing; a point without any is no point
            (``mask`` becomes False). Class indices have none: a point without its class is masked.

    N = 0, or a mask that is False everywhere, is an empty data set; every guide then gives its prior.
    Values are checked once, here (shapes, dtypes, and on the CPU that no existing point is NaN or infinite).

    Raises:
        DataError: an argument has the wrong rank, dtype or shape, or holds a NaN or infinite value.
    """

    x: Tensor
    y: Tensor | None = None
    mask: Tensor | None = None
    observed: Tensor | None = None

    def __post_init__(self) -> None:
        x, y, mask, observed = self.x, self.y, self.mask, self.observed
        for name, value in (("x", x), ("y", y), ("mask", mask), ("observed", observed)):
            if not isinstance(value, Tensor) and (value is not None or name == "x"):
                raise DataError(f"{name}: got {type(value).__name__}; it must be a torch.Tensor")
        if x.dim() < 2:
            raise DataError(f"x: got shape {_shape(x)}; it must be [*B, N, Dx] with at least 2 dimensions")
        if not x.dtype.is_floating_point:
            raise DataError(f"x: got dtype {x.dtype}; it must be floating point")
        points = x.shape[:-1]
        if y is not None:
            if y.dtype == torch.long:
                if y.shape != points:
                    raise DataError(f"y: got class indices of shape {_shape(y)}; they must be [*B, N] = {list(points)}")
            elif not y.dtype.is_floating_point:
                raise DataError(f"y: got dtype {y.dtype}; it must be floating point, or long for class indices")
            elif y.dim() != x.dim() or y.shape[:-1] != points:
                raise DataError(f"y: got shape {_shape(y)}; it must be [*B, N, Dy] with [*B, N] = {list(points)}")
        if mask is not None:
            if mask.dtype != torch.bool:
                raise DataError(f"mask: got dtype {mask.dtype}; it must be bool (True where the point exists)")
            if mask.shape != points:
                raise DataError(f"mask: got shape {_shape(mask)}; it must be [*B, N] = {list(points)}")
        if observed is not None:
            self._check_observed(observed)
            some = observed.any(-1)
            mask = some if mask is None else mask & some
            object.__setattr__(self, "mask", mask)
            object.__setattr__(self, "observed", observed & mask.unsqueeze(-1))
        # on an accelerator this would stall the device; data is born on the host
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_finite("x", x)
            if y is not None and y.dtype.is_floating_point:
                self._check_finite("y", y)
        if mask is not None:  # what padding holds (NaN, say) must never reach a gradient
            object.__setattr__(self, "x", x.masked_fill(~mask.unsqueeze(-1), 0.0))
            if y is not None:
                object.__setattr__(self, "y", y.masked_fill(~self.output_mask(), 0))

    def _check_observed(self, observed: Tensor) -> None:
        if observed.dtype != torch.bool:
            raise DataError(f"observed: got dtype {observed.dtype}; it must be bool (True where an output is known)")
        if self.y is None or self.y.dtype == torch.long:
            kind = "no y" if self.y is None else "class indices, one a point"
            raise DataError(
                f"observed: got a mask of outputs with {kind}; it must go with real outputs (mask the points)"
            )
        if observed.shape != self.y.shape:
            raise DataError(f"observed: got shape {_shape(observed)}; it must be that of y, {_shape(self.y)}")

    def _check_finite(self, name: str, value: Tensor) -> None:
        bad = ~torch.isfinite(value)
        if name == "y" and self.observed is not None:
            bad = bad & self.observed
        bad = bad.any(-1)
        if self.mask is not None:
            bad = bad & self.mask
        if bad.any():
            where = tuple(int(i) for i in bad.nonzero()[0])
            raise DataError(
                f"{name}: {int(bad.sum())} point(s) hold NaN or infinity, the first at index {where}; "
                "every existing point must be finite (mask the others, single outputs by observed)"
            )

    @classmethod
    def unchecked(cls, x: Tensor, y: Tensor | None, mask: Tensor | None, observed: Tensor | None = None) -> Dataset:
        """Builds without checks, for tensors derived from a Dataset that was checked."""
        new = object.__new__(cls)
        object.__setattr__(new, "x", x)
        object.__setattr__(new, "y", y)
        object.__setattr__(new, "mask", mask)
        object.__setattr__(new, "observed", observed)
        return new

    def __repr__(self) -> str:
        parts = {"x": self.x, "y": self.y, "mask": self.mask, "observed": self.observed}
        return f"Dataset({', '.join(f'{name}: {_shape(t)}' for name, t in parts.items() if t is not None)})"

    @property
    def batch_shape(self) -> torch.Size:
        """The task dimensions ``*B``."""
        return self.x.shape[:-2]

    @property
    def num_points(self) -> int:
        """N, padding included."""
        return self.x.shape[-2]

    @property
    def counts(self) -> Tensor:
        """Existing points per task ``[*B]`` (float, on the data's device)."""
        if self.mask is None:
            return self.x.new_full(self.batch_shape, float(self.num_points))
        return self.mask.sum(-1).to(self.x.dtype)

    def full_mask(self) -> Tensor:
        """The mask ``[*B, N]``, all True where none was given."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.x.shape[:-1], dtype=torch.bool, device=self.x.device)

    def output_mask(self) -> Tensor:
        """Which outputs are known: ``[*B, N, Dy]``, of class indices ``[*B, N]``.

        Raises:
            DataError: y is None, so that no output is known.
        """
        if self.y is None:
            raise DataError("y: got None; only known outputs have a mask")
        if self.observed is not None:
            return self.observed
        mask = self.full_mask()
        return mask if self.y.dtype == torch.long else mask.unsqueeze(-1).expand(self.y.shape)

    def known_mask(self) -> Tensor:
        """What counts in a score: outputs ``[*B, N, Dy]`` where single ones are missing, else points ``[*B, N]``."""
        return self.full_mask() if self.observed is None else self.observed

    def map(self, fn) -> Dataset:
        """Applies ``fn`` to x, y, mask and observed (those present)."""
        y, mask, observed = (None if t is None else fn(t) for t in (self.y, self.mask, self.observed))
        return self.unchecked(fn(self.x), y, mask, observed)

    def to(self, device=None, dtype: torch.dtype | None = None) -> Dataset:
        """Moves to ``device``; ``dtype`` applies to the floating-point tensors."""
        return self.map(lambda t: t.to(device=device, dtype=dtype if t.dtype.is_floating_point else None))

    def without_y(self) -> Dataset:
        """The same inputs with unknown outputs."""
        return self.unchecked(self.x, None, self.mask)

    def with_y(self, y: Tensor) -> Dataset:
        """The same inputs with outputs that a model drew, which are not looked at; 0 where one does not exist."""
        if self.mask is not None:
            y = y.masked_fill(~self.mask if y.dtype == torch.long else ~self.mask.unsqueeze(-1), 0)
        if self.observed is not None:
            y = y.masked_fill(~self.observed, 0)
        return self.unchecked(self.x, y, self.mask, self.observed)

    def points(self, index) -> Dataset:
        """Selects points (a slice or an index tensor over N) in every task."""
        y = self.y
        if y is not None:
            y = y[..., index] if y.dtype == torch.long else y[..., index, :]
        mask = None if self.mask is None else self.mask[..., index]
        return self.unchecked(
            self.x[..., index, :], y, mask, None if self.observed is None else self.observed[..., index, :]
        )

    def __getitem__(self, index) -> Dataset:
        """Selects tasks.

        Raises:
            IndexError: there is no task dimension to select from, or the index reaches beyond the task dimensions.
        """
        if not self.batch_shape:
            raise IndexError("indexing selects tasks, but this Dataset has no task dimension; use .points(index)")
        if isinstance(index, tuple) and (len(index) > len(self.batch_shape) or any(i is Ellipsis for i in index)):
            raise IndexError(
                f"indexing selects tasks, and this Dataset has {len(self.batch_shape)} task dimension(s); "
                "select points by .points(index)"
            )
        return self.map(lambda t: t[index])

    def __len__(self) -> int:
        if not self.batch_shape:
            raise TypeError("this Dataset has no task dimension; its number of points is .num_points")
        return self.batch_shape[0]

    def __or__(self, other: Dataset) -> Dataset:
        """Joins the points of two data sets over the same tasks.

        Raises:
            DataError: task dimensions, input widths or output kinds differ.
        """
        if self.batch_shape != other.batch_shape:
            raise DataError(
                f"a | b: task dimensions {list(self.batch_shape)} and {list(other.batch_shape)} differ; they must match"
            )
        if self.x.shape[-1] != other.x.shape[-1]:
            raise DataError(f"a | b: input widths {self.x.shape[-1]} and {other.x.shape[-1]} differ; they must match")
        y = None
        if self.y is not None and other.y is not None:
            if self.y.dtype.is_floating_point != other.y.dtype.is_floating_point:
                raise DataError(f"a | b: y is {self.y.dtype} in one and {other.y.dtype} in the other; they must match")
            if self.y.dtype.is_floating_point and self.y.shape[-1] != other.y.shape[-1]:
                raise DataError(f"a | b: output widths {self.y.shape[-1]} and {other.y.shape[-1]} differ")
            y = torch.cat([self.y, other.y], -1 if self.y.dtype == torch.long else -2)
        mask = None
        if self.mask is not None or other.mask is not None:
            mask = torch.cat([self.full_mask(), other.full_mask()], -1)
        observed = None
        if y is not None and (self.observed is not None or other.observed is not None):
            observed = torch.cat([self.output_mask(), other.output_mask()], -2)
        return self.unchecked(torch.cat([self.x, other.x], -2), y, mask, observed)

    def split(self, n_context: int, generator: torch.Generator | None = None) -> TaskBatch:
        """The first ``n_context`` points as context and the rest as target; see :meth:`TaskBatch.split`."""
        return TaskBatch.split(self, n_context, generator)

    @staticmethod
    def pad(datasets: Sequence[Dataset]) -> Dataset:
        """Stacks ragged tasks ``[N_t, Dx]`` into one Dataset ``[T, max N_t, Dx]`` with a mask.

        Raises:
            DataError: the sequence is empty, or its members differ in widths, in kind of y or in task dimensions.
        """
        if not isinstance(datasets, Sequence) or not all(isinstance(d, Dataset) for d in datasets):
            raise DataError(f"datasets: got {shown(datasets)}; it must be a sequence of Datasets")
        if not datasets:
            raise DataError("datasets: got an empty sequence; Dataset.pad needs at least one")
        kinds = {
            (d.batch_shape, d.x.shape[-1], None if d.y is None else (d.y.dtype, d.y.shape[d.x.dim() - 1 :]))
            for d in datasets
        }
        if len(kinds) > 1:
            raise DataError(
                f"datasets: members differ in task dimensions, widths or kind of y: {sorted(map(str, kinds))}"
            )
        longest = max(d.num_points for d in datasets)

        def padded(t: Tensor, point_dim: int) -> Tensor:
            missing = longest - t.shape[point_dim]
            shape = list(t.shape)
            shape[point_dim] = missing
            return torch.cat([t, t.new_zeros(shape)], point_dim)

        nb = len(datasets[0].batch_shape)
        x = torch.stack([padded(d.x, nb) for d in datasets])
        y = None if datasets[0].y is None else torch.stack([padded(d.y, nb) for d in datasets])  # type: ignore[arg-type]
        mask = torch.stack([padded(d.full_mask(), nb) for d in datasets])
        observed = None
        if any(d.observed is not None for d in datasets):
            observed = torch.stack([padded(d.output_mask(), nb) for d in datasets])
        return Dataset.unchecked(x, y, mask, observed)


@dataclass(frozen=True, eq=False, repr=False)
class TaskBatch:
    """Context and target points of the same tasks.

    Args:
        context: what a guide may look at, task dimensions ``*B``; may be empty.
        target: what the likelihood scores, same ``*B``, at least one point; holds *new* points only (the training
            set of a task is ``full``, contexts included).
        truth: what generated the tasks, tensors ``[*B, ...]`` by name, for oracles; no model or guide reads it.

    Raises:
        DataError: task dimensions or widths differ, the target is empty, or the context lacks y.
    """

    context: Dataset
    target: Dataset
    truth: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("context", self.context), ("target", self.target)):
            if not isinstance(value, Dataset):
                raise DataError(f"{name}: got {type(value).__name__}; it must be a Dataset")
        if self.context.batch_shape != self.target.batch_shape:
            raise DataError(
                f"target: task dimensions {list(self.target.batch_shape)} differ from the context's "
                f"{list(self.context.batch_shape)}; they must match"
            )
        if self.context.x.shape[-1] != self.target.x.shape[-1]:
            raise DataError(
                f"target: input width {self.target.x.shape[-1]} differs from the context's "
                f"{self.context.x.shape[-1]}; they must match"
            )
        if self.context.y is None:
            raise DataError("context: y is None; context points must be observed")
        empty = self.target.num_points == 0
        host = self.target.mask is not None and self.target.mask.device.type == "cpu"
        if not empty and self.target.mask is not None and host and not torch.compiler.is_compiling():
            empty = not bool(self.target.mask.any())
        if empty:
            raise DataError("target: it has no points; at least one is needed to score a prediction")

    def __repr__(self) -> str:
        return f"TaskBatch(context={self.context}, target={self.target})"

    @property
    def full(self) -> Dataset:
        """``context | target``: the whole task."""
        return self.context | self.target

    @property
    def batch_shape(self) -> torch.Size:
        """The task dimensions ``*B``."""
        return self.context.batch_shape

    @classmethod
    @checked(n_context=integer())
    def split(cls, data: Dataset, n_context: int, generator: torch.Generator | None = None) -> TaskBatch:
        """Splits data into its first ``n_context`` points and the rest (shuffled first when a generator is given).

        Raises:
            DataError: ``n_context`` is negative or leaves no target.
        """
        if not 0 <= n_context < data.num_points:
            raise DataError(
                f"n_context: got {n_context}; it must be at least 0 and below the number of points, {data.num_points}"
            )
        if generator is not None:
            data = data.points(torch.randperm(data.num_points, generator=generator))
        return cls(data.points(slice(0, n_context)), data.points(slice(n_context, None)))

    def to(self, device=None, dtype: torch.dtype | None = None) -> TaskBatch:
        """Moves every tensor, as ``Dataset.to``."""
        truth = {
            k: v.to(device=device, dtype=dtype if v.dtype.is_floating_point else None) for k, v in self.truth.items()
        }
        return self.unchecked(self.context.to(device, dtype), self.target.to(device, dtype), truth)

    def __getitem__(self, index) -> TaskBatch:
        """Selects tasks."""
        return self.unchecked(self.context[index], self.target[index], {k: v[index] for k, v in self.truth.items()})

    def __len__(self) -> int:
        return len(self.context)

    @classmethod
    def unchecked(cls, context: Dataset, target: Dataset, truth: dict[str, Tensor]) -> TaskBatch:
        new = object.__new__(cls)
        object.__setattr__(new, "context", context)
        object.__setattr__(new, "target", target)
        object.__setattr__(new, "truth", truth)
        return new


def context_of(data: Dataset | TaskBatch) -> Dataset:
    """The points that a guide is given: the context of a TaskBatch, all of a Dataset."""
    return data.context if isinstance(data, TaskBatch) else data


def require_tasks(value: Dataset | TaskBatch, argument: str) -> None:
    """Refuses data that hold no task.

    Args:
        value: what was given.
        argument: its name.

    Raises:
        DataError: a task dimension has size 0.
    """
    if 0 in value.batch_shape:
        raise DataError(f"{argument}: got task dimensions {list(value.batch_shape)}; it must hold at least one task")
