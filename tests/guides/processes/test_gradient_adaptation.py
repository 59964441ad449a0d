"""MAML and CAVIA: steps by hand, what they lower, derivatives through them, and the contract of every guide."""

from itertools import pairwise

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from guides import CAVIAGuide, MAMLGuide
from guides.processes.gradient_adaptation import clipped, context_loss
from inference import fit, predict
from inference.objectives import make
from pp_models import BayesianAttentionNetwork, BayesianNetwork, Dataset, NeuralProcess, TaskBatch, tasks


def maml(**options):
    model = BayesianNetwork([1, 6, 5, 2], likelihood="gaussian-head", activation="tanh").double()
    return model, MAMLGuide(model, **{"steps": 3, **options}).double()


def cavia(**options):
    model = NeuralProcess(1, 1, latent_dim=0, representation_dim=4, width=8, depth=3).double()
    return model, CAVIAGuide(model, **{"steps": 3, **options}).double()


GUIDES = {"maml": maml, "cavia": cavia}
every_guide = pytest.mark.parametrize("name", GUIDES)


def points(*batch, n=6):
    return Dataset(torch.randn(*batch, n, 1).double(), torch.randn(*batch, n, 1).double())


def assert_same(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def loss_of_context(model, guide, data):
    """Mean negative log-likelihood of each task's context under the guide's point mass."""
    with torch.no_grad():
        trace = pyro.poutine.trace(guide).get_trace(data)
        outputs = pyro.poutine.replay(model, trace=trace)(data)
        return context_loss(model.likelihood(outputs), data)


def test_one_step_of_maml_by_hand():
    model = BayesianNetwork([2, 1], noise_scale=0.5).double()
    guide = MAMLGuide(model, steps=1, learning_rate=0.03, max_grad_norm=None).double()
    data = Dataset(torch.randn(3, 5, 2).double(), torch.randn(3, 5, 1).double())
    start = guide.weights[0].detach()
    with_one = torch.cat([data.x, torch.ones(3, 5, 1).double()], -1)
    residual = with_one @ start.mT - data.y
    gradient = (residual * with_one).mean(1, keepdim=True) / 0.5**2
    assert_same(guide(data)["layer_0.weight"], start - 0.03 * gradient)


def test_one_step_of_cavia_by_hand():
    model = NeuralProcess(1, 1, latent_dim=0, representation_dim=3, width=4, depth=1, likelihood="gaussian").double()
    guide = CAVIAGuide(model, steps=1, learning_rate=0.02, max_grad_norm=None)
    data = points(2)
    layer = model.decoder[0]  # depth 1: linear in the input and the representation
    residual = data.x * layer.weight[:, :1] + layer.bias - data.y
    gradient = residual.mean(1) * layer.weight[:, 1:] / 0.1**2
    assert_same(guide(data)["representation"], -0.02 * gradient)


@every_guide
def test_steps_lower_the_loss_of_the_context(name):
    model, guide = GUIDES[name](learning_rate=0.02)
    data = points(4)
    losses = []
    for steps in (0, 1, 4, 16):
        guide.descent.steps = steps
        losses.append(loss_of_context(model, guide, data))
    assert all(bool((later < earlier).all()) for earlier, later in pairwise(losses))


@pytest.mark.parametrize("learn_rate", [False, True])
@every_guide
def test_gradients_through_the_steps_are_those_of_finite_differences(name, learn_rate):
    model, guide = GUIDES[name](learning_rate=0.05, learn_rate=learn_rate, max_grad_norm=2.0)
    batch = points(3, n=9).split(5)
    objective = make("npml", num_particles=1)

    def loss():
        return objective.differentiable_loss(model, guide, batch)

    parameters = [*guide.parameters(), *model.parameters()]
    assert len(parameters) == (3 if name == "maml" else 6) + learn_rate
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss(), parameters), strict=True):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-5 * direction
            above = loss()
            parameter -= 2e-5 * direction
            below = loss()
            parameter += 1e-5 * direction
        assert_same((gradient * direction).sum(), (above - below) / 2e-5, 1e-5)


@every_guide
def test_first_order_leaves_the_second_derivatives_out(name):
    model, guide = GUIDES[name](learning_rate=0.05)
    batch = points(3, n=9).split(5)
    parameter = guide.weights[0] if name == "maml" else model.decoder[0].weight
    objective = make("npml", num_particles=1)
    (full,) = torch.autograd.grad(objective.differentiable_loss(model, guide, batch), parameter)
    value = objective.differentiable_loss(model, guide, batch)
    guide.descent.first_order = True
    cheap = objective.differentiable_loss(model, guide, batch)
    assert_same(cheap, value)
    (first,) = torch.autograd.grad(cheap, parameter)
    assert float((first - full).abs().max()) > 1e-4
    # by hand: the values as constants that the parameter moves one to one (MAML) or not at all (CAVIA)
    found = {site: v.detach() for site, v in guide(batch.context).items()}
    if name == "maml":
        found = {site: v + w - w.detach() for (site, v), w in zip(found.items(), guide.weights, strict=True)}
    outputs = pyro.poutine.condition(model, found)(batch.target)
    expected = -model.likelihood(outputs).log_prob(batch.target.y).sum()
    assert_same(first, torch.autograd.grad(expected, parameter)[0])


@every_guide
def test_masked_points_and_other_tasks_do_not_count(name):
    _, guide = GUIDES[name]()
    data = points(3)
    found = guide(data)
    exists = torch.cat([torch.ones(3, 6), torch.zeros(3, 2)], 1).bool()
    junk = torch.full((3, 2, 1), torch.nan).double()
    padded = Dataset(torch.cat([data.x, junk], 1), torch.cat([data.y, junk], 1), exists).points(torch.randperm(8))
    for site, value in guide(padded).items():
        assert_same(value, found[site])
    for task in range(3):
        for site, value in guide(data[task]).items():
            assert_same(value, found[site][task])


@every_guide
def test_an_empty_context_stays_where_it_starts(name):
    model, guide = GUIDES[name]()
    data = points(2)
    nothing = guide(data.points(slice(0, 0)))
    masked = guide(Dataset(data.x, data.y, torch.tensor([[True] * 6, [False] * 6])))
    for i, site in enumerate(nothing):
        start = guide.weights[i] if name == "maml" else torch.zeros(4).double()
        assert_same(nothing[site], start.expand_as(nothing[site]))
        assert_same(masked[site][1], start)
        assert float((masked[site][0] - start).detach().abs().max()) > 1e-6
    batch = TaskBatch(Dataset(data.x, data.y, torch.zeros(2, 6).bool()), points(2))
    objective = make("npml", num_particles=1)
    objective.differentiable_loss(model, guide, batch).backward()
    gradients = [p.grad for p in (*guide.parameters(), *model.parameters())]
    assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@every_guide
def test_shapes_predictions_and_particles(name, batch):
    model, guide = GUIDES[name]()
    data = points(*batch)
    shapes = {s: v.shape for s, v in guide(data).items()}
    if name == "maml":
        expected = {model.site(i): (*batch, *shape) for i, shape in enumerate(model.weight_shapes)}
    else:
        expected = {"representation": (*batch, 4)}
    assert shapes == {site: torch.Size(shape) for site, shape in expected.items()}
    x = torch.randn(*batch, 4, 1).double()
    found = predict(model, guide, data, x, num_samples=3)  # without gradients outside
    assert found.samples.shape == (3, *batch, 4, 1)
    assert_same(found.mean, predict(model, guide, data, x, weights="mean").mean)
    split = data.split(4)
    bounds = [make("npml", num_particles=k).terms(model, guide, split).bound for k in (1, 4)]
    assert_same(*bounds)
    assert bounds[0].shape == batch


@every_guide
def test_plain_svi_trains_it(name):
    model, guide = GUIDES[name]()
    before = [p.detach().clone() for p in (*guide.parameters(), *model.parameters())]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert all(torch.isfinite(torch.tensor(svi.step(points(3)))) for _ in range(3))
    after = [*guide.parameters(), *model.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    stored = {n.split(".", 1)[0] for n in pyro.get_param_store().keys()}  # noqa: SIM118 - not a dict
    assert stored == {guide.parameter_prefix if name == "maml" else model.parameter_prefix}


def test_an_attention_network_adapts_too():
    model = BayesianAttentionNetwork(1, 1, width=8, num_blocks=1, num_heads=2, likelihood="gaussian-head").double()
    guide = MAMLGuide(model, steps=2, learning_rate=0.02).double()
    data = points(3)
    assert guide(data)["layer_0.weight"].shape == (3, 8, 2)
    start = MAMLGuide(model, steps=0).double()
    start.load_state_dict(guide.state_dict())
    assert bool((loss_of_context(model, guide, data) < loss_of_context(model, start, data)).all())


def test_gradients_are_clipped_by_task():
    gradients = [torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.tensor([[12.0], [0.0]])]
    small, other = clipped(gradients, 1, 1.3)
    assert_same(small, torch.tensor([[0.3, 0.4], [0.3, 0.4]]), 1e-6)
    assert_same(other, torch.tensor([[1.2], [0.0]]), 1e-6)


@pytest.mark.parametrize("name", ["maml", "cavia"])
def test_a_fit_beats_its_start_and_what_does_not_adapt(name):
    """150 steps; measured: -0.53 (from -0.69) and -0.51 (from -0.94), and -0.98 and -1.07 with the steps left out."""
    stream = tasks.gp("rbf", 8, **tasks.TNP_COUNTS)
    objective = make("npml", num_particles=1, normalize=True)
    if name == "maml":
        model = BayesianNetwork([1, 32, 32, 2], likelihood="gaussian-head")
        guide = MAMLGuide(model, steps=3)
    else:
        model = NeuralProcess(1, 1, latent_dim=0, representation_dim=16, width=32, depth=3)
        guide = CAVIAGuide(model, steps=3)

    def score():
        with torch.no_grad():
            return sum(float(objective.terms(model, guide, stream.batch(10**6 + i)).bound.mean()) for i in range(8)) / 8

    before = score()
    fit(model, guide, stream, objective, steps=150, learning_rate=3e-3, max_grad_norm=10.0, progress=False)
    after = score()
    guide.descent.steps = 0
    assert after > before + 0.1 and after > score() + 0.2


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: MAMLGuide(NeuralProcess(1, 1)), TypeError, r"^model: got NeuralProcess; MAMLGuide is a guide for a B"),
        (
            lambda: CAVIAGuide(BayesianNetwork([1, 2])),
            TypeError,
            r"^model: got BayesianNetwork; CAVIAGuide is a guide for a NeuralProcess$",
        ),
        (lambda: CAVIAGuide(NeuralProcess(1, 1)), ValueError, r"^model: got latent_dim = 128 and a path: False"),
        (
            lambda: MAMLGuide(BayesianNetwork([1, 2], representation_dim=3)),
            ValueError,
            r"^model: it has representation_dim = 3, .* must be 0$",
        ),
        (lambda: maml(steps=-1), ValueError, r"^steps: got -1; it must be at least 0$"),
        (lambda: maml(learning_rate=0.0), ValueError, r"^learning_rate: got 0.0; it must be positive and finite$"),
        (lambda: cavia(max_grad_norm=0.0), ValueError, r"^max_grad_norm: got 0.0; it must be positive"),
    ],
)
def test_refusals_in_one_line(build, error, message):
    with pytest.raises(error, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


@every_guide
def test_a_guide_needs_observed_points(name):
    _, guide = GUIDES[name]()
    with pytest.raises(ValueError, match=r"^data: y is None; a guide reads observed points$"):
        guide(Dataset(torch.randn(4, 1).double()))


def test_steps_through_attention_are_differentiated_twice():
    model = BayesianAttentionNetwork(1, 1, 8, 1, 2)
    guide = MAMLGuide(model, steps=2)
    make("npml")(model, guide)(tasks.gp("rbf", 2).batch(0)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in guide.weights)
