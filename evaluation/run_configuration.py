"""Everything that a fit depends on, as one record: made by the method's recipe, kept beside the fit, trained from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from evaluation.methods import Method, TaskShape, build
from evaluation.recipes import Recipe, recipe
from inference import FitResult, checkpoint, fit
from inference.held_out import OF_A_STREAM, held_out_batches
from inference.objectives import KLSchedule, TaskObjective, make, remade
from inference.schedules import SCHEDULES
from inference.step_cost import step_cost, steps_within
from pp_models.data import DataError, TaskBatch
from pp_models.files import STRICT, read_checked_json
from pp_models.tasks.frame_tasks import FrameTasks
from pp_models.tasks.task_stream import TaskStream
from pp_models.tasks.task_table import TASKS, TaskDistribution, task_stream

CONFIGURATION = "run.json"
#: what a run to a table of the user's own has in place of a name of tasks; the table is in its folder
OWN_DATA = "own-data"
#: floor of the standard deviation of such a run, in standard deviations of an output over the training rows
OWN_MIN_SCALE = 0.01
#: a run.json may come from anybody, and these decide how much memory is taken
MOST = {"steps": 10**10, "width": 2**14, "batch_size": 2**16, "num_particles": 2**20}
MOST_FEATURES = 2**12
RECIPES = ("best", "paper")
#: the batch of a stream from which on a fit is watched; no training gets there, nor a verdict
FIRST_OF_VALIDATION = 15_000_000
#: what a recipe, or the run to resume, decides where it is not given
RECIPE_FIELDS = (
    *("learning_rate", "schedule", "warmup", "max_grad_norm", "batch_size", "width"),
    *("recipe", "pooling", "path", "input_features", "experts", "beta", "kl_schedule", "average"),
)
#: how the methods of the papers are trained where nothing else is asked for
OF_PAPERS = Recipe(1e-3, "constant", 0.0, None)


@dataclass(frozen=True)
class RunConfiguration:
    """Everything a run depends on; the defaults are what a run.json of an earlier version means by leaving it out.

    Args:
        model: name of the method (``guidebook list models``).
        tasks: name of the task distribution, or ``OWN_DATA``.
        objective: name of an objective; None for the method's own.
        steps: optimizer steps.
        seed: seed of the parameters, the tasks and the fit.
        width: hidden width of every network.
        batch_size: tasks a step.
        learning_rate: of Adam.
        beta: weight of the KL; None for the method's or objective's own.
        kl_schedule: how the KL grows, as :meth:`inference.objectives.KLSchedule.parse` reads it, by default over all
            steps; None for no schedule.
        num_particles: draws of each task in the objective; None for the method's or objective's own.
        precision: a Fabric precision.
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"``: how the learning rate falls until the last step.
        warmup: share of the steps, or number of them, over which it grows.
        max_grad_norm: of the gradient; None does not clip.
        recipe: ``"best"``, or ``"paper"`` for the parts that the papers' methods have.
        pooling: of the guide's encoder; this and the rest are None for the method's own.
        path: of the decoder.
        input_features: sines and cosines of x, each, that a network reads.
        experts: of a mixture.
        average: share of the steps, at their end, whose parameters' mean the run ends at; None for the last ones.

    Raises:
        ValueError: a value of another type, or out of range.
    """

    model: str
    tasks: str
    objective: str | None = None
    steps: int = 3_000
    seed: int = 0
    width: int = 64
    batch_size: int = 8
    learning_rate: float = 1e-3
    beta: float | None = None
    num_particles: int | None = None
    precision: str = "32-true"
    schedule: str = "constant"
    warmup: float = 0.0
    max_grad_norm: float | None = None
    recipe: str = "paper"
    pooling: str | None = None
    path: str | None = None
    input_features: int | None = None
    experts: str | None = None
    average: float | None = None
    kl_schedule: str | None = None

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        types = {"str": (str,), "int": (int,), "float": (int, float)}
        for field in fields(self):  # a run.json may hold anything
            value, (kind, _, optional) = getattr(self, field.name), str(field.type).partition(" | ")
            if isinstance(value, bool) or not (isinstance(value, types[kind]) or (optional and value is None)):
                raise ValueError(f"{field.name}: got {value!r}; it must be of type {field.type}")
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{name}: got {value}; it must be at least 1 and at most {most:,}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: got {self.seed}; it must be a non-negative integer below 2^63")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: got {self.learning_rate}; it must be positive and finite")
        if self.beta is not None and not 0 <= self.beta < math.inf:
            raise ValueError(f"beta: got {self.beta}; it must be finite and not negative")
        if self.kl_schedule is not None:
            KLSchedule.parse(self.kl_schedule)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: got {self.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup < math.inf:
            raise ValueError(f"warmup: got {self.warmup}; it must be finite and not negative")
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf:
            raise ValueError(f"max_grad_norm: got {self.max_grad_norm}; it must be positive and finite")
        if self.average is not None and not 0 < self.average <= 1:
            raise ValueError(f"average: got {self.average}; it must lie in (0, 1]")
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe: got {self.recipe!r}; it must be one of {', '.join(RECIPES)}")
        if self.input_features is not None and not 0 <= self.input_features <= MOST_FEATURES:
            raise ValueError(
                f"input_features: got {self.input_features}; it must be at least 0 and at most {MOST_FEATURES:,}"
            )

    def build(self, own: FrameTasks | None = None) -> Method:
        """Model, guide and objective with their initial parameters.

        Args:
            own: the tasks of a run to a table of the user's own.

        Raises:
            ValueError: an unknown name.
        """
        parts = {name: getattr(self, name) for name in ("recipe", "pooling", "path", "input_features", "experts")}
        beta, min_scale = TaskDistribution.beta, OWN_MIN_SCALE
        if own is not None:
            parts["num_classes"] = len(own.classes)
        else:
            beta, min_scale = TASKS.find(self.tasks).beta, TASKS.find(self.tasks).min_scale
        beta = beta if self.beta is None else self.beta
        # for its widths
        stream = task_stream(self.tasks, min(self.batch_size, 64), self.seed) if own is None else own
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            method = build(self.model, TaskShape.of(stream, self.width, beta=beta, min_scale=min_scale, **parts))
        if self.objective is not None:
            given = {"beta": self.beta, "num_particles": self.num_particles}
            options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
            if self.kl_schedule is not None:
                options["kl_schedule"] = KLSchedule.parse(self.kl_schedule, self.steps)
            method.objective = make(self.objective, normalize=True, **options)
            return method
        if self.num_particles is not None:
            method.objective.num_particles = self.num_particles
        if self.beta is not None:
            method.objective.beta = self.beta  # type: ignore[attr-defined]
        if self.kl_schedule is not None:
            schedule = KLSchedule.parse(self.kl_schedule, self.steps)
            method.objective = remade(cast(TaskObjective, method.objective), kl_schedule=schedule)
        return method


def configure(model: str, tasks: str, held: RunConfiguration | None = None, **given: Any) -> RunConfiguration:
    """A configuration with what is not given taken from the method's recipe, or from the run that is resumed.

    Args:
        model: name of the method.
        tasks: name of the task distribution.
        held: the run that is resumed.
        **given: other fields; None, or left out, where the recipe decides. ``max_grad_norm=0`` does not clip.

    Raises:
        ValueError: a value of another type, or out of range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("max_grad_norm") == 0:
        given["max_grad_norm"] = None
    if held is not None and held.model == model:
        own: dict[str, Any] = {name: getattr(held, name) for name in RECIPE_FIELDS}
    else:
        kind = given.get("recipe", "best")
        own = {"recipe": kind, **asdict(OF_PAPERS if kind == "paper" else recipe(model, _of_pictures(tasks)))}
    if "objective" in given:  # another one may have no KL to weigh
        own |= {"beta": None, "kl_schedule": None}
    return RunConfiguration(model, tasks, **own | given)


def _of_pictures(tasks: str) -> bool:
    return tasks in TASKS and TASKS[tasks].pictures


def training_stream(configuration: RunConfiguration, own: FrameTasks | None = None) -> TaskStream:
    """What a configuration is trained on.

    Args:
        configuration: says how many tasks a batch has, and the seed.
        own: the tasks of a run to a table of the user's own.
    """
    if own is not None:
        return own.of("train", configuration.batch_size, configuration.seed)
    return task_stream(configuration.tasks, configuration.batch_size, configuration.seed)


def validation_tasks(configuration: RunConfiguration, own: FrameTasks | None = None) -> list[TaskBatch]:
    """Tasks to watch a fit on: those of validation of a table, or draws that no training reaches.

    Args:
        configuration: what is trained.
        own: the tasks of a run to a table of the user's own.

    Raises:
        ValueError: the table has no tasks of validation.
    """
    if own is not None:
        try:
            return held_out_batches(own.of("validation", configuration.batch_size, configuration.seed))
        except DataError:
            raise ValueError("validation: the table has none; give its tasks a share: --split 0.8,0.1,0.1") from None
    stream = training_stream(configuration)
    return [stream.batch(FIRST_OF_VALIDATION + i) for i in range(OF_A_STREAM)]


def affordable(
    configuration: RunConfiguration, seconds: float, device: str = "auto", own: FrameTasks | None = None
) -> tuple[int, float]:
    """Steps of a configuration that so many CPU seconds buy, and what each costs.

    Args:
        configuration: what will be fitted.
        seconds: CPU seconds of training, over all threads.
        device: where.
        own: the tasks of a run to a table of the user's own.

    Raises:
        ValueError: ``seconds`` is out of range, or the configuration cannot be built.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"cpu_seconds: got {seconds}; it must be positive and finite")
    method = configuration.build(own)
    cost = step_cost(
        method.model,
        method.guide,
        training_stream(configuration, own),
        method.objective,
        max_grad_norm=configuration.max_grad_norm,
        device=device,
        precision=configuration.precision,
    )
    return steps_within(seconds, cost), cost


def train(configuration: RunConfiguration, method: Method, own: FrameTasks | None = None, **options: Any) -> FitResult:
    """Fits a method that a configuration built.

    Args:
        configuration: how.
        method: its model and guide are trained in place.
        own: the tasks of a run to a table of the user's own.
        **options: passed to :func:`inference.fit`.
    """
    return fit(
        method.model,
        method.guide,
        training_stream(configuration, own),
        method.objective,
        steps=configuration.steps,
        seed=configuration.seed,
        optimizer=partial(torch.optim.Adam, lr=configuration.learning_rate, fused=True),
        schedule=configuration.schedule,
        warmup=configuration.warmup,
        max_grad_norm=configuration.max_grad_norm,
        average=configuration.average,
        precision=configuration.precision,
        **options,
    )


def read_configuration(folder: str | Path) -> RunConfiguration:
    """The configuration of the run in a folder.

    Raises:
        CheckpointError: there is none, or it is not readable.
    """
    path = Path(folder) / CONFIGURATION
    try:
        return read_checked_json(path, RunConfiguration, "a run configuration")
    except (FileNotFoundError, NotADirectoryError):
        raise checkpoint.CheckpointError(f"{folder}: holds no run ({CONFIGURATION} is missing)") from None
    except OSError as error:
        raise checkpoint.CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
