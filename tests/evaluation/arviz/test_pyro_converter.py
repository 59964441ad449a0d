"""The converter by itself: without this library, draws along one dimension, weights by the plates that hold all."""

import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

import evaluation
from evaluation.arviz import pyro_converter
from inference.objectives.independent_plates import independent_axes, per_particle, sample_sites

OURS = ("pp_models", "guides", "inference", "evaluation", "guidebook")
Y = torch.tensor([0.3, -1.0, 2.0])

ALONE = """
import importlib.util, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ours!r}:
            raise ImportError(f"imports {{name}}")

sys.meta_path.insert(0, Blocked())
spec = importlib.util.spec_from_file_location("converter", {file!r})
converter = importlib.util.module_from_spec(spec)
sys.modules["converter"] = converter
spec.loader.exec_module(converter)
third = {{name.partition(".")[0] for name in sys.modules}}
assert not third & {{"jax", "numpyro", "arviz", "matplotlib", "pydantic"}}, third

import pyro, torch
import pyro.distributions as dist

def model(y):
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

def guide(y):
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Normal(y / 2, 0.7))

tree = converter.from_pyro_svi(model, guide, torch.ones(3), num_samples=7, container="datatree", sample_dims=["sample"])
assert tree["posterior"]["z"].dims == ("sample", "data"), tree["posterior"]["z"].dims
assert tree["sample_stats"]["log_weight"].shape == (7, 3)
draws = {{"z": torch.zeros(2, 4, 3)}}
tree = converter.from_pyro_mcmc(draws, model, torch.ones(3), container="datatree")
assert tree["posterior"]["z"].shape == (2, 4, 3) and tree["sample_stats"]["diverging"].shape == (2, 4)
"""


def test_it_imports_nothing_of_the_library():
    code = ALONE.format(ours=OURS, file=str(Path(pyro_converter.__file__)))
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def model(y):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def guide(y):
    pyro.sample("level", dist.Normal(y.mean(), 0.5))


def test_draws_of_svi_and_of_mcmc_along_one_dimension():
    found = evaluation.from_pyro_svi(model, guide, Y, num_samples=6, seed=0, sample_dims=["sample"])
    both = evaluation.from_pyro_svi(model, guide, Y, num_samples=6, seed=0)
    assert found["posterior"]["level"].dims == ("sample",)
    assert (found["posterior"]["level"].values == both["posterior"]["level"].values[0]).all()
    mcmc = MCMC(NUTS(model), num_samples=8, warmup_steps=8, num_chains=1, disable_progbar=True)
    mcmc.run(Y)
    found = evaluation.from_pyro_mcmc(mcmc, model, Y, sample_dims=["sample"])
    assert found["log_likelihood"]["y"].dims == ("sample", "data") and found["sample_stats"]["lp"].shape == (8,)
    with pytest.raises(ValueError, match=r"^sample_dims: got \['draws'\]; it must be"):
        evaluation.from_pyro_svi(model, guide, Y, num_samples=2, sample_dims=["draws"])


def nested(y):
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, 3), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def nested_guide(y):
    with pyro.plate("columns", 3, dim=-1), pyro.plate("rows", 2, dim=-2):
        pyro.sample("z", dist.Normal(y / 2, 0.7))


def partly(y):
    with pyro.plate("columns", 3, dim=-1):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", 2, dim=-2):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)


def partly_guide(y):
    with pyro.plate("columns", 3, dim=-1):
        pyro.sample("scale", dist.LogNormal(y.mean(0), 0.7))


@pytest.mark.parametrize(
    ("model", "guide", "plates"),
    [(nested, nested_guide, ("rows", "columns")), (partly, partly_guide, ("columns",))],
)
def test_weights_are_those_of_the_objectives_axes(model, guide, plates):
    y = torch.randn(2, 3)
    inner = pyro.poutine.trace(guide).get_trace(y)
    outer = pyro.poutine.trace(pyro.poutine.replay(model, trace=inner)).get_trace(y)
    log_p, log_q, names = pyro_converter.joint_densities(outer, inner)
    axes = independent_axes(outer, inner)
    assert names == plates == axes.names and log_p.shape == log_q.shape == axes.shape
    expected = sum(per_particle(site["log_prob"], axes, site)[0] for _, site in sample_sites(outer))
    torch.testing.assert_close(log_p, expected.double())
