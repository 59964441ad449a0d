"""One fuzzed call: drawn, made, and judged."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from inference import TrainingDiverged
from pp_models.arguments import shown
from pp_models.files import FileError
from tests.fuzz.values import RIGHT, WRONG, arguments, is_wrong_kind

RIGHTLY, REFUSED, DEPTHS, NONSENSE = "right", "refused in one line", "an error from the depths", "silent nonsense"
LONGEST = 400
#: given a right value in every call, for their defaults take long
ALWAYS = {"steps", "warmup", "every", "num_warmup", "num_samples", "num_simulations", "repeats", "draws", "width",
          "test_tasks", "snr_particles", "snr_repeats", "batch_size", "progress"}  # fmt: skip


@dataclass(frozen=True)
class Surface:
    """A public call.

    Args:
        name: what it is called in reports.
        call: it.
        right: right values of its own arguments; those without a default must be here or in ``RIGHT``.
        then: what is done with what it gives; returns the numbers that must be finite.
        weight: how often it is drawn; slow calls less.
        extra: whose arguments it hands on by ``**options``.
        never: arguments that are not given wrong values, each for a reason of the harness.
        also: other names by which a message may call an argument.
    """

    name: str
    call: Callable[..., Any]
    right: Mapping[str, st.SearchStrategy] = field(default_factory=dict)
    then: Callable[[Any], Any] | None = None
    weight: int = 4
    extra: Any = None
    never: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Surface({self.name!r})"

    def parameters(self) -> dict[str, Any]:
        found = arguments(self.call)
        return ({} if self.extra is None else arguments(self.extra)) | found


@st.composite
def calls(draw: Any, surface: list[Surface]) -> tuple[Surface, dict[str, Any], tuple[str, ...]]:
    """A call with its arguments, and those of them that were made wrong."""
    # by number, for sampled_from would look into every member at every draw
    weighted = [one for one in surface for _ in range(one.weight)]
    chosen = weighted[draw(st.integers(0, len(weighted) - 1))]
    parameters, given_values = chosen.parameters(), {}
    for name, parameter in parameters.items():
        strategy = chosen.right.get(name, RIGHT.get(name))
        needed = parameter.default is parameter.empty or name in ALWAYS
        if strategy is not None and (needed or draw(st.integers(0, 2)) == 0):
            given_values[name] = draw(strategy)
    able = [name for name in parameters if name not in chosen.never]
    wrong: list[str] = []
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 2]))):
        if able:
            name = able[draw(st.integers(0, len(able) - 1))]
            given_values[name] = WRONG[draw(st.integers(0, len(WRONG) - 1))]
            wrong.append(name)
    return chosen, given_values, tuple(wrong)


def judge(chosen: Surface, values: dict[str, Any], wrong: tuple[str, ...]) -> tuple[str, str]:
    """How a call ended, and what is to be said of it."""
    parameters = chosen.parameters()
    torch.manual_seed(0)
    try:
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with warnings.catch_warnings(), quiet[0], quiet[1], np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = chosen.call(**values)
            numbers = found if chosen.then is None else chosen.then(found)
    except (ValueError, TypeError, NotImplementedError, TrainingDiverged, FileError) as error:
        return (REFUSED, "") if not (fault := fault_of(error, {*parameters, *chosen.also})) else (DEPTHS, fault)
    except Exception as error:
        return DEPTHS, f"{type(error).__name__}: {first_line(error)}"
    for name in wrong:
        if name in parameters and is_wrong_kind(parameters[name], values[name]):
            return NONSENSE, f"{name} of a wrong kind is taken"
    if finite(list(values.values())) and not finite(numbers):
        return NONSENSE, "what it gives is not finite"
    return RIGHTLY, ""


def fault_of(error: Exception, known: set[str]) -> str:
    """What is wrong with an error; empty for one line that names an argument."""
    message = str(error)
    if "\n" in message.strip() or len(message) > LONGEST or not message:
        return f"{type(error).__name__} of {len(message)} characters: {first_line(error)}"
    words = set(re.findall(r"\w+", message.split(":")[0]))
    pythons_own = isinstance(error, TypeError) and re.search(r"(unexpected keyword|missing \d+ required)", message)
    if isinstance(error, TrainingDiverged) or pythons_own or words & known:
        return ""
    return f"{type(error).__name__} that names no argument: {first_line(error)}"


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def finite(found: Any) -> bool:
    """Whether every number in tensors, arrays, numbers and containers of them is finite."""
    if isinstance(found, Tensor):
        return not (found.dtype.is_floating_point or found.dtype.is_complex) or bool(torch.isfinite(found).all())
    if isinstance(found, float | np.floating):
        return bool(np.isfinite(found))
    if isinstance(found, Mapping):
        return all(map(finite, found.values()))
    if isinstance(found, list | tuple):
        return all(map(finite, found))
    return True


@dataclass
class Report:
    """What came of many calls: how many ended how, and one example of each fault with how often it was met."""

    counts: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        return self.counts[DEPTHS] + self.counts[NONSENSE]

    def lines(self) -> list[str]:
        head = [f"{self.counts.total()} calls: " + ", ".join(f"{n} {kind}" for kind, n in self.counts.most_common())]
        return head + [f"{n} times {fault}\n    {self.examples[fault]}" for fault, n in self.faults.most_common()]


def fuzz(surface: list[Surface], examples: int, number: int = 0, each: Callable[[], Any] = lambda: None) -> Report:
    """Makes that many calls.

    Args:
        surface: the calls.
        examples: how many.
        number: of the random stream.
        each: called after each, for progress.
    """
    report = Report()

    @seed(number)
    @settings(
        max_examples=examples, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(calls(surface))
    def once(drawn: tuple[Surface, dict[str, Any], tuple[str, ...]]) -> None:
        chosen, values, wrong = drawn
        outcome, why = judge(chosen, values, wrong)
        report.counts[outcome] += 1
        if outcome in (DEPTHS, NONSENSE):
            fault = f"{chosen.name}({', '.join(wrong)}): {why}"
            report.faults[fault] += 1
            told = ", ".join(f"{name}={shown(value)}" for name, value in values.items())
            report.examples.setdefault(fault, f"{chosen.name}({told})")
        each()

    once()
    return report
