"""The ``guidebook`` command."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    name="guidebook",
    help="Amortised variational inference you can swap and compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console()


def show(title: str, frame, index: bool = False) -> None:
    """Prints a DataFrame as a table."""
    if index:
        frame = frame.reset_index()
    table = Table(title=title, title_justify="left", header_style="bold")
    for i, column in enumerate(frame.columns):
        table.add_column(str(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(_words(value) for value in row))
    console.print(table)


def _words(value: object) -> str:
    if isinstance(value, float):
        if value != value:
            return "–"
        return str(int(value)) if value.is_integer() and abs(value) >= 1000 else f"{value:.3f}"
    return str(value)


def _prepare() -> None:
    """Settings of this process that a library must not touch."""
    import torch

    torch.set_flush_denormal(True)  # denormal numbers make a CPU step many times slower


def _list_of(kind: str) -> Table:
    from evaluation.experiments import EXPERIMENTS
    from evaluation.methods import METHODS
    from inference.objectives import REGISTRY
    from pp_models.task_names import TASK_NAMES

    table = Table(title=kind, title_justify="left", show_header=False, box=None, padding=(0, 2))
    rows = {
        "models": [(name, what) for name, (what, _) in METHODS.items()],
        "objectives": [(name, f"{what} ({reference})") for name, (_, what, reference) in REGISTRY.items()],
        "guides": _guides(),
        "tasks": [(name, "") for name in TASK_NAMES],
        "experiments": [(name, experiment.title) for name, experiment in EXPERIMENTS.items()],
    }
    if kind not in rows:
        raise ValueError(f"kind: got {kind!r}; it must be one of {', '.join(rows)}")
    for row in rows[kind]:
        table.add_row(*row)
    return table


def _guides() -> list[tuple[str, str]]:
    import guides

    found = [getattr(guides, name) for name in guides.__all__ if name.endswith("Guide")]
    return [(g.__name__, (g.__doc__ or "").strip().splitlines()[0]) for g in found]


@app.command("list")
def list_command(
    kind: Annotated[str, typer.Argument(help="models, guides, objectives, tasks or experiments; all without one")] = "",
) -> None:
    """What there is.

    Example: `guidebook list objectives`
    """
    for each in [kind] if kind else ["models", "guides", "objectives", "tasks", "experiments"]:
        console.print(_list_of(each))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for tables, plots and report.html")] = Path("demo"),
    images: Annotated[str, typer.Option(help="image data set")] = "digits",
    seed: Annotated[int, typer.Option(help="seed of everything")] = 0,
    steps: Annotated[int, typer.Option(help="training steps of NVDP on GP tasks; the rest scales with it")] = 1_200,
) -> None:
    """Trains NVDP and two baselines on GP tasks and images, and writes a report; about three minutes.

    Example: `guidebook demo --out demo`
    """
    from evaluation.demo import run_demo

    _prepare()

    table = run_demo(out, images=images, seed=seed, steps=steps)
    show("GP regression: test log-likelihood, nats per point", table)
    console.print(f"open {out / 'report.html'}; the posterior is in {out / 'posterior.nc'}")


@app.command("fit")
def fit_command(
    model: Annotated[str, typer.Option(help="a method: guidebook list models")] = "nvdp",
    tasks: Annotated[str, typer.Option(help="a task distribution: guidebook list tasks")] = "gp-rbf",
    objective: Annotated[str | None, typer.Option(help="an objective; the method's own by default")] = None,
    steps: Annotated[int, typer.Option(help="optimizer steps")] = 3_000,
    seed: Annotated[int, typer.Option(help="seed of parameters, tasks and draws")] = 0,
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/fit"),
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in that folder")] = False,
    width: Annotated[int, typer.Option(help="hidden width of every network")] = 64,
    batch_size: Annotated[int, typer.Option(help="tasks a step")] = 8,
    learning_rate: Annotated[float, typer.Option(help="of Adam")] = 1e-3,
    beta: Annotated[float | None, typer.Option(help="weight of the KL")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, 64-true, bf16-mixed …")] = "32-true",
) -> None:
    """Fits a method on a task distribution.

    Example: `guidebook fit --model nvdp --tasks gp-rbf --steps 3000 --seed 0 --out runs/first`
    """
    from evaluation.runs import RunConfiguration, start

    _prepare()

    configuration = RunConfiguration(model, tasks, objective, steps, seed, width, batch_size, learning_rate, beta)
    result = start(configuration, out, resume, device=device, precision=precision)
    last = result.history[-1]
    numbers = ", ".join(f"{k} {last[k]:.4f}" for k in ("loss", "log_likelihood", "kl") if k in last)
    console.print(f"step {result.steps}: {numbers}; {len(result.skipped)} steps skipped; {result.seconds:.0f} s")
    console.print(f"next: guidebook inspect {out}")


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(help="folder of a run made by guidebook fit")],
    draws: Annotated[int, typer.Option(help="posterior draws")] = 200,
) -> None:
    """Scores a run on test tasks and opens its posterior in ArviZ.

    Writes posterior.nc and report.html into the run's folder. Example: `guidebook inspect runs/first`
    """
    from evaluation.inspection import inspect_run

    _prepare()

    scores, summary = inspect_run(run, draws)
    show("Scores on test tasks", scores)
    show("Posterior: the ten widest entries", summary)
    console.print(f"wrote {run / 'posterior.nc'} and {run / 'report.html'}")


@app.command()
def reproduce(
    experiment: Annotated[str, typer.Argument(help="guidebook list experiments")],
    scale: Annotated[str, typer.Option(help="smoke, small or paper")] = "small",
    seeds: Annotated[str, typer.Option(help="comma-separated seeds; 0,1,2 by default")] = "",
    out: Annotated[Path, typer.Option(help="folder for fits and results")] = Path("runs"),
) -> None:
    """Runs an experiment of a paper and says which of its claims held.

    Example: `guidebook reproduce nvdp/gp-random --scale small --seeds 0,1,2`
    """
    from evaluation.experiments import reproduce as run
    from evaluation.experiments.experiment import check_table, summary

    _prepare()

    try:
        chosen = [int(s) for s in seeds.split(",") if s.strip()] or None
    except ValueError:
        raise ValueError(f"seeds: got {seeds!r}; it must be integers separated by commas, such as 0,1,2") from None
    outcome = run(experiment, scale, chosen, out)
    show(outcome.name, summary(outcome.table))
    if outcome.checks:
        show("claims and measurements", check_table(outcome.checks))
    family, short = experiment.split("/")
    console.print(f"wrote {out / family / f'{short}-{scale}'}/report.html")


@app.command()
def doctor() -> None:
    """Says what this machine and installation have, and what is missing.

    Example: `guidebook doctor`
    """
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from pp_models.downloads import cache_folder, data_folder

    table = Table(title="guidebook doctor", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_row("python", platform.python_version())
    for name in ("guidebook", "torch", "pyro-ppl", "arviz", "arviz-base", "lightning-fabric", "xarray", "seaborn"):
        try:
            table.add_row(name, version(name))
        except PackageNotFoundError:
            table.add_row(name, "not installed")
    from evaluation.arviz_container import choose_container

    table.add_row("ArviZ container", choose_container("auto"))
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none usable"
    table.add_row("GPU", cuda)
    table.add_row("CPU", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    folder = data_folder()
    table.add_row("GUIDEBOOK_DATA", f"{folder}" if folder else "not set: data sets are downloaded")
    table.add_row("downloads go to", str(cache_folder()))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    table.add_row("disk", f"{free:.1f} GiB free here")
    console.print(table)


def main() -> None:
    """Entry point: errors of the user or the machine are one line on stderr and exit status 1."""
    try:
        app()
    except Exception as error:
        from inference import CheckpointError, TrainingDiverged

        expected = isinstance(error, ValueError | OSError | CheckpointError | TrainingDiverged)
        if not expected or os.environ.get("GUIDEBOOK_TRACEBACK"):
            raise
        print(f"error: {str(error).splitlines()[0] if str(error) else type(error).__name__}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
