"""What there is, by kind: names with a line each, without loading what they stand for."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

from pp_models.registry import Registry, exported_classes

Rows = list[tuple[str, str]]


def _models() -> Rows:
    from evaluation.methods import METHODS

    return [(name, what) for name, (what, _) in METHODS.items()]


def _guides() -> Rows:
    """Every exported guide class with the first line of its docstring."""
    classes = [statement for _, statement in exported_classes("guides") if statement.name.endswith("Guide")]
    return [(each.name, (ast.get_docstring(each) or "").partition("\n")[0]) for each in classes]


def _families() -> Rows:
    from evaluation.comparison.families import MODELS
    from guides.table import GUIDES

    models = [(f"model {name}", what) for name, (what, _) in MODELS.items()]
    return models + [(f"guide {name}", entry.description) for name, entry in GUIDES.items()]


def _objectives() -> Rows:
    from inference.objectives.table import REGISTRY

    return [(name, f"{entry.description} ({entry.reference})") for name, entry in REGISTRY.items()]


def _tasks() -> Rows:
    from pp_models.tasks.task_table import TASKS

    return [(name, entry.description) for name, entry in TASKS.items()]


def _pretrained() -> Rows:
    from pp_models.files import read_sealed_json

    rows = []
    for path in sorted(Path(__file__).with_name("weights").glob("*.json"), key=lambda path: path.stem):
        card = read_sealed_json(path)
        model, tasks = card["configuration"]["model"], card["configuration"]["tasks"]
        exact = f" (exact {card['exact']['pll']:.2f})" if "pll" in card["exact"] else ""
        rows.append(
            (path.stem, f"{model} on {tasks}: {card['scores']['pll']:.2f} nats a point{exact}; {card['level']}")
        )
    return rows


def _experiments() -> Rows:
    from evaluation.experiments.table import EXPERIMENTS

    return [(name, entry.title) for name, entry in EXPERIMENTS.items()]


#: kind -> its rows
KINDS: Registry[Callable[[], Rows]] = Registry(
    "kind",
    {
        "models": _models,
        "guides": _guides,
        "families": _families,
        "objectives": _objectives,
        "tasks": _tasks,
        "experiments": _experiments,
        "pretrained": _pretrained,
    },
)
