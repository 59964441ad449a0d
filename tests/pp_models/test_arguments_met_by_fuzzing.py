"""Arguments that the fuzzer met: each once went on to an error from the depths, to nonsense, or to all the memory."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import guidebook as gb
import guides
from inference import TrainingDiverged, objectives
from pp_models import Dataset, TaskBatch
from tests.fuzz.surface import adapted, batch, network, network_pair


def simple(call, **options):
    return lambda: call(**options)


def on_a_pair(call, **options):
    return lambda: call(*network_pair(), **options)


def bound(**options):
    def run():
        torch.manual_seed(0)
        model, guide = network_pair()
        return objectives.make("iwae", **options).loss(model, guide, batch())

    return run


DATA = Dataset(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1))
LINES = {
    "lattice": (simple(gb.ConvNeuralProcess, dim_x=1, dim_y=1, extent=1e9), "points_per_unit: got 32 over extent"),
    "dense lattice": (simple(gb.ConvNeuralProcess, dim_x=1, dim_y=1, points_per_unit=10**9), "points_per_unit: got 1e"),
    "margin": (simple(gb.ConvNeuralProcess, dim_x=1, dim_y=1, margin=1e30), "points_per_unit: got 32 over extent"),
    "pixels": (simple(gb.ConvNeuralProcess, dim_x=2, dim_y=1, image_size=(2**14, 2**14)), "image_size: got (16384"),
    "path": (simple(gb.NeuralProcess, dim_x=1, dim_y=1, path="two\nlines"), "representation_dim: got 0; path='two"),
    "input features": (
        simple(gb.BayesianNetwork, layer_sizes=[1, 2], input_features=nn.Identity()), "input_features: got Identity"),
    "noise": (simple(gb.GaussianLikelihood, noise_scale=1e-60), "noise_scale: got 1e-60; it must"),
    "prior": (simple(gb.FixedGaussianPrior, scale=1e30), "scale: got 1e+30; it must"),
    "rate": (simple(gb.StudentTHeadLikelihood, degrees_of_freedom=1e-60), "degrees_of_freedom: got 1e-60; it must"),
    "initial scale": (
        lambda: guides.AmortisedMeanFieldGuide(network(), 4, initial_scale=1e30), "initial_scale: got 1e+30; it must"),
    "number of data": (simple(objectives.make, name="tempered-elbo", num_data=10**30), "num_data: got 1000"),
    "proposal": (simple(objectives.make, name="iw-em", proposal=dict), "proposal: got dict; it must"),
    "grid": (simple(gb.tasks.gp_test, grid=None), "grid: got None; it must"),
    "approximate": (simple(gb.LrvdObjective, num_data=3, approximate="no"), "approximate: got 'no'; it must"),
    "nesting": (bound(max_plate_nesting=0), "max_plate_nesting: got 0; it must be at least 1"),
    "odd nesting": (bound(max_plate_nesting=1.5), "max_plate_nesting: got 1.5; it must"),
    "coords": (on_a_pair(gb.to_arviz, data=DATA, num_samples=2, coords="no"), "coords: got 'no'; it must"),
    "coord": (on_a_pair(gb.to_arviz, data=DATA, num_samples=2, coords={"task": 3}), "coords: got {'task': 3}; it must"),
    "attrs": (on_a_pair(gb.to_arviz, data=DATA, num_samples=2, attrs=[1]), "attrs: got [1]; it must"),
    "dims": (on_a_pair(gb.from_pyro_svi, num_samples=2, dims=True), "dims: got True; it must"),
    "objectives": (
        on_a_pair(gb.compare_objectives, batch=batch(), objectives=True), "objectives: got True; it must"),
    "objective": (
        on_a_pair(gb.compare_objectives, batch=batch(), objectives=np.array("x")), "objectives: got array"),
    "training tasks": (on_a_pair(gb.verdict, tasks=batch(), trained_on="3"), "trained_on: got '3'; it must"),
    "training task": (on_a_pair(gb.verdict, tasks=batch(), trained_on=[3]), "trained_on: got 3; it must"),
    "guide of ranks": (simple(gb.rank_summary, model=adapted(), guide=0), "guide: got 0; it must"),
    "guide to prune by": (simple(gb.prune_ranks, model=adapted(), guide=nn.Identity()), "guide: got Identity; it must"),
    "experts": (
        lambda: gb.exact_log_evidence(torch.zeros(2, 3, 1), torch.ones(3)),
        "concentration: got shape [3] with 1 experts; it must be [*batch, experts]"),
    "tasks of experts": (
        lambda: gb.dirichlet_sweeps(torch.ones(5, 3), torch.zeros(2, 4, 3)), "concentration: got shape [5, 3] with"),
    "tasks of sticks": (
        lambda: gb.stick_breaking_sweeps(torch.ones(5, 2), torch.ones(5, 2), torch.zeros(2, 4, 3)), "a, b: got shape"),
    "mask of experts": (
        lambda: gb.exact_log_evidence(torch.zeros(4, 3), torch.ones(3), torch.ones(3, dtype=torch.bool)),
        "mask: got shape [3]; it must be [4]"),
    "usage": (simple(gb.unused_experts, usage=torch.zeros(0)), "usage: got a Tensor of shape [0]"),
    "usage of none": (simple(gb.effective_experts, usage=torch.zeros(2, 0)), "usage: got a Tensor of shape [2, 0]"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_it_is_refused_in_one_line(name):
    call, line = LINES[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value), caught.value


@pytest.mark.parametrize("rate", ["learning_rate", "path_learning_rate"])
def test_a_walk_that_leaves_the_finite_numbers_is_one_line(rate):
    line = r"^learning_rate, path_learning_rate: the walk is not finite with \S+ and \S+; they must be smaller$"
    with pytest.raises(TrainingDiverged, match=line):
        gb.swag(network(), batch().context[0], steps=4, warmup=2, every=2, rank=2, **{rate: 1e30})


def test_what_lies_beside_them_is_taken():
    torch.manual_seed(0)
    model = network()
    wide = guides.AmortisedMeanFieldGuide(model, 4, initial_scale=1e4)
    assert all(torch.isfinite(value).all() for value in wide.parameters())
    for nesting in (1, 3, np.int64(2), float("inf")):
        assert np.isfinite(bound(max_plate_nesting=nesting)())
    names = pd.Series(["a", "b"])
    found = gb.to_arviz(*network_pair(), DATA, 2, coords={"task": names}, container="datatree")
    assert list(found["posterior"]["task"].values) == ["a", "b"]
    assert gb.effective_experts(torch.full((2, 4), 0.25)).tolist() == pytest.approx([4.0, 4.0])
    assert isinstance(batch(), TaskBatch)
