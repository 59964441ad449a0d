"""What a training step costs, every way it can be run, and how that grows; writes tables, a picture and the docs' page.

Run: OMP_NUM_THREADS=1 python -m benchmarks.performance [--full] [--rounds 30] [--out runs/performance] [--page PAGE]

Arms of a row (the same networks, 50 + 50 points a task) take turns in one process, and each is set beside the
hand-written loop (benchmarks/hand_loops.py) pair by pair, in CPU time of the whole process; the median of the ratios
and their quartiles are kept. Alone on the machine the quick set takes under ten minutes; most of it is compiling.
"""

from __future__ import annotations

import argparse
import math
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyro
import torch
from pyro.infer import SVI
from torch import nn

from benchmarks.hand_loops import HAND_WRITTEN
from evaluation.diagnostics import ess, psis, rhat
from evaluation.methods import TaskShape, build
from guides import GaussianVIGuide
from inference.compile_step import CompiledStep
from inference.objectives import make
from inference.training_step import Sealed, TrainingStep
from pp_models import BayesianNetwork, tasks
from pp_models.files import make_folder, write_atomically

#: (method, its name here, width, tasks, whether inductor runs too) of the quick set, and what --full adds
QUICK = [
    ("nvdp", "nvdp", 64, 16, True),
    ("cnp", "cnp", 64, 16, True),
    ("nmdp-attention", "nmdp", 64, 16, True),
    ("bnnp", "bnnp", 32, 4, False),
]
MORE = [
    *[("nvdp", "nvdp", width, 16, True) for width in (32, 128)],
    *[("cnp", "cnp", width, tasks_, True) for width, tasks_ in ((64, 8), (128, 16))],
    *[("nmdp-attention", "nmdp", width, 16, True) for width in (32, 128)],
    *[("bnnp", "bnnp", width, tasks_, False) for width, tasks_ in ((32, 16), (64, 4), (128, 2))],
]
#: what a cost is measured over
GROWTH = {"tasks": (8, 16, 32, 64), "points": (25, 50, 100, 200), "particles": (1, 4, 16)}
POINTS = 50
Arm = Callable[[], object]


def stream(count: int, points: int = POINTS):
    """Tasks of so many points in context and target."""
    return tasks.gp("rbf", count, 0, num_context=(points, points), num_target=(points, points), max_points=None)


def trained(module: nn.Module, batch) -> Arm:
    """A step of a module that returns a loss."""
    optimizer = torch.optim.Adam(module.parameters(), 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        module(batch).backward()
        optimizer.step()

    return step


def eager(module: TrainingStep, batch) -> Arm:
    """A step as a fit runs it eagerly."""
    optimizer = torch.optim.Adam(module.parameters(), 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        module(Sealed(batch))[0].backward()
        optimizer.step()

    return step


def graphed(module: TrainingStep, batch, backend: str) -> Arm:
    """A step as a fit runs it compiled, or its graph operation by operation."""
    optimizer = torch.optim.Adam(module.parameters(), 1e-4, fused=True)

    def refuse(_):
        raise RuntimeError(f"{backend}: the step could not be compiled")

    compiled = CompiledStep(module, refuse, backend)

    def step() -> None:
        optimizer.zero_grad()
        compiled(batch)
        optimizer.step()

    return step


def in_turns(arms: dict[str, Arm], rounds: int, warm: int = 3) -> dict[str, list[float]]:
    """CPU seconds of the process by arm; the order turns round by round."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + warm):
        for name in sorted(arms, reverse=bool(number % 2)):
            started = time.process_time()
            arms[name]()
            if number >= warm:
                found[name].append(time.process_time() - started)
    return found


def beside(seconds: list[float], base: list[float]) -> dict[str, float]:
    """Median milliseconds, and the quartiles of the ratios pair by pair."""
    low, ratio, high = statistics.quantiles([a / b for a, b in zip(seconds, base, strict=True)], n=4)
    return {"ms": 1e3 * statistics.median(seconds), "ratio": ratio, "low": low, "high": high}


def step_rows(label: str, method: str, width: int, count: int, compiled: bool, rounds: int) -> list[dict]:
    """A row for each way of running a step."""
    torch.manual_seed(0)
    batch = stream(count).batch(0)
    shape = TaskShape(1, 1, width, recipe="paper")

    def module() -> TrainingStep:
        found = build(label, shape)
        return TrainingStep(found.model, found.guide, found.objective).train()

    by_svi = build(label, shape)
    svi = SVI(by_svi.model, by_svi.guide, pyro.optim.Adam({"lr": 1e-4}), loss=by_svi.objective)
    arms: dict[str, Arm] = {
        "by hand": trained(HAND_WRITTEN[method](width), batch),
        "eager": eager(module(), batch),
        "Pyro's SVI": lambda: svi.step(batch),
    }
    if method != "bnnp":
        arms["graph"] = graphed(module(), batch, "graph")
    if compiled:
        arms["compiled"] = graphed(module(), batch, "inductor")
    compiling = time.process_time(), time.perf_counter()
    for arm in arms.values():
        arm()
    spent = time.perf_counter() - compiling[1]
    times = in_turns(arms, rounds)
    rows = []
    for name, seconds in times.items():
        row = {"method": label, "width": width, "tasks": count, "arm": name}
        rows.append(row | beside(seconds, times["by hand"]) | {"first calls, s": spent})
    return rows


def growth_rows(rounds: int) -> list[dict]:
    """Milliseconds of an eager step over tasks, points and particles, and the slope of the last pair in logarithms."""
    rows = []
    for label in ("nvdp", "nmdp-attention", "cnp"):
        for over, sizes in GROWTH.items():
            if over == "particles" and label == "cnp":
                continue
            previous = None
            for size in sizes:
                torch.manual_seed(0)
                found = build(label, TaskShape(1, 1, 64, recipe="paper"))
                if over == "particles":
                    found.objective.num_particles = size
                module = TrainingStep(found.model, found.guide, found.objective).train()
                data = stream(size if over == "tasks" else 8, size if over == "points" else POINTS).batch(0)
                cost = statistics.median(in_turns({"eager": eager(module, data)}, rounds)["eager"])
                slope = math.nan if previous is None else math.log(cost / previous[1]) / math.log(size / previous[0])
                rows.append({"method": label, "over": over, "size": size, "ms": 1e3 * cost, "slope": slope})
                previous = size, cost
    return rows


def diagnostics_rows(count: int, rounds: int) -> list[dict]:
    """Diagnostics of many tasks beside a loop over ArviZ, whose time is taken on the first hundred."""
    from benchmarks.diagnostics import CHAINS, DRAWS, reference

    draws = torch.randn(CHAINS, DRAWS, count, dtype=torch.float64)
    columns = draws.permute(2, 0, 1).numpy()[:100]
    rows = []
    theirs = reference()
    for name, ours in {"ess (bulk)": ess, "R-hat": rhat, "k-hat": psis}.items():
        arms = {"ours": lambda f=ours: f(draws), "loop": lambda g=theirs[name]: [g(column) for column in columns]}
        times = in_turns(arms, max(rounds // 6, 3), 1)
        scale = count / len(columns)
        ratio = statistics.median(b * scale / a for a, b in zip(times["ours"], times["loop"], strict=True))
        row = {"statistic": name, "tasks": count, "µs a task": 1e6 * statistics.median(times["ours"]) / count}
        rows.append(row | {"loop over ArviZ, µs": 1e4 * statistics.median(times["loop"]), "ratio": ratio})
    return rows


def adapter_rows(rounds: int, width: int = 384, layers: int = 6) -> list[dict]:
    """A step of LRVD beside plain LoRA's in peft, on a BERT of MiniLM's sizes, and both with less to multiply."""
    from peft import LoraConfig

    from benchmarks.adapter_overhead import TARGETS, pair
    from guides.adapters.lrvd_peft import LrvdConfig

    lora, lrvd = LoraConfig(r=8, target_modules=TARGETS), LrvdConfig(r=8, target_modules=TARGETS)
    steps = {
        "LoRA": pair(lora, width, layers, rounds + 3),
        "LRVD": pair(lrvd, width, layers, rounds + 3),
        "LoRA, frozen in bfloat16": pair(lora, width, layers, rounds + 3, half=True),
        "LRVD, frozen in bfloat16": pair(lrvd, width, layers, rounds + 3, half=True),
    }
    number = iter(range(10**6))
    times = in_turns({name: lambda step=step: step(next(number)) for name, step in steps.items()}, rounds)
    return [{"step": name} | beside(seconds, times["LoRA"]) for name, seconds in times.items()]


def numpyro_rows(width: int, count: int, rounds: int) -> list[dict]:
    """A step of mean-field inference over a network's weights, beside NumPyro's jitted SVI on the same model."""
    import jax
    import numpyro
    from numpyro.infer.autoguide import AutoNormal

    from inference.reference.numpyro_twin import numpyro_twin, precision_of

    torch.manual_seed(0)
    data = stream(count).batch(0).full

    def ours() -> tuple[BayesianNetwork, GaussianVIGuide]:
        model = BayesianNetwork([1, width, width, 1], activation="tanh", noise_scale=0.1)
        return model, GaussianVIGuide(model, "weight", (count,))

    def module() -> TrainingStep:
        return TrainingStep(*ours(), make("elbo")).train()

    model, guide = ours()
    by_svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-4}), loss=pyro.infer.TraceMeanField_ELBO())
    arms: dict[str, Arm] = {
        "eager": eager(module(), data),
        "graph": graphed(module(), data, "graph"),
        "Pyro's SVI": lambda: by_svi.step(data),
    }
    if width > 8:  # not in a test, for it takes a minute to compile
        arms["compiled"] = graphed(module(), data, "inductor")
    with precision_of(model):
        twin = numpyro_twin(model)
        svi = numpyro.infer.SVI(twin, AutoNormal(twin), numpyro.optim.Adam(1e-4), numpyro.infer.TraceMeanField_ELBO())
        state = [svi.init(jax.random.PRNGKey(0), data)]
        update = jax.jit(lambda before: svi.update(before, data)[0])

    def jitted() -> None:
        with precision_of(model):
            state[0] = jax.block_until_ready(update(state[0]))

    times = in_turns(arms | {"NumPyro's SVI, jitted": jitted}, rounds)
    base = times["Pyro's SVI"]
    return [{"width": width, "tasks": count, "arm": name} | beside(each, base) for name, each in times.items()]


def picture(steps: pd.DataFrame):
    """Ratios to the hand-written loop as bars, with their quartiles."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.3 * len(steps) + 1), layout="constrained")
    shown = steps[steps["arm"] != "by hand"].iloc[::-1]
    names = [f"{r.method} {r.width}, {r.tasks} tasks: {r.arm}" for r in shown.itertuples()]
    spread = [shown["ratio"] - shown["low"], shown["high"] - shown["ratio"]]
    axes.barh(names, shown["ratio"], xerr=spread, color=["C0" if a == "compiled" else "C7" for a in shown["arm"]])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("CPU time of a step over that of the hand-written loop")
    return figure


def markdown(frame: pd.DataFrame) -> str:
    """A table of a page; numbers with three digits."""

    def word(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return "–" if math.isnan(value) else f"{value:.3g}"

    rows = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
    rows += [[word(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def fill(page: Path, tables: dict[str, str]) -> None:
    """Writes tables between the marks ``<!-- name -->`` and ``<!-- end -->`` of a page.

    Raises:
        ValueError: the page has no such mark.
    """
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        between = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not between.search(text):
            raise ValueError(f"page: {page} has no mark <!-- {name} -->")
        text = between.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)  # type: ignore[misc]
    write_atomically(page, text.encode())


def main(full: bool = False, rounds: int = 30, out: Path = Path("runs/performance"), page: Path | None = None) -> dict:
    """Measures, prints and writes; returns the tables by name."""
    make_folder(out, "out")
    threads, began = torch.get_num_threads(), time.perf_counter()
    rows: list[dict] = []
    with pyro.validation_enabled(False):  # as inference.fit runs
        for label, method, width, count, compiled in QUICK + (MORE if full else []):
            rows += step_rows(
                label, method, width, count, compiled, max(rounds // 5, 3) if method == "bnnp" else rounds
            )
            print(f"{label} {width}: {time.perf_counter() - began:.0f} s", flush=True)
        growth = pd.DataFrame(growth_rows(max(rounds // 3, 3)))
        sizes = [(32, 16), (64, 16)] if rounds >= 10 else [(4, 2)]
        numpyro = pd.DataFrame([row for size in sizes for row in numpyro_rows(*size, max(rounds // 2, 3))])
    steps, diagnostics = pd.DataFrame(rows), pd.DataFrame(diagnostics_rows(10_000 if rounds >= 10 else 200, rounds))
    adapters = pd.DataFrame(adapter_rows(max(rounds // 3, 3), *((384, 6) if rounds >= 10 else (32, 1))))
    memory, took = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.perf_counter() - began
    facts = f"torch {torch.__version__}, {platform.machine()}, {threads} threads, {rounds} rounds; largest memory "
    facts += f"{memory:.1f} GB; {took:.0f} s in all"
    frames = {"steps": steps, "growth": growth, "diagnostics": diagnostics, "adapters": adapters, "numpyro": numpyro}
    for name, frame in frames.items():
        frame.to_csv(out / f"{name}.csv", index=False)
    picture(steps).savefig(out / "steps.png", dpi=120)
    tables = {name: markdown(frame) for name, frame in frames.items()} | {"facts": facts}
    print("\n\n".join(tables.values()))
    if page is not None:
        fill(page, tables)
    return frames


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every width; half an hour, most of it compiling")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/performance"))
    parser.add_argument("--page", type=Path, default=None, help="a page whose tables are written anew")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    main(options.full, options.rounds, options.out, options.page)
