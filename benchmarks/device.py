"""Everything that needs a GPU, by one command in one process: prints a short table and writes a file.

Run: python -m benchmarks.device [--device cuda] [--out runs/device.json] [--small]

- a step of each method on the device equals that on the CPU (float64, the same draws where it draws none);
- no step waits for the host: torch's sync debug mode is set to raise;
- diagnostics of 10,000 tasks on the device against a loop over ArviZ;
- CUDA-graph capture of a step's graph, eager, compiled and Pyro's SVI, in milliseconds;
- bf16's error, and the share of the device's peak that a step reaches.

On the CPU (``--device cpu --small``) the same code runs, without what only CUDA has; so it is tested.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pyro
import torch
from pyro.infer import SVI

from benchmarks.performance import POINTS, eager, graphed, stream
from evaluation.diagnostics import ess, psis, rhat
from evaluation.methods import TaskShape, build
from inference import fit
from inference.compile_step import CompiledStep, flatten
from inference.objectives import make
from inference.training_step import Sealed, TrainingStep
from pp_models.files import make_folder, write_atomically

METHODS = ("nvdp", "nmdp-attention", "cnp", "bnnp")


def module_of(method: str, width: int, device: torch.device, dtype: torch.dtype = torch.float32) -> TrainingStep:
    """A method's step with the same parameters wherever it is."""
    torch.manual_seed(0)
    found = build(method, TaskShape(1, 1, width, recipe="paper"))
    return TrainingStep(found.model, found.guide, found.objective).to(device, dtype).train()


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(step, device: torch.device, rounds: int) -> float:
    """Median wall time of a step whose work is finished."""
    for _ in range(3):
        step()
    found = []
    for _ in range(rounds):
        synchronize(device)
        started = time.perf_counter()
        step()
        synchronize(device)
        found.append(1e3 * (time.perf_counter() - started))
    return median(found)


@contextmanager
def no_waiting(device: torch.device):
    """Raises where something waits for the device."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def equality(device: torch.device, width: int) -> float:
    """Largest relative gap of CNP's loss and gradients from those on the CPU, in float64: it draws nothing."""
    batch = stream(4).batch(0)
    found = []
    for where in (torch.device("cpu"), device):
        module = module_of("cnp", width, where, torch.float64)
        loss, _ = module(Sealed(batch.to(where, torch.float64)))
        loss.backward()
        gradients = [p.grad.cpu() for p in module.parameters() if p.grad is not None]
        found.append([loss.detach().cpu(), *gradients])
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-9)) for a, b in zip(*found, strict=True))


def captured(module: TrainingStep, batch):
    """A step's graph as one CUDA graph; on the CPU the graph itself. Loss and gradients stay where the graph put them.

    Random numbers come from the device's generator, whose state a CUDA graph advances at every replay.
    """
    compiled = CompiledStep(module, lambda _: None, "graph", dynamic=False)
    leaves, layout = flatten(batch)
    graph = compiled._make(leaves, layout)
    inputs = [*compiled._tensors(), *leaves]
    if leaves[0].device.type != "cuda":
        return lambda: graph.run(*inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):
            graph.run(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    replayed = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(replayed):
        graph.run(*inputs)
    return replayed.replay


def multiplications(module: TrainingStep, batch) -> float:
    """Floating-point operations of a step's matrix products, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        module(Sealed(batch))[0].backward()
    return float(counter.get_total_flops())


def peak(device: torch.device, size: int) -> float:
    """Operations a second of a large float32 product, as the device does it here."""
    a = torch.randn(size, size, device=device)
    return 2 * size**3 / (milliseconds(lambda: a @ a, device, 5) / 1e3)


def half_precision_error(device: torch.device, steps: int, width: int) -> float:
    """How far the last loss of a bf16-mixed fit lies from that in float32, in nats per value."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        module = module_of("cnp", width, torch.device("cpu"))
        result = fit(
            module.model, module.guide, stream(8), make("npml", normalize=True), steps, device=str(device),
            precision=precision, compile=False, progress=False,
        )  # fmt: skip
        losses.append(result.history[-1]["loss"])
    return losses[1] - losses[0]


def statistics_rows(device: torch.device, count: int, looped: int) -> list[dict]:
    """Diagnostics of many tasks on the device against a loop over ArviZ."""
    from benchmarks.diagnostics import CHAINS, DRAWS, reference

    draws = torch.randn(CHAINS, DRAWS, count, dtype=torch.float64)
    here, columns = draws.to(device), draws.permute(2, 0, 1).numpy()[:looped]
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, theirs in reference().items():
            ours = {"ess (bulk)": ess, "R-hat": rhat, "k-hat": psis}[name]
            cost = milliseconds(lambda f=ours: f(here), device, 5)  # type: ignore[misc]
            started = time.perf_counter()
            expected = [float(theirs(column)) for column in columns]
            loop = 1e3 * (time.perf_counter() - started) * count / looped
            gap = float((ours(here).cpu()[:looped] - torch.tensor(expected, dtype=torch.float64)).abs().max())
            rows.append(
                {"statistic": name, "tasks": count, "ms": cost, "loop ms": loop, "ratio": loop / cost, "gap": gap}
            )
    return rows


def step_rows(device: torch.device, width: int, count: int, rounds: int, inductor: bool) -> list[dict]:
    """Milliseconds of a step by every way of running it, and its share of the peak."""
    batch, rows = stream(count).batch(0).to(device), []
    most = peak(device, 4096 if device.type == "cuda" else 256)
    for method in METHODS:
        row: dict = {"method": method, "width": width, "tasks": count, "points": 2 * POINTS}
        module = module_of(method, width, device)
        work = multiplications(module, batch)
        with no_waiting(device):  # validation off, as in a fit
            eager(module, batch)()
        row["eager"] = milliseconds(eager(module, batch), device, rounds)
        row["captured"] = milliseconds(captured(module_of(method, width, device), batch), device, rounds)
        if inductor:
            row["compiled"] = milliseconds(graphed(module_of(method, width, device), batch, "inductor"), device, rounds)
        plain = module_of(method, width, device)
        svi = SVI(plain.model, plain.guide, pyro.optim.Adam({"lr": 1e-4}), loss=plain.objective)
        row["Pyro's SVI"] = milliseconds(lambda s=svi: s.step(batch), device, rounds)  # type: ignore[misc]
        row["share of peak"] = work / (row["captured"] / 1e3) / most
        rows.append(row)
    return rows


def main(device: str = "cuda", out: Path = Path("runs/device.json"), small: bool = False) -> dict:
    """Measures, prints, writes; returns what it wrote."""
    where, started = torch.device(device), time.perf_counter()
    width, count, rounds = (8, 2, 2) if small else (64, 16, 30)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    with pyro.validation_enabled(False):
        found = {
            "device": name,
            "torch": torch.__version__,
            "largest gap from the CPU": equality(where, width),
            "error of bf16-mixed, nats per value": half_precision_error(where, 5 if small else 500, width),
            "steps, ms": step_rows(where, width, count, rounds, inductor=not small and where.type == "cuda"),
            "diagnostics": statistics_rows(where, 20 if small else 10_000, 5 if small else 200),
        }
    found["seconds"] = round(time.perf_counter() - started, 1)
    make_folder(out.absolute().parent, "out")
    write_atomically(out.absolute(), json.dumps(found, indent=1).encode())
    for key, value in found.items():
        for line in value if isinstance(value, list) else [value]:
            print(f"{key}: {line}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/device.json"))
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    options = parser.parse_args()
    main(options.device, options.out, options.small)
