"""Objectives as programs: every estimator of every site against enumeration and quadrature."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

from guides import AmortisedMeanFieldGuide, BernoulliMaskGuide
from inference import fit
from inference.objectives import Program, log_mean_exp, make
from pp_models import BayesianNetwork, Dataset, MaskedNetwork
from tests.identities.test_objective_enumeration import Exact, States, gradient, problem, repeat


def iwae(particles):
    return log_mean_exp(particles.log_weights)


def elbo(particles):
    return particles.log_weights


# -- one discrete site, all patterns of particles enumerated ------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("program", [elbo, iwae])
@pytest.mark.parametrize("estimator", ["score", "enumerate"])
def test_the_expected_gradient_is_the_exact_one(estimator, program, k):
    model, guide, batch = problem()
    exact = Exact(model, guide, batch, k, "full")
    objective = Program(k, program=program, estimators=estimator)
    with States(exact.patterns):
        terms = objective.terms(model, guide, repeat(batch, exact.probability.shape[0]))
    wanted = exact.value(program.__name__)
    expected = (exact.probability.detach() * terms.bound).sum()
    torch.testing.assert_close(expected.detach(), wanted.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(model, guide, expected), gradient(model, guide, wanted), rtol=1e-10, atol=1e-12)


def test_enumeration_leaves_no_noise_in_a_program_of_each_particle():
    model, guide, batch = problem()
    wanted = Exact(model, guide, batch, 1, "full").value("elbo")
    for k in (1, 4):
        bound = Program(k, estimators={"z": "enumerate"}).terms(model, guide, batch).bound.sum()
        torch.testing.assert_close(bound, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            gradient(model, guide, bound), gradient(model, guide, wanted), rtol=1e-10, atol=1e-12
        )


def test_local_expectations_have_less_noise_than_scores():
    model, guide, batch = problem()
    noise = {}
    for estimator in ("score", "enumerate"):
        objective = Program(4, program=iwae, estimators=estimator)
        found = [gradient(model, guide, objective.terms(model, guide, batch).bound.sum()) for _ in range(200)]
        noise[estimator] = torch.stack(found).var(0).sum()
    assert noise["enumerate"] < 0.9 * noise["score"]


# -- three sites of three kinds, in a chain -------------------------------------------------------------------------

ORDERS = {
    "k": ("enumerate", "score"),
    "z": ("pathwise", "score", "measure-valued"),
    "b": ("enumerate", "score", "measure-valued"),
}
TASKS = 2_000


class Chain:
    """k of two states, z ~ N | k, b ~ Bernoulli | z; y ~ N(z + b, 1): the guide's own chain has the same order."""

    def __init__(self):
        values = {"k": 0.3, "loc": 0.2, "by_k": 0.7, "scale": -0.4, "slope": 0.9, "prior": -0.3, "noise": 0.1}
        self.p = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in values.items()}
        self.y = torch.tensor(0.8, dtype=torch.float64)

    def guide(self, tasks):
        p = self.p
        with pyro.plate("tasks", tasks):
            k = pyro.sample("k", dist.Bernoulli(logits=p["k"]))
            z = pyro.sample("z", dist.Normal(p["loc"] + p["by_k"] * k, p["scale"].exp()))
            pyro.sample("b", dist.Bernoulli(logits=p["slope"] * z))

    def model(self, tasks):
        p = self.p
        with pyro.plate("tasks", tasks):
            k = pyro.sample("k", dist.Bernoulli(logits=p["prior"]))
            z = pyro.sample("z", dist.Normal(k, torch.tensor(1.0).double()))
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.4).double()))
            pyro.sample("y", dist.Normal(z + b, p["noise"].exp()), obs=self.y.expand(tasks))

    def exact(self, particles):
        """E[log (1/K) Σ w] over all patterns, z by Gauss-Hermite nodes; with K = 1 the ELBO."""
        p = self.p
        points, weights = np.polynomial.hermite_e.hermegauss(24)
        nodes, weights = torch.tensor(points), torch.tensor(weights / weights.sum())
        k, z, b = torch.meshgrid(torch.arange(2.0).double(), nodes, torch.arange(2.0).double(), indexing="ij")
        z = p["loc"] + p["by_k"] * k + p["scale"].exp() * z
        q = dist.Bernoulli(logits=p["k"]).log_prob(k) + dist.Bernoulli(logits=p["slope"] * z).log_prob(b)
        of_state = (q.exp() * weights[:, None]).flatten()
        log_w = dist.Bernoulli(logits=p["prior"]).log_prob(k) + dist.Normal(k, 1.0).log_prob(z) + math.log(0.4) * b
        log_w = log_w + math.log(0.6) * (1 - b) + dist.Normal(z + b, p["noise"].exp()).log_prob(self.y) - q
        log_w = (log_w - dist.Normal(p["loc"] + p["by_k"] * k, p["scale"].exp()).log_prob(z)).flatten()
        if particles == 1:
            return (of_state * log_w).sum()
        pairs = torch.logaddexp(log_w[:, None], log_w) - math.log(2)
        return (of_state[:, None] * of_state * pairs).sum()

    def gradient(self, value):
        return torch.stack(torch.autograd.grad(value, list(self.p.values())))


@pytest.mark.parametrize("combination", list(itertools.product(*ORDERS.values())), ids="-".join)
@pytest.mark.parametrize("program", [elbo, iwae])
def test_estimators_compose_without_bias(program, combination):
    torch.manual_seed(0)
    chain = Chain()
    estimators = dict(zip(ORDERS, combination, strict=True))
    particles = 2 if program is iwae else 1
    wanted = chain.exact(particles)
    objective = Program(2, program=program, estimators=estimators)
    found, values = [], []
    for _ in range(12):
        bound = objective.terms(chain.model, chain.guide, TASKS).bound
        values.append(bound.detach().mean())
        found.append(chain.gradient(bound.mean()))
    for got, right, floor in ((values, wanted.detach(), 0.0), (found, chain.gradient(wanted), 0.0)):
        got = torch.stack(got)
        error = got.std(0) / len(got) ** 0.5 + floor
        assert ((got.mean(0) - right).abs() < 5 * error + 1e-9).all(), (got.mean(0), right, error)
    assert (torch.stack(found).std(0) / 12**0.5 < 0.02).all()  # the comparison above is of a narrow interval


def test_an_annotation_at_the_sample_statement_is_one_of_the_mapping():
    def guide(y):
        pyro.sample("z", dist.Normal(loc, 1.0), infer={"estimator": "score"})

    def model(y):
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    loc, found = torch.tensor(0.3, requires_grad=True), []
    for estimators in (None, "score", {"z": "score"}, {"z": "pathwise"}):
        torch.manual_seed(0)
        bound = Program(4, estimators=estimators).terms(model, guide, torch.tensor(1.0)).bound
        found.append(torch.autograd.grad(bound, loc)[0])
    assert found[0] == found[1] == found[2] != found[3]


# -- plates, masks, elements ----------------------------------------------------------------------------------------


def test_assignments_of_a_mixture_are_enumerated_one_by_one():
    """Tasks that share latents, by ``additive``: the bound is that of Pyro's TraceEnum_ELBO with the same draws."""
    y = torch.tensor([-2.0, 1.9, 2.2, -1.7, 0.1]).double()
    loc = torch.tensor([-1.0, 1.0]).double().requires_grad_()
    logits = torch.linspace(-1, 1, 10).reshape(5, 2).double().requires_grad_()

    def model(y):
        with pyro.plate("components", 2):
            means = pyro.sample("means", dist.Normal(torch.zeros(()).double(), 3.0))
        with pyro.plate("data", 5):
            k = pyro.sample("k", dist.Categorical(torch.ones(2).double() / 2))
            picked = means[..., k] if means.dim() == 1 else torch.where(k == 0, means[..., :1], means[..., 1:])
            pyro.sample("y", dist.Normal(picked, 1.0), obs=y)

    def guide(y):
        with pyro.plate("components", 2):
            pyro.sample("means", dist.Normal(loc, torch.tensor(0.3).double()))
        with pyro.plate("data", 5):
            pyro.sample("k", dist.Categorical(logits=logits))

    objective = Program(1, program=elbo, estimators={"k": "enumerate"}, additive=True)
    torch.manual_seed(1)
    terms = objective.terms(model, guide, y)
    assert terms.bound.shape == (5,)
    torch.manual_seed(1)
    reference = -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, config_enumerate(guide), y)
    torch.testing.assert_close(terms.bound.sum(), reference, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(v, [loc, logits]) for v in (terms.bound.sum(), reference))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"^additive: got True for a program that is no weighted sum of log-densities"):
        Program(1, program=lambda p: p.log_weights.exp(), additive=True).terms(model, guide, y)


@pytest.mark.parametrize("estimator", ["enumerate", "measure-valued"])
def test_elements_of_a_site_within_a_task_take_their_states_jointly(estimator):
    """Two Bernoulli vectors, one an event, the other in a plate that is no task's, tied by the likelihood."""
    a = torch.tensor([0.3, -0.5, 0.8]).double().requires_grad_()
    b = torch.tensor([0.2, 0.6]).double().requires_grad_()
    y = torch.tensor([0.4, 1.5, 2.0]).double()

    def sites(a_logits, b_logits, observed=None):
        tasks, units = pyro.plate("tasks", 3, dim=-1), pyro.plate("units", 2, dim=-2)
        with tasks:
            first = pyro.sample("a", dist.Bernoulli(logits=a_logits).expand([3, 3]).to_event(1))
        with units, tasks:
            second = pyro.sample("b", dist.Bernoulli(logits=b_logits[:, None]))
        if observed is not None:
            weighted = (first * torch.tensor([1.0, 0.5, 0.2]).double()).sum(-1)
            total = weighted * (second.sum(-2) if weighted.dim() == 1 else second.sum(-2, keepdim=True))
            with tasks:
                pyro.sample("y", dist.Normal(total, 1.0), obs=observed)

    def model(y):
        sites(torch.zeros(3).double(), torch.zeros(2).double(), y)

    def guide(y):
        sites(a, b)

    q = torch.cat([a, b])
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5))).double()
    log_q = dist.Bernoulli(logits=q).log_prob(states).sum(-1)
    total = (states[:, :3] * torch.tensor([1.0, 0.5, 0.2]).double()).sum(-1) * states[:, 3:].sum(-1)
    log_w = 5 * math.log(0.5) + dist.Normal(total[:, None], 1.0).log_prob(y) - log_q[:, None]
    wanted = (log_q.exp()[:, None] * log_w).sum(0)
    right = torch.cat(torch.autograd.grad(wanted.sum(), [a, b], retain_graph=True))
    if estimator == "enumerate":
        bound = Program(2, program=elbo, estimators=estimator, max_plate_nesting=2).terms(model, guide, y).bound
        torch.testing.assert_close(bound, wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(torch.cat(torch.autograd.grad(bound.sum(), [a, b])), right, rtol=1e-10, atol=1e-10)
        return
    torch.manual_seed(0)
    objective = Program(2_000, program=elbo, estimators=estimator, max_plate_nesting=2)
    found = torch.stack(
        [torch.cat(torch.autograd.grad(objective.terms(model, guide, y).bound.sum(), [a, b])) for _ in range(8)]
    )
    error = found.std(0) / 8**0.5
    assert ((found.mean(0) - right).abs() < 6 * error).all() and (error < 0.05).all()


@pytest.mark.parametrize("estimator", ["enumerate", "measure-valued", "score"])
def test_ragged_and_empty_tasks_are_as_alone(estimator):
    """A task's part of a padded batch has its gradient by itself; a task without points has the prior's alone."""
    torch.manual_seed(0)
    model = MaskedNetwork([1, 3, 1], likelihood="gaussian", noise_scale=0.3).double()
    guide = BernoulliMaskGuide(model, 4).double()
    tasks = [Dataset(torch.randn(n, 1).double(), torch.randn(n, 1).double()) for n in (4, 2, 0)]
    objective = Program(2, program=elbo, estimators=estimator)
    batch = Dataset.pad(tasks)
    if estimator == "enumerate":
        bound = objective.terms(model, guide, batch).bound
        for own, data in zip(bound, tasks, strict=True):
            alone = objective.terms(model, guide, data).bound
            torch.testing.assert_close(own, alone, rtol=1e-9, atol=1e-9)
            for p in guide.parameters():
                got, right = (torch.autograd.grad(v, p, retain_graph=True, allow_unused=True)[0] for v in (own, alone))
                got, right = (torch.zeros_like(p) if g is None else g for g in (got, right))
                torch.testing.assert_close(got, right, rtol=1e-8, atol=1e-9)
    else:
        bound = objective.terms(model, guide, batch).bound
        bound.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in guide.parameters() if p.grad is not None)
    assert torch.isfinite(bound).all()


def test_a_masked_site_is_still_a_probability():
    logits = torch.tensor([0.4, -0.3]).double().requires_grad_()
    mask = torch.tensor([True, False])

    def pair(q):
        with pyro.plate("tasks", 2), pyro.poutine.mask(mask=mask):
            k = pyro.sample("k", dist.Bernoulli(logits=q))
            return pyro.sample("y", dist.Normal(k, 1.0), obs=torch.ones(2).double()) if q is prior else None

    prior = torch.zeros(2).double()
    bound = Program(1, program=elbo, estimators="enumerate").terms(lambda: pair(prior), lambda: pair(logits)).bound
    q = torch.sigmoid(logits[0])
    fit = dist.Normal(torch.tensor([0.0, 1.0]).double(), 1.0).log_prob(torch.tensor(1.0).double())
    wanted = q * (fit[1] - q.log()) + (1 - q) * (fit[0] - (1 - q).log()) - math.log(2)
    torch.testing.assert_close(bound, torch.stack([wanted, torch.zeros(()).double()]), rtol=1e-10, atol=1e-10)
    assert torch.autograd.grad(bound.sum(), logits)[0][1] == 0


# -- baselines, refusals, fitting -----------------------------------------------------------------------------------


def test_baselines_change_the_noise_and_not_the_mean():
    chain = Chain()
    right, noise = chain.gradient(chain.exact(1)), {}
    for baseline in ("none", "running-mean", "leave-one-out"):
        torch.manual_seed(0)
        objective = Program(4, program=lambda p: p.log_weights - 5, estimators="score", baseline=baseline)
        found = torch.stack(
            [chain.gradient(objective.terms(chain.model, chain.guide, TASKS).bound.mean()) for _ in range(12)]
        )[2:]
        error = found.std(0) / len(found) ** 0.5
        assert ((found.mean(0) - right).abs() < 6 * error).all()
        noise[baseline] = found.var(0).sum()
    assert noise["running-mean"] < 0.5 * noise["none"]
    assert noise["leave-one-out"] < 0.5 * noise["none"]
    assert objective.module is None


def test_a_program_is_fitted_and_its_running_mean_is_saved(tmp_path):
    def run(steps, folder, resume=False):
        torch.manual_seed(0)
        model = MaskedNetwork([1, 4, 1], likelihood="gaussian", noise_scale=0.3)
        data = Dataset(torch.randn(20, 1), torch.randn(20, 1))
        guide = BernoulliMaskGuide(model, 4)
        objective = Program(2, estimators="score", baseline="running-mean")
        fit(model, guide, data, objective, steps=steps, checkpoint_dir=folder, resume=resume, progress=False)
        return objective.module.total, torch.cat([p.detach().flatten() for p in guide.parameters()])

    whole = run(6, tmp_path / "whole")
    run(3, tmp_path / "half")
    halved = run(6, tmp_path / "half", resume=True)
    assert whole[0] == halved[0] != 0
    torch.testing.assert_close(whole[1], halved[1], rtol=0, atol=0)


MODEL, GUIDE, BATCH = problem()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": {"q": "score"}}, r"^estimators: got site 'q'; the guide draws 'z'$"),
        ({"estimators": "reinforce"}, r"^estimators: got 'reinforce'; it must be"),
        ({"estimators": {"z": "pathwise"}}, r"^site 'z': got estimator 'pathwise', and Categorical cannot be reparam"),
        ({"estimators": "measure-valued"}, r"^site 'z': got estimator 'measure-valued', and Categorical is none of"),
        ({"program": lambda p: p.log_weights.sum()}, r"^program: got \(\) from particles and tasks \(4, 4\); it must"),
        ({"program": lambda p: 1.0}, r"^program: got float from"),
        ({"program": lambda p: p.log_weights - p.log_weights.mean(0)}, r"^program: .* depends on other particles"),
        ({"program": lambda p: p.log_weights.softmax(-1)}, r"^program: got a task's value that depends on other tasks"),
        ({"program": lambda p: p.log_p - p.log_q_stopped}, r"^program: it reads log_q_stopped, which .*stopped=True"),
        ({"baseline": "moving"}, r"^baseline: got 'moving'; it must be one of"),
        ({"program": iwae, "additive": True}, r"^additive: got True for a program of all particles"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Program(4, **options).terms(MODEL, GUIDE, BATCH)


def test_too_many_states_and_no_finite_support_are_refused():
    model = BayesianNetwork([1, 2, 1], likelihood="gaussian", noise_scale=0.3)
    data = Dataset(torch.randn(5, 1), torch.randn(5, 1))
    with pytest.raises(
        ValueError, match=r"^site 'layer_0.weight': got estimator 'enumerate', and Normal has no finite"
    ):
        make("program", estimators="enumerate").terms(model, AmortisedMeanFieldGuide(model, 4), data)
    masked = MaskedNetwork([1, 20, 1], likelihood="gaussian", noise_scale=0.3)
    with pytest.raises(ValueError, match=r"^site .*: got estimator 'enumerate' for 1.05e\+06 states in each task"):
        make("program", estimators="enumerate").terms(masked, BernoulliMaskGuide(masked, 4), data)
