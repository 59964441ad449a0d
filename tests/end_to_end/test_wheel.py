"""What is installed is all there is: a wheel, and nothing of the repository, fits, inspects and predicts."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's contents, and one to work in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, tracked)):  # the repository itself is left as it is
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), "."]
    subprocess.run([sys.executable, *build], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("guidebook-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    (folder / "work").mkdir()
    return folder / "site", folder / "work"


def run(installed, *words):
    """A command in a process that finds the rooms in the wheel."""
    site, work = installed
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_it_holds_the_five_packages_and_what_they_read(installed):
    site, _ = installed
    found = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert found == {"pp_models", "guides", "inference", "evaluation", "guidebook"}
    for name in ("guidebook/__init__.pyi", "evaluation/report.html.jinja", "guidebook/py.typed"):
        assert (site / name).is_file()
    assert len(list((site / "guidebook" / "weights").glob("*.safetensors"))) >= 12


def test_it_works_from_anywhere(installed):
    site, work = installed
    script = """
import guidebook as gb, guides, inference, evaluation, pp_models
print(*(room.__file__ for room in (gb, guides, inference, evaluation, pp_models)), sep="\\n")
model, guide, *_ = gb.load_pretrained("nvdp-gp-rbf")
test = gb.tasks.gp_test("rbf", batch_size=2).batch(0)
assert gb.predict(model, guide, test.context, test.target.x, num_samples=2).mean.isfinite().all()
"""
    for place in run(installed, "-c", script).split():
        assert place.startswith(str(site))
    command = ("-m", "guidebook.command_line")
    run(installed, *command, "fit", "--model", "cnp", "--steps", "2", "--width", "8", "--device", "cpu", "--out", "run")
    run(installed, *command, "inspect", "run", "--draws", "10")
    assert (work / "run" / "report.html").stat().st_size > 10_000
