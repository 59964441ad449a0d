"""NPML with its particles one by one gives what it gives with all at once."""

import pytest
import torch

import guidebook as gb


@pytest.mark.parametrize("average", ["logmeanexp", "mean"])
def test_particles_one_by_one_are_those_at_once(average):
    model = gb.NeuralProcess(1, 1, 0, 4, width=4, depth=2)  # a point mass: both must agree exactly
    guide = gb.guides.NeuralProcessGuide(model, 4)
    batch = gb.tasks.gp("rbf", 3).batch(0)
    bounds = [
        gb.objectives.NPML(3, average=average, vectorize_particles=vectorize).terms(model, guide, batch).bound
        for vectorize in (True, False)
    ]
    torch.testing.assert_close(*bounds)
