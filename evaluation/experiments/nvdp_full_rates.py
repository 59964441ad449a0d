"""NVDP's rates by rows and columns against a rate for every weight, in quality and cost, and the prior's own pass."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from evaluation.experiments.common_fits import Budget, TestTasks, trained
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.plots.style import WIDTH, colours, look
from evaluation.run_configuration import configure, training_stream
from evaluation.scores.metrics import rate_spread
from evaluation.scores.scoring import MARGINAL, parameter_count, score_oracle, score_tasks
from inference.objectives.conditional_prior import ConditionalPrior
from inference.objectives.kl_objective import Branches, KLDraws
from inference.objectives.task_objective import context_and_full
from inference.step_cost import step_cost
from pp_models import TaskBatch
from pp_models.tasks.task_table import TASKS, task_stream

NAME = "gp-rbf-fixed"
VARIANTS = {"nvdp": "row × column × layer", "nvdp-full": "a rate for every weight", "nvdp-layer": "a rate a layer"}
SCALES = {
    "smoke": Budget(0, 3, 8, 1, 2),
    "small": Budget(0, 700, None, 8),
    "paper": Budget(0, 20_000, None, 64),
}
#: hidden widths at which costs are taken
WIDTHS = {"smoke": (6, 8), "small": (24, 48, 96), "paper": (24, 48, 96, 192)}
#: how often the branches are timed
ROUNDS = 4
BRANCHES = ("whole", "no gradient through the prior", "no pass on the whole task")


class ContextAlone(ConditionalPrior):
    """The expected log-likelihood alone: the guide is not run on the whole task. To time what that run costs."""

    def run_branches(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Branches:
        context, full = context_and_full(args[0])
        posterior = self.run_guide(guide, (context, *args[1:]), kwargs)
        return Branches(
            posterior=posterior, reference=Trace(), model_args=(full, *args[1:]), guide_args=(context, *args[1:])
        )

    def _divergences(self, draws: KLDraws, runs: Branches, scored: Trace) -> None:
        """There is nothing to compare with; the KL stays zero."""


def kept_bytes(model: nn.Module, guide: nn.Module, objective: Any, batch: TaskBatch) -> int:
    """Bytes that a step on a batch keeps for its backward pass, parameters not among them."""
    own = {p.untyped_storage().data_ptr() for module in (model, guide) for p in module.parameters()}
    found: dict[int, int] = {}
    alive = []  # a freed tensor's address may be another's

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective.terms(model, guide, batch)
    return sum(found.values())


def costs(name: str, width: int | None, seconds: bool = True) -> dict[str, float]:
    """What a step of a variant takes: numbers of the rate networks, trained numbers, memory and CPU milliseconds."""
    configuration = configure(name, NAME, steps=1, width=width)
    method = configuration.build()
    guide: Any = method.guide
    stream = training_stream(configuration)
    outputs = [guide.rate_vector_length(i) for i in range(guide.shared_layers)]
    row: dict[str, float] = {
        "rates": sum(rows * columns for rows, columns in guide.shapes),
        "outputs": sum(outputs),
        "parameters": parameter_count(guide),
        "MiB kept": kept_bytes(method.model, guide, method.objective, stream.batch(0)) / 2**20,
    }
    if seconds:
        row["ms a step"] = 1000 * step_cost(method.model, guide, stream, method.objective, max_grad_norm=1.0)
    return row


def branch_costs(width: int | None) -> dict[str, float]:
    """CPU milliseconds of a step of NVDP: whole, without a gradient through the prior, and without the prior's pass."""
    configuration = configure("nvdp", NAME, steps=1, width=width)
    method = configuration.build()
    beta = TASKS[NAME].beta if configuration.beta is None else configuration.beta
    stream = training_stream(configuration)
    objectives = (method.objective, ConditionalPrior(beta=beta, stop_prior_gradient=True), ContextAlone(beta=beta))
    found: dict[str, list[float]] = {branch: [] for branch in BRANCHES}
    for _ in range(ROUNDS):  # in turn, and the least of each: what else runs on the machine comes and goes
        for branch, objective in zip(BRANCHES, objectives, strict=True):
            cost = step_cost(method.model, method.guide, stream, objective, max_grad_norm=1.0)
            found[branch].append(1000 * cost)
    return {branch: min(each) for branch, each in found.items()}


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Trains the three structures for the same steps, and takes what they cost at several widths."""
    budget = SCALES[scale_name]
    stream = task_stream(NAME, budget.test_batch_size, 0, test=True)
    test = TestTasks(NAME, [stream.batch(i) for i in range(budget.test_batches)], {}, [])
    many = task_stream(NAME, 64, 0, test=True).batch(1_000).context
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        for name in VARIANTS:
            method, _ = trained(workshop, test, budget, name, seed)
            found = score_tasks(method.model, method.guide, test.batches)
            spread = _hidden_spread(method.guide, many)
            rows.append(
                {"model": name, "seed": seed, **found[[*MARGINAL, "crps"]].mean().to_dict(), "rate_spread": spread}
            )
    table = pd.DataFrame(rows)
    timed = scale_name != "smoke"
    spent = pd.DataFrame([{"model": n, "width": w, **costs(n, w, timed)} for w in WIDTHS[scale_name] for n in VARIANTS])
    outcome = Outcome("nvdp/full-rates", "", table)
    outcome.tables["Costs by width"] = spent
    branches = branch_costs(budget.width) if timed else None
    if branches is not None:
        outcome.tables["The pass on the whole task"] = pd.DataFrame(
            [{"step": n, "ms": v, "share of whole": v / branches["whole"]} for n, v in branches.items()]
        )
    oracle = score_oracle(test.batches, TASKS[NAME].min_scale)
    outcome.checks = _checks(scale_name, table, spent, branches, seeds, float(oracle.ll.mean()))
    outcome.notes = [
        f"Tasks {NAME}, NVDP's recipe, {budget.steps} steps for all three; "
        + "; ".join(f"{name}: {what}" for name, what in VARIANTS.items())
        + f". {budget.test_batches * budget.test_batch_size} test tasks on a grid of 400 points, mean weights; every "
        "scale is at least 0.1. rate_spread is the across-task standard deviation of the drop probability, averaged "
        "over the hidden layers.",
        "rates: drop probabilities of a task; outputs: of the rate networks, from which they are made; MiB kept: "
        "tensors that a step of 16 tasks keeps for its backward pass; ms: CPU milliseconds on the machine that wrote "
        "this, beside whatever else ran there, and for the pass on the whole task the least of four. The KL is taken "
        "of every rate in all three.",
    ]
    outcome.figures["costs"] = (_figure(spent), "What rates cost by width of the network.")
    return outcome


def _hidden_spread(guide: nn.Module, data: Any) -> float:
    layers = list(rate_spread(guide, data).values())[1:-1]
    return sum(layer.weight_spread for layer in layers) / max(len(layers), 1)


def _checks(
    scale: str,
    table: pd.DataFrame,
    spent: pd.DataFrame,
    branches: dict[str, float] | None,
    seeds: list[int],
    best: float,
) -> list[Check]:
    def claim(value: bool) -> bool | None:
        return bool(value) if scale == "small" else None

    by = table.set_index(["model", "seed"]).ll
    full, layer = ([float(by[("nvdp", s)] - by[(other, s)]) for s in seeds] for other in ("nvdp-full", "nvdp-layer"))
    cost = spent.set_index(["model", "width"])
    widest, widths = spent.width.max(), sorted(spent.width.unique())[-2:]
    growth = {n: float(cost.loc[(n, widths[1]), "outputs"] / cost.loc[(n, widths[0]), "outputs"]) for n in VARIANTS}
    kept = float(cost.loc[("nvdp", widest), "MiB kept"] / cost.loc[("nvdp-full", widest), "MiB kept"])
    shown = ", ".join(f"{n} {v:.2f}" for n, v in growth.items())
    linear = growth["nvdp"] < 1.1 * widths[1] / widths[0] < growth["nvdp-full"]
    checks = [
        Check(
            "rows and columns score as a rate for every weight, LL",
            "difference > -0.05 in every seed",
            signed(full),
            claim(min(full) > -0.05),
        ),
        Check("rows and columns above one rate a layer, LL", "every seed > 0", signed(layer), claim(min(layer) > 0)),
        Check(
            f"outputs grow as K + D, not as K D: width {widths[0]} to {widths[1]}",
            "at most 1.1 of the width's growth; full more",
            shown,
            claim(linear),
        ),
        Check(f"memory of a step against full rates, width {widest}", "ratio < 1", f"{kept:.3f}", claim(kept < 1)),
        Check(
            "nothing above the floored exact GP",
            f"LL <= {best:.3f} + 0.05",
            f"{table.ll.max():+.3f}",
            claim(table.ll.max() <= best + 0.05),
        ),
    ]
    if branches is not None:
        time = float(cost.loc[("nvdp", widest), "ms a step"] / cost.loc[("nvdp-full", widest), "ms a step"])
        whole, stopped, none = (branches[n] for n in BRANCHES)
        checks += [
            Check(f"time of a step against full rates, width {widest}", "ratio < 1", f"{time:.3f}", claim(time < 1)),
            Check("the pass on the whole task, share of a step", "reported", f"{1 - none / whole:.3f}", None),
            Check("the gradient through that pass, share of a step", "reported", f"{1 - stopped / whole:.3f}", None),
        ]
    return checks


def _figure(spent: pd.DataFrame) -> Figure:
    with look():
        columns = [c for c in ("outputs", "MiB kept", "ms a step") if c in spent]
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            for colour, name in zip(colours(len(VARIANTS)), VARIANTS, strict=True):
                rows = spent[spent.model == name]
                axes.plot(rows.width, rows[column], color=colour, marker="o", label=name)
            axes.set(title=column, xlabel="width", yscale="log" if column == "outputs" else "linear", xscale="log")
            axes.set_xticks(sorted(spent.width.unique()), sorted(spent.width.unique()))
            axes.minorticks_off()
        panels[-1].legend()
    return figure
