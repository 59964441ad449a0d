"""The two containers: what they refuse, and that selecting, joining, padding and moving keep what is there."""

import pytest
import torch

from guides import AmortisedMeanFieldGuide
from inference.objectives import TaskELBO
from pp_models import BayesianNetwork, DataError, Dataset, TaskBatch

NAN = float("nan")


def x(*shape):
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def nan_at(tensor, *index, value=NAN):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


BAD_DATASETS = {
    "x not a tensor": (lambda: Dataset([[1.0]]), r"^x: got list; it must be a torch.Tensor$"),
    "y not a tensor": (lambda: Dataset(x(3, 1), 2.0), r"^y: got float; it must be a torch.Tensor$"),
    "mask not a tensor": (lambda: Dataset(x(3, 1), None, [True]), r"^mask: got list; "),
    "x of rank 1": (lambda: Dataset(x(3)), r"^x: got shape \[3\]; it must be \[\*B, N, Dx\] with at least 2"),
    "x integer": (lambda: Dataset(torch.zeros(3, 1, dtype=torch.long)), r"^x: got dtype torch.int64; it must be float"),
    "y of another N": (lambda: Dataset(x(3, 1), x(4, 1)), r"^y: got shape \[4, 1\]; .* \[\*B, N\] = \[3\]$"),
    "y of another rank": (lambda: Dataset(x(3, 1), x(3)), r"^y: got shape \[3\]; it must be \[\*B, N, Dy\]"),
    "y of other tasks": (lambda: Dataset(x(2, 3, 1), x(3, 3, 1)), r"^y: got shape \[3, 3, 1\]; .* = \[2, 3\]$"),
    "classes with a width": (
        lambda: Dataset(x(3, 1), torch.zeros(3, 1, dtype=torch.long)),
        r"^y: got class indices of shape \[3, 1\]; they must be \[\*B, N\] = \[3\]$",
    ),
    "classes as int32": (
        lambda: Dataset(x(3, 1), torch.zeros(3, dtype=torch.int32)),
        r"^y: got dtype torch.int32; it must be floating point, or long for class indices$",
    ),
    "y bool": (lambda: Dataset(x(3, 1), torch.ones(3, 1, dtype=torch.bool)), r"^y: got dtype torch.bool; "),
    "mask float": (lambda: Dataset(x(3, 1), None, torch.ones(3)), r"^mask: got dtype torch.float32; it must be bool"),
    "mask of another shape": (
        lambda: Dataset(x(3, 1), None, torch.ones(3, 1, dtype=torch.bool)),
        r"^mask: got shape \[3, 1\]; it must be \[\*B, N\] = \[3\]$",
    ),
    "NaN in x": (lambda: Dataset(nan_at(x(2, 3, 1), 1, 2, 0)), r"^x: 1 point\(s\) hold NaN or infinity, .*\(1, 2\); "),
    "NaN in y": (lambda: Dataset(x(3, 1), nan_at(x(3, 2), 0, 1)), r"^y: 1 point\(s\) hold NaN or .* index \(0,\); "),
    "infinite y": (lambda: Dataset(x(3, 1), nan_at(x(3, 1), 1, value=torch.inf)), r"^y: 1 point\(s\) hold NaN or inf"),
    "NaN where the point exists": (
        lambda: Dataset(x(3, 1), nan_at(x(3, 1), 1), torch.tensor([True, True, False])),
        r"^y: 1 point\(s\) hold NaN",
    ),
}


@pytest.mark.parametrize("case", BAD_DATASETS)
def test_a_bad_dataset_in_one_line(case):
    make, message = BAD_DATASETS[case]
    with pytest.raises(DataError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def d(*batch, n=4, dx=2, dy=1):
    return Dataset(torch.randn(*batch, n, dx), torch.randn(*batch, n, dy))


BAD_BATCHES = {
    "context not a Dataset": (lambda: TaskBatch(x(3, 1), d()), r"^context: got Tensor; it must be a Dataset$"),
    "target not a Dataset": (lambda: TaskBatch(d(), None), r"^target: got NoneType; it must be a Dataset$"),
    "other task dimensions": (
        lambda: TaskBatch(d(2), d(3)),
        r"^target: task dimensions \[3\] .* \[2\]; they must match$",
    ),
    "task dimensions and none": (lambda: TaskBatch(d(2), d()), r"^target: task dimensions \[\] differ"),
    "other width": (lambda: TaskBatch(d(2), d(2, dx=3)), r"^target: input width 3 differs from the context's 2; "),
    "context without y": (lambda: TaskBatch(d(2).without_y(), d(2)), r"^context: y is None; "),
    "target of no points": (lambda: TaskBatch(d(2), d(2, n=0)), r"^target: it has no points; at least one"),
    "target all masked": (
        lambda: TaskBatch(d(2), Dataset(x(2, 4, 2), None, torch.zeros(2, 4, dtype=torch.bool))),
        r"^target: it has no points; ",
    ),
    "split below 0": (lambda: d(2).split(-1), r"^n_context: got -1; it must be at least 0 and below .* 4$"),
    "split leaves no target": (lambda: d(2).split(4), r"^n_context: got 4; "),
    "join of other tasks": (lambda: d(2) | d(3), r"^a \| b: task dimensions \[2\] and \[3\] differ"),
    "join of other inputs": (lambda: d(2) | d(2, dx=3), r"^a \| b: input widths 2 and 3 differ"),
    "join of other outputs": (lambda: d(2) | d(2, dy=3), r"^a \| b: output widths 1 and 3 differ"),
    "join of other kinds": (
        lambda: d(2) | Dataset(x(2, 4, 2), torch.zeros(2, 4, dtype=torch.long)),
        r"^a \| b: y is torch.float32 in one and torch.int64 in the other",
    ),
    "pad of nothing": (lambda: Dataset.pad([]), r"^datasets: got an empty sequence"),
    "pad of other widths": (lambda: Dataset.pad([d(), d(dx=3)]), r"^datasets: members differ"),
    "pad of other kinds": (lambda: Dataset.pad([d(), d().without_y()]), r"^datasets: members differ"),
    "pad of other tasks": (lambda: Dataset.pad([d(), d(2)]), r"^datasets: members differ"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_bad_task_batch_in_one_line(case):
    make, message = BAD_BATCHES[case]
    with pytest.raises(DataError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("likelihood", "sizes", "y", "message"),
    [
        ("gaussian", [2, 1], torch.zeros(4, dtype=torch.long), r"^y: got dtype torch.int64; GaussianLikelihood needs"),
        ("gaussian-head", [2, 2], torch.zeros(4, dtype=torch.long), r"^y: got dtype torch.int64; GaussianHeadLikeli"),
        ("categorical", [2, 3], torch.zeros(4, 1), r"^y: got dtype torch.float32; CategoricalLikelihood needs class"),
        (
            "gaussian",
            [2, 3],
            torch.zeros(4, 2),
            r"^y: got width 2; a network of 3 outputs with GaussianLikelihood has 3",
        ),
        ("gaussian-head", [2, 4], torch.zeros(4, 4), r"^y: got width 4; .* GaussianHeadLikelihood has 2$"),
    ],
)
def test_a_model_refuses_outputs_that_are_not_its_own(likelihood, sizes, y, message):
    with pytest.raises(DataError, match=message):
        BayesianNetwork(sizes, likelihood=likelihood)(Dataset(x(4, 2), y))
    with pytest.raises(DataError, match=r"^x: got input width 3; this model was built for 2$"):
        BayesianNetwork(sizes, likelihood=likelihood)(Dataset(x(4, 3)))


# -- masks ------------------------------------------------------------------------------------------------------------


def test_what_padding_holds_is_legal_and_reaches_no_gradient():
    mask = torch.tensor([[True, True, False, False], [True, False, True, False]])
    inputs = torch.randn(2, 4, 1).masked_fill(~mask.unsqueeze(-1), NAN).requires_grad_()
    outputs = torch.randn(2, 4, 1).masked_fill(~mask.unsqueeze(-1), torch.inf)
    data = Dataset(inputs, outputs, mask)
    assert bool(torch.isfinite(data.x).all()) and bool(torch.isfinite(data.y).all())
    model = BayesianNetwork([1, 4, 1])
    guide = AmortisedMeanFieldGuide(model, width=8)
    TaskELBO().differentiable_loss(model, guide, data).backward()
    grads = [inputs.grad] + [p.grad for p in guide.parameters()]
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    assert float(inputs.grad[~mask].abs().max()) == 0.0
    assert float(inputs.grad[mask].abs().min()) > 0.0


def test_padded_class_indices_may_hold_anything():
    mask = torch.tensor([True, True, False])
    data = Dataset(x(3, 1), torch.tensor([2, 1, -100]), mask)
    assert data.y.tolist() == [2, 1, 0]


def test_counts_and_full_mask():
    assert d(2, n=3).counts.tolist() == [3.0, 3.0]
    assert d(2, n=3).full_mask().shape == (2, 3)
    mask = torch.tensor([[True, False, False], [True, True, False]])
    data = Dataset(x(2, 3, 1).double(), None, mask)
    assert data.counts.tolist() == [1.0, 2.0]
    assert data.counts.dtype == torch.float64
    assert d(n=0).counts.tolist() == 0.0


# -- selecting, joining, padding, moving -------------------------------------------------------------------------------


def test_indexing_selects_tasks():
    data = d(3, 2)
    assert data[1].batch_shape == (2,)
    assert torch.equal(data[1].x, data.x[1])
    assert data[1:].batch_shape == (2, 2)
    assert data[torch.tensor([2, 0])].batch_shape == (2, 2)
    assert data[0, 1].batch_shape == ()
    assert len(data) == 3
    assert [torch.equal(a.y, b) for a, b in zip(data, data.y, strict=True)] == [True] * 3


def test_indexing_never_selects_points():
    with pytest.raises(IndexError, match="no task dimension"):
        d()[0]
    with pytest.raises(TypeError, match=r"\.num_points"):
        len(d())
    with pytest.raises(IndexError, match="task"):
        d(3)[0, 1]


def test_points_selects_points_in_every_task():
    data = Dataset(x(2, 4, 1), torch.arange(8).reshape(2, 4), torch.ones(2, 4, dtype=torch.bool))
    some = data.points(torch.tensor([3, 0]))
    assert some.y.tolist() == [[3, 0], [7, 4]]
    assert some.x.squeeze(-1).tolist() == [[3.0, 0.0], [7.0, 4.0]]
    assert some.mask.shape == (2, 2)
    assert d(2).points(slice(0, 1)).y.shape == (2, 1, 1)


def test_joining_concatenates_points_and_masks():
    a, b = d(2, n=3), Dataset(torch.randn(2, 2, 2), torch.randn(2, 2, 1), torch.tensor([[True, False]] * 2))
    both = a | b
    assert torch.equal(both.x, torch.cat([a.x, b.x], 1))
    assert torch.equal(both.y, torch.cat([a.y, b.y], 1))
    assert both.mask.tolist() == [[True, True, True, True, False]] * 2
    assert (a | a).mask is None
    assert (a | a.without_y()).y is None
    classes = Dataset(x(3, 1), torch.tensor([0, 1, 2]))
    assert (classes | classes).y.tolist() == [0, 1, 2, 0, 1, 2]
    assert (a | d(2, n=0)).num_points == 3


@pytest.mark.parametrize("discrete", [False, True])
def test_padding_stacks_ragged_tasks(discrete):
    def one(n):
        return Dataset(torch.randn(n, 2), torch.randint(0, 3, (n,)) if discrete else torch.randn(n, 3))

    parts = [one(3), one(0), one(5)]
    padded = Dataset.pad(parts)
    assert padded.x.shape == (3, 5, 2)
    assert padded.counts.tolist() == [3.0, 0.0, 5.0]
    for i, part in enumerate(parts):
        back = padded[i].points(slice(0, part.num_points))
        assert torch.equal(back.x, part.x) and torch.equal(back.y, part.y)


def test_split_is_a_partition_and_shuffles_by_its_generator():
    data = Dataset(x(2, 6, 1), x(2, 6, 1))
    plain = data.split(2)
    assert torch.equal(plain.full.x, data.x)
    assert (plain.context.num_points, plain.target.num_points) == (2, 4)
    assert data.split(0).context.num_points == 0
    shuffled = [data.split(2, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(shuffled[0].context.x, shuffled[1].context.x)
    assert not torch.equal(shuffled[0].full.x, data.x)
    assert torch.equal(shuffled[0].full.x.sort(1).values, data.x)
    assert torch.equal(shuffled[0].full.x, shuffled[0].full.y)  # pairs stay pairs


def test_moving_changes_floats_alone():
    batch = TaskBatch(
        Dataset(x(2, 3, 1), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)),
        Dataset(x(2, 1, 1), torch.zeros(2, 1, dtype=torch.long)),
        {"scale": x(2), "kernel": torch.zeros(2, dtype=torch.long)},
    ).to("cpu", torch.float64)
    assert batch.context.x.dtype == batch.truth["scale"].dtype == torch.float64
    assert batch.context.y.dtype == batch.truth["kernel"].dtype == torch.long
    assert batch.context.mask.dtype == torch.bool
    assert batch.target.x.dtype == torch.float64


def test_task_batches_select_tasks_with_their_truth():
    batch = TaskBatch(d(3, n=2), d(3, n=5), {"scale": x(3)})
    assert len(batch) == 3 and batch.batch_shape == (3,)
    assert batch[1:].truth["scale"].tolist() == [1.0, 2.0]
    assert torch.equal(batch[2].target.x, batch.target.x[2])
    assert batch.full.num_points == 7


def test_a_dataset_cannot_be_reassigned():
    with pytest.raises(AttributeError):
        d().x = x(1, 1)


def test_a_data_set_shows_its_shapes_and_not_its_numbers():
    data = Dataset(torch.zeros(2, 3, 1), torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    assert repr(data) == "Dataset(x: [2, 3, 1], y: [2, 3, 4], mask: [2, 3])"
    assert repr(TaskBatch(data, data)) == f"TaskBatch(context={data}, target={data})"
