"""DNP: distances kept both ways, local latents read by distance, sites, masks, and the objectives it takes."""

import pyro
import pytest
import torch

from guides import DistanceInformedGuide
from inference import fit, predict
from inference.objectives import make
from pp_models import DataError, Dataset, DistanceInformedProcess, NeuralProcess, tasks
from pp_models.processes.distance_informed_process import SLOPE, BoundedLinear


def pair(dim_x=1, dim_y=1, **options):
    model = DistanceInformedProcess(dim_x, dim_y, 4, 8, 8, depth=3, num_heads=2, **options).double()
    return model, DistanceInformedGuide(model, width=8).double()


def points(*batch, n=6, dim_x=1):
    return Dataset(torch.randn(*batch, n, dim_x).double(), torch.randn(*batch, n, 1).double())


def assert_same(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_singular_values_stay_between_their_bounds():
    layer = BoundedLinear(3, 7, (0.2, 1.5)).double()
    with torch.no_grad():
        layer.raw.copy_(torch.tensor([-50.0, 0.0, 50.0]))
        layer.left.mul_(100.0)
    found = torch.linalg.svdvals(layer.weight)
    assert_same(found.sort().values, torch.tensor([0.2, 0.85, 1.5], dtype=torch.float64))
    assert_same(found.sort().values, layer.singular_values.sort().values)


def test_the_embedding_keeps_distances_before_and_after_a_fit():
    model = DistanceInformedProcess(2, 1, 4, 8, 16, num_heads=2).double()
    guide = DistanceInformedGuide(model, width=8).double()
    x = 3 * torch.randn(100, 2).double()
    first, second = torch.triu_indices(100, 100, 1)

    def check():
        with torch.no_grad():
            embedded = model.embed(x)
        ratio = (embedded[first] - embedded[second]).norm(dim=-1) / (x[first] - x[second]).norm(dim=-1)
        assert float(ratio.min()) > 0.1**3 * SLOPE**2 and float(ratio.max()) < 1.0
        return float(ratio.mean())

    before = check()
    batch = points(4, n=9, dim_x=2).split(5)
    fit(model, guide, batch, make("npml", num_particles=2), steps=20, learning_rate=0.05, progress=False)
    assert abs(check() - before) > 1e-3


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_sites_and_shapes(batch):
    model, guide = pair(2)
    data = points(*batch, dim_x=2)
    trace = pyro.poutine.trace(guide).get_trace(data)
    shapes = {n: tuple(v.shape) for n, v in guide(data).items()}
    assert shapes == {"z": (*batch, 4), "memory": (*batch, 6, 3), "local": (*batch, 6, 8)}
    nodes = pyro.poutine.trace(pyro.poutine.replay(model, trace=trace)).get_trace(data).nodes
    assert nodes["y"]["value"].shape == (*batch, 6, 1)
    for site in ("z", "local"):
        assert nodes[site]["fn"].batch_shape == trace.nodes[site]["fn"].batch_shape == batch
    found = predict(model, guide, data, torch.randn(*batch, 4, 2).double(), num_samples=3)
    assert found.samples.shape == (3, *batch, 4, 1)
    assert float((found.function_samples[0] - found.function_samples[1]).abs().max()) > 1e-6


def test_near_points_are_read_and_far_ones_are_not():
    model, _ = pair()
    with torch.no_grad():
        model.log_precision.fill_(5.0)
        model.null_value.fill_(7.0)
    memory = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [1.01, 0.0]]).double()  # the last does not exist
    local = torch.randn(3, 8).double()
    x = torch.tensor([[-1.0], [1.0], [40.0]]).double()
    found = model.read(x, memory, local).detach()
    assert float((found[0] - local[0]).abs().max()) < 0.2 and float((found[1] - local[1]).abs().max()) < 0.2
    assert_same(found[2], torch.full((8,), 7.0).double())


def test_order_padding_and_other_tasks_change_nothing():
    model, guide = pair()
    data, x = points(3), torch.randn(3, 4, 1).double()

    def mean(context, at=x):
        return predict(model, guide, context, at, weights="mean").mean

    found = mean(data)
    assert_same(mean(data.points(torch.randperm(6))), found)
    junk = torch.full((3, 2, 1), torch.nan).double()
    exists = torch.cat([torch.ones(3, 6), torch.zeros(3, 2)], 1).bool()
    padded = Dataset(torch.cat([data.x, junk], 1), torch.cat([data.y, junk], 1), exists).points(torch.randperm(8))
    assert_same(mean(padded), found)
    assert_same(mean(data[1], x[1]), found[1])
    assert_same(mean(data, x[:, 1:2]), found[:, 1:2])  # targets do not see one another
    empty = mean(data.points(slice(0, 0)))
    assert_same(mean(Dataset(data.x, data.y, torch.zeros(3, 6).bool())), empty)
    assert bool(torch.isfinite(empty).all()) and float((empty - found).abs().max()) > 1e-6


def test_the_evidence_bound_counts_existing_points_alone():
    model, guide = pair()
    data = points(2)
    exists = torch.cat([torch.ones(2, 6), torch.zeros(2, 3)], 1).bool()
    padded = Dataset(torch.cat([data.x, points(2, n=3).x], 1), torch.cat([data.y, points(2, n=3).y], 1), exists)
    elbo = make("elbo")
    plain, masked = elbo.terms(model, guide, data), elbo.terms(model, guide, padded)
    assert set(plain.kl_by_site) == {"z", "local"}
    for site in ("z", "local"):
        assert_same(masked.kl_by_site[site], plain.kl_by_site[site])
    assert bool((plain.kl > 0).all())


@pytest.mark.parametrize("name", ["npvi", "conditional-prior"])
def test_objectives_that_compare_context_and_task_are_refused(name):
    model, guide = pair()
    with pytest.raises(
        ValueError, match=rf"^objective: '{name}' compares .* DistanceInformedGuide .*; train it with npml$"
    ):
        make(name).terms(model, guide, points(2, n=9).split(5))


def test_gradients_reach_everything():
    model, guide = pair()
    make("npml", num_particles=4).differentiable_loss(model, guide, points(3, n=9).split(5)).backward()
    without = [
        n
        for module in (model, guide)
        for n, p in module.named_parameters()
        if (p.grad is None or float(p.grad.abs().max()) == 0.0) and not n.endswith("empty")
    ]
    # on a line the right factor is the number ±1 and a first layer's bias moves all points alike
    assert set(without) <= {"embedding.0.right"}


def test_a_fit_beats_its_start():
    stream = tasks.gp("rbf", 8, **tasks.TNP_COUNTS)
    model = DistanceInformedProcess(1, 1, 8, 16, 16, depth=3)
    guide = DistanceInformedGuide(model, width=16)
    objective = make("npml", num_particles=4, normalize=True)

    def score():
        with torch.no_grad():
            return sum(float(objective.terms(model, guide, stream.batch(10**6 + i)).bound.mean()) for i in range(8)) / 8

    before = score()
    fit(model, guide, stream, objective, steps=100, learning_rate=3e-3, max_grad_norm=10.0, progress=False)
    assert score() > before + 0.3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DistanceInformedProcess(1, 0), r"^dim_y: got 0; it must be at least 1$"),
        (lambda: DistanceInformedProcess(1, 1, local_dim=6), r"^local_dim: got 6; .*num_heads, 4$"),
        (lambda: DistanceInformedProcess(5, 1, width=4), r"^width: got 4; .* at least dim_x, 5$"),
        (lambda: DistanceInformedProcess(1, 1, singular_values=(0.0, 1.0)), r"^singular_values: got \(0.0, 1.0\)"),
    ],
)
def test_bad_arguments_in_one_line(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_refusals():
    with pytest.raises(TypeError, match=r"^model: got NeuralProcess; DistanceInformedGuide is a guide for a Distance"):
        DistanceInformedGuide(NeuralProcess(1, 1))
    with pytest.raises(DataError, match=r"^x: got input width 2; this model was built for 1$"):
        pair()[0](Dataset(torch.randn(5, 2).double()))
