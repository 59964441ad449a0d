import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray

from evaluation import to_arviz
from evaluation.arviz.arviz_container import write_netcdf
from evaluation.arviz.arviz_summary import summarise, widest_entries, widest_forest
from evaluation.methods import TaskShape, build
from pp_models import tasks
from pp_models.files import FileError
from tests.arviz_versions import CONTAINERS, container_of


def hand_made(container):
    """Site a [2 tasks, 3] with standard deviations 1 to 6, b a scalar with 10."""
    draws = np.random.default_rng(0).normal(size=(1, 400))
    draws = (draws - draws.mean()) / draws.std()
    scales = np.arange(1.0, 7).reshape(2, 3)
    dataset = xarray.Dataset(
        {
            "a": (("chain", "draw", "task", "unit"), draws[..., None, None] * scales + 1),
            "b": (("chain", "draw"), 10 * draws - 2),
        },
        coords={"chain": [0], "draw": np.arange(400), "task": ["left", "right"], "unit": [0, 1, 2]},
    )
    return container_of(container, posterior=dataset)


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_widest_entries_come_first_with_their_coordinates(container):
    table = widest_entries(hand_made(container), 3)
    assert list(table.entry) == ["b", "a[right, 2]", "a[right, 1]"]
    np.testing.assert_allclose(table["sd"].astype(float), [10, 6, 5], rtol=2e-3)
    np.testing.assert_allclose(table["mean"].astype(float), [-2, 1, 1], atol=1e-3)


@pytest.mark.parametrize("container", CONTAINERS)
def test_fewer_entries_than_asked_for_are_all_there(container):
    table = widest_entries(hand_made(container), 50)
    assert len(table) == 7 and table["sd"].astype(float).is_monotonic_decreasing


@pytest.mark.parametrize("container", CONTAINERS)
def test_summarise_is_arvizs_own(container):
    table = summarise(hand_made(container), var_names=["a"], kind="stats")
    assert len(table) == 6 and table.index[0] == "a[left, 0]"
    assert float(table["sd"].iloc[0]) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["nvdp", "cnp", "np"])
def test_the_posterior_of_a_method(name, container):
    method = build(name, TaskShape(1, 1, 8))
    batch = tasks.gp_test("rbf", 2, grid=20, num_context=(3, 6)).batch(0)
    idata = to_arviz(method.model, method.guide, batch, num_samples=20, container=container, seed=0)
    table = widest_entries(idata)
    assert len(table) == 10 and table.entry.is_unique
    sites = {entry.partition("[")[0] for entry in table.entry}
    assert sites <= {"layer_0.weight", "layer_1.weight", "layer_2.weight", "layer_3.weight", "layer_4.weight"} | {
        "representation",
        "z",
    }
    if name == "cnp":  # a point mass
        assert (table["sd"].astype(float) < 1e-6).all()


@pytest.mark.parametrize("container", CONTAINERS)
def test_write_netcdf_replaces_the_file_whole_or_not_at_all(container, tmp_path):
    path = tmp_path / "posterior.nc"
    write_netcdf(hand_made(container), path)
    first = path.read_bytes()
    assert float(xarray.open_datatree(path)["posterior"]["b"].mean()) == pytest.approx(-2)

    class Failing:
        def to_netcdf(self, name):
            with open(name, "wb") as file:
                file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(FileError, match=r"posterior.nc: cannot be written \(disk full\)$"):
        write_netcdf(Failing(), path)
    assert path.read_bytes() == first and [p.name for p in tmp_path.iterdir()] == ["posterior.nc"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_forest_is_arvizs_and_pyplot_does_not_keep_it(container):
    before = plt.get_fignums()
    figure = widest_forest(hand_made(container), 3)
    labels = [text.get_text() for axes in figure.axes for text in (*axes.get_yticklabels(), *axes.texts)]
    assert {"a[right, 1]", "a[right, 2]", "b"} <= set(labels) and plt.get_fignums() == before
