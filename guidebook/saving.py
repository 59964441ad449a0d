"""A fitted pair as a folder, and back in one line; whatever a folder holds, nothing in it is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pyro.infer
from torch import nn

from evaluation.run_configuration import CONFIGURATION
from inference import FramePrediction, checkpoint, predict_frame
from inference.architecture import ARCHITECTURE, Architecture, architecture_bytes, checked_rebuild
from pp_models.arguments import PATH, checked, either, instance, optional
from pp_models.contract import as_objective
from pp_models.files import FileError, make_folder, read_regular, replaced_atomically, write_atomically
from pp_models.sealed_tensors import sealed_tensors, shapes_of, unsealed_tensors
from pp_models.tasks.frame_files import DESCRIPTION, ROWS, read_description, read_tasks, rows_bytes
from pp_models.tasks.frame_tasks import FrameTasks
from pp_models.tasks.table_columns import TableColumns

WEIGHTS = "weights.safetensors"
SAVED = {ARCHITECTURE, WEIGHTS, DESCRIPTION, ROWS}


class Saved(NamedTuple):
    """What a folder holds.

    Args:
        model: the fitted model.
        guide: its guide.
        objective: name of what trained them; None where that is not known.
        columns: of the table that they were fitted on; None for other tasks.
        tasks: the table's tasks, all splits; None where the folder holds no rows.
        steps: that they were trained for; None where that is not known.
        versions: of Python and packages that wrote the folder.
    """

    model: Any
    guide: Any
    objective: str | None
    columns: TableColumns | None
    tasks: FrameTasks | None
    steps: int | None
    versions: dict[str, str]

    def predict(self, frame: Any, num_samples: int = 100, **options: Any) -> FramePrediction:
        """Predicts the rows of a table that lack outputs, in its own units; see :func:`inference.predict_frame`.

        Args:
            frame: a DataFrame, or the path of a CSV, Parquet or NetCDF file.
            num_samples: posterior draws.
            **options: ``weights``, ``seed``.

        Raises:
            ValueError: the fit was not to a table.
            DataError: the table does not fit.
        """
        if self.columns is None:
            raise ValueError(
                "frame: this fit was not to a table; it must be given a Dataset: predict(model, guide, context, x)"
            )
        return predict_frame(self.model, self.guide, frame, self.columns, num_samples, **options)


@checked(
    folder=PATH,
    model=instance(nn.Module),
    guide=instance(nn.Module),
    tasks=optional(instance(FrameTasks)),
    objective=optional(either(str, other=instance(pyro.infer.ELBO))),
)
def save(
    folder: str | os.PathLike,
    model: nn.Module,
    guide: nn.Module,
    tasks: Any = None,
    *,
    objective: Any = None,
    rows: bool = False,
) -> None:
    """Writes a pair into a folder, whole or not at all: architecture, weights, scalings, versions.

    Files are JSON and safetensors with checksums. :func:`load` opens it, as it does the folders of
    ``fit(checkpoint_dir=...)`` and of the command line.

    Args:
        folder: a new one, or one that a save made.
        model: of the library's own classes, as the guide.
        guide: its guide.
        tasks: of a table, whose columns and scalings are kept.
        objective: what trained them, an objective or its name, to be remembered.
        rows: keep the rows of the table as well, scaled, in the clear.

    Raises:
        ValueError: a class is not the library's own, or a pair that was changed after it was built.
        FileError: the folder holds something else, or cannot be written.

    Example:
        >>> import guidebook as gb, tempfile
        >>> model = gb.BayesianNetwork([1, 8, 2], likelihood="gaussian-head")
        >>> guide = gb.guides.AmortisedMeanFieldGuide(model, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     gb.save(f"{folder}/fit", model, guide)
        ...     model, guide = gb.load(f"{folder}/fit")[:2]
    """
    if rows and tasks is None:
        raise ValueError("rows: got True without tasks; it must have the tasks whose rows it keeps")
    path = Path(folder)
    if path.exists():
        if not path.is_dir():
            raise FileError(f"folder: {path} is no folder; name another")
        foreign = sorted(each.name for each in path.iterdir() if each.name not in SAVED)
        if foreign:
            raise FileError(f"folder: {path} holds {foreign[0]}, which no save wrote; name another folder")
    name = objective if isinstance(objective, str | None) else as_objective(objective).name
    tensors = {f"{k}.{n}": t for k, m in (("model", model), ("guide", guide)) for n, t in m.state_dict().items()}
    files = {ARCHITECTURE: architecture_bytes(model, guide, name), WEIGHTS: sealed_tensors(tensors, {})}
    if tasks is not None:
        files[DESCRIPTION] = tasks.description()
        if rows:
            files[ROWS] = rows_bytes(tasks)
    make_folder(path.absolute().parent, "folder")
    with replaced_atomically(path.absolute()) as partial:
        partial.mkdir()
        for file, content in files.items():
            write_atomically(partial / file, content)


@checked(folder=PATH)
def load(folder: str | os.PathLike) -> Saved:
    """Opens what :func:`save`, ``fit(checkpoint_dir=...)`` or ``guidebook fit`` wrote, of a run its newest checkpoint.

    Nothing in the folder is run: classes come from a closed list, numbers are checked before anything is built, and
    weights are refused before memory is taken for them where they do not fit.

    Args:
        folder: where it is.

    Returns:
        ``model, guide, objective, columns, tasks, steps, versions``, by name too; ``.predict(frame)`` for a table.

    Raises:
        FileError: the folder holds no fit, a damaged one, or one of classes that are not the library's own.

    Example:
        ``gb.load("runs/sensors").predict("new.csv").to_dataframe()``
    """
    path = Path(folder)
    description = read_description(path)
    columns = None if description is None else description.columns
    tasks = None if description is None else read_tasks(path, description)
    if (path / checkpoint.INDEX).exists():
        model, guide, about, steps = _from_run(path)
    elif (path / ARCHITECTURE).exists():
        shapes = shapes_of(path / WEIGHTS)
        model, guide, about = checked_rebuild(path / ARCHITECTURE, shapes)
        tensors, _ = unsealed_tensors(_content(path / WEIGHTS, {"model": model, "guide": guide}), path / WEIGHTS)
        checkpoint.load_into({"model": model, "guide": guide}, tensors)
        steps = None
    else:
        raise FileError(f"folder: {str(path)!r} holds no fit; it must be one that save, fit or guidebook fit wrote")
    objective = None if about is None else about.objective
    return Saved(model, guide, objective, columns, tasks, steps, {} if about is None else about.versions)


def _from_run(path: Path) -> tuple[Any, Any, Architecture | None, int]:
    """The newest checkpoint of a run."""
    if not (path / ARCHITECTURE).exists():
        if not (path / CONFIGURATION).exists():
            raise FileError(
                f"folder: {path} holds a run without {ARCHITECTURE}, of classes that are not guidebook's own, or of an "
                "earlier version; build the pair by your own code, and go on by fit(..., resume=True)"
            )
        from guidebook.runs import open_run  # a run of an earlier version's command line

        _, method, steps = open_run(path)
        return method.model, method.guide, None, steps
    shapes = {n: s for n, s in checkpoint.shapes(path).items() if not n.startswith("objective.")}
    model, guide, about = checked_rebuild(path / ARCHITECTURE, shapes)
    pair = {"model": model, "guide": guide}
    steps, tensors, _ = checkpoint.load(path, most=2 * checkpoint.size_of(pair))
    checkpoint.load_into(pair, {n: t for n, t in tensors.items() if not n.startswith("objective.")})
    return model, guide, about, steps


def _content(path: Path, pair: dict[str, nn.Module]) -> bytes:
    try:
        return read_regular(path, checkpoint.size_of(pair))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
