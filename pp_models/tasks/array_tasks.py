"""Tasks from your own arrays, one of inputs and one of outputs for each, ragged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from pp_models.arguments import TEXT, checked, each
from pp_models.data import DataError
from pp_models.tasks.frame_tasks import FrameTasks, from_dataframe


@checked(names=each(TEXT, 0))
def from_arrays(
    x: Any,
    y: Any,
    *,
    names: Sequence[str] = (),
    classes: bool | None = None,
    **options: Any,
) -> FrameTasks:
    """Tasks from arrays, one of inputs and one of outputs for each task.

    Args:
        x: for each task its inputs ``[N_t, Dx]`` (``[N_t]`` for one input): NumPy arrays, tensors or lists, ragged; or
            one array ``[T, N, Dx]``.
        y: for each task its outputs ``[N_t, Dy]`` or ``[N_t]``; NaN where a value is missing. Class labels are
            integers with ``classes=True``, or words.
        names: of the inputs; ``x1`` … by default. Outputs are ``y1`` …, tasks 0, 1, ….
        classes: whether y holds classes; None decides by its values.
        **options: of :func:`pp_models.tasks.frame_tasks.from_dataframe`.

    Raises:
        DataError: numbers of tasks, points or widths do not fit, and what a table is refused for.

    Example:
        >>> import numpy as np, guidebook as gb
        >>> x = [np.random.randn(n, 2) for n in (5, 9, 4, 6)]
        >>> tasks = gb.tasks.from_arrays(x, [each.sum(1) for each in x])
    """
    inputs, outputs = _arrays(x, "x"), _arrays(y, "y")
    if len(inputs) != len(outputs):
        raise DataError(f"y: got {len(outputs)} tasks; it must have as many as x, {len(inputs)}")
    for name, arrays in (("x", inputs), ("y", outputs)):
        widths = {array.shape[1] for array in arrays}
        if len(widths) > 1:
            raise DataError(f"{name}: got tasks of widths {sorted(widths)}; all must have one")
    for i, (a, b) in enumerate(zip(inputs, outputs, strict=True)):
        if len(a) != len(b):
            raise DataError(f"y: task {i} has {len(b)} points; it must have as many as x, {len(a)}")
    x_names = list(names) or [f"x{i + 1}" for i in range(inputs[0].shape[1])]
    if len(x_names) != inputs[0].shape[1]:
        raise DataError(f"names: got {len(x_names)}; it must have one for each of the {inputs[0].shape[1]} inputs")
    y_names = [f"y{i + 1}" for i in range(outputs[0].shape[1])]
    frame = pd.concat(
        [
            pd.DataFrame(np.concatenate(inputs), columns=x_names).infer_objects(),
            pd.DataFrame(np.concatenate(outputs), columns=y_names).infer_objects(),
        ],
        axis=1,
    )
    task = "task" if "task" not in frame.columns else "task number"
    frame[task] = np.repeat(np.arange(len(inputs)), [len(a) for a in inputs])
    return from_dataframe(frame, task, x_names, y_names, classes=classes, **options)


def _arrays(value: Any, argument: str) -> list[np.ndarray]:
    """One array ``[N_t, D]`` for each task."""
    if isinstance(value, np.ndarray | Tensor) and value.ndim < 2:
        raise DataError(
            f"{argument}: got one array of shape {list(value.shape)}; it must hold an array for each "
            "task: put it into a list"
        )
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or not len(value):
        raise DataError(f"{argument}: got {type(value).__name__}; it must hold an array for each task, at least one")
    found = []
    for i, part in enumerate(value):
        array = part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
        if array.ndim == 1:
            array = array[:, None]
        if array.ndim != 2:
            raise DataError(
                f"{argument}: task {i} has shape {list(np.shape(array))}; it must be [N, D], or [N] for one column"
            )
        found.append(array)
    return found
