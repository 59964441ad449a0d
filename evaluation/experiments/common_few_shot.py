"""Common ground on few-shot classification: heads of every kind on one embedding, beside prototypical networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.table import EXPERIMENTS
from evaluation.methods import Method, TaskShape, build
from evaluation.plots.style import colours, look, new_figure
from evaluation.recipes import recipe
from evaluation.scores.calibration_metrics import score_classes
from guides import ContextPointsGuide
from inference import objectives, predict
from inference.step_cost import step_cost, steps_within
from pp_models import ConvEmbedding, PrototypicalNetwork, TaskBatch
from pp_models.data import Dataset
from pp_models.files import STRICT, make_folder, read_checked_json, sealed_json, write_atomically
from pp_models.tasks.few_shot_data import few_shot
from pp_models.tasks.few_shot_tasks import FewShotTasks
from pp_models.tasks.task_stream import TaskStream

NAME = "common/few-shot"
#: heads on the embedding, by their names in METHODS, and what is always beside them
HEADS = ("nvdp", "nvdp-class", "nvdp+path", "bnnp", "cnp", "canp", "maml")
PROTOTYPES, LOGISTIC = "prototypical network", "logistic regression"
OURS = ("nvdp", "nvdp-class", "nvdp-full", "nvdp+path", "bnnp")
SCORES = ("accuracy", "nll", "ece")
#: draws of a prediction
DRAWS = 32


class Size(NamedTuple):
    """Size of a run.

    Args:
        embedding_steps: optimizer steps of the prototypical network, whose embedding the heads read.
        steps: of each head.
        side: of a picture.
        width: channels of the embedding, and at smoke scale the width of the heads.
        test_batches: batches of 16 test tasks.
        queries: of each class of a test task.
    """

    embedding_steps: int
    steps: int
    side: int
    width: int
    test_batches: int
    queries: int


SCALES = {
    "smoke": Size(2, 2, 14, 8, 1, 2),
    "small": Size(400, 600, 14, 64, 40, 15),
    "paper": Size(60_000, 40_000, 28, 64, 40, 15),
}


@dataclass(frozen=True)
class _Steps:
    """What is kept of a budget in seconds."""

    steps: int

    __pydantic_config__ = STRICT


class Setting(NamedTuple):
    """Few-shot tasks by name.

    Args:
        data: of :func:`pp_models.tasks.few_shot_data.few_shot`.
        ways: classes a task.
        shots: examples of each in the context.
    """

    data: str
    ways: int
    shots: int

    @staticmethod
    def of(name: str) -> Setting:
        """That of ``omniglot-5way-1shot``."""
        data, ways, shots = name.rsplit("-", 2)
        return Setting(data, int(ways.removesuffix("way")), int(shots.removesuffix("shot")))


class NoisyLabels(TaskStream):
    """Tasks in which a share of the labels is another of their classes, in the context and, in training, the target.

    Args:
        tasks: of ``ways`` classes.
        share: of the labels, between 0 and 1.
        context_alone: leave targets as they are.
    """

    def __init__(self, tasks: FewShotTasks, share: float, context_alone: bool = False) -> None:
        super().__init__(tasks.batch_size, tasks.seed)
        self.tasks, self.share, self.context_alone = tasks, share, context_alone

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """A batch of the tasks with its labels flipped."""
        batch = self.tasks.sample(generator)
        target = batch.target if self.context_alone else self._flipped(batch.target, generator)
        return TaskBatch(self._flipped(batch.context, generator), target, batch.truth)

    def _flipped(self, data: Dataset, generator: torch.Generator) -> Dataset:
        assert data.y is not None
        wrong = torch.rand(data.y.shape, generator=generator) < self.share
        shift = torch.randint(1, self.tasks.ways, data.y.shape, generator=generator)
        return Dataset(data.x, torch.where(wrong, (data.y + shift) % self.tasks.ways, data.y), data.mask)


class Features(NamedTuple):
    """A setting's tasks in the space of an embedding.

    Args:
        train: tasks of the training classes.
        test: tasks of the test classes.
        prototypes: the prototypical network whose embedding it is, and its guide.
        pictures: the test tasks as pictures.
    """

    train: FewShotTasks
    test: FewShotTasks
    prototypes: tuple[nn.Module, nn.Module]
    pictures: FewShotTasks


def run(
    scale_name: str,
    seeds: list[int],
    workshop: Workshop,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    cpu_seconds: float | None = None,
) -> Outcome:
    """Trains an embedding a setting and seed, and every head on it."""
    size, names = SCALES[scale_name], EXPERIMENTS[NAME].tasks if tasks is None else tasks
    heads = HEADS if methods is None else methods
    rows: list[dict[str, Any]] = []
    for name in names:
        setting = Setting.of(name)
        for seed in seeds:
            found = embedded(workshop, setting, size, seed, scale_name)
            rows += score_heads(workshop, name, setting, found, heads, size, seed, scale_name, cpu_seconds)
    table = pd.DataFrame(rows)
    outcome = Outcome(NAME, "", table)
    outcome.checks = _checks(table, scale_name)
    outcome.figures = {"scores": (picture(table, "task"), "Accuracy and negative log-likelihood, one dot a seed.")}
    outcome.notes = notes(size, cpu_seconds)
    return outcome


def run_label_noise(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """The same with 0 to 40 % of all labels wrong in training and in the test contexts, 5 ways, 5 shots."""
    size = SCALES[scale_name]
    setting, heads = Setting("omniglot", 5, 5), ("nvdp", "nvdp-class", "nvdp+path", "bnnp", "canp", "maml")
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        found = embedded(workshop, setting, size, seed, scale_name)
        for share in (0.0, 0.1, 0.2, 0.4) if scale_name != "smoke" else (0.2,):
            name = f"{100 * share:g} % wrong"
            some = score_heads(workshop, name, setting, found, heads, size, seed, scale_name, None, share)
            rows += [{"share": share, **row} for row in some]
    table = pd.DataFrame(rows)
    outcome = Outcome("nvdp/label-noise", "", table.drop(columns="share"))
    outcome.checks = _noise_checks(table, heads)
    outcome.figures = {"noise": (picture(table, "task"), "Scores by the share of wrong labels, one dot a seed.")}
    outcome.notes = [
        *notes(size, None),
        "The embedding was trained on right labels; heads are trained on contexts and targets of which that share is "
        "another class of the task, and scored on right targets of contexts with the same share of wrong ones.",
    ]
    return outcome


def embedded(workshop: Workshop, setting: Setting, size: Size, seed: int, scale: str) -> Features:
    """A prototypical network trained on pictures, and the tasks in the space of its embedding, standardised."""
    few = min(16, max(2, 160 // (setting.ways * (setting.shots + 5))) * 2)
    stream = partial(few_shot, setting.data, ways=setting.ways, shots=setting.shots, progress=workshop.progress)
    options: dict[str, Any] = {"size": size.side} if setting.data == "omniglot" else {}
    train = stream("train", queries=5, batch_size=few, seed=seed, **options)
    pictures = stream("test", queries=size.queries, batch_size=16, seed=1_000_000, **options)
    channels = train.dim_x // size.side**2 if setting.data == "omniglot" else 3
    side = round((train.dim_x / channels) ** 0.5)
    blocks = max(1, side.bit_length() - 1)

    def pair() -> tuple[nn.Module, nn.Module]:
        network = PrototypicalNetwork(
            train.dim_x, setting.ways, ConvEmbedding((side, side), channels, size.width, min(blocks, 4))
        )
        return network, ContextPointsGuide(network)

    key = f"few-shot-{setting.data}-{setting.ways}-{setting.shots}-{scale}"
    how = objectives.make("npml", num_particles=1, score="target", normalize=True)
    options = {"learning_rate": 2e-3, "schedule": "cosine", "warmup": 0.03, "steps": size.embedding_steps}
    model, guide, _ = workshop.fit(key, "prototypical", pair, train, seed, objective=how, **options)
    model.eval()
    with torch.no_grad():
        found, other = ([model.embedding(x) for x in t.examples] for t in (train, pictures))  # type: ignore[operator]
    every = torch.cat(found)
    mean, scale_of = every.mean(0), every.std().clamp_min(1e-6)
    spaces = [[(x - mean) / scale_of for x in part] for part in (found, other)]
    return Features(
        FewShotTasks(spaces[0], train.names, setting.ways, setting.shots, 5, 16, seed),
        FewShotTasks(spaces[1], pictures.names, setting.ways, setting.shots, size.queries, 16, 1_000_000),
        (model, guide),
        pictures,
    )


def score_heads(
    workshop: Workshop,
    name: str,
    setting: Setting,
    found: Features,
    heads: Sequence[str],
    size: Size,
    seed: int,
    scale: str,
    cpu_seconds: float | None,
    noise: float = 0.0,
) -> list[dict[str, Any]]:
    """A row for the prototypical network, for a logistic regression a task, and for every head."""
    noisy = (lambda tasks: NoisyLabels(tasks, noise, True)) if noise else (lambda tasks: tasks)
    train = NoisyLabels(found.train, noise) if noise else found.train
    test = [noisy(found.test).batch(i) for i in range(size.test_batches)]
    pictures = [noisy(found.pictures).batch(i) for i in range(size.test_batches)]
    rows = [
        {"model": PROTOTYPES, **scored(partial(_drawn, *found.prototypes, 1), pictures)},
        {"model": LOGISTIC, **scored(partial(_logistic, ways=setting.ways), test)},
    ]
    dim = found.train.dim_x
    key = f"few-shot-{setting.data}-{setting.ways}-{setting.shots}-{scale}" + (f"-noise{noise:g}" if noise else "")
    for head in heads:
        own = recipe(head)
        width = size.width if scale == "smoke" else own.width

        made = partial(build, head, TaskShape(dim, setting.ways, width, num_classes=setting.ways))

        def pair(made: Callable[[], Method] = made) -> tuple[nn.Module, nn.Module]:
            method = made()
            return method.model, method.guide

        how, steps = made().objective, size.steps
        options = {"max_grad_norm": own.max_grad_norm}
        if cpu_seconds is not None:
            steps = _affordable(workshop, key, head, seed, pair, how, train, cpu_seconds, options)
        model, guide, _ = workshop.fit(
            key + ("" if cpu_seconds is None else f"-{cpu_seconds:g}s"), head, pair, train, seed, objective=how,
            steps=steps, learning_rate=own.learning_rate, schedule=own.schedule, warmup=own.warmup, **options,
        )  # fmt: skip
        rows.append({"model": head, **scored(partial(_drawn, model, guide, DRAWS), test)})
    return [{"task": name, "model": row.pop("model"), "seed": seed, **row} for row in rows]


def _affordable(
    workshop: Workshop,
    key: str,
    head: str,
    seed: int,
    pair: Callable,
    how: Any,
    train: TaskStream,
    seconds: float,
    options: dict[str, Any],
) -> int:
    """Steps that so many CPU seconds buy: measured once, then kept beside the fits."""
    path = workshop.folder / "fits" / f"{key}-{seconds:g}s-{head}-seed{seed}.json"
    if not path.exists():
        make_folder(path.parent, "out")
        model, guide = pair()
        cost = step_cost(model, guide, train, how, **options)
        write_atomically(path, sealed_json(asdict(_Steps(steps_within(seconds, cost)))))
    return read_checked_json(path, _Steps, "the steps of a fit").steps


def scored(probabilities: Callable[[TaskBatch], Tensor], batches: Sequence[TaskBatch]) -> dict[str, float]:
    """Accuracy, negative log-likelihood (nats a query) and calibration error of all queries of some tasks."""
    probs = torch.cat([probabilities(batch).flatten(0, 1) for batch in batches])
    labels = torch.cat([batch.target.y.flatten() for batch in batches])  # type: ignore[union-attr]
    found = score_classes(probs.unsqueeze(0), labels)
    return {"accuracy": found.acc, "nll": found.nll, "ece": found.ece}


def _drawn(model: nn.Module, guide: nn.Module, draws: int, batch: TaskBatch) -> Tensor:
    """Class probabilities ``[T, N, C]`` of a pair."""
    model.eval()
    guide.eval()
    return predict(model, guide, batch.context, batch.target.x, draws, seed=0).mean


def _logistic(batch: TaskBatch, ways: int) -> Tensor:
    """Those of a logistic regression fitted to each context by itself (scikit-learn, C = 1)."""
    from sklearn.linear_model import LogisticRegression

    found = np.full((*batch.target.x.shape[:2], ways), 1e-6)
    for i in range(len(found)):
        y = batch.context.y[i].numpy()  # type: ignore[index]
        if len(np.unique(y)) == 1:
            found[i, :, y[0]] = 1.0
            continue
        fitted = LogisticRegression(max_iter=500).fit(batch.context.x[i].numpy(), y)
        found[i][:, fitted.classes_] += fitted.predict_proba(batch.target.x[i].numpy())
    return torch.from_numpy(found / found.sum(-1, keepdims=True)).float()


def _checks(table: pd.DataFrame, scale: str) -> list[Check]:
    checks = []
    for task, part in table.groupby("task", sort=False):
        by = part.pivot(index="seed", columns="model", values="nll")
        right = part.pivot(index="seed", columns="model", values="accuracy")
        ours = [name for name in OURS if name in by]
        if ours:
            best = by[ours].mean().idxmin()
            gap = by[PROTOTYPES] - by[best]
            holds = bool((gap > 0).all()) if scale != "smoke" else None
            checks.append(
                Check(f"{task}: the papers' best ({best}) above the prototypical network, NLL", "every seed > 0",
                      signed(gap), holds)
            )  # fmt: skip
        if "nvdp" in right:
            chance = 1 / Setting.of(str(task)).ways
            gap = right["nvdp"] - chance
            holds = bool((gap > 0.1).all()) if scale != "smoke" else None
            checks.append(
                Check(f"{task}: rates alone (row times column) tell classes apart",
                      "accuracy > chance + 0.1, every seed", signed(gap), holds)
            )  # fmt: skip
        if {"nvdp", "nvdp-full"} <= set(right):
            checks.append(
                Check(f"{task}: accuracy, a rate for every weight less row times column", "reported",
                      signed(right["nvdp-full"] - right["nvdp"]), None)
            )  # fmt: skip
    return checks


def _noise_checks(table: pd.DataFrame, heads: Sequence[str]) -> list[Check]:
    checks = []
    least, most = table.share.min(), table.share.max()
    for head in (PROTOTYPES, *heads):
        part = table[table.model == head].pivot(index="seed", columns="share", values="accuracy")
        lost = part[least] - part[most]
        checks.append(
            Check(
                f"{head}: accuracy lost from {least:.0%} to {most:.0%} of wrong labels", "reported", signed(lost), None
            )
        )
    return checks


def notes(size: Size, cpu_seconds: float | None) -> list[str]:
    """What a reader of the scores must know."""
    spent = f"{size.steps:,} steps" if cpu_seconds is None else f"{cpu_seconds:g} CPU seconds"
    return [
        f"A prototypical network ({size.embedding_steps:,} steps, Conv-4's blocks on pictures of {size.side} by "
        f"{size.side}, width {size.width}, group norms) is trained end to end; its embedding is then frozen and "
        f"standardised, and every head is trained on it for {spent} by its own recipe, five queries a class. So all "
        "read the same features; those were learned for prototypes, which favours these.",
        f"Scored on {size.test_batches * 16} tasks of classes that no training saw, {size.queries} queries a class, by "
        f"{DRAWS} draws. Logistic regression is fitted to each context alone.",
        "nvdp tells tasks apart through dropout rates that are products of a row's and a column's; nvdp-full has a "
        "rate for every weight, nvdp-class takes those of a class's weights from its own examples; nvdp+path also "
        "reads closed-form regressions of the context at x, canp attends to it.",
    ]


def picture(table: pd.DataFrame, by: str) -> Figure:
    """Accuracy and NLL of every head, one panel a task and score."""
    tasks, names = list(table[by].unique()), list(dict.fromkeys(table.model))
    with look():
        figure, axes = new_figure(2, len(tasks), 2 + 2.2 * len(tasks), 1.6 + 0.5 * len(names), sharey=True)
        for column, task in enumerate(tasks):
            part = table[table[by] == task]
            for axis, score, words in zip(axes[:, column], SCORES[:2], ("accuracy", "nats a query"), strict=True):
                for row, (name, colour) in enumerate(zip(names, colours(len(names)), strict=True)):
                    values = part[part.model == name][score]
                    axis.plot(values, [row] * len(values), "o", color=colour, alpha=0.8, markersize=4)
                axis.set_xlabel(words)
                axis.set_yticks(range(len(names)), names)
            axes[0, column].set_title(str(task))
        axes[0, 0].invert_yaxis()
    return figure
