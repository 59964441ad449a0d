"""Reweighted wake-sleep: the sleep phase against its closed form, mixtures of phases, and what it refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from guides import AmortisedMeanFieldGuide, NeuralProcessGuide
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset, NeuralProcess, tasks
from pp_models.observation_model import observe
from pp_models.parameter_module import ParameterModule
from pp_models.task_plates import task_plates

NOISE = 0.8


class Level(ParameterModule):
    """z ~ N(0, 1), y_n ~ N(z, NOISE²)."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0).double())

    def forward(self, data):
        with task_plates(data.batch_shape):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            mean = z.unsqueeze(-1).unsqueeze(-1).expand(*z.shape, data.num_points, 1)
            observe(dist.Normal(mean, NOISE).to_event(1), data)


class LevelGuide(ParameterModule):
    """N(a ȳ + b, exp(c)²)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(v).double()) for v in (0.3, 0.2, -0.4))

    def forward(self, data):
        exists = data.full_mask()
        mean = (data.y[..., 0] * exists).sum(-1) / exists.sum(-1).clamp_min(1)
        with task_plates(data.batch_shape):
            pyro.sample("z", dist.Normal(self.a * mean + self.b, self.c.exp()))


def data(masked=False):
    y = torch.randn(3, 4, 1).double()
    mask = torch.tensor([[True] * 4, [True] * 4, [True, True, False, False]]) if masked else None
    return Dataset(torch.zeros_like(y), y, mask)


def sleep_gradient(guide, counts):
    """∇ E_{z, y ~ p} log q(z | y): with u = z - aȳ - b, E u² = (1 - a)² + a² NOISE² / N + b²."""
    a, b, c = guide.a, guide.b, guide.c
    second = (1 - a) ** 2 + a**2 * NOISE**2 / counts + b**2
    value = (-c - 0.5 * second * (-2 * c).exp() - 0.5 * math.log(2 * math.pi)).sum()
    return torch.stack(torch.autograd.grad(value, (a, b, c)))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_sleep_gradient_is_the_exact_one(masked, vectorize):
    model, guide, observed = Level(), LevelGuide(), data(masked)
    wanted = sleep_gradient(guide, observed.counts.double())
    objective = make(
        "rws", num_particles=20_000 if vectorize else 15, wake_theta=0, wake_phi=0, sleep_phi=1,
        vectorize_particles=vectorize,
    )  # fmt: skip
    found = []
    for _ in range(8 if vectorize else 40):
        bound = objective.terms(model, guide, observed).bound.sum()
        found.append(torch.stack(torch.autograd.grad(bound, (guide.a, guide.b, guide.c))))
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - wanted).abs() < 5 * error).all()
    assert (wanted.abs() > 5 * error).any()


def test_phases_add_up():
    model, guide, observed = Level(), LevelGuide(), data()
    parameters = (model.loc, guide.a, guide.b, guide.c)

    def gradient(**weights):
        torch.manual_seed(4)
        bound = make("rws", num_particles=6, **weights).terms(model, guide, observed).bound.sum()
        found = torch.autograd.grad(bound, parameters, allow_unused=True)
        return torch.stack([torch.zeros(()).double() if g is None else g for g in found])

    theta = gradient(wake_theta=1, wake_phi=0)
    phi = gradient(wake_theta=0, wake_phi=1)
    sleep = gradient(wake_theta=0, wake_phi=0, sleep_phi=1)
    assert theta[0] != 0 and (theta[1:] == 0).all()
    for only_guide in (phi, sleep):
        assert only_guide[0] == 0 and (only_guide[1:] != 0).all()
    mixed = gradient(wake_theta=1, wake_phi=0.25, sleep_phi=0.75)
    torch.testing.assert_close(mixed, theta + 0.25 * phi + 0.75 * sleep)


def test_the_reported_bound_is_iwaes_whatever_is_mixed():
    model, guide, observed = Level(), LevelGuide(), data()
    values = []
    for name, options in (("iwae", {}), ("rws", {}), ("rws", {"sleep_phi": 2.0, "wake_theta": 0.0})):
        torch.manual_seed(4)
        values.append(make(name, num_particles=6, **options).terms(model, guide, observed).bound.detach())
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


def test_a_deterministic_path_learns_although_particles_are_fixed():
    model = NeuralProcess(1, 1, latent_dim=4, representation_dim=4, width=8)
    guide = NeuralProcessGuide(model, 8)
    make("rws", num_particles=3).differentiable_loss(model, guide, tasks.gp("rbf", 2).batch(0)).backward()
    used = [p for name, p in guide.path_encoder.named_parameters() if name != "empty"]  # no task is without context
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in used)


def test_what_sleep_refuses():
    model = NeuralProcess(1, 1, latent_dim=4, representation_dim=4, width=8)
    guide, batch = NeuralProcessGuide(model, 8), tasks.gp("rbf", 2).batch(0)
    with pytest.raises(ValueError, match=r"^site 'representation': its prior is flat, so that nothing can be sim"):
        make("rws", sleep_phi=1).terms(model, guide, batch)

    def plain(y):
        with pyro.plate("tasks", 3):
            pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    def plain_guide(y):
        with pyro.plate("tasks", 3):
            pyro.sample("z", dist.Normal(y, 1.0))

    with pytest.raises(ValueError, match=r"^sleep_phi: the model is not called with a Dataset.*pass simulate=$"):
        make("rws", sleep_phi=1).terms(plain, plain_guide, torch.zeros(3))


def test_any_model_can_sleep_with_a_function_that_simulates():
    slope = torch.tensor(0.2).double().requires_grad_()

    def model(y):
        with pyro.plate("tasks", 2000, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            return pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        with pyro.plate("tasks", 2000, dim=-1):
            pyro.sample("z", dist.Normal(slope * y, 1.0))

    def simulate(model, args, kwargs):
        trace = pyro.poutine.trace(model).get_trace(None)
        return (trace.nodes["y"]["value"],), {}, trace

    objective = make("rws", num_particles=2, wake_theta=0, wake_phi=0, sleep_phi=1, simulate=simulate)
    bound = objective.terms(model, guide, torch.zeros(2000).double()).bound
    (found,) = torch.autograd.grad(bound.mean(), slope)
    assert abs(found.item() - 0.6) < 0.2  # E[(z - sy) y] = 1 - 2s


def test_sleep_on_a_network():
    model = BayesianNetwork([1, 8, 1])
    guide = AmortisedMeanFieldGuide(model, 8)
    batch = tasks.gp("rbf", 2).batch(0)
    terms = make("rws", num_particles=3, sleep_phi=0.5, wake_phi=0.5).terms(model, guide, batch)
    assert terms.bound.shape == (2,)
    dreams = make("rws", num_particles=4, wake_theta=0, wake_phi=0, sleep_phi=1)
    x = batch.full.x[:1].expand(200, -1, -1)
    simulated = pyro.poutine.trace(model).get_trace(Dataset(x)).nodes
    asked = Dataset(x, simulated["y"]["value"])

    def log_q():
        """E log q(W | y) over draws of the model, which sleep maximises."""
        nodes = pyro.poutine.trace(guide).get_trace(asked).nodes
        return sum(float(nodes[s]["fn"].log_prob(simulated[s]["value"]).mean().detach()) for s in guide.sites)

    before = log_q()
    optimizer = torch.optim.Adam(guide.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        dreams.loss_and_grads(model, guide, batch)
        optimizer.step()
    assert log_q() > 0.5 * before  # a log-density below 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wake_phi": -1.0}, r"^wake_phi: got -1.0; it must be finite and not negative$"),
        ({"wake_theta": 0, "wake_phi": 0}, r"^wake_theta, wake_phi, sleep_phi: all are 0; nothing would be trained$"),
    ],
)
def test_bad_weights(options, message):
    with pytest.raises(ValueError, match=message):
        make("rws", **options)
