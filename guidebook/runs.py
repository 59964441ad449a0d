"""A fit as a folder: what was asked for, the checkpoint, and how to get the fitted pair back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.methods import BNNP_WIDTH, Method
from evaluation.run_configuration import (
    CONFIGURATION,
    OWN_DATA,
    RunConfiguration,
    read_configuration,
    train,
    training_stream,
)
from inference import FitResult, checkpoint
from pp_models.files import locked, make_folder, sealed_json
from pp_models.tasks.downloads import no_downloads
from pp_models.tasks.frame_files import DESCRIPTION, ROWS, read_description, read_tasks, rows_bytes
from pp_models.tasks.frame_tasks import FrameTasks


def start(
    configuration: RunConfiguration,
    folder: str | Path,
    resume: bool | str = False,
    own: FrameTasks | None = None,
    **options: Any,
) -> FitResult:
    """Fits into a folder, which afterwards holds ``run.json``, the checkpoint and ``metrics.jsonl``.

    Of tasks from a table it holds the scalings and the scaled rows as well, so that it can be resumed and inspected.

    A fit that is refused leaves the folder's files as they were.

    Args:
        configuration: what to fit.
        folder: where.
        resume: continue the run that is there; its configuration must be this one, but for more steps. ``"previous"``
            continues from the checkpoint before the newest.
        own: tasks from a table of the user's own; with ``resume`` they must be those of the run.
        **options: passed to :func:`inference.fit`.

    Raises:
        CheckpointError: the folder cannot be written to, or holds another run.
    """
    method = configuration.build(own)
    path = make_folder(folder, "out")
    with locked(path, "out", passed_on=True):
        return _start(configuration, method, path, resume, own, options)


def _start(
    configuration: RunConfiguration,
    method: Method,
    path: Path,
    resume: bool | str,
    own: FrameTasks | None,
    options: dict[str, Any],
) -> FitResult:
    """The same in a folder that nobody else writes to."""
    files = {CONFIGURATION: sealed_json(asdict(configuration))}
    if own is not None:
        stream = training_stream(configuration, own)
        assert isinstance(stream, FrameTasks)
        files = {DESCRIPTION: stream.description(), ROWS: rows_bytes(stream), **files}
    held = path / CONFIGURATION
    earlier = None
    if held.exists():
        before = read_configuration(path)
        if not resume:
            raise checkpoint.CheckpointError(f"out: {path} already holds a run; use --resume or another folder")
        for name, value in asdict(configuration).items():
            if name != "steps" and value != getattr(before, name):
                raise checkpoint.CheckpointError(
                    f"{name}: got {value!r}, but the run to resume in {path} has {getattr(before, name)!r}"
                )
        for name in set(files) - {CONFIGURATION}:
            if not (path / name).exists() or (path / name).read_bytes() != files[name]:
                raise checkpoint.CheckpointError(
                    f"data: it differs from what the run to resume in {path} was begun with"
                )
        earlier = held.read_bytes()
    for name, content in files.items():
        checkpoint.write(path, name, content)
    try:
        return train(configuration, method, own, checkpoint_dir=path, resume=resume, **options)
    except (ValueError, checkpoint.CheckpointError):
        if earlier is not None:
            checkpoint.write(path, CONFIGURATION, earlier)
        elif not (path / checkpoint.INDEX).exists():
            for name in files:
                (path / name).unlink(missing_ok=True)
        raise


def own_tasks(folder: str | Path, configuration: RunConfiguration) -> FrameTasks | None:
    """The tasks of a run to a table of the user's own, all splits; None for a run to named tasks.

    Raises:
        FileError: the folder lacks them, or they are damaged.
    """
    if configuration.tasks != OWN_DATA:
        return None
    path = Path(folder)
    description = read_description(path)
    tasks = None if description is None else read_tasks(path, description)
    if tasks is None:
        missing = DESCRIPTION if description is None else ROWS
        raise checkpoint.CheckpointError(f"{path}: lacks {missing}, the table that the run was fitted to")
    return tasks


def open_run(folder: str | Path) -> tuple[RunConfiguration, Method, int]:
    """A fitted method from its folder: configuration, method with the fitted parameters, steps done.

    The folder may come from anybody: nothing in it is run, downloads anything, or takes more memory than its weights.

    Raises:
        CheckpointError: no run, or a damaged checkpoint.
        DataError: its tasks need a file that is not on this machine.
    """
    configuration = read_configuration(folder)
    widest = max((size for shape in checkpoint.shapes(folder).values() for size in shape), default=0)
    width = configuration.width
    if configuration.model == "bnnp" and configuration.recipe == "best":  # whatever is asked for, it has no more
        width = min(width, BNNP_WIDTH)
    if width > widest:  # said before networks of that width are built
        raise checkpoint.CheckpointError(
            f"width: {Path(folder) / CONFIGURATION} says {width}, but nothing in the checkpoint is wider "
            f"than {widest}; the checkpoint is of another model or guide"
        )
    own = own_tasks(folder, configuration)
    with no_downloads("opening a run"):
        method = configuration.build(own)
    most = 2 * checkpoint.size_of({"model": method.model, "guide": method.guide})  # an objective has some, too
    step, tensors, _ = checkpoint.load(folder, most=most)
    pair = {name: tensor for name, tensor in tensors.items() if not name.startswith("objective.")}
    if configuration.precision == "64-true":  # a run of that precision holds such weights
        method.model.double()
        method.guide.double()
    checkpoint.load_into({"model": method.model, "guide": method.guide}, pair)
    method.model.eval()
    method.guide.eval()
    return configuration, method, step
