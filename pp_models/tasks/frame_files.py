"""Tasks from a table as files: what the columns are, and where that is asked for the rows; nothing in them is code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pp_models.data import Dataset
from pp_models.files import STRICT, FileError, read_checked_json, sealed_json
from pp_models.sealed_tensors import check_finite, read_sealed_tensors, sealed_tensors
from pp_models.tasks.frame_tasks import SPLITS, FrameTasks
from pp_models.tasks.table_columns import TableColumns

DESCRIPTION, ROWS = "data.json", "data.safetensors"
MOST_ROW_BYTES = 2**34


@dataclass(frozen=True)
class FrameDescription:
    """What a fit knows of its table.

    Args:
        columns: kinds and scalings.
        num_context: of a task in a batch.
        max_points: of a task in a batch.
        forecast: whether contexts are the past.
        batch_size: tasks a batch.
        seed: of the stream.
        num_tasks: by split.
    """

    __pydantic_config__ = STRICT

    columns: TableColumns
    num_context: tuple[int, int | None]
    max_points: int
    forecast: bool
    batch_size: int
    seed: int
    num_tasks: dict[str, int]


def description_bytes(tasks: FrameTasks) -> bytes:
    """The file ``data.json``: all but the rows.

    Args:
        tasks: of any split.
    """
    numbers = {split: len(tasks.pools.get(split, [])) for split in SPLITS}
    found = FrameDescription(
        tasks.columns, tasks.num_context, tasks.max_points, tasks.forecast, tasks.batch_size, tasks.seed, numbers
    )
    return sealed_json(asdict(found))


def rows_bytes(tasks: FrameTasks) -> bytes:
    """The file ``data.safetensors``: the scaled rows of all splits, and names of tasks.

    Args:
        tasks: of any split.
    """
    tensors: dict[str, Tensor] = {}
    for split, pool in tasks.pools.items():
        if pool:
            outputs = [data.y for data in pool if data.y is not None]
            tensors[f"{split}.x"] = torch.cat([data.x for data in pool])
            tensors[f"{split}.y"] = torch.cat(outputs)
            if tasks.missing_outputs:
                tensors[f"{split}.observed"] = torch.cat([data.output_mask() for data in pool])
            tensors[f"{split}.points"] = torch.tensor([data.num_points for data in pool])
    return sealed_tensors(tensors, {"names": tasks.task_names})


def read_description(folder: Path) -> FrameDescription | None:
    """What the ``data.json`` of a folder says; None without one.

    Raises:
        FileError: it is something else, altered, or cannot be read.
    """
    path = folder / DESCRIPTION
    try:
        return read_checked_json(path, FrameDescription, "a description of data")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_tasks(folder: Path, description: FrameDescription) -> FrameTasks | None:
    """The training tasks of a folder; None where it holds no rows.

    Args:
        folder: of a fit.
        description: what :func:`read_description` found.

    Raises:
        FileError: the rows are damaged, or do not fit the description.
    """
    path = folder / ROWS
    if not path.exists():
        return None
    tensors, facts = read_sealed_tensors(path, MOST_ROW_BYTES)
    pools: dict[str, list[Dataset]] = {split: [] for split in SPLITS}
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    try:
        for split in SPLITS:
            if description.num_tasks.get(split, 0):
                parts = tensors.pop(f"{split}.x"), tensors.pop(f"{split}.y"), tensors.pop(f"{split}.points")
                pools[split] = _tasks_of(*parts, tensors.pop(f"{split}.observed", None), description, split)
                names[split] = [str(name) for name in facts["names"][split]]
        if tensors or any(len(names[s]) != len(pools[s]) for s in SPLITS):
            raise ValueError("it holds what the description does not say")
        return FrameTasks(
            description.columns, pools, names, description.batch_size, description.seed,
            num_context=description.num_context, max_points=description.max_points, forecast=description.forecast,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FileError(f"{path}: does not fit {DESCRIPTION} ({str(error)[:150]})") from None


def _tasks_of(
    x: Tensor, y: Tensor, points: Tensor, observed: Tensor | None, description: FrameDescription, split: str
) -> list[Dataset]:
    columns = description.columns
    shape = [len(x)] if columns.classes else [len(x), columns.dim_y]
    if points.dtype != torch.long or points.dim() != 1 or int(points.min()) < 1 or int(points.sum()) != len(x):
        raise ValueError(f"{split}.points do not sum to the rows")
    if len(points) != description.num_tasks[split]:
        raise ValueError(f"{split} has {len(points)} tasks, and not {description.num_tasks[split]}")
    if x.dim() != 2 or x.shape[1] != columns.dim_x or list(y.shape) != shape:
        raise ValueError(f"{split} has rows of shapes {list(x.shape)} and {list(y.shape)}")
    if columns.classes and (y.dtype != torch.long or int(y.min()) < 0 or int(y.max()) >= len(columns.classes)):
        raise ValueError(f"{split}.y holds no class indices")
    check_finite(f"{split}.x", x, ROWS)
    if observed is not None and not bool(observed.any(-1).all()):
        raise ValueError(f"{split}.observed has rows without outputs")
    sizes: Any = points.tolist()
    known: Any = [None] * len(sizes) if observed is None else observed.split(sizes)
    parts = zip(x.split(sizes), y.split(sizes), known, strict=True)
    return [Dataset(a, b, observed=there) for a, b, there in parts]
