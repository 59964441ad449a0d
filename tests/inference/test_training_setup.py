"""What a fit takes as tasks and as an optimizer: right, or one line that names the argument and the remedy."""

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from inference import TrainingDiverged, fit
from pp_models import Dataset, TaskBatch
from tests.inference.test_schedules import pair

X, Y = torch.randn(3, 6, 1), torch.randn(3, 6, 1)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            (X, Y),
            r"^tasks: got a Tensor at step 0 \(from a tuple\); each batch must be a Dataset or a TaskBatch, such as",
        ),
        (
            DataLoader(TensorDataset(X, Y)),
            r"^tasks: got a list at step 0 \(from a DataLoader\); each batch must be a Data",
        ),
        (
            pd.DataFrame({"x": [1.0], "y": [2.0]}),
            r"^tasks: got a str at step 0 \(from a DataFrame\); each batch must be",
        ),
        (X, r"^tasks: got a Tensor of shape \(3, 6, 1\), whose rows would be trained on one by one; pass a Dataset or"),
        (
            X.numpy(),
            r"^tasks: got a ndarray of shape \(3, 6, 1\), whose rows would be trained on one by one; pass a Da",
        ),
        (7, r"^tasks: got int; it must be a TaskBatch, a Dataset or an iterable of them$"),
    ],
)
def test_tasks_of_another_kind_are_named(tasks, message):
    with pytest.raises(TypeError, match=message) as caught:
        fit(*pair(), tasks, steps=2, progress=False)
    assert "\n" not in str(caught.value)


def test_a_data_loader_of_tasks_is_an_iterable_like_any_other():
    loader = DataLoader(range(4), batch_size=None, collate_fn=lambda index: Dataset(X, Y))
    assert fit(*pair(), loader, steps=4, progress=False).steps == 4


@pytest.mark.parametrize("part", ["context", "target"])
def test_data_that_carry_a_graph_are_refused(part):
    scale = torch.ones((), requires_grad=True)
    plain, carrying = Dataset(X, Y), Dataset(X, scale * Y)
    batch = TaskBatch(carrying, plain) if part == "context" else TaskBatch(plain, carrying)
    with pytest.raises(ValueError, match=rf"^tasks: y of the {part} carries a graph; pass y.detach\(\)$"):
        fit(*pair(), batch, steps=2, progress=False)
    with pytest.raises(ValueError, match=r"^tasks: x of the data carries a graph; pass x.detach\(\)$"):
        fit(*pair(), Dataset(scale * X, Y), steps=2, progress=False)


def test_an_optimizer_that_needs_closures_is_refused():
    with pytest.raises(
        ValueError, match=r"^optimizer: LBFGS evaluates the loss several times a step, which a fit does"
    ):
        fit(*pair(), Dataset(X, Y), steps=2, progress=False, optimizer=torch.optim.LBFGS)


@pytest.mark.parametrize(("x", "y", "name"), [(1e30, 1.0, "x"), (1.0, 1e30, "y")])
def test_data_far_from_unit_scale_are_said_where_training_diverges(x, y, name):
    with pytest.raises(
        TrainingDiverged, match=rf"The tasks' {name} reaches \S+: scale x and y to about unit size first"
    ):
        fit(*pair(), Dataset(x * X, y * Y), steps=9, progress=False)
