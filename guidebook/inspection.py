"""Opens a run: scores on test tasks, the posterior in ArviZ, and a report beside the checkpoint."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from evaluation import plots
from evaluation.arviz.arviz_container import write_netcdf
from evaluation.arviz.arviz_conversion import fit_attributes, to_arviz
from evaluation.arviz.arviz_summary import widest_entries, widest_forest
from evaluation.findings import Verdict
from evaluation.methods import Method
from evaluation.report import Code, Heading, Picture, Prose, Section, Settings, Table, write_report
from evaluation.run_configuration import RunConfiguration, training_stream
from evaluation.scores.metrics import rate_spread
from evaluation.scores.scoring import SCORES, score_as_used, score_classes, score_oracle
from evaluation.trust import HELD_OUT_BATCH_SIZE, held_out_tasks, verdict
from guidebook.gallery import load_pretrained
from guidebook.runs import open_run, own_tasks
from inference import predict
from inference.progress import Stages
from inference.training_setup import make_fabric
from pp_models.contract import as_guide, as_objective
from pp_models.data import TaskBatch
from pp_models.files import make_folder
from pp_models.likelihoods import floor_of
from pp_models.own_files import refuse_others, replaced_own
from pp_models.tasks.downloads import no_downloads
from pp_models.tasks.frame_tasks import FrameTasks
from pp_models.tasks.table_columns import DATE, TableColumns
from pp_models.tasks.task_stream import TaskStream, batches_of
from pp_models.tasks.task_table import TEST_SEED, task_stream

SIMULATIONS = 200
#: outputs of a table that are drawn
MOST_PICTURES = 4


@dataclass
class Inspected:
    """A fit that is opened.

    Args:
        configuration: what was fitted.
        method: with its weights.
        steps: that it was trained for.
        own: the tasks of a table of the user's own; None for named ones.
        command: that opens it again.
    """

    configuration: RunConfiguration
    method: Method
    steps: int
    own: FrameTasks | None
    command: str


def inspect_run(
    folder: str | Path, draws: int = 200, *, device: str = "cpu", progress: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame, Verdict]:
    """Scores a run, says whether to trust it, and writes ``posterior.nc`` and ``report.html`` into its folder.

    Args:
        folder: a run made by ``guidebook fit``.
        draws: posterior draws.
        device: where all of it is computed: cpu, auto, cuda, cuda:N or mps.
        progress: show what is being done, where stderr is a terminal.

    Returns:
        The table of scores, the summary of the posterior's widest entries, and the verdict.

    Raises:
        CheckpointError: no run there, or a damaged one; or the folder holds somebody's files of these names.
        ValueError: ``draws`` below 2, or a device that is not there.
    """
    if draws < 2:
        raise ValueError(f"draws: got {draws}; at least 2 are needed")
    place = make_fabric(device, "32-true").device
    configuration, method, steps = open_run(folder)
    own = own_tasks(folder, configuration)
    command = f"guidebook inspect {shlex.quote(Path(folder).name)} --draws {draws}"
    return _inspect(Inspected(configuration, method, steps, own, command), folder, "run", draws, place, progress)


def inspect_pretrained(
    name: str, out: str | Path, draws: int = 200, *, device: str = "cpu", progress: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame, Verdict]:
    """The same of an entry of the gallery, into a folder of its own.

    Args:
        name: ``guidebook list pretrained``.
        out: the folder.
        draws: posterior draws.
        device: as for :func:`inspect_run`.
        progress: show what is being done, where stderr is a terminal.

    Raises:
        ValueError: an unknown name, ``draws`` below 2, or a device that is not there.
        FileError: the folder holds somebody's files of these names.
    """
    if draws < 2:
        raise ValueError(f"draws: got {draws}; at least 2 are needed")
    place = make_fabric(device, "32-true").device
    entry = load_pretrained(name)
    configuration = entry.card.configuration
    method = Method(configuration.model, entry.model, entry.guide, entry.objective)
    command = f"guidebook inspect {shlex.quote(name)} --draws {draws}"
    return _inspect(
        Inspected(configuration, method, configuration.steps, None, command), out, "out", draws, place, progress
    )


def _inspect(
    fit: Inspected, folder: str | Path, argument: str, draws: int, place: torch.device, progress: bool
) -> tuple[pd.DataFrame, pd.DataFrame, Verdict]:
    """Scores, judges and reports a fit into a folder."""
    configuration, method, own = fit.configuration, fit.method, fit.own
    method.model.to(place)
    method.guide.to(place)
    path = make_folder(folder, argument)
    refuse_others(path, argument, "posterior.nc", "report.html")
    stream: TaskStream
    if own is not None:
        stream = held_out(own)
    else:
        with no_downloads("opening a run"):
            stream = task_stream(configuration.tasks, 4, configuration.seed, test=True)
    batches = [stream.batch(i).to(place) for i in range(25)]
    few = batches[0]
    attrs = fit_attributes(method.objective, fit.steps, configuration.seed)
    attrs |= {"tasks": configuration.tasks, "method": configuration.model}
    with Stages(progress) as shown:
        shown.begin("scores on test tasks", 1)
        units = None if own is None or own.classes else own.columns
        if own is not None and own.classes:
            table = score_classes(method.model, method.guide, batches)
        else:
            table = score_as_used(method.model, method.guide, batches, columns=units)
        shown.begin("posterior for ArviZ", 1)
        idata = to_arviz(method.model, method.guide, few, num_samples=draws, seed=configuration.seed, attrs=attrs)
        write_netcdf(idata, path / "posterior.nc", partial(replaced_own, argument=argument))
        summary, forest = widest_entries(idata), widest_forest(idata)
    rows = [{"model": configuration.model, **_means(table)}]
    if configuration.tasks.startswith("gp-"):
        floor = floor_of(method.model)
        name = "exact GP" + (f", sd >= {floor}" if floor else "")
        rows.append({"model": name, **_means(score_oracle(batches, floor))})
    scores = pd.DataFrame(rows)

    found = verdict_of(configuration, method, draws, progress, own, place)
    sections: list[Section] = [
        Heading(f"Verdict: {found.level}"),
        Prose(found.sentence),
        Table(found.table()),
        *([Prose("To try next: " + "; ".join(found.advice) + ".")] if found.advice else []),
    ]
    if found.ranks is not None:
        figure = plots.rank_ecdf_plot(found.ranks)
        sections.append(
            Picture(figure, "Ranks of simulated truths among the guide's draws; inside the band all is well.")
        )
    sections += [
        Heading("Scores on test tasks"),
        Prose(
            f"After {fit.steps} steps, on {len(batches) * 4} test tasks; nats per point, mean over tasks.{_units(own)}"
        ),
        Table(scores),
    ]
    if few.full.x.shape[-1] == 1 and (own is None or not own.classes):
        sections += [Heading("Predictions"), *_pictures(configuration.model, method, few, units)]
    if as_guide(method.guide).rates(few.context) is not None:
        rates = rate_spread(method.guide, few.context)
        table = pd.DataFrame([{"layer": site, **vars(found)} for site, found in rates.items()])
        figure = plots.rate_maps(method.guide, few)
        sections += [Heading("Dropout rates"), Picture(figure, "Drop probability by layer and task."), Table(table)]
    sections += [
        Heading("Posterior"),
        Prose("The entries with the largest posterior standard deviation; posterior.nc holds all of it."),
        Table(summary),
        Picture(forest, "ArviZ's forest plot of them: medians, 50 % and 90 % HDI."),
        Heading("Configuration"),
        Settings(asdict(configuration)),
        Code(fit.command),
    ]
    write_report(path, f"{configuration.model} on {configuration.tasks}", sections)
    return scores, summary, found


def held_out(own: FrameTasks) -> FrameTasks:
    """The split of a table that a run is tested on, four tasks a batch: test, else validation, else training tasks."""
    split = next(split for split in ("test", "validation", "train") if own.pools[split])
    return own.of(split, 4, TEST_SEED)


def _pictures(name: str, method: Method, batch: TaskBatch, columns: TableColumns | None) -> list[Picture]:
    """Three tasks with one input; of a table each of the first outputs, in its units."""
    prediction = predict(method.model, method.guide, batch.context, batch.full, 100, seed=0)
    tasks, caption = range(min(3, len(batch))), "Central 50, 80 and 95 % bands, draws and context points."
    if columns is None:
        return [Picture(plots.fan_plot({name: prediction}, batch, batch.full.x, tasks=tasks), caption)]
    prediction, batch = prediction.in_units(columns.y_mean, columns.y_scale), columns.in_units(batch)
    across = columns.x[0].name + (" (days since 1970)" if columns.x[0].kind == DATE else "")
    return [
        Picture(
            plots.fan_plot(
                {name: prediction}, batch, batch.full.x, tasks=tasks, output=d, axis_names=(across, column.name)
            ),
            caption,
        )
        for d, column in enumerate(columns.y[:MOST_PICTURES])
    ]


def _units(own: FrameTasks | None) -> str:
    if own is None:
        return ""
    split = held_out(own).split
    tasks = f" They are random contexts of the table's {len(held_out(own).names)} {split} tasks"
    seen = ", which were trained on: there are no others" if split == "train" else ""
    return f"{tasks}{seen}." + ("" if own.classes else " All is in the table's units, each output's error by itself.")


def verdict_of(
    configuration: RunConfiguration,
    method: Method,
    draws: int,
    progress: bool,
    own: FrameTasks | None = None,
    place: torch.device | str = "cpu",
) -> Verdict:
    """The verdict on a fit of that configuration, by tasks of the training distribution that no training reaches."""
    stream: TaskStream
    if own is not None:
        stream, tested = training_stream(configuration, own), held_out_tasks(held_out(own))
    else:
        with no_downloads("opening a run"):
            stream = task_stream(configuration.tasks, HELD_OUT_BATCH_SIZE, configuration.seed)
        tested = held_out_tasks(stream)
    name = configuration.objective or as_objective(method.objective).name
    return verdict(
        method.model,
        method.guide,
        [batch.to(place) for batch in tested],
        objective=name,
        trained_on=[batch.to(place) for batch in batches_of(stream, 0, 200)],
        num_simulations=SIMULATIONS,
        num_samples=max(draws, 50),
        seed=configuration.seed % 2**31,
        progress=progress,
    )


def _means(table: pd.DataFrame) -> dict[str, float]:
    errors = [c for c in table if c.startswith("rmse ")]
    kept = (*SCORES, "accuracy", "crps", "within_1sd", "within_2sd", *errors)
    mixed = {"crps"} if len(errors) > 1 else set()  # of outputs in several units
    return {c: float(table[c].mean()) for c in kept if c in table and c not in mixed}
