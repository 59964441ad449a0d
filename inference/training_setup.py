"""What a fit needs before its first step: device, optimizer, batches and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pp_models.arguments import integer, shown
from pp_models.data import Dataset, TaskBatch
from pp_models.tasks.task_stream import TaskStream

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def make_fabric(device: Any, precision: str) -> Fabric:
    """A launched Fabric for a device name, or the one given."""
    from lightning_fabric import Fabric  # here, for it takes seconds to import

    if isinstance(device, Fabric):
        return device
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise ValueError(f"device: got {device!r}; it must be 'auto', 'cpu', 'cuda', 'cuda:N', 'mps' or a Fabric")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {device!r}, but this machine has no usable CUDA device")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"device: got {device!r}, but this machine has {torch.cuda.device_count()} CUDA devices")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device: got {device!r}, but this machine has no usable MPS device")
    try:
        return Fabric(accelerator=kind, devices=[int(index)] if index else 1, precision=precision)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"precision: got {precision!r}; {str(error).splitlines()[0]}") from None


def make_optimizer(optimizer: Any, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer of a fit from what the user gave: nothing, a torch or a Pyro optimizer, or a function."""
    if optimizer is None:
        # the fused step can leave everything as it was when told that a gradient is not finite
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
        return torch.optim.Adam(parameters, lr=learning_rate, fused=fused)
    found = _given_optimizer(optimizer, parameters)
    if isinstance(found, torch.optim.LBFGS):
        raise ValueError(
            "optimizer: LBFGS evaluates the loss several times a step, which a fit does not; use Adam, or SGD with "
            "momentum"
        )
    return found


def _given_optimizer(optimizer: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer
    if isinstance(optimizer, pyro.optim.PyroOptim):
        options = optimizer.pt_optim_args
        if callable(options):
            raise ValueError("optimizer: a Pyro optimizer with per-parameter options; pass a torch optimizer instead")
        return cast(Any, optimizer.pt_optim_constructor)(parameters, **options)
    if callable(optimizer):
        build: Any = optimizer
        return build(parameters)
    raise ValueError(
        f"optimizer: got {type(optimizer).__name__}; it must be 'ivon', a torch.optim.Optimizer, a Pyro optimizer, or "
        "a function from parameters to an optimizer"
    )


def follow(optimizer: torch.optim.Optimizer) -> None:
    """Moves an optimizer's state to where its parameters have been moved."""
    optimizer.load_state_dict(optimizer.state_dict())


def release_steps(release: Mapping[str, int] | None, names: list[str]) -> list[int]:
    """For every parameter name the step from which it is trained.

    Raises:
        ValueError: a beginning that no name has, or a negative step.
    """
    found = [0] * len(names)
    if release is not None and not isinstance(release, Mapping):
        raise ValueError(f"release: got {shown(release)}; it must be a mapping from beginnings of names to steps")
    for beginning, step in (release or {}).items():
        step = integer(0).check(f"release[{beginning!r}]", step)
        hits = [i for i, name in enumerate(names) if name == beginning or name.startswith(f"{beginning}.")]
        if not hits:
            raise ValueError(
                f"release: no trainable parameter is named {beginning!r}; there are {', '.join(names[:6])} …"
            )
        for i in hits:
            found[i] = max(found[i], step)
    return found


def batches(tasks: Any, done: int, rank: int, world: int) -> Callable[[int], Any]:
    """A function from step to batch, ready for step ``done``.

    Raises:
        TypeError: tasks that are no batches; the function raises it too.
        ValueError: an iterable that ends early, or data that carry a graph.
    """
    if isinstance(tasks, Dataset | TaskBatch):
        only = as_batch(tasks, tasks, 0)
        return lambda step: only
    if isinstance(tasks, TaskStream):  # any batch by its index
        start = tasks.position
        return lambda step: tasks.batch(start + step * world + rank)
    if isinstance(tasks, Tensor | np.ndarray):  # iterable by rows, each of which would be a batch
        raise TypeError(
            f"tasks: got a {type(tasks).__name__} of shape {tuple(tasks.shape)}, whose rows would be trained on one by "
            "one; pass a Dataset or a TaskBatch, or train with pyro.infer.SVI(model, guide, optimizer, loss=objective)"
        )
    if not isinstance(tasks, Iterable):
        raise TypeError(f"tasks: got {type(tasks).__name__}; it must be a TaskBatch, a Dataset or an iterable of them")
    iterator: Iterator = iter(tasks)
    for _ in range(done * world + rank):
        if next(iterator, None) is None:
            raise ValueError(f"tasks: the iterable ended before step {done}, where the run is to be resumed")

    begun = False

    def following(step: int) -> Any:
        nonlocal begun
        try:
            for _ in range(world - 1 if begun else 0):  # those of the other processes
                next(iterator)
            begun = True
            batch = next(iterator)
        except StopIteration:
            raise ValueError(f"tasks: the iterable ended at step {step}; it must go on for all steps") from None
        return as_batch(batch, tasks, step)

    return following


def as_batch(batch: Any, tasks: Any, step: int) -> Dataset | TaskBatch:
    """What an iterable gave at a step, if it can be trained on.

    Raises:
        TypeError: it is no Dataset or TaskBatch.
        ValueError: it carries a graph, which a second step would go back through.
    """
    if not isinstance(batch, Dataset | TaskBatch):
        what = "itself" if batch is tasks else f"from a {type(tasks).__name__}"
        raise TypeError(
            f"tasks: got a {type(batch).__name__} at step {step} ({what}); each batch must be a Dataset or a "
            "TaskBatch, such as Dataset(x, y)"
        )
    if 0 in batch.batch_shape:
        raise ValueError(f"tasks: got task dimensions {list(batch.batch_shape)} at step {step}; a batch needs a task")
    for name, part in (
        {"context": batch.context, "target": batch.target}.items()
        if isinstance(batch, TaskBatch)
        else (("data", batch),)
    ):
        for axis, tensor in (("x", part.x), ("y", part.y)):
            if tensor is not None and tensor.requires_grad:
                raise ValueError(f"tasks: {axis} of the {name} carries a graph; pass {axis}.detach()")
    return batch


#: beyond this size of x or y a network at its initial values does not train
FAR_FROM_UNIT_SCALE = 100.0


def scale_hint(batch: Dataset | TaskBatch) -> str:
    """A sentence where x or y is far from unit scale; empty where it is not."""
    data = batch.full if isinstance(batch, TaskBatch) else batch
    for name, values in (("x", data.x), ("y", data.y)):
        if values is None or not values.dtype.is_floating_point or not values.numel():
            continue
        largest = float(torch.where(data.full_mask().unsqueeze(-1), values, 0.0).abs().max())
        if not largest < FAR_FROM_UNIT_SCALE:
            return f" The tasks' {name} reaches {largest:.3g}: scale x and y to about unit size first."
    return ""


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of one step of one process; nothing else decides its draws."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def skips_on_device(optimizer: torch.optim.Optimizer, precision: str) -> bool:
    """Whether the optimizer itself leaves everything as it was when ``found_inf`` is set (torch's fused ones do)."""
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return bool(fused) and all(group.get("fused") for group in optimizer.param_groups) and precision != "16-mixed"
