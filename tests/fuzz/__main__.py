"""Many fuzzed calls of the public surface. ``python -m tests.fuzz [--examples N] [--seed K] [--only NAME]``.

It prints how many calls ended how and one example of each fault, and ends with 1 if there is any.
"""

from __future__ import annotations

import argparse
import logging
import sys

import torch
from tqdm import tqdm

from tests.fuzz.running import fuzz
from tests.fuzz.surface import surface


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="fuzzed calls of the public surface")
    parser.add_argument("--examples", type=int, default=10_000, help="how many calls")
    parser.add_argument("--seed", type=int, default=0, help="of the random stream")
    parser.add_argument("--only", default="", help="calls whose name holds this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    chosen = [one for one in surface() if given.only in one.name]
    with tqdm(total=given.examples, disable=not sys.stderr.isatty()) as bar:
        report = fuzz(chosen, given.examples, given.seed, bar.update)
    print("\n".join(report.lines()))
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
