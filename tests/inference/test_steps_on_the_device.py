"""Training steps on meta tensors, which have no values: whoever asks for one, or adds a tensor of the CPU, fails."""

from contextlib import suppress

import pyro
import pytest

from evaluation.comparison.families import MODELS
from evaluation.methods import TaskShape
from guides import GUIDES
from inference.objectives import REGISTRY, make
from inference.training_step import Sealed, TrainingStep
from pp_models import tasks
from pp_models.data import DataError

REFUSALS = (TypeError, ValueError, DataError)
STREAM = tasks.gp("rbf", batch_size=2)


def takes_a_step(model, guide, objective):
    """Whether the three go together; the step's loss and gradients then stay on the device."""
    step = TrainingStep(model, guide, make(objective)).to("meta").train()
    try:
        with pyro.validation_enabled(False):  # as in a fit
            loss, statistics = step(Sealed(STREAM.batch(0).to("meta")))
    except REFUSALS:
        return False
    with suppress(NotImplementedError):  # torch has no meta kernel for the gradient of gamma draws
        loss.backward()
        assert all(p.grad is None or p.grad.device.type == "meta" for p in step.parameters())
    assert loss.device.type == statistics.device.type == "meta"
    return True


@pytest.mark.parametrize("name", MODELS)
def test_every_guide_of_a_model_trains_without_reading_the_host(name):
    taken = 0
    for make_guide in GUIDES.values():
        model = MODELS[name][1](TaskShape.of(STREAM, 8))
        try:
            guide = make_guide(model, 8)
        except REFUSALS:
            continue
        taken += any(takes_a_step(model, guide, objective) for objective in REGISTRY)
    assert taken


@pytest.mark.parametrize("objective", REGISTRY)
def test_every_objective_trains_without_reading_the_host(objective):
    """On weights of a network, or on those of a mixture."""
    taken = False
    for name, guide in (("network", "mean-field"), ("mixture", "dirichlet-mixture")):
        model = MODELS[name][1](TaskShape.of(STREAM, 8))
        taken |= takes_a_step(model, GUIDES[guide](model, 8), objective)
    assert taken
