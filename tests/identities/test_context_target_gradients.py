"""Objectives that split a task in context and target: expected gradients on conjugate Gaussian tasks, by quadrature."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from inference.objectives import fixed_values, importance_weights, kl_objective, make
from pp_models import Dataset, TaskBatch
from pp_models.observation_model import observe
from pp_models.parameter_module import ParameterModule
from pp_models.task_plates import task_plates
from tests.identities.conjugate_gaussian import TWINS, Noise, gauss_hermite

K, CONTEXT, TARGET = 2, 2, 3
TOLERANCE = 1e-8
NOISE = 2.0  # wide, so that nodes resolve the logarithm of a mean


def parameter(value):
    return nn.Parameter(torch.tensor(value).double())


class Level(ParameterModule):
    """z ~ N(m, exp(s)²), y_n ~ N(z, NOISE²)."""

    def __init__(self, normal):
        super().__init__()
        self.normal, self.m, self.s = normal, parameter(0.2), parameter(0.1)

    def forward(self, data):
        with task_plates(data.batch_shape):
            z = pyro.sample("z", self.normal(self.m, self.s.exp()))
            mean = z[..., None, None].expand(*z.shape, data.num_points, 1)
            observe(dist.Normal(mean, NOISE).to_event(1), data)


class LevelGuide(ParameterModule):
    """N(a ȳ + b, exp(c)² / (1 + n / 4)), n points with mean ȳ."""

    def __init__(self, normal):
        super().__init__()
        self.normal, self.a, self.b, self.c = normal, parameter(0.6), parameter(0.15), parameter(-0.3)

    def q(self, data):
        exists = data.full_mask()
        n = exists.sum(-1).double()
        mean = (data.y[..., 0] * exists).sum(-1) / n.clamp_min(1)
        return torch.distributions.Normal(self.a * mean + self.b, self.c.exp() / (1 + n / 4).sqrt())

    def forward(self, data):
        q = self.q(data)
        with task_plates(data.batch_shape):
            pyro.sample("z", self.normal(q.loc, q.scale))


def problem(tasks, twin):
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(tasks, CONTEXT + TARGET, 1, generator=generator, dtype=torch.float64) * 0.5
    y = y + torch.randn(tasks, 1, 1, generator=generator, dtype=torch.float64)
    mask = torch.ones(tasks, CONTEXT + TARGET, dtype=torch.bool)
    if tasks > 1:
        mask[0, 1] = mask[1, CONTEXT] = False
        mask[2, :CONTEXT] = False
    batch = Dataset(torch.zeros_like(y), y, mask).split(CONTEXT)
    normal = TWINS[twin]
    return Level(normal), LevelGuide(normal), batch


def many(batch, count):
    def expand(data):
        return Dataset(*(t.expand(count, *t.shape) for t in (data.x, data.y, data.full_mask())))

    return TaskBatch(expand(batch.context), expand(batch.target))


def gradient(modules, value):
    parameters = [p for m in modules for p in m.parameters()]
    found = [None] * len(parameters)
    if value.requires_grad:
        found = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.stack([torch.zeros(()).double() if g is None else g for g in found])


def log_mean_exp(values):
    return torch.logsumexp(values, 0) - math.log(values.shape[0])


def exact(name, model, guide, batch, nodes=30):
    """A scalar whose gradient is the objective's expected one."""
    noise, probability = gauss_hermite(K, nodes)
    q = guide.q(batch.context if name != "npvi" else batch.full)
    z = q.loc + q.scale * noise
    prior = torch.distributions.Normal(model.m, model.s.exp())

    def score(data, z=z):
        each = torch.distributions.Normal(z.unsqueeze(-1), NOISE).log_prob(data.y[..., 0])
        return (each * data.full_mask()).sum(-1)

    def kl(p, other):
        return torch.distributions.kl_divergence(p, other).sum()

    if name == "iw-em":
        fixed = z.detach()
        weights = torch.softmax(score(batch.full, fixed).detach(), 0)
        return (probability * (weights * (score(batch.full, fixed) + q.log_prob(fixed))).sum(0)).sum()
    predictive = (probability * log_mean_exp(score(batch.target))).sum()
    fit = {part: (probability * score(getattr(batch, part)).mean(0)).sum() for part in ("context", "full")}
    return {
        "npml": lambda: predictive,
        "pp-avi": lambda: predictive + fit["context"] - kl(q, prior),
        "npvi": lambda: fit["full"] - kl(q, guide.q(batch.context)),
        "conditional-prior": lambda: fit["full"] - kl(q, guide.q(batch.full)),
    }[name]()


OPTIONS = {"conditional-prior": {"kl_reduction": "sum", "local_reparameterization": False}}
NAMES = ("npml", "pp-avi", "npvi", "conditional-prior", "iw-em")


def expected(name, model, guide, batch, nodes=30, **options):
    noise, probability = gauss_hermite(K, nodes)
    objective = make(name, num_particles=K, **OPTIONS.get(name, {}), **options)
    with Noise(z=noise):
        terms = objective.terms(model, guide, many(batch, len(probability)))
    return gradient((model, guide), (probability * terms.bound).sum())


@pytest.mark.parametrize("tasks", [1, 16, 256])
@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("name", NAMES)
def test_the_expected_gradient_is_the_exact_one(name, twin, tasks):
    model, guide, batch = problem(tasks, twin)
    wanted = gradient((model, guide), exact(name, model, guide, batch))
    assert wanted[2:].abs().max() > 0.05
    found = expected(name, model, guide, batch)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE * tasks)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "iw-em"])
def test_the_score_estimator_has_the_same_expectation(name):
    model, guide, batch = problem(16, "reparameterised")
    wanted = gradient((model, guide), exact(name, model, guide, batch))
    found = expected(name, model, guide, batch, estimator="score")
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE * 16)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "iw-em"])
def test_a_broken_estimator_misses_it(name, monkeypatch):
    model, guide, batch = problem(16, "not reparameterised")
    wanted = gradient((model, guide), exact(name, model, guide, batch))
    for module in (kl_objective, importance_weights, fixed_values):  # wherever the term is looked up
        monkeypatch.setattr(module, "score_term", lambda signal, log_q, shape: log_q.new_zeros(shape))
    assert (expected(name, model, guide, batch) - wanted).abs().max() > 1e-2


def test_weights_shared_by_all_tasks_miss_iw_em(monkeypatch):
    import inference.objectives.iw_em as room

    model, guide, batch = problem(16, "reparameterised")
    wanted = gradient((model, guide), exact("iw-em", model, guide, batch))

    def together(values):
        return log_mean_exp(values.sum(-1, keepdim=True)).expand(values.shape[1:]) / values.shape[-1]

    monkeypatch.setattr(room, "log_mean_exp", together)
    assert (expected("iw-em", model, guide, batch) - wanted).abs().max() > 1e-2
