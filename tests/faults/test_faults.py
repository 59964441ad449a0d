"""A sample of ``python -m tests.faults``, and that it would notice."""

import subprocess
import sys

import pytest

from pp_models import files
from tests.faults import flips


@pytest.mark.parametrize("kind", flips.FOLDERS)
def test_a_flipped_bit_is_found_or_harmless(kind, tmp_path):
    opened = flips.FOLDERS[kind](tmp_path / kind)
    found = flips.flip_everywhere(tmp_path / kind, opened, 30, 1, tmp_path)
    assert not found.wrong
    assert found.found.total() >= 5


def test_without_checksums_flips_are_noticed_by_this_test(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_digest", lambda content: "")
    opened = flips.make_run(tmp_path / "run")
    found = flips.flip_everywhere(tmp_path / "run", opened, 150, 1, tmp_path)
    assert any(line.startswith("run.json") for line in found.wrong)


def test_killed_fits_resume_to_the_same_bytes(tmp_path):
    # in a process of its own: it forks, which a process that has loaded JAX must not
    program = "import pathlib, sys; from tests.faults import kills; print(kills.kills(5, 0, pathlib.Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1:] == ["(5, 0)"], done.stderr[-2000:]
