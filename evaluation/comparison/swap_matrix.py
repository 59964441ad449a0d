"""The swap matrix: every model with every guide under every objective, one run a row."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
import pyro
import torch
from torch import nn

from evaluation.comparison.families import MODELS
from evaluation.comparison.grid_tasks import GridSettings, GridTasks, name_of_tasks, scores_of_tasks
from evaluation.comparison.ray_grid import on_ray
from evaluation.comparison.swap_report import SWAP_FILES, write_swap_report
from evaluation.methods import METHODS, TaskShape, build
from evaluation.trust import verdict
from guides import GUIDES
from inference import checkpoint, fit
from inference.compare_objectives import compare_objectives
from inference.objectives import REGISTRY, make
from inference.progress import Stages
from pp_models.arguments import (
    DRAWS,
    MOST_DRAWS,
    PATH,
    POSITIVE,
    SEED,
    TASKS,
    TEXT,
    WIDTH,
    checked,
    each,
    either,
    instance,
    integer,
)
from pp_models.contract import as_objective
from pp_models.files import STRICT, FileError, make_folder, read_checked_json, sealed_json, write_atomically
from pp_models.own_files import refuse_others
from pp_models.registry import Registry
from pp_models.tasks.task_stream import TaskStream

#: guide and objective of a whole method's cell
ITS_OWN = "its own"
SETTINGS, RESULT = "settings.json", "result.json"
T = TypeVar("T")
COLUMNS = [
    "model", "guide", "objective", "seed", "status", "reason", "verdict", "why", "pll", "joint_pll", "ll",
    "rmse", "loss", "ess", "share_below_2", "snr_guide", "snr_model", "seconds", "steps", "skipped",
]  # fmt: skip
#: what stops a cell and not the grid
CELL_ERRORS = (ValueError, TypeError, NotImplementedError, AttributeError, RuntimeError, ArithmeticError)


@dataclass(frozen=True)
class _Row:
    """A row of the table, as ``COLUMNS`` names it."""

    model: str
    guide: str
    objective: str
    seed: int
    status: Literal["ok", "failed"]
    reason: str
    verdict: str
    why: str
    pll: float
    joint_pll: float
    ll: float
    rmse: float
    loss: float
    ess: float
    share_below_2: float
    snr_guide: float
    snr_model: float
    seconds: float
    steps: float
    skipped: float
    #: of a table of one's own: the error of each output in its unit, or the share of classes that are right
    own_scores: dict[str, float] = field(default_factory=dict)

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class _Result:
    """What a finished cell leaves."""

    row: _Row
    gradient_noise: list[dict[str, float | str]]

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class _Cell:
    model: str
    guide: str
    objective: str
    seed: int

    @property
    def folder(self) -> str:
        """A folder name that no other cell has."""
        words = f"{self.model}--{self.guide}--{self.objective}--{self.seed}"
        plain = re.sub(r"[^A-Za-z0-9+._-]", "_", words)
        return plain if plain == words else f"{plain}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


@checked(
    tasks=either(str, other=instance(TaskStream)),
    test=instance(TaskStream),
    seeds=each(SEED, 1, must="hold at least one seed"),
    steps=integer(1),
    num_particles=DRAWS,
    width=WIDTH,
    batch_size=TASKS,
    learning_rate=POSITIVE,
    max_grad_norm=POSITIVE,
    test_tasks=TASKS,
    draws=DRAWS,
    snr_particles=each(DRAWS, must="hold numbers of particles"),
    snr_repeats=integer(2, MOST_DRAWS),
    num_simulations=integer(0, MOST_DRAWS),
    out=PATH,
    ray=TEXT,
)
def compare(
    models: Iterable[str] | Mapping[str, Callable[[TaskShape], nn.Module]],
    guides: Iterable[str] | Mapping[str, Callable[[nn.Module], nn.Module]],
    objectives: Iterable[str] | Mapping[str, Callable[[], pyro.infer.ELBO]],
    tasks: str | TaskStream = "gp-rbf",
    seeds: Iterable[int] = (0,),
    *,
    steps: int = 1_000,
    num_particles: int | None = None,
    width: int = 64,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    max_grad_norm: float = 10.0,
    methods: Iterable[str] = (),
    test: TaskStream | None = None,
    test_tasks: int = 64,
    draws: int = 32,
    snr_particles: Sequence[int] = (1, 4, 16),
    snr_repeats: int = 10,
    num_simulations: int = 100,
    out: str | Path | None = None,
    retry_failed: bool = False,
    ray: str | None = None,
    device: Any = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Trains every combination and scores it on held-out tasks.

    A combination that cannot be trained is a row with status ``failed`` and the reason, and the grid goes on. All
    objectives of a seed start from the same parameters and see the same tasks.

    With ``out`` the grid can be killed at any moment: called again with the same arguments, finished cells are read and
    the one that was interrupted goes on from its checkpoint. The folder then holds ``compare.csv``,
    ``gradient_noise.csv``, ``compare.png`` and ``report.html``.

    Args:
        models: names (``guidebook list families``), or functions from :class:`evaluation.methods.TaskShape` by label;
            empty, with ``methods``, for none.
        guides: names, or functions of the model by label.
        objectives: names of the registry, or functions without argument by label.
        tasks: a task distribution by name, or a stream; of a table of your own
            (:func:`pp_models.tasks.from_dataframe`) its test tasks are scored, in the table's units.
        seeds: of the parameters, of the fit and, for a named distribution, of the tasks.
        steps: optimizer steps of a cell.
        num_particles: draws of each task in the objective; None for the objective's own.
        width: hidden width of every network.
        batch_size: tasks a step, for a named distribution.
        learning_rate: of Adam.
        max_grad_norm: gradients are clipped to this norm.
        methods: names of whole methods (``guidebook list models``), each with its own guide and objective, trained as
            the grid is.
        test: test stream; by default the test protocol of the named distribution, or far-away batches of the stream.
        test_tasks: held-out tasks, at least.
        draws: posterior draws of a prediction.
        snr_particles: numbers of particles at which the fitted pair's gradient noise is measured; empty for none.
        snr_repeats: gradients of each of them.
        num_simulations: tasks simulated, and draws weighed, for each fit's :func:`evaluation.verdict`, on 32 tasks that
            no training reaches; 0 for no verdicts.
        out: folder; None to write nothing.
        retry_failed: run failed cells anew.
        ray: run cells as tasks of a Ray cluster, one core each: ``"local"`` for this machine's, or an address. A cell
            whose worker dies is run again, twice. With ``out`` on a file system that all nodes see, such a cell goes on
            from its checkpoint.
        device: where to train, as for :func:`inference.fit`.
        progress: show a bar over the cells.

    Returns:
        One row a run: ``model``, ``guide``, ``objective``, ``seed``, ``status``, ``reason`` (of a failure);
        ``verdict`` and ``why``, its one sentence; ``pll`` and ``joint_pll``
        (held-out log-likelihood of the target points, nats per point; of points one by one, and jointly), ``ll`` (all
        points), ``rmse`` (units of y); ``loss`` at the last step; ``ess``, ``share_below_2``, ``snr_guide`` and
        ``snr_model`` (see :func:`inference.compare_objectives`) at the objective's own number of particles;
        ``seconds`` of training in this call, ``steps``, ``skipped`` steps. ``attrs["gradient_noise"]`` holds the table
        over numbers of particles.

    Raises:
        ValueError: an unknown name, a number out of range, or a folder with cells that were run otherwise.
        CheckpointError: the folder cannot be written to, or holds somebody's files of these names.
    """
    if num_simulations and num_simulations < 50:
        raise ValueError(f"num_simulations: got {num_simulations}; it must be 0, for no verdicts, or at least 50")
    makers = _Makers(
        _chosen("models", models, MODELS) if models or not methods else {},
        _chosen("guides", guides, GUIDES),
        _chosen("objectives", objectives, REGISTRY),
    )
    whole = list(_chosen("methods", methods, METHODS)) if methods else []
    numbers = list(seeds)
    settings = GridSettings(
        name_of_tasks(tasks), steps, num_particles, width, batch_size,
        learning_rate, max_grad_norm, test_tasks, draws, tuple(snr_particles), snr_repeats, num_simulations,
    )  # fmt: skip
    cells = [_Cell(m, g, o, s) for m, g, s, o in product(makers.models, makers.guides, numbers, makers.objectives)]
    cells += [_Cell(name, ITS_OWN, ITS_OWN, s) for name, s in product(whole, numbers)]
    folder = None if out is None else make_folder(out, "out")
    if folder is not None:
        refuse_others(folder, "out", *SWAP_FILES)
    streams = GridTasks(tasks, test, settings)
    done = {} if folder is None else _finished(folder, cells, settings)
    if retry_failed:
        done = {cell: found for cell, found in done.items() if found["row"]["status"] == "ok"}

    with Stages(progress) as shown:
        shown.begin("comparing", len(cells), len(done))
        left = [cell for cell in cells if cell not in done]
        work = partial(_run, makers=makers, streams=streams, settings=settings, folder=folder, device=device)
        for cell, found in map(lambda c: (c, work(c)), left) if ray is None else _on_ray(work, left, ray):
            done[cell] = found
            shown.rename(f"{cell.model} · {cell.guide} · {cell.objective} · seed {cell.seed}")
            shown.advance()
    table = pd.DataFrame([done[cell]["row"] for cell in cells], columns=COLUMNS)
    own_scores = pd.DataFrame([done[cell]["row"].get("own_scores", {}) for cell in cells])
    table = pd.concat([table, own_scores], axis=1)
    noise = pd.DataFrame([row for cell in cells for row in done[cell]["gradient_noise"]])
    if folder is not None:
        write_swap_report(folder, table, noise, asdict(settings))
    table.attrs["gradient_noise"] = noise
    return table


@dataclass
class _Makers:
    models: Mapping[str, Callable[[TaskShape], nn.Module] | None]
    guides: Mapping[str, Callable[[nn.Module], nn.Module] | None]
    objectives: Mapping[str, Callable[[], pyro.infer.ELBO] | None]

    def pair(self, cell: _Cell, task: TaskShape) -> tuple[nn.Module, nn.Module]:
        """Model and guide of a cell."""
        if cell.guide == ITS_OWN:
            method = build(cell.model, task)
            return method.model, method.guide
        model = (self.models[cell.model] or MODELS[cell.model][1])(task)
        own = self.guides[cell.guide]
        return model, GUIDES[cell.guide](model, task.width) if own is None else own(model)

    def objective(self, cell: _Cell, task: TaskShape, num_particles: int | None) -> Any:
        if cell.objective == ITS_OWN:
            found: Any = build(cell.model, task).objective
        else:
            own = self.objectives[cell.objective]
            found = make(cell.objective, normalize=True) if own is None else own()
        if num_particles is not None:
            found.num_particles = num_particles
        return found


def _chosen(argument: str, given: Any, known: Registry) -> dict[str, Any]:
    """Labels with their own makers, or None for a known name."""
    if isinstance(given, Mapping):
        found = dict(given)
    else:
        names = [given] if isinstance(given, str) else each(TEXT, must="be names, or a mapping").check(argument, given)
        found = dict.fromkeys(names)
        for name in found:
            known.check(name, argument)
    if not found:
        raise ValueError(f"{argument}: got none; at least one is needed")
    return found


def _empty_row(cell: _Cell) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS, math.nan) | asdict(cell)
    return row | {"status": "ok", "reason": "", "verdict": "", "why": "", "own_scores": {}}


def _on_ray(work: Callable[[_Cell], dict], cells: list[_Cell], address: str) -> Iterator[tuple[_Cell, dict]]:
    """Results as they come; they are written here too, for a node may see another disk."""
    settings, folder = work.keywords["settings"], work.keywords["folder"]  # type: ignore[attr-defined]
    for cell, found in on_ray(work, cells, address):
        if isinstance(found, str):
            found = {"row": _empty_row(cell) | {"status": "failed", "reason": found}, "gradient_noise": []}
        if folder is not None:
            own = make_folder(folder / "cells" / cell.folder, "out")
            write_atomically(own / SETTINGS, sealed_json(asdict(settings)))
            write_atomically(own / RESULT, sealed_json(found))
        yield cell, found


def _run(
    cell: _Cell, makers: _Makers, streams: GridTasks, settings: GridSettings, folder: Path | None, device: Any = "auto"
) -> dict:
    """Trains and scores one cell; its row and gradient noise, which are also on disk when it returns."""
    row = _empty_row(cell)
    noise: list[dict[str, Any]] = []
    own = None if folder is None else make_folder(folder / "cells" / cell.folder, "out")
    try:
        if own is not None:
            write_atomically(own / SETTINGS, sealed_json(asdict(settings)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell.seed)
            model, guide = makers.pair(cell, streams.task)
        objective = makers.objective(cell, streams.task, settings.num_particles)
        result = fit(
            model,
            guide,
            streams.training(cell.seed),
            objective,
            steps=settings.steps,
            seed=cell.seed,
            optimizer=partial(torch.optim.Adam, lr=settings.learning_rate, fused=True),
            max_grad_norm=settings.max_grad_norm,
            device=device,
            validation=streams.watched,
            keep_best=streams.watched is not None,
            checkpoint_dir=None if own is None else own / "fit",
            resume=True,
            progress=False,
        )
        row |= scores_of_tasks(model, guide, streams, settings.draws)
        row |= {"loss": result.history[-1].get("loss", math.nan), "seconds": result.seconds}
        row |= {"steps": result.steps, "skipped": len(result.skipped)}
        if not math.isfinite(row["pll"]):
            raise ValueError(f"held-out log-likelihood: it is {row['pll']}, not finite")
        if settings.snr_particles:
            noise = _gradient_noise(cell, makers, model, guide, streams, settings, row)
        if settings.num_simulations:
            row |= _verdict(model, guide, objective, streams, settings)
    except checkpoint.CheckpointError:
        raise
    except CELL_ERRORS as error:
        row |= {"status": "failed", "reason": str(error).splitlines()[0] if str(error) else type(error).__name__}
    found = {"row": row, "gradient_noise": noise}
    if own is not None:
        write_atomically(own / RESULT, sealed_json(found))
    return found


def _verdict(
    model: nn.Module, guide: nn.Module, objective: Any, streams: GridTasks, settings: GridSettings
) -> dict[str, str]:
    """Level and reason; a fit that cannot be tested has its scores all the same."""
    count = settings.num_simulations
    name = as_objective(objective).name
    try:
        found = verdict(model, guide, streams.held_out, objective=name, num_simulations=count, num_samples=count)
    except CELL_ERRORS as error:
        return {"verdict": "not tested", "why": str(error).splitlines()[0] if str(error) else type(error).__name__}
    return {"verdict": found.level, "why": found.sentence}


def _gradient_noise(
    cell: _Cell,
    makers: _Makers,
    model: nn.Module,
    guide: nn.Module,
    streams: GridTasks,
    settings: GridSettings,
    row: dict,
) -> list[dict[str, Any]]:
    """Noise of the fitted pair's gradient over numbers of particles; fills in the row at the objective's own."""
    own = makers.objective(cell, streams.task, settings.num_particles).num_particles
    sizes = sorted({*settings.snr_particles, own})
    objective = {cell.objective: lambda k: makers.objective(cell, streams.task, k)}
    table = compare_objectives(model, guide, streams.test_batches[0], objective, sizes, settings.snr_repeats)
    rows = [asdict(cell) | {c: r[c] for c in table.columns if c != "objective"} for _, r in table.iterrows()]
    plain = [{k: v.item() if hasattr(v, "item") else v for k, v in r.items()} for r in rows]
    at_own = next(r for r in plain if r["num_particles"] == own)
    row |= {name: at_own[name] for name in ("ess", "share_below_2", "snr_guide", "snr_model")}
    return plain


def _finished(folder: Path, cells: list[_Cell], settings: GridSettings) -> dict[_Cell, dict]:
    """Results of cells that an earlier call finished.

    Raises:
        ValueError: a cell was begun with other settings.
    """
    found = {}
    for cell in cells:
        own = folder / "cells" / cell.folder
        if not (own / SETTINGS).exists():
            if (own / RESULT).exists():  # which a cell writes last
                raise FileError(
                    f"out: {own} holds {RESULT} without {SETTINGS}; it is not of a grid, name another folder"
                )
            continue
        stored = _read(own / SETTINGS, GridSettings, "the settings of a grid")
        for name, value in asdict(settings).items():
            held = getattr(stored, name)
            if held != value:
                raise ValueError(f"{name}: got {value!r}, but {own} was run with {held!r}; use that or another folder")
        if (own / RESULT).exists():
            result = asdict(_read(own / RESULT, _Result, "the result of a cell"))
            for name, value in asdict(cell).items():
                if result["row"][name] != value:
                    raise FileError(f"{own / RESULT}: is of {name} {result['row'][name]!r}, not {value!r}")
            found[cell] = result
    return found


def _read(path: Path, schema: type[T], what: str) -> T:
    try:
        return read_checked_json(path, schema, what)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
