"""The ``guidebook`` command."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guidebook.listing import KINDS
from pp_models.files import FileError
from pp_models.registry import Registry

app = typer.Typer(
    name="guidebook",
    help="Amortised variational inference you can swap and compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
#: a pipe or a file has no width of its own: tables are then as wide as they need to be
PIPED_WIDTH = 200
console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)


class Stopped(Exception):
    """What ends a command early with a line and a status of its own."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


def show(title: str, frame, index: bool = False) -> None:
    """Prints a DataFrame as a table."""
    if index:
        frame = frame.reset_index()
    table = Table(title=Text(title), title_justify="left", header_style="bold")
    for i, column in enumerate(frame.columns):
        table.add_column(str(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(_words(value)) for value in row))  # names may hold brackets, which are markup in a str
    console.print(table)


def say(line: str) -> None:
    """Prints a line as it is: brackets are no markup, a long path stays in one piece, and control codes are shown."""
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Text in which control characters, which a path may hold, are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _words(value: object) -> str:
    if isinstance(value, float):
        if value != value:
            return "–"
        return str(int(value)) if value.is_integer() and abs(value) >= 1000 else f"{value:.3f}"
    return "–" if str(value) == "<NA>" else str(value)


def _prepare() -> None:
    """Settings of this process that a library must not touch."""
    import torch

    torch.set_flush_denormal(True)  # denormal numbers make a CPU step many times slower


#: what several commands ask for in the same words: tasks, or a table of one's own
Tasks = Annotated[str | None, typer.Option(help="a task distribution: guidebook list tasks; gp-rbf without --data")]
Data = Annotated[Path | None, typer.Option(help="in place of tasks: your own CSV, Parquet or NetCDF file")]
TaskColumn = Annotated[str, typer.Option(help="of --data: the column, or columns, that say which task a row is of")]
Inputs = Annotated[str, typer.Option(help="of --data: comma-separated columns of inputs")]
Outputs = Annotated[str, typer.Option(help="of --data: of outputs, which may be empty in some rows")]
Time = Annotated[str | None, typer.Option(help="of --data: an input that is a time")]
Group = Annotated[str | None, typer.Option(help="of --data: a column of groups of tasks, split as one")]
Categorical = Annotated[str, typer.Option(help="of --data: inputs of numbers that are categories")]
Split = Annotated[str, typer.Option(help="of --data: shares of training, validation, test tasks")]
NumContext = Annotated[str, typer.Option(help="of --data: fewest and most context points, as 1,20")]
MaxPoints = Annotated[int, typer.Option(help="of --data: most points of a task in a step")]
Forecast = Annotated[bool, typer.Option("--forecast", help="of --data: contexts are the past; needs --time")]


@app.command("list")
def list_command(
    kind: Annotated[str, typer.Argument(help=f"{', '.join(KINDS)}; all without one")] = "",
) -> None:
    """What there is.

    Example: `guidebook list objectives`
    """
    for each in [kind] if kind else KINDS:
        table = Table(title=each, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name, what in KINDS.find(each)():
            table.add_row(Text(name), Text(what))
        console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for tables, plots and report.html")] = Path("demo"),
    images: Annotated[str, typer.Option(help="image data set")] = "digits",
    seed: Annotated[int, typer.Option(help="seed of everything")] = 0,
    steps: Annotated[int, typer.Option(help="training steps of NVDP on GP tasks; the rest scales with it")] = 1_300,
) -> None:
    """Trains NVDP and two baselines on GP tasks and images, and writes a report; about three minutes.

    Example: `guidebook demo --out demo`
    """
    from guidebook.demo import run_demo

    _prepare()

    table = run_demo(out, images=images, seed=seed, steps=steps)
    show("GP regression: test log-likelihood, nats per point", table)
    say(f"open {out / 'report.html'}; the posterior is in {out / 'posterior.nc'}")


@app.command("fit")
def fit_command(
    model: Annotated[str, typer.Option(help="a method: guidebook list models")] = "nvdp",
    tasks: Tasks = None,
    data: Data = None,
    task: TaskColumn = "",
    x: Inputs = "",
    y: Outputs = "",
    time: Time = None,
    group: Group = None,
    categorical: Categorical = "",
    split: Split = "0.8,0.1,0.1",
    num_context: NumContext = "0,",
    max_points: MaxPoints = 256,
    forecast: Forecast = False,
    objective: Annotated[str | None, typer.Option(help="an objective; the method's own by default")] = None,
    steps: Annotated[int | None, typer.Option(help="optimizer steps; 3,000 without --cpu-seconds")] = None,
    cpu_seconds: Annotated[
        float | None, typer.Option(help="in place of steps: as many as so many seconds of CPU buy")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of parameters, tasks and draws")] = 0,
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/fit"),
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in that folder")] = False,
    previous: Annotated[bool, typer.Option("--previous", help="resume from the checkpoint before the newest")] = False,
    width: Annotated[int | None, typer.Option(help="hidden width of every network; the recipe's by default")] = None,
    recipe: Annotated[str | None, typer.Option(help="best, or paper: as the method's paper has it")] = None,
    batch_size: Annotated[int | None, typer.Option(help="tasks a step; the recipe's by default")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of Adam; the recipe's by default")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, linear or cosine; the recipe's by default")] = None,
    warmup: Annotated[float | None, typer.Option(help="share of the steps, or steps; the recipe's by default")] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="of the gradient, 0 does not clip; the recipe's by default")
    ] = None,
    pooling: Annotated[str | None, typer.Option(help="of the guide's encoder: mean, attention, regression …")] = None,
    path: Annotated[
        str | None, typer.Option(help="of the decoder: attention, regression, learned-regression or kernels")
    ] = None,
    input_features: Annotated[int | None, typer.Option(help="sines and cosines of x that a network reads")] = None,
    experts: Annotated[str | None, typer.Option(help="of a mixture: conjugate, context or strict")] = None,
    beta: Annotated[float | None, typer.Option(help="weight of the KL")] = None,
    kl_schedule: Annotated[
        str | None,
        typer.Option(help="of the KL: warm-up:1000, cyclical:1000:4, free-bits:0.1, late:500; joined by +"),
    ] = None,
    num_particles: Annotated[int | None, typer.Option(help="draws of each task in the objective")] = None,
    average: Annotated[
        float | None, typer.Option(help="end at the mean parameters of this share of the steps, the last ones")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, 64-true, bf16-mixed …")] = "32-true",
    compile: Annotated[str, typer.Option(help="the step: yes, no, or auto, where the run is long enough")] = "auto",
    checkpoint_every: Annotated[int, typer.Option(help="steps between checkpoints; Ctrl-C writes one too")] = 1_000,
    validation: Annotated[
        bool | None,
        typer.Option("--validation/--no-validation", help="log the loss of held-out tasks too; of your own table, yes"),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="stop once that has not fallen for so many logged rows, of 50 steps")
    ] = None,
    keep_best: Annotated[
        bool | None,
        typer.Option(
            "--keep-best/--keep-last", help="end at the parameters for which it was lowest; of your own table, yes"
        ),
    ] = None,
) -> None:
    """Fits a method on a task distribution or your own table, by the method's recipe where nothing else is said.

    Example: `guidebook fit --model nvdp --tasks gp-rbf --steps 3000 --seed 0 --out runs/first`

    Your own: `guidebook fit --data tasks.csv --task id --x x1,x2 --y y1,y2 --model bnnp --out runs/own`
    """
    if data is not None and tasks is not None:
        raise ValueError(f"tasks: got {tasks!r} beside data = {str(data)!r}; take one of them")
    _known(model=model, tasks=tasks, objective=objective)
    from dataclasses import replace

    from evaluation.run_configuration import (
        CONFIGURATION,
        OWN_DATA,
        affordable,
        configure,
        read_configuration,
        validation_tasks,
    )
    from guidebook.runs import own_tasks, start
    from inference import Interrupted
    from inference.checkpoint import read_index

    _prepare()

    compiled = {"auto": "auto", "yes": True, "no": False}.get(compile)
    if compiled is None:
        raise ValueError(f"compile: got {compile!r}; it must be auto, yes or no")
    if steps is not None and cpu_seconds is not None:
        raise ValueError(f"cpu_seconds: got {cpu_seconds} beside steps = {steps}; take one of them")
    continued = read_configuration(out) if (resume or previous) and (out / CONFIGURATION).exists() else None
    own = None
    if data is not None:
        own = _own_table(data, task, x, y, time, group, categorical, split, num_context, max_points, forecast, seed)
    elif continued is not None and tasks is None:
        own = own_tasks(out, continued)
    named = OWN_DATA if own is not None else tasks or "gp-rbf"
    configuration = configure(
        model, named, continued, objective=objective, steps=3_000 if steps is None else steps, seed=seed, width=width,
        batch_size=batch_size, learning_rate=learning_rate, schedule=schedule, warmup=warmup,
        max_grad_norm=max_grad_norm, recipe=recipe, pooling=pooling, path=path, input_features=input_features,
        experts=experts, beta=beta, kl_schedule=kl_schedule, num_particles=num_particles, average=average,
        precision=precision,
    )  # fmt: skip
    if cpu_seconds is not None:
        if continued is None:
            steps, cost = affordable(configuration, cpu_seconds, device, own)
            say(f"a step costs {1000 * cost:.1f} ms of CPU: {steps:,} steps")
        else:  # as many as it was begun with
            steps = continued.steps
        configuration = replace(configuration, steps=steps)
    steps = configuration.steps
    if resume or previous:
        held = read_index(out)
        at = held[1 if previous and len(held) > 1 else 0]["step"] if held else 0
        say(f"goes on at step {at} of {steps}" if held else f"{out} holds no checkpoint: begins at step 0")
    again = "previous" if previous else resume
    if validation is False and (patience is not None or keep_best):
        given = f"--patience {patience}" if patience is not None else "--keep-best"
        raise ValueError(f"validation: got --no-validation beside {given}, which needs it; take one of them")
    some = own is not None and bool(own.pools["validation"]) and average is None
    if validation is None:  # few tasks of one's own are soon learned by heart
        validation = some or patience is not None or bool(keep_best)
    if keep_best is None:
        keep_best = some and validation
    watched = validation_tasks(configuration, own) if validation else None
    try:
        result = start(
            configuration, out, again, own, device=device, checkpoint_every=checkpoint_every, compile=compiled,
            validation=watched, patience=patience, keep_best=keep_best,
        )  # fmt: skip
    except Interrupted as stop:  # typer would make an exit status of it
        line = f"interrupted at step {stop.step}; the same command with --resume goes on from there"
        raise Stopped(line, 128 + stop.number) from None
    last = result.history[-1]
    numbers = ", ".join(
        f"{k} {last[k]:.4f}" if k in last else f"{k} not finite"
        for k in ("loss", "log_likelihood", "kl")
        if k in last or k == "loss"
    )
    if "held_out_loss" in last:
        numbers += f", held-out loss {last['held_out_loss']:.4f}"
    if "ess" in last:
        numbers += f", ess {last['ess']:.2f}"
    how = "" if result.backend == "eager" else ", compiled"
    if result.best_step is not None and result.best_step < result.steps:
        numbers += f"; kept the parameters of step {result.best_step}, whose held-out loss was the lowest"
    say(f"step {result.steps}: {numbers}; {len(result.skipped)} steps skipped; {result.seconds:.0f} s{how}")
    say(f"next: guidebook inspect {shlex.quote(str(out))}")
    if own is not None:
        say(f"      guidebook predict {shlex.quote(str(out))} --data new.csv --out predictions.csv")


@app.command("predict")
def predict_command(
    run: Annotated[Path, typer.Argument(help="folder of a fit to your own data")],
    data: Annotated[Path, typer.Option(help="a table: rows with outputs are context, those without are predicted")],
    out: Annotated[Path, typer.Option(help="CSV or Parquet file for the predictions")] = Path("predictions.csv"),
    quantiles: Annotated[str, typer.Option(help="comma-separated levels; two are an interval")] = "0.05,0.95",
    draws: Annotated[int, typer.Option(help="posterior draws")] = 200,
    seed: Annotated[int, typer.Option(help="seed of the draws")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "cpu",
) -> None:
    """Predicts the rows of a table that lack outputs, given those of their task that have them.

    Means, standard deviations and quantiles are in the table's units.

    Example: `guidebook predict runs/own --data new.csv --out predictions.csv`
    """
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"out: got {str(out)!r}; its name must end in .csv or .parquet")
    from guidebook.saving import load
    from inference.training_setup import make_fabric
    from pp_models.files import make_folder, replaced_atomically

    _prepare()

    levels = [_number(word, "quantiles") for word in _split(quantiles)]
    saved, place = load(run), make_fabric(device, "32-true").device
    for part in (saved.model, saved.guide):
        part.to(place)
    prediction = _noting(saved.predict, data, draws, seed=seed)
    table = prediction.to_dataframe(levels)
    make_folder(out.absolute().parent, "out")
    with replaced_atomically(out.absolute()) as partial:
        if out.suffix.lower() == ".csv":
            table.to_csv(partial, index=False)
        else:
            try:
                table.to_parquet(partial, index=False)
            except ImportError:
                raise ValueError(f"out: {out} is written by pyarrow: pip install guidebook[parquet]") from None
    show(f"first of {len(table)} predictions", table.head(5))
    say(f"wrote {out}")


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(help="folder of a run made by guidebook fit, or a name of the gallery")],
    draws: Annotated[int, typer.Option(help="posterior draws")] = 200,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="folder for a name of the gallery; runs/NAME by default")] = None,
) -> None:
    """Says whether to trust a run, scores it on test tasks and opens its posterior in ArviZ.

    Writes posterior.nc and report.html into the run's folder. Example: `guidebook inspect runs/first`

    Of the gallery, without training: `guidebook inspect nvdp-gp-rbf` (guidebook list pretrained)
    """
    from guidebook import gallery
    from guidebook.inspection import inspect_pretrained, inspect_run

    _prepare()

    if not run.exists() and str(run) in gallery.names():
        run, name = out or Path("runs") / run, str(run)
        scores, summary, verdict = inspect_pretrained(name, run, draws, device=device, progress=True)
    elif not run.exists() and len(run.parts) == 1:
        raise ValueError(f"run: got {str(run)!r}; it must be the folder of a run, or of guidebook list pretrained")
    elif out is not None:
        raise ValueError(f"out: got {str(out)!r}; a run's report goes into its folder, {run}")
    else:
        scores, summary, verdict = inspect_run(run, draws, device=device, progress=True)
    for line in str(verdict).splitlines():
        say(line)
    show("Scores on test tasks", scores)
    show("Posterior: the ten widest entries", summary)
    say(f"wrote {run / 'posterior.nc'} and {run / 'report.html'}")


@app.command()
def reproduce(
    experiment: Annotated[str, typer.Argument(help="guidebook list experiments, or all")] = "",
    *,
    listed: Annotated[bool, typer.Option("--list", help="every experiment, its claims and its time")] = False,
    scale: Annotated[str, typer.Option(help="smoke, small or paper")] = "small",
    seeds: Annotated[str, typer.Option(help="comma-separated seeds; 0,1,2 by default")] = "",
    out: Annotated[Path, typer.Option(help="folder for fits and results")] = Path("runs"),
    device: Annotated[str, typer.Option(help="where to train: cpu, auto, cuda or cuda:N")] = "cpu",
    cpu_seconds: Annotated[float | None, typer.Option(help="common/…: CPU seconds of training of each fit")] = None,
    tasks: Annotated[str, typer.Option(help="common/…: comma-separated task distributions; all by default")] = "",
    methods: Annotated[str, typer.Option(help="common/…: comma-separated methods; all by default")] = "",
) -> None:
    """Runs an experiment and says which of its claims held. Called again, it skips what stands.

    Example: `guidebook reproduce nvdp/gp-random --scale small --seeds 0,1,2`
    All: `guidebook reproduce all --scale small` runs every one, the most important first.
    """
    from evaluation.experiments.table import EXPERIMENTS

    if listed or experiment == "all":
        if cpu_seconds is not None or tasks or methods:
            raise ValueError("cpu_seconds, tasks, methods: they are of single experiments; name one")
        _reproduce_all(scale, _seeds(seeds) or None, out, device, listed)
        return
    if not experiment:
        raise ValueError("experiment: none is given; it must be a name of guidebook reproduce --list, or all")
    EXPERIMENTS.check(experiment)
    from evaluation.experiments import reproduce as run
    from evaluation.experiments.experiment import check_table, summary
    from evaluation.experiments.reproduction import results_folder

    _prepare()

    outcome = run(
        experiment, scale, _seeds(seeds) or None, out, device=device, cpu_seconds=cpu_seconds,
        tasks=_split(tasks) or None, methods=_split(methods) or None,
    )  # fmt: skip
    show(outcome.name, summary(outcome.table))
    if outcome.checks:
        show("claims and measurements", check_table(outcome.checks))
    for title, table in outcome.tables.items() if EXPERIMENTS[experiment].tasks else ():
        show(title, table)
    say(f"wrote {results_folder(experiment, scale, out, cpu_seconds)}/report.html")


def _reproduce_all(scale: str, seeds: list[int] | None, out: Path, device: str, listed: bool) -> None:
    from evaluation.experiments.reproduction import plan, reproduce_all

    table = plan(scale, seeds, out)
    known = table[~table.stands].minutes.dropna()
    title = f"experiments, {scale}; minutes of the last run in {out}, or of three seeds where we timed them"
    show(title, table.fillna({"minutes": "not timed"}))
    if listed:
        return
    say(
        f"{int((~table.stands).sum())} of {len(table)} to run; {len(known)} of them took {known.sum():.0f} min "
        "when they last ran, the others have not been timed"
    )
    _prepare()
    show("what became of them", reproduce_all(scale, seeds, out, device=device, say=say)[["experiment", "outcome"]])


@app.command("compare")
def compare_command(
    models: Annotated[
        str | None, typer.Option(help="comma-separated: guidebook list families; network without --methods")
    ] = None,
    guides: Annotated[
        str, typer.Option(help="comma-separated: guidebook list families")
    ] = "bernoulli-expert,mean-field",
    objectives: Annotated[str, typer.Option(help="comma-separated: guidebook list objectives")] = "elbo,iwae,pp-avi",
    methods: Annotated[
        str, typer.Option(help="comma-separated whole methods, each with its own guide and objective: list models")
    ] = "",
    tasks: Tasks = None,
    data: Data = None,
    task: TaskColumn = "",
    x: Inputs = "",
    y: Outputs = "",
    time: Time = None,
    group: Group = None,
    categorical: Categorical = "",
    split: Split = "0.8,0.1,0.1",
    num_context: NumContext = "0,",
    max_points: MaxPoints = 256,
    forecast: Forecast = False,
    seeds: Annotated[str, typer.Option(help="comma-separated seeds")] = "0",
    steps: Annotated[int, typer.Option(help="optimizer steps of each run")] = 1_000,
    num_particles: Annotated[int | None, typer.Option(help="draws of each task in the objective")] = None,
    width: Annotated[int, typer.Option(help="hidden width of every network")] = 64,
    batch_size: Annotated[int, typer.Option(help="tasks a step")] = 8,
    learning_rate: Annotated[float, typer.Option(help="of Adam")] = 1e-3,
    simulations: Annotated[int, typer.Option(help="tasks simulated for each run's verdict; 0 for no verdicts")] = 100,
    out: Annotated[Path, typer.Option(help="folder for the runs, tables, figure and report")] = Path("runs/compare"),
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run failed combinations anew")] = False,
    ray: Annotated[
        str | None,
        typer.Option(help="run on a Ray cluster: local for this machine's cores, auto, ray://HOST:10001 …"),
    ] = None,
    device: Annotated[str, typer.Option(help="where to train: auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Trains every model with every guide under every objective, and sets them side by side.

    A combination that cannot be trained is listed with its reason. Called again, it goes on where it stopped.

    Example: `guidebook compare --guides mean-field,mc-dropout --objectives elbo,iwae,pp-avi --seeds 0,1,2 --steps 500`

    Your own, scored in its units: `guidebook compare --data tasks.csv --task id --x x1,x2 --y y1 --methods bnnp,nvdp`
    """
    if data is not None and tasks is not None:
        raise ValueError(f"tasks: got {tasks!r} beside data = {str(data)!r}; take one of them")
    if methods and models is None:
        models = ""
    models = "network" if models is None else models
    _known(tasks=tasks, objectives=_split(objectives), models=_split(models), guides=_split(guides))
    from evaluation.comparison.swap_matrix import compare
    from evaluation.comparison.swap_report import failures, summarise, verdicts

    _prepare()

    own = None
    if data is not None:
        own = _own_table(data, task, x, y, time, group, categorical, split, num_context, max_points, forecast, 0)
    table = compare(
        _split(models),
        _split(guides),
        _split(objectives),
        own if own is not None else tasks or "gp-rbf",
        _seeds(seeds),
        steps=steps,
        num_particles=num_particles,
        width=width,
        batch_size=batch_size,
        learning_rate=learning_rate,
        methods=_split(methods),
        num_simulations=simulations,
        out=out,
        retry_failed=retry_failed,
        ray=ray,
        device=device,
    )
    found = summarise(table)
    found = found[found["runs"] > 0]
    words = [name for name in ("model", "guide") if found[name].nunique() > 1] + ["objective"]
    if "guide" in words and "model" in words and found.groupby("model")["guide"].nunique().max() == 1:
        words.remove("guide")  # the model says which
    found.insert(0, "run", found[words].agg(" · ".join, axis=1))
    of_own = [name for name in found.columns if str(name).startswith("rmse ") or name == "accuracy"]
    brief = found[["run", "runs", "pll", "pll_sd", "rmse", *of_own, "ess", "snr_guide", "seconds"]]
    if own is not None:
        brief = brief.dropna(axis="columns", how="all")
    brief = brief.rename(columns={"snr_guide": "snr", "seconds": "s"})
    if simulations:
        show("Verdicts", verdicts(table))
    show("Means over seeds; pll is the held-out likelihood, nats per point", brief)
    for line in failures(table):
        say(f"failed: {line}")
    say(f"wrote {out / 'compare.csv'} and {out / 'report.html'}")


def _own_table(
    data: Path, task: str, x: str, y: str, time: str | None, group: str | None, categorical: str, split: str,
    num_context: str, max_points: int, forecast: bool, seed: int,
) -> Any:  # fmt: skip
    """The tasks of a file of one's own."""
    from pp_models.tasks.frame_tasks import from_dataframe

    return _noting(
        from_dataframe, data, _split(task) or None, _split(x), _split(y), time, group=group,
        categorical=_split(categorical), split=[_number(word, "split") for word in _split(split)],
        num_context=_range(num_context), max_points=max_points, forecast=forecast, seed=seed,
    )  # fmt: skip


def _known(**names: str | list[str] | None) -> None:
    """Refuses an unknown name before anything heavy is loaded."""
    from evaluation.comparison.families import MODELS
    from evaluation.methods import METHODS
    from guides.table import GUIDES
    from inference.objectives.table import REGISTRY
    from pp_models.tasks.task_table import TASKS

    tables: dict[str, Registry] = {"model": METHODS, "objective": REGISTRY, "tasks": TASKS}
    tables |= {"models": MODELS, "guides": GUIDES, "objectives": REGISTRY}
    for kind, given in names.items():
        for name in [given] if isinstance(given, str) else given or []:
            tables[kind].check(name, kind)


def _split(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _noting(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls, and says what Python would warn of as one line each."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        found = call(*args, **kwargs)
    for note in notes:
        say(f"note: {note.message}")
    return found


def _number(word: str, argument: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{argument}: got {word!r}; it must be numbers separated by commas") from None


def _range(words: str) -> tuple[int, int | None]:
    """Fewest and most; nothing after the comma is no bound."""
    low, _, high = words.partition(",")
    try:
        return int(low), int(high) if high.strip() else None
    except ValueError:
        raise ValueError(
            f"num_context: got {words!r}; it must be two numbers such as 1,20, or 1, for no bound"
        ) from None


def _seeds(words: str) -> list[int]:
    try:
        return [int(word) for word in _split(words)]
    except ValueError:
        raise ValueError(f"seeds: got {words!r}; it must be integers separated by commas, such as 0,1,2") from None


@app.command()
def doctor() -> None:
    """Says what this machine and installation have, and what is missing.

    Example: `guidebook doctor`
    """
    import torch

    from pp_models.data import DataError
    from pp_models.tasks.downloads import cache_folder, data_folder

    table = Table(title="guidebook doctor", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_row("python", platform.python_version())
    for name, found in installed_versions():
        table.add_row(name, Text(found))
    from evaluation.arviz.pyro_converter import choose_container

    table.add_row("ArviZ container", choose_container("auto"))
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none usable"
    table.add_row("GPU", Text(cuda))
    table.add_row("CPU", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    try:
        folder = str(data_folder() or "not set: data sets are downloaded")
    except DataError as error:
        folder = str(error)
    table.add_row("GUIDEBOOK_DATA", Text(printable(folder)))
    table.add_row("downloads go to", Text(printable(str(cache_folder()))))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    table.add_row("disk", f"{free:.1f} GiB free here")
    console.print(table)


def installed_versions() -> list[tuple[str, str]]:
    """Every package that guidebook depends on with its version; an optional part that is missing says how to get it."""
    import re
    from importlib.metadata import PackageNotFoundError, requires, version

    rows: list[tuple[str, str]] = []
    for requirement in ["guidebook", *(requires("guidebook") or [])]:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == [\"']([\w-]+)[\"']", requirement)
        if extra is not None and extra[1] in ("dev", "docs"):
            continue
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "not installed" + (f"; pip install guidebook[{extra[1]}]" if extra is not None else "")
        if name not in [row[0] for row in rows]:
            rows.append((name, found))
    return rows


def _fail(message: str, status: int) -> NoReturn:
    print(f"error: {printable(message)}", file=sys.stderr)
    raise SystemExit(status) from None


def _forget_output() -> None:
    """Lets the interpreter end without another attempt at writing what is left of the output."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: what the user or the machine got wrong is one line on stderr.

    Args:
        arguments: the words after ``guidebook``; those of the process by default.

    Raises:
        SystemExit: status 1 for an error while running, 2 for a command line that cannot be read, 130 when interrupted
            by Ctrl-C and 143 by SIGTERM.
    """
    try:
        status = app(arguments, prog_name="guidebook", standalone_mode=False)
        sys.stdout.flush()  # what is printed may go to a disk that is full
    except BrokenPipeError:  # whoever read the output has seen enough
        _forget_output()
        raise SystemExit(1) from None
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except Stopped as stopped:
        _fail(str(stopped), stopped.status)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own; it has no public class that all its versions share
            message = " ".join(error.format_message().split())
            if not message:  # no argument at all: the help is already printed
                raise SystemExit(2) from None
            context = getattr(error, "ctx", None)
            _fail(f"{message.rstrip('.')}; see {context.command_path if context else 'guidebook'} --help", 2)
        fitting = sys.modules.get("inference.skipped_steps")  # not loaded for its exception alone
        diverged = fitting is not None and isinstance(error, fitting.TrainingDiverged)
        expected = diverged or isinstance(error, ValueError | OSError | FileError)
        if not expected or os.environ.get("GUIDEBOOK_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.strerror and type(error).__module__ == "builtins":
            _forget_output()
            _fail(f"{error.filename or 'the output'}: {error.strerror}", 1)
        _fail(str(error).splitlines()[0] if str(error) else type(error).__name__, 1)
    if status == 130:
        _fail("interrupted", 130)
    if isinstance(status, int) and status:
        raise SystemExit(status)


if __name__ == "__main__":
    main()
