"""The toy family of branches: the ablation ladder against its oracle, and sweeps over experts and particles."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from evaluation.diagnostics import khat_threshold, psis
from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.nmdp_ladder import RUNGS, late_ess, rung, rung_objective
from evaluation.experiments.nmdp_parts import Pair, Size, description, process, scores, train_with
from evaluation.plots.style import WIDTH, colours, look
from guides import StickBreakingGuide, prune_experts
from inference.objectives import make
from pp_models import MixtureDensityNetwork, TaskBatch, effective_experts, tasks, unused_experts
from pp_models.tasks.branch_tasks import branch_oracle

FLOOR = 0.01
CONTEXTS = (1, 3, 10)
SCALES = {
    "smoke": Size(4, 8, 3, 2, 4, 8, 8),
    "small": Size(1_500, 64, 8, 16, 32, 400, 1_000, 2e-3),
    "paper": Size(50_000, 64, 8, 16, 32, 4_000, 1_000, 2e-3),
}
#: the sweeps' runs are shorter
SWEEP_STEPS = {"smoke": 4, "small": 800, "paper": 50_000}
EXPERTS = (1, 2, 4, 8, 16, 32)
PARTICLES = (2, 4, 8, 16, 64)
PROPOSALS: dict[str, dict[str, Any]] = {
    "prior": {},
    "prior, tempered": {"min_ess": 0.25},
    "conjugate": {"proposal": "conjugate"},
}


def test_tasks(size: Size) -> dict[int, TaskBatch]:
    """The same number of held-out tasks at each context size."""
    return {
        count: tasks.branches(size.test_tasks, 1_000_000, num_context=(count, count)).batch(0) for count in CONTEXTS
    }


def branch_scores(pair: Pair, test: dict[int, TaskBatch], draws: int) -> dict[str, float]:
    """Marginal and joint log-likelihood per target point by context size."""
    found: dict[str, float] = {}
    for count, batch in test.items():
        table = scores(pair, [batch], draws)
        found |= {f"ll_{count}": float(table.ll.mean()), f"joint_ll_{count}": float(table.joint_ll.mean())}
    return found


def oracle_row(test: dict[int, TaskBatch]) -> dict[str, float]:
    """What the true branches and their posterior weights score."""
    found: dict[str, float] = {}
    for count, batch in test.items():
        marginal, joint = branch_oracle(batch)
        found |= {f"ll_{count}": float(marginal.mean()), f"joint_ll_{count}": float(joint.mean())}
    return found


def run(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """Every rung of the ladder and a CNP on the branches, beside the oracle (docs/papers/nmdp.md#the-ladder)."""
    size = SCALES[scale_name]
    test = test_tasks(size)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        stream = tasks.branches(size.batch_size, seed)
        for name in ("CNP", *RUNGS):
            if name == "A1":
                continue  # on this family one expert is a CNP without its context
            if name == "CNP":
                build, objective = process("CNP", 1, 1, size, FLOOR), make("conditional-prior", normalize=True)
            else:
                build, objective = rung(name, size, "strict", FLOOR), rung_objective(name, size)
            pair, history = train_with(
                workshop, f"nmdp-branches-{scale_name}", name, build, objective, stream, seed, size
            )
            rows.append({"model": name, "seed": seed, **branch_scores(pair, test, size.draws), **late_ess(history)})
    rows.append({"model": "oracle", "seed": -1, **oracle_row(test)})
    table = pd.DataFrame(rows)
    outcome = Outcome("nmdp/branches", "", table)
    outcome.checks = _ladder_checks(scale_name, table, seeds)
    outcome.notes = [
        description(size, "strict", FLOOR),
        "; ".join(f"{name}: {what}" for name, (what, _, _) in RUNGS.items() if name != "A1")
        + f". {size.test_tasks} held-out tasks of 20 targets at each of {CONTEXTS} context points; ll is marginal, "
        "joint_ll of all targets of a task together, nats a point. The oracle knows the branches and weighs 4,000 "
        "draws of the true prior by the context.",
    ]
    outcome.figures["ladder"] = (
        _ladder_figure(table),
        "Log-likelihood by context size, one line a seed; dashed: oracle.",
    )
    return outcome


def _ladder_checks(scale: str, table: pd.DataFrame, seeds: list[int]) -> list[Check]:
    by = table.set_index(["model", "seed"])

    def values(model: str, column: str) -> list[float]:
        return [float(by.loc[(model, seed), column]) for seed in seeds]

    def gap(a: str, b: str, column: str) -> list[float]:
        return [x - y for x, y in zip(values(a, column), values(b, column), strict=True)]

    def claim(value: bool) -> bool | None:
        return bool(value) if scale == "small" else None

    oracle = float(by.loc[("oracle", -1), "joint_ll_3"])
    a5, a5c, over_cnp = values("A5", "joint_ll_3"), values("A5c", "joint_ll_3"), gap("A5", "CNP", "joint_ll_3")
    marginal, joint = gap("A3", "A5", "ll_1"), gap("A5", "A3", "joint_ll_1")
    highest = {
        column: float(table[table.model != "oracle"][column].max() - by.loc[("oracle", -1), column])
        for column in table.columns
        if column.startswith(("ll_", "joint_ll_"))
    }
    checks = [
        Check("A5 with 3 context points, joint", "every seed >= -0.10", signed(a5), claim(min(a5) >= -0.10)),
        Check("A5c, the same", "every seed >= -0.05", signed(a5c), claim(min(a5c) >= -0.05)),
        Check("A5 above the CNP", "every seed >= 0.6", signed(over_cnp), claim(min(over_cnp) >= 0.6)),
        Check("A5 not above the oracle", f"<= {oracle:+.3f} + 0.02", signed(a5), claim(max(a5) <= oracle + 0.02)),
        Check(
            "with 1 context point A3 holds its own on the marginal score it is trained on",
            "A3 - A5 >= -0.05 in every seed",
            signed(marginal),
            claim(min(marginal) >= -0.05),
        ),
        Check(
            "and A5 wins the joint score",
            "A5 - A3 >= 0.05 in every seed",
            signed(joint),
            claim(min(joint) >= 0.05),
        ),
        Check(
            "nothing above the oracle",
            "every column <= oracle + 0.03",
            ", ".join(f"{c} {v:+.3f}" for c, v in highest.items()),
            claim(max(highest.values()) <= 0.03),
        ),
        Check("A5c - A5, joint with 3 points", "reported", signed(gap("A5c", "A5", "joint_ll_3")), None),
    ]
    return checks


def _ladder_figure(table: pd.DataFrame) -> Figure:
    with look():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        names = [n for n in dict.fromkeys(table.model) if n not in ("oracle", "CNP")]
        palette = dict(zip(names, colours(len(names)), strict=True))
        for axes, form, title in zip(panels, ("ll", "joint_ll"), ("marginal", "joint"), strict=True):
            columns = [f"{form}_{c}" for c in CONTEXTS]
            for number, (_, row) in enumerate(table[table.model.isin(names)].iterrows()):
                label = row.model if number < len(names) else None
                axes.plot(CONTEXTS, row[columns].astype(float), color=palette[row.model], marker="o", label=label)
            truth = table[table.model == "oracle"].iloc[0]
            axes.plot(CONTEXTS, truth[columns].astype(float), color="black", ls="--", label="oracle")
            axes.set_xticks(CONTEXTS)
            axes.set(title=title, xlabel="context points")
        panels[0].set_ylabel("log-likelihood (nats a point)")
        handles, labels = panels[0].get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: labels[i] == "oracle")
        figure.legend(
            [handles[i] for i in order], [labels[i] for i in order], loc="outside lower center", ncols=len(labels)
        )
    return figure


@torch.no_grad()
def audit(pair: Pair, batch: TaskBatch, num_particles: int = 1_000) -> dict[str, float]:
    """Offline check of both proposals with many particles: Pareto k-hat and effective sample size of the weights.

    Args:
        pair: a trained mixture and its guide.
        batch: tasks ``[T]``; the weights are those of their target points.
        num_particles: draws of each task.

    Returns:
        ``khat_prior`` and ``khat_conjugate``, the median over tasks; ``good_prior`` …, the share of tasks whose k-hat
        is below the threshold for this number of draws; ``share_prior`` …, the mean effective sample size as a share.
    """
    found: dict[str, float] = {}
    for name in ("prior", "conjugate"):
        objective = make("iw-em", num_particles=num_particles, proposal=name, score="target")
        terms = objective.terms(*pair, batch)
        assert isinstance(terms.log_weights, Tensor) and terms.ess is not None
        khat = psis(terms.log_weights.double().unsqueeze(0))
        found |= {
            f"khat_{name}": float(khat.median()),
            f"good_{name}": float((khat < khat_threshold(num_particles)).double().mean()),
            f"share_{name}": float(terms.ess.mean()) / num_particles,
        }
    return found


def run_sweep(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """How many experts, how many particles, and which proposal: fit, effective sample size and an offline audit."""
    size = SCALES[scale_name]._replace(steps=SWEEP_STEPS[scale_name])
    test = test_tasks(size)
    experts, particles = (EXPERTS, PARTICLES) if scale_name != "smoke" else ((1, 3), (2, 4))
    rows: list[dict[str, Any]] = []

    def train(label: str, build: Any, objective: Any, seed: int) -> tuple[Pair, list[dict[str, float]]]:
        stream = tasks.branches(size.batch_size, seed)
        return train_with(workshop, f"nmdp-sweep-{scale_name}", label, build, objective, stream, seed, size)

    for seed in seeds:
        for number in experts:
            build = rung("A5c" if number > 1 else "A2", size, "strict", FLOOR, number)
            objective = rung_objective("A5c" if number > 1 else "A2", size)
            pair, history = train(f"experts-{number}", build, objective, seed)
            rows.append(
                {"sweep": "experts", "model": f"L = {number}", "seed": seed, "L": number, "B": size.particles}
                | branch_scores(pair, test, size.draws)
                | late_ess(history)
                | _usage(pair, test)
            )
        for proposal, options in PROPOSALS.items():
            for number in particles:
                label = f"{proposal.replace(', ', '-')}-{number}"
                objective = rung_objective("A5", size, num_particles=number, **options)
                pair, history = train(label, rung("A5", size, "strict", FLOOR), objective, seed)
                row = {"sweep": "particles", "model": f"B = {number}, {proposal}", "seed": seed}
                row |= {"proposal": proposal, "L": size.num_experts, "B": number}
                row |= branch_scores(pair, test, size.draws) | late_ess(history)
                if number == particles[-2]:
                    row |= audit(pair, test[3], 1_000 if scale_name != "smoke" else 100)
                rows.append(row)
        stick, history = train("stick-breaking", _stick_builder(size, experts[-1]), rung_objective("A5c", size), seed)
        row = {"sweep": "stick", "model": f"stick-breaking, L = {experts[-1]}", "seed": seed, "L": experts[-1]}
        row |= {"B": size.particles} | branch_scores(stick, test, size.draws) | late_ess(history) | _usage(stick, test)
        rows.append(row)
        model, guide, kept = prune_experts(*stick, test[10].context)  # type: ignore[arg-type]
        row = {"sweep": "stick", "model": "the same, unused experts dropped", "seed": seed, "L": len(kept)}
        rows.append(row | branch_scores((model, guide), test, size.draws))
    table = pd.DataFrame(rows)
    outcome = Outcome("nmdp/sweep", "", table)
    outcome.checks = _sweep_checks(scale_name, table, seeds, particles)
    outcome.notes = [
        description(size, "strict", FLOOR) + " L and B vary as the table says.",
        "ess is the mean effective sample size of the training weights over the last quarter of training, ess_below_2 "
        "the share of tasks below 2. used is the mean number of experts a task uses in effect (exp of the entropy of "
        "its mean weights), unused the number of experts with a mean weight below 1e-3. khat and share are from an "
        "offline audit with 1,000 particles: median Pareto k-hat over tasks and mean effective share, good the share "
        "of tasks with a k-hat below min(1 - 1/log10 S, 0.7). Tempered: weights are flattened to an effective sample "
        "size of at least a quarter of the particles.",
    ]
    outcome.figures["particles"] = (
        _particles_figure(table, particles),
        "Joint log-likelihood with 3 context points and effective share of the weights, by particles and proposal.",
    )
    return outcome


def _stick_builder(size: Size, number: int) -> Any:
    def build() -> Pair:
        model = MixtureDensityNetwork(number, 1, 1, "strict", min_scale=FLOOR, width=size.width)
        return model, StickBreakingGuide(model)

    return build


@torch.no_grad()
def _usage(pair: Pair, test: dict[int, TaskBatch]) -> dict[str, float]:
    weights = pair[1].mean_weights(test[10].context)  # type: ignore[operator]
    return {"used": float(effective_experts(weights).mean()), "unused": float(len(unused_experts(weights)))}


def _sweep_checks(scale: str, table: pd.DataFrame, seeds: list[int], particles: tuple[int, ...]) -> list[Check]:
    part = table[table.sweep == "particles"].set_index(["proposal", "B", "seed"])

    def values(proposal: str, number: int, column: str) -> list[float]:
        return [float(part.loc[(proposal, number, seed), column]) for seed in seeds]

    checks = []
    for number in particles:
        ess = {name: sum(values(name, number, "ess")) / len(seeds) / number for name in PROPOSALS}
        gap = [
            a - b
            for a, b in zip(
                values("conjugate", number, "joint_ll_3"), values("prior", number, "joint_ll_3"), strict=True
            )
        ]
        checks.append(
            Check(
                f"B = {number}: conjugate - prior, joint with 3 points",
                "reported",
                f"{signed(gap)}; effective share " + ", ".join(f"{name} {value:.2f}" for name, value in ess.items()),
                None,
            )
        )
    b = 16 if 16 in particles else particles[-1]
    above = [x > y for x, y in zip(values("conjugate", b, "ess"), values("prior", b, "ess"), strict=True)]
    checks.append(
        Check(
            f"the conjugate proposal keeps more weight than the prior at B = {b}",
            "every seed",
            f"{sum(above)} of {len(above)}",
            bool(all(above)) if scale == "small" else None,
        )
    )
    return checks


def _particles_figure(table: pd.DataFrame, particles: tuple[int, ...]) -> Figure:
    part = table[table.sweep == "particles"]
    with look():
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        panels = figure.subplots(1, 2)
        for proposal, colour in zip(PROPOSALS, colours(len(PROPOSALS)), strict=True):
            rows = part[part.proposal == proposal]
            grouped = rows.groupby("B")
            panels[0].plot(rows.B, rows.joint_ll_3, "o", color=colour, alpha=0.5)
            panels[0].plot(particles, grouped.joint_ll_3.mean().loc[list(particles)], color=colour, label=proposal)
            panels[1].plot(rows.B, rows.ess / rows.B, "o", color=colour, alpha=0.5)
            panels[1].plot(particles, (grouped.ess.mean() / grouped.B.mean()).loc[list(particles)], color=colour)
        panels[0].set_ylabel("joint log-likelihood (nats a point)")
        panels[1].set_ylabel("effective share of the weights")
        panels[1].set_ylim(0, 1)
        for axes in panels:
            axes.set_xscale("log", base=2)
            axes.set_xticks(particles, [str(p) for p in particles])
            axes.minorticks_off()
            axes.set_xlabel("particles B")
        figure.legend(loc="outside lower center", ncols=len(PROPOSALS))
    return figure
