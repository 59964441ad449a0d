"""A fit as a folder: what was asked for, the checkpoint, and how to get the fitted pair back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.methods import Method
from evaluation.run_configuration import CONFIGURATION, RunConfiguration, read_configuration, train
from inference import FitResult, checkpoint
from pp_models.files import locked, make_folder, sealed_json
from pp_models.tasks.downloads import no_downloads


def start(configuration: RunConfiguration, folder: str | Path, resume: bool | str = False, **options: Any) -> FitResult:
    """Fits into a folder, which afterwards holds ``run.json``, the checkpoint and ``metrics.jsonl``.

    A fit that is refused leaves the folder's files as they were.

    Args:
        configuration: what to fit.
        folder: where.
        resume: continue the run that is there; its configuration must be this one, but for more steps. ``"previous"``
            continues from the checkpoint before the newest.
        **options: passed to :func:`inference.fit`.

    Raises:
        CheckpointError: the folder cannot be written to, or holds another run.
    """
    method = configuration.build()
    path = make_folder(folder, "out")
    with locked(path, "out", passed_on=True):
        return _start(configuration, method, path, resume, options)


def _start(
    configuration: RunConfiguration, method: Method, path: Path, resume: bool | str, options: dict[str, Any]
) -> FitResult:
    """The same in a folder that nobody else writes to."""
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
        earlier = held.read_bytes()
    checkpoint.write(path, CONFIGURATION, sealed_json(asdict(configuration)))
    try:
        return train(configuration, method, checkpoint_dir=path, resume=resume, **options)
    except (ValueError, checkpoint.CheckpointError):
        if earlier is not None:
            checkpoint.write(path, CONFIGURATION, earlier)
        elif not (path / checkpoint.INDEX).exists():
            held.unlink()
        raise


def open_run(folder: str | Path) -> tuple[RunConfiguration, Method, int]:
    """A fitted method from its folder: configuration, method with the fitted parameters, steps done.

    The folder may come from anybody: nothing in it is run, downloads anything, or takes more memory than its weights.

    Raises:
        CheckpointError: no run, or a damaged checkpoint.
        DataError: its tasks need a file that is not on this machine.
    """
    configuration = read_configuration(folder)
    widest = max((size for shape in checkpoint.shapes(folder).values() for size in shape), default=0)
    if configuration.width > widest:  # said before networks of that width are built
        raise checkpoint.CheckpointError(
            f"width: {Path(folder) / CONFIGURATION} says {configuration.width}, but nothing in the checkpoint is wider "
            f"than {widest}; the checkpoint is of another model or guide"
        )
    with no_downloads("opening a run"):
        method = configuration.build()
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
