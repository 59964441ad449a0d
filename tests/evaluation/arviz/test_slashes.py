"""Names with slashes, which files and trees read as folders."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import guidebook as gb
from tests.arviz_versions import CONTAINERS


def program(names):
    def model(x):
        for name in names:
            z = pyro.sample(name, dist.Normal(0.0, 1.0))
        with pyro.plate("some/where", len(x)):
            pyro.sample("ob/s", dist.Normal(z, 1.0), obs=x)

    return model


@pytest.mark.parametrize("container", CONTAINERS)
def test_slashes_are_stored_as_dots(container, tmp_path):
    model, x = program(["layer/weight", "x/"]), torch.randn(5)
    guide = AutoNormal(model)
    guide(x)
    coords = {"some/where": list("abcde")}
    found = gb.from_pyro_svi(model, guide, x, num_samples=4, seed=0, container=container, coords=coords)
    assert set(found["posterior"].data_vars) == {"layer.weight", "x."}
    assert list(found["observed_data"]["ob.s"].coords["some.where"].values) == list("abcde")
    found.to_netcdf(str(tmp_path / "posterior.nc"))
    assert (tmp_path / "posterior.nc").stat().st_size > 0


def test_names_that_would_be_one_are_said():
    model, x = program(["a/b", "a.b"]), torch.randn(5)
    guide = AutoNormal(model)
    guide(x)
    with pytest.raises(
        ValueError, match=r"^model: got sites 'a.b' and 'a.b', which|^model: got sites 'a.b' and 'a/b', which"
    ):
        gb.from_pyro_svi(model, guide, x, num_samples=4)
