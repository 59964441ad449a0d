"""``elbo`` and ``iwae`` on Pyro's examples beside Pyro's own losses, in expectation: a table in Markdown.

``python -m benchmarks.zoo_table [--repeats N]``. The losses are means over repeats with their standard errors; the
gradient column is the largest deviation of any parameter's mean gradient, in standard errors. Where rows share no
latent ``iwae`` has weights of each row, so that it is held against Pyro's ``RenyiELBO(alpha=0)`` of the rows one by
one, summed.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor

from benchmarks.pyro_examples import EXAMPLES, Example
from inference.objectives import make

PARTICLES = 4
Found = dict[str, tuple[Tensor, Tensor]]


def fresh(name: str) -> Example:
    """An example with parameters as they start."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    example = EXAMPLES[name]()
    example.guide(*example.data)
    return example


def moments(once: Callable[[], float], repeats: int) -> Found:
    """Mean and standard error of a loss and its gradients; ``once`` leaves gradients behind."""
    values: dict[str, list[Tensor]] = {}
    for _ in range(repeats):
        with poutine.trace(param_only=True) as captured:
            loss = once()
        found = {"loss": torch.tensor([float(loss)]).double()}
        for name, site in captured.trace.nodes.items():
            parameter: Any = site["value"]
            leaf = parameter.unconstrained() if hasattr(parameter, "unconstrained") else parameter
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            found[name] = grad.detach().double().reshape(-1).clone()
            leaf.grad = None
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    stacked = {name: torch.stack(each) for name, each in values.items()}
    return {name: (each.mean(0), each.std(0) / math.sqrt(len(each))) for name, each in stacked.items()}


def deviation(ours: Found, theirs: Found) -> float:
    """The largest difference of mean gradients, in standard errors."""
    worst = 0.0
    for name, (mean, error) in theirs.items():
        if name == "loss" or name not in ours:
            continue
        own, own_error = ours[name]
        scale = (error.square() + own_error.square()).sqrt() + 1e-5 * (1 + mean.abs())
        worst = max(worst, float(((own - mean).abs() / scale).max()))
    return worst


def value(found: Found) -> str:
    mean, error = found["loss"]
    return f"{float(mean):.2f} ± {float(error):.2f}"


def pyros_iwae(example: Example) -> Callable[[], float]:
    """RenyiELBO of everything, or of the rows one by one."""
    bound = RenyiELBO(alpha=0, num_particles=PARTICLES)
    if example.rows is None:
        return lambda: bound.loss_and_grads(example.model, example.guide, *example.data)
    rows = example.rows
    count = len(example.data[0])
    return lambda: sum(
        bound.loss_and_grads(example.model, example.guide, *rows(example.data, slice(i, i + 1))) for i in range(count)
    )


def line(name: str, repeats: int) -> tuple[str, str]:
    """One line of the table, and what a refusal said."""
    cells, said = [f"`{name}`"], ""
    pairs: list[tuple[str, Callable[[Example], Callable[[], float]]]] = [
        ("elbo", lambda e: lambda: Trace_ELBO(num_particles=PARTICLES).loss_and_grads(e.model, e.guide, *e.data)),
        ("iwae", pyros_iwae),
    ]
    for objective, theirs in pairs:
        example = fresh(name)
        ours = make(objective, num_particles=PARTICLES)
        try:
            found = moments(lambda: ours.loss_and_grads(example.model, example.guide, *example.data), repeats)  # noqa: B023
        except ValueError as error:
            cells += ["refused", "", ""]
            said = str(error)
            continue
        example = fresh(name)
        wanted = moments(theirs(example), repeats)
        discrete = objective == "iwae" and has_scores(example)
        gradient = "not compared" if discrete else f"{deviation(found, wanted):.1f}"
        cells += [value(found), value(wanted), gradient]
    return "| " + " | ".join(cells) + " |", said


def has_scores(example: Example) -> bool:
    """Whether a draw cannot be reparameterised: RenyiELBO(alpha=0) then has no gradient for it."""
    trace = poutine.trace(example.guide).get_trace(*example.data)
    return any(
        site["type"] == "sample" and not site["is_observed"] and not site["fn"].has_rsample
        and type(site["fn"]).__name__ != "_Subsample"
        for site in trace.nodes.values()
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("examples", nargs="*", help="names; all by default")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    for logger in ("pyro", "guidebook"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    print("| | `elbo` | `Trace_ELBO` | gradient | `iwae` | `RenyiELBO(alpha=0)` | gradient |")
    print("|---|---|---|---|---|---|---|")
    refusals = {}
    for name in options.examples or EXAMPLES:
        row, refusals[name] = line(name, options.repeats)
        print(row, flush=True)
    for name, said in refusals.items():
        if said:
            print(f"\n`{name}` is refused: {said}")


if __name__ == "__main__":
    main()
