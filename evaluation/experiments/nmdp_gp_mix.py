"""NMDP on GP tasks of three kernels, beside the exact Gaussian processes: the ablation ladder and the baselines."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from evaluation.experiments.experiment import Check, Outcome, Workshop, signed
from evaluation.experiments.nmdp_ladder import RUNGS, late_ess, rung, rung_objective
from evaluation.experiments.nmdp_parts import Pair, Size, description, scores, train_with
from evaluation.methods import TaskShape, build
from evaluation.plots.style import WIDTH, colours, look
from evaluation.scores.scoring import score_oracle
from pp_models import TaskBatch, tasks

#: below the noise of 0.02
FLOOR = 0.01
KERNELS = {"rbf": "RBF", "weakly-periodic": "weakly periodic", "matern52": "Matérn-5/2"}
SCALES = {
    "smoke": Size(3, 8, 2, 2, 4, 8, 8),
    "small": Size(2_500, 64, 8, 16, 16, 320, 1_000),
    "paper": Size(100_000, 64, 8, 16, 16, 1_000, 1_000, 5e-4),
}
#: what the paper prints for these columns; its kernels' hyper-parameters, counts and noise are unknown
PAPER = {
    "maml": (0.08, 0.89, -0.12),
    "cavia": (0.21, 0.96, 0.07),
    "cnp": (0.15, 1.08, -0.14),
    "anp": (0.42, 1.11, 0.18),
    "convcnp": (1.05, 0.80, 0.71),
    "tnp-d": (1.23, 1.13, 1.06),
    "dnp": (0.95, 1.06, 0.78),
    "NMDP": (1.26, 1.19, 1.15),
}
BASELINES = ("cnp", "canp", "np", "anp", "bnp", "si-np", "convcnp", "tnp-d", "dnp", "maml", "cavia")
ORACLE = "exact GP, kernel known"
#: marginal log-likelihood of the exact GP that an independent program measured on 6,400 tasks of each kernel
CEILINGS = {"rbf": 1.61, "matern52": 1.20, "weakly-periodic": 0.53}


def test_tasks(size: Size) -> dict[str, list[TaskBatch]]:
    """Held-out tasks of each kernel with the training counts, the same for every row."""
    return {
        name: [tasks.gp(name, 8, 1_000_000, **tasks.TNP_COUNTS).batch(i) for i in range(max(1, size.test_tasks // 8))]
        for name in KERNELS
    }


def kernel_scores(pair: Pair, test: dict[str, list[TaskBatch]], draws: int) -> dict[str, float]:
    """Marginal and joint log-likelihood per target point by kernel."""
    found: dict[str, float] = {}
    for name, batches in test.items():
        table = scores(pair, batches, draws)
        found |= {f"ll_{name}": float(table.ll.mean()), f"joint_{name}": float(table.joint_ll.mean())}
    return found


def oracle_row(test: dict[str, list[TaskBatch]]) -> dict[str, Any]:
    """The exact GP of every task, its kernel known: no model can do better."""
    row: dict[str, Any] = {"model": ORACLE, "seed": -1}
    for name, batches in test.items():
        found = score_oracle(batches)
        row |= {f"ll_{name}": float(found.pll.mean()), f"joint_{name}": float(found.joint_pll.mean())}
    return row


def run_ladder(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """A1 to A5c with context experts, and four of them with strict ones (docs/papers/nmdp.md#the-ladder)."""
    size = SCALES[scale_name]
    test = test_tasks(size)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        for experts, names in (("context", list(RUNGS)), ("strict", ["A1", "A3", "A5", "A5c"])):
            for name in names:
                pair, history = _train_nmdp(name, experts, scale_name, seed, workshop)
                row = {"model": f"{name}, {experts}", "rung": name, "experts": experts, "seed": seed}
                rows.append(row | kernel_scores(pair, test, size.draws) | late_ess(history))
    rows.append(oracle_row(test))
    table = pd.DataFrame(rows)
    outcome = Outcome("nmdp/ablations", "", table)
    outcome.checks = _ladder_checks(scale_name, table, seeds) + [_known_ceilings(scale_name), _ceilings(table)]
    outcome.notes = [
        description(size, "context, or strict with twice as many experts", FLOOR),
        "; ".join(f"{name}: {what}" for name, (what, _, _) in RUNGS.items())
        + ". Training on one of the three kernels for each task, TNP counts and noise 0.02; "
        f"{len(next(iter(test.values()))) * 8} held-out tasks a kernel. The paper says the log-likelihood rises from "
        "A1 to A5 and prints no ablation numbers; it does not say whether it is marginal or joint.",
    ]
    outcome.figures["ladder"] = (
        _figure(table, [m for m in dict.fromkeys(table.model) if m != ORACLE]),
        "Marginal (circles) and joint (crosses) log-likelihood; dashed and dotted: the exact GP's.",
    )
    return outcome


def _train_nmdp(
    name: str, experts: str, scale_name: str, seed: int, workshop: Workshop
) -> tuple[Pair, list[dict[str, float]]]:
    size = SCALES[scale_name]
    number = size.num_experts * (2 if experts == "strict" else 1)
    stream = tasks.gp("mix", size.batch_size, seed, **tasks.TNP_COUNTS)
    return train_with(
        workshop,
        f"nmdp-gp-{scale_name}",
        f"{name}-{experts}",
        rung(name, size, experts, FLOOR, number),
        rung_objective(name, size),
        stream,
        seed,
        size,
    )


def run_baselines(scale_name: str, seeds: list[int], workshop: Workshop) -> Outcome:
    """NMDP beside its rivals, all with one floor, the same tasks and the same steps."""
    size = SCALES[scale_name]
    test = test_tasks(size)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        stream = tasks.gp("mix", size.batch_size, seed, **tasks.TNP_COUNTS)
        for name in BASELINES:
            pair, _ = train_with(
                workshop,
                f"nmdp-gp-{scale_name}",
                name,
                _baseline(name, size),
                build(name, TaskShape(1, 1, size.width, min_scale=FLOOR)).objective,
                stream,
                seed,
                size,
            )
            draws = 1 if name in ("maml", "cavia", "cnp", "canp", "convcnp", "tnp-d") else min(size.draws, 200)
            rows.append({"model": name, "seed": seed, **kernel_scores(pair, test, draws)})
        for name in ("A5", "A5c"):
            pair, _ = _train_nmdp(name, "context", scale_name, seed, workshop)
            label = "NMDP, context" + (", conjugate proposal" if name == "A5c" else "")
            rows.append({"model": label, "seed": seed, **kernel_scores(pair, test, size.draws)})
    rows.append(oracle_row(test))
    table = pd.DataFrame(rows)
    outcome = Outcome("nmdp/gp-mix", "", table)
    outcome.checks = [_ceilings(table), *_against(table, seeds)]
    outcome.notes = [
        description(size, "context", FLOOR) + " Every method has this floor.",
        f"Width {size.width} and {size.steps} steps for all, so small budgets: an ordering here is not the papers'. "
        "Methods without a latent predict points independently, so their joint log-likelihood is the marginal one. "
        f"{len(next(iter(test.values()))) * 8} held-out tasks a kernel, TNP counts and noise.",
        "The paper's figures are in a table of their own; its hyper-parameters, counts and noise are not known, so "
        "the columns cannot be compared.",
    ]
    outcome.tables["The paper's figures (other kernels and counts)"] = pd.DataFrame(
        [{"model": name, **dict(zip(KERNELS.values(), row, strict=True))} for name, row in PAPER.items()]
    )
    outcome.figures["methods"] = (
        _figure(table, [m for m in dict.fromkeys(table.model) if m != ORACLE]),
        "Marginal (circles) and joint (crosses) log-likelihood; dashed and dotted: the exact GP's.",
    )
    return outcome


def _baseline(name: str, size: Size) -> Callable[[], Pair]:
    def make_pair() -> Pair:
        method = build(name, TaskShape(1, 1, size.width, min_scale=FLOOR))
        return method.model, method.guide

    return make_pair


def _known_ceilings(scale: str) -> Check:
    """The exact GP on 400 batches of 16 tasks is what another program found."""
    count = 2 if scale == "smoke" else 400
    found = {
        name: float(score_oracle([tasks.gp(name, 16, 0, **tasks.TNP_COUNTS).batch(i) for i in range(count)]).pll.mean())
        for name in CEILINGS
    }
    near = all(abs(found[name] - value) <= 0.1 for name, value in CEILINGS.items())
    return Check(
        f"the exact GP on {16 * count} tasks a kernel",
        ", ".join(f"{KERNELS[name]} {value} ± 0.1" for name, value in CEILINGS.items()),
        ", ".join(f"{KERNELS[name]} {value:.3f}" for name, value in found.items()),
        near if scale != "smoke" else None,
    )


def _ceilings(table: pd.DataFrame) -> Check:
    """No log-likelihood above the exact GP's."""
    exact = table[table.model == ORACLE].iloc[0]
    rows = table[table.model != ORACLE]
    columns = [c for c in table.columns if c.startswith(("ll_", "joint_"))]
    above = {c: float(rows[c].max() - exact[c]) for c in columns}
    return Check(
        "nothing above the exact GP",
        "marginal and joint, every kernel <= exact + 0.05",
        ", ".join(f"{c} {v:+.2f}" for c, v in above.items()),
        bool(max(above.values()) <= 0.05),
    )


def _against(table: pd.DataFrame, seeds: list[int]) -> list[Check]:
    by = table.set_index(["model", "seed"])
    checks = []
    for other in BASELINES:
        for form in ("ll", "joint"):
            gaps = [
                sum(
                    float(by.loc[("NMDP, context", s), f"{form}_{k}"] - by.loc[(other, s), f"{form}_{k}"])
                    for k in KERNELS
                )
                / len(KERNELS)
                for s in seeds
            ]
            name = "marginal" if form == "ll" else "joint"
            checks.append(Check(f"NMDP - {other}, {name}, mean over kernels", "reported", signed(gaps), None))
    return checks


def _ladder_checks(scale: str, table: pd.DataFrame, seeds: list[int]) -> list[Check]:
    by = table.set_index(["model", "seed"])

    def values(model: str, column: str) -> list[float]:
        return [float(by.loc[(model, seed), column]) for seed in seeds]

    def claim(value: bool) -> bool | None:
        return bool(value) if scale == "small" else None

    a1, a3, a5 = (values(f"{n}, context", "ll_rbf") for n in ("A1", "A3", "A5"))
    joint = [a - b for a, b in zip(values("A5, context", "joint_rbf"), a5, strict=True)]
    strict = table[table.experts == "strict"]
    highest = float(strict[[f"ll_{k}" for k in KERNELS]].max().max()) if len(strict) else float("nan")
    checks = [
        Check(
            "context experts: A3 and A5 follow RBF draws",
            "marginal >= 0.3 in every seed",
            f"A3 {signed(a3)}; A5 {signed(a5)}",
            claim(min(*a3, *a5) >= 0.3),
        ),
        Check("one expert does not", "A1 <= 0.25 in every seed", signed(a1), claim(max(a1) <= 0.25)),
        Check(
            "A5 gains from jointly drawn weights",
            "joint - marginal >= 0 in every seed",
            signed(joint),
            claim(min(joint) >= 0),
        ),
        Check("strict experts cannot follow a GP", "every LL < 0", f"highest {highest:+.3f}", claim(highest < 0)),
    ]
    ladder = ["A1", "A2", "A3", "A4", "A5", "A5c"]
    for form, word in (("ll", "marginal"), ("joint", "joint")):
        means = {
            n: sum(sum(values(f"{n}, context", f"{form}_{k}")) for k in KERNELS) / len(seeds) / len(KERNELS)
            for n in ladder
        }
        rising = all(means[a] <= means[b] for a, b in pairwise(ladder[:5]))
        checks.append(
            Check(
                f"the paper's order A1 < A2 < A3 < A4 < A5, {word}, context experts",
                "reported; mean over kernels and seeds",
                ", ".join(f"{n} {v:+.3f}" for n, v in means.items())
                + (": reproduced" if rising else ": not reproduced"),
                None,
            )
        )
    return checks


def _figure(table: pd.DataFrame, models: list[str]) -> Figure:
    with look():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.28 * len(models)), layout="constrained")
        panels = figure.subplots(1, len(KERNELS), sharey=True)
        exact = table[table.model == ORACLE].iloc[0]
        low, high = colours(2)
        for axes, (kernel, title) in zip(panels, KERNELS.items(), strict=True):
            for place, model in enumerate(models):
                rows = table[table.model == model]
                axes.plot(rows[f"ll_{kernel}"], [place] * len(rows), "o", color=low, ms=4)
                axes.plot(rows[f"joint_{kernel}"], [place] * len(rows), "x", color=high, ms=4)
            axes.axvline(exact[f"ll_{kernel}"], color=low, ls="--")
            axes.axvline(exact[f"joint_{kernel}"], color=high, ls=":")
            axes.set(title=title, xlabel="nats a point")
            shown = table[table.model.isin(models)][[f"ll_{kernel}", f"joint_{kernel}"]]
            axes.set_xlim(max(-2.0, float(shown.min().min()) - 0.1), float(exact[f"joint_{kernel}"]) + 0.15)
        panels[0].set_yticks(range(len(models)), models)
        panels[0].invert_yaxis()
    return figure
