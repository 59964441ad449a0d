"""A grid on a local Ray cluster is the grid of a loop; what cannot run says so in one line."""

import builtins
import os

import pandas as pd
import pytest

from evaluation.comparison import ray_grid
from evaluation.comparison.swap_matrix import compare

GRID = dict(
    models=["network", "cnp"], guides=["mean-field"], objectives=["elbo"], seeds=[0], steps=2, width=8,
    batch_size=2, num_particles=2, test_tasks=8, draws=4, snr_particles=(), num_simulations=0, progress=False,
)  # fmt: skip
#: Ray forks, and JAX, where a test before this one loaded it, warns of every fork
pytestmark = pytest.mark.filterwarnings(
    "ignore:os.fork:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
#: wall time is no result
SAME = ["seconds"]


@pytest.fixture
def cluster():
    """Ray, stopped whatever a test did."""
    import ray

    yield ray
    ray.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_grid_on_ray_is_that_of_a_loop(cluster, tmp_path):
    serial = compare(**GRID, out=tmp_path / "serial")
    found = compare(**GRID, out=tmp_path / "ray", ray="local")
    assert list(serial.status) == ["ok", "failed"]
    pd.testing.assert_frame_equal(found.drop(columns=SAME), serial.drop(columns=SAME), check_exact=True)
    again = compare(**GRID, out=tmp_path / "ray")  # all cells stand
    pd.testing.assert_frame_equal(again, found, check_exact=True)
    assert not cluster.is_initialized()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_worker_that_dies_is_a_reason_and_a_cluster_that_was_there_stays(cluster, monkeypatch):
    monkeypatch.setattr(ray_grid, "RETRIES", 0)
    cluster.init(**ray_grid.LOCAL_OPTIONS, num_cpus=1, log_to_driver=False)

    def work(item):
        if item == 1:
            os._exit(1)
        return {"item": item}

    found = dict(ray_grid.on_ray(work, [0, 1, 2], "local"))
    assert found[0] == {"item": 0} and found[2] == {"item": 2}
    assert found[1].startswith("its worker died 1 times (")
    assert cluster.is_initialized()


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refusing(name, *args, **kwargs):
        if name == "ray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(ValueError, match=r"^ray: it is not installed; pip install guidebook\[ray\]$"):
        compare(**GRID, ray="local")
