"""Flipped bits and kills in numbers: python -m tests.faults --flips 1000 --kills 100."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from tests.faults.flips import FOLDERS, flip_everywhere
from tests.faults.kills import kills


def main() -> None:
    """Prints a line a folder, and ends with status 1 where a fault was neither found nor harmless."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000, help="over all folders together")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for kind, make in FOLDERS.items():
            folder = scratch / kind
            opened = make(folder)
            flips = flip_everywhere(folder, opened, -(-options.flips // len(FOLDERS)), options.seed, scratch)
            wrong += len(flips.wrong)
            counts = f"{flips.found.total()} found, {flips.harmless.total()} harmless, {len(flips.wrong)} neither"
            print(f"{kind}: {counts}; harmless in {dict(flips.harmless)}", flush=True)
            for line in flips.wrong:
                print(f"  {line}")
        if options.kills:
            (scratch / "kills").mkdir()
            done, different = kills(options.kills, options.seed, scratch / "kills")
            wrong += different
            print(f"kills: {done}; {different} folders ended with other bytes")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
