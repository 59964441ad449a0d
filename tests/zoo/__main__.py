"""The whole zoo: every case, every objective, particles at once and one by one. ``python -m tests.zoo [--repeats N]``.

It prints a line for every case and one for everything that is not as it should be, and ends with 1 if there is any.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from multiprocessing import get_context

import pytest
import torch

from tests.zoo.comparison import OBJECTIVES, applicable, check, evidence_error, fresh, notice
from tests.zoo.mutations import MUTATIONS
from tests.zoo.programs import CASES


def run(task: tuple[str, int]) -> tuple[str, list[str], float]:
    """One case, or one mutation."""
    name, repeats = task
    torch.set_num_threads(1)
    for logger in ("pyro", "guidebook"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    started = time.perf_counter()
    if name in MUTATIONS:
        return name, _mutated(name, repeats), time.perf_counter() - started
    case, wrong, known = fresh(name), [], {}
    for objective in [*applicable(case), *case.refused]:
        for vectorize in (True, False):
            if found := check(name, objective, vectorize, repeats, known):
                wrong.append(f"{objective}, {'at once' if vectorize else 'one by one'}: {found}")
    if case.evidence is not None and "iwae" in applicable(case) and not name.startswith(("Auto", "subsampled")):
        error = evidence_error(name, 1000, not case.apart)
        if abs(error) > 0.2:
            wrong.append(f"iwae of 1000 particles is {error:+.2f} off the evidence")
    return name, wrong, time.perf_counter() - started


def _mutated(name: str, repeats: int) -> list[str]:
    mutation = MUTATIONS[name]
    with pytest.MonkeyPatch.context() as patch:
        mutation.apply(patch)
        noticed = notice(mutation, max(repeats, mutation.repeats))
    return [] if noticed else [f"put back, and not noticed by {mutation.objective} on {mutation.case}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="evaluations of each objective and each reference")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("cases", nargs="*", help="cases or faults; all by default")
    options = parser.parse_args()
    names = options.cases or [*CASES, *MUTATIONS]
    bad = 0
    print(f"{len(CASES)} programs, {len(OBJECTIVES)} objectives, {len(MUTATIONS)} faults, {options.repeats} repeats")
    with get_context("fork").Pool(options.workers) as pool:
        for name, wrong, seconds in pool.imap(run, [(name, options.repeats) for name in names]):
            print(f"{name}: {'WRONG' if wrong else 'as it should be'} ({seconds:.0f} s)", flush=True)
            for line in wrong:
                print(f"    {line}", flush=True)
            bad += bool(wrong)
    print(f"{bad} of {len(names)} are not as they should be")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
