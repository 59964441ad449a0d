"""NetCDF and Zarr on a disk that is full: one line, nothing half-written, and what was there stays.

HDF5 ends the process by a segmentation fault where a disk fills up while it writes, so this runs in one of its own.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import resource, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import numpy as np
from evaluation.arviz.arviz_container import pack, write_netcdf
from evaluation.arviz.pyro_converter import Variable, choose_container
from pp_models.files import FileError

folder = Path(sys.argv[1])
values = Variable(np.random.default_rng(0).normal(size=(1, 50, 1000)), ("chain", "draw", "k"))
container = pack({"posterior": {"a": values}, "sample_stats": {"lp": values}}, sys.argv[2], {}, {})
path = folder / "posterior.nc"
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
for before in (False, True):
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, unlimited[1]))
    try:
        write_netcdf(container, path)
    except FileError as error:
        print(error)
    print(sorted(each.name for each in folder.iterdir()), path.read_bytes() == good if before else "")
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    write_netcdf(container, path)
    good = path.read_bytes()
"""


@pytest.mark.parametrize("container", ["inferencedata", "datatree"])
def test_netcdf(container, tmp_path):
    from evaluation.arviz.pyro_converter import choose_container

    if container not in ("datatree", choose_container("auto")):
        container = "datatree"  # ArviZ 1 has one container
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), container], cwd=ROOT, capture_output=True, text=True
    )
    path = tmp_path / "posterior.nc"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{path}: cannot be written (File too large)", "[] ",
        f"{path}: cannot be written (File too large); what was there is intact", "['posterior.nc'] True",
    ]  # fmt: skip


def test_what_hdf5_raises_is_one_line(tmp_path):
    import xarray

    from evaluation.arviz.arviz_container import write_netcdf
    from pp_models.files import FileError

    class Failing(xarray.DataTree):
        def to_netcdf(self, path, *arguments, **options):
            Path(path).write_bytes(b"half")
            raise RuntimeError("NetCDF: HDF error")

    with pytest.raises(FileError, match=r"posterior.nc: cannot be written \(NetCDF: HDF error\)$"):
        write_netcdf(Failing(), tmp_path / "posterior.nc")

    class Short(xarray.DataTree):
        def to_netcdf(self, path, *arguments, **options):
            xarray.DataTree().to_netcdf(path)

    tree = Short.from_dict({"posterior": xarray.Dataset({"a": ("draw", [1.0])})})
    with pytest.raises(FileError, match=r"posterior.nc: cannot be written \(what was written is not complete\)$"):
        write_netcdf(tree, tmp_path / "posterior.nc")
    assert list(tmp_path.iterdir()) == []
