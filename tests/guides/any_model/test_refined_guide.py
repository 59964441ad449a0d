"""Semi-amortised: no step is the guide to the bit, many are the optimum of its family on each data set."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.distributions import MultivariateNormal, kl_divergence

from guidebook import load, save
from guides import (
    AmortisedMultivariateNormalGuide,
    AmortisedNormalGuide,
    BernoulliExpertGuide,
    BNNWeightGuide,
    FlowGuide,
    MAMLGuide,
    RefinedGuide,
)
from guides.any_model.local_parameters import moved, moves_of
from inference import sample_posterior
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset
from tests.guides.any_model.linear_gaussian import DESIGN, NOISE, PRIOR, draw, model, posterior


def of(kind, **options):
    return kind(model, 8, example=(draw(2),), plates="tasks", **options)


def density(guide, y):
    with torch.no_grad():
        return poutine.trace(guide).get_trace(y).nodes["unconstrained_latents"]["fn"]


def test_no_step_is_the_guide_to_the_bit():
    guide, y = of(FlowGuide), draw(3)
    values = []
    for each in (guide, RefinedGuide(guide, steps=0)):
        torch.manual_seed(3)
        values.append(each(y)["w"])
    assert torch.equal(*values)
    before = torch.get_rng_state()
    RefinedGuide(guide, steps=2).moves(y)
    assert torch.equal(torch.get_rng_state(), before)  # steps draw from a seed of their own


def test_many_steps_are_the_posterior_of_every_data_set_where_the_family_holds_it():
    guide, y = of(AmortisedMultivariateNormalGuide), 0.5 * draw(4)
    kls = []
    for steps in (0, 20, 300):
        q = density(RefinedGuide(guide, steps=steps, num_particles=2, learning_rate=0.2), y)
        kls.append(kl_divergence(MultivariateNormal(q.loc, q.covariance_matrix), posterior(y)))
    assert bool((kls[1] < kls[0]).all()) and bool((kls[2] < kls[1]).all())
    assert float(kls[2].max()) < 1e-6 < 0.5 < float(kls[0].min())


def test_many_steps_of_a_diagonal_guide_are_the_best_diagonal_one():
    y = 0.5 * draw(3)
    q = density(RefinedGuide(of(AmortisedNormalGuide), steps=200, num_particles=2, learning_rate=0.2), y)
    precision = torch.diag(PRIOR**-2) + DESIGN.mT @ DESIGN / NOISE**2
    torch.testing.assert_close(q.stddev, precision.diagonal().rsqrt().expand(3, 3), rtol=0.1, atol=0.0)
    torch.testing.assert_close(q.mean, posterior(y).mean, rtol=0.1, atol=0.1)


def test_each_task_is_refined_by_itself():
    guide, y = of(AmortisedNormalGuide), draw(4)
    other = y.clone()
    other[2:] += 1.0
    refined = RefinedGuide(guide, steps=5)
    torch.testing.assert_close(density(refined, y).mean[:2], density(refined, other).mean[:2])
    assert not torch.allclose(density(refined, y).mean[2:], density(refined, other).mean[2:])


def test_padding_changes_no_steps():
    net = BayesianNetwork([1, 3, 1], noise_scale=0.3).double()
    refined = RefinedGuide(AmortisedNormalGuide(net, 8).double(), steps=3)
    x, y = torch.randn(2, 4, 1).double(), torch.randn(2, 4, 1).double()
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    wide = Dataset(torch.cat([x, x[:, :2]], 1), torch.cat([y, y[:, :2]], 1), mask)
    for name, draws in sample_posterior(net, refined, Dataset(x, y), 2, seed=0).items():
        torch.testing.assert_close(sample_posterior(net, refined, wide, 2, seed=0)[name], draws)


def test_the_answer_is_kept_until_data_or_parameters_change():
    guide, y = of(AmortisedNormalGuide), draw(2)
    refined = RefinedGuide(guide, steps=2)
    with torch.no_grad():
        first = refined.moves(y)
        assert refined.moves(y) is first
        y.add_(1.0)
        second = refined.moves(y)
        assert second is not first
        next(iter(guide.parameters())).add_(0.1)
        assert refined.moves(y) is not second
        assert copy.deepcopy(refined)._of_model[0] is model


@pytest.mark.parametrize("gradient", ["stopped", "through"])
def test_gradients_are_those_of_finite_differences_or_take_the_moves_as_constant(gradient):
    guide, y = of(AmortisedNormalGuide), draw(2)
    refined = RefinedGuide(guide, steps=3, num_particles=1, gradient=gradient)
    bias = guide.head.bias

    def loss(moves=None):
        torch.manual_seed(0)
        fixed = RefinedGuide(guide, steps=1)
        fixed.moves = lambda *_: moves
        return Trace_ELBO().differentiable_loss(model, refined if moves is None else fixed, y)

    (gradient_of,) = torch.autograd.grad(loss(), bias)
    constant = (
        None
        if gradient == "through"
        else {s: {n: v.detach() for n, v in m.items()} for s, m in refined.moves(y).items()}
    )
    numbers = []
    with torch.no_grad():
        for i in range(3):
            ends = []
            for step in (1e-5, -1e-5):
                bias[i] += step
                ends.append(float(loss(constant)))
                bias[i] -= step
            numbers.append((ends[0] - ends[1]) / 2e-5)
    torch.testing.assert_close(gradient_of[:3], torch.tensor(numbers, dtype=torch.float64), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
def test_an_auto_guide_is_refined_and_still_trained_under_its_own_names(auto):
    def schools(y):
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 3):
            pyro.sample("y", dist.Normal(mu, 1 + tau), obs=y)

    y = torch.tensor([1.0, 5.0, 2.0])
    guide = auto(schools)
    guide(y)
    names = set(pyro.get_param_store().keys())
    loss = make("elbo", num_particles=30)
    assert loss.loss(schools, RefinedGuide(guide, steps=40), y) < loss.loss(schools, guide, y) - 0.5
    svi = SVI(schools, RefinedGuide(guide, steps=2), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(y) for _ in range(3)]
    assert all(map(math.isfinite, losses)) and set(pyro.get_param_store().keys()) == names


def test_steps_help_a_guide_in_training():
    """After the same training, the bound of a refined guide is the better one, on data of other tasks."""
    torch.manual_seed(0)
    bounds = {}
    for steps in (0, 5):
        guide = of(AmortisedNormalGuide)
        refined = RefinedGuide(guide, steps=steps, num_particles=1)
        svi = SVI(model, refined, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        for _ in range(40):
            svi.step(draw(8))
        torch.manual_seed(1)
        bounds[steps] = make("elbo", num_particles=50).loss(model, refined, draw(20))
    assert bounds[5] < bounds[0]


def test_saving_and_loading(tmp_path):
    net = BayesianNetwork([1, 3, 1], noise_scale=0.3)
    refined = RefinedGuide(FlowGuide(net, 8, transforms=1, hidden=[8]), steps=2)
    save(tmp_path / "fit", net, refined)
    other_net, other = load(tmp_path / "fit")[:2]
    d = Dataset(torch.randn(2, 4, 1), torch.randn(2, 4, 1))
    draws = [sample_posterior(m, g, d, 2, seed=0) for m, g in ((net, refined.eval()), (other_net, other))]
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
    assert other._of_model[0] is other_net


@pytest.mark.parametrize(
    "fn",
    [
        dist.Normal(torch.randn(2, 3), torch.rand(2, 3) + 0.5).to_event(1),
        dist.MultivariateNormal(torch.randn(2, 3), torch.eye(3)),
        dist.LowRankMultivariateNormal(torch.randn(3), torch.randn(3, 1), torch.ones(3)),
        dist.StudentT(torch.tensor(4.0), torch.randn(2), torch.rand(2) + 0.5),
        dist.LogNormal(torch.randn(2), torch.rand(2) + 0.5),
        dist.Gamma(torch.rand(2) + 0.5, torch.rand(2) + 0.5),
        dist.Beta(torch.rand(2) + 0.5, torch.rand(2) + 0.5),
        dist.Dirichlet(torch.rand(2, 3) + 0.5),
    ],
    ids=lambda fn: type(fn).__name__,
)
def test_a_distribution_that_is_not_moved_is_itself_and_one_that_is_has_its_shape(fn):
    moves = moves_of(fn, "z")
    value = fn.sample()
    torch.testing.assert_close(moved(fn, moves).log_prob(value), fn.log_prob(value))
    other = moved(fn, {name: move + 0.3 for name, move in moves.items()})
    assert other.batch_shape == fn.batch_shape and other.event_shape == fn.event_shape
    assert not torch.allclose(other.log_prob(value), fn.log_prob(value))


class Chained(torch.nn.Module):
    def forward(self, y):
        with pyro.plate("tasks", len(y)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.Normal(a, 1.0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda net: RefinedGuide(Chained()), r"^model: got None, and Chained does not say for which model"),
        (lambda net: RefinedGuide(Chained(), model)(draw(2)), r"^guide: the distribution of site 'b' depends on other"),
        (
            lambda net: RefinedGuide(BNNWeightGuide(net))(one()),
            r"^guide: site 'layer_0.weight' has a Whit",
        ),
        (
            lambda net: RefinedGuide(BernoulliExpertGuide(net, 8))(one()),
            r"^guide: site .* has a DropoutN",
        ),
        (lambda net: RefinedGuide(MAMLGuide(net))(one()), r"^guide: it draws nothing"),
        (lambda net: RefinedGuide(FlowGuide(net, 8), steps=-1), r"^steps: got -1; it must be at least 0$"),
        (
            lambda net: RefinedGuide(FlowGuide(net, 8), gradient="on"),
            r"^gradient: got 'on'; it must be 's",
        ),
        (
            lambda net: list(RefinedGuide(AmortisedNormalGuide(model)).parameters()),
            r"it has no parameters before it has",
        ),
    ],
)
def test_what_cannot_be_refined_is_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(BayesianNetwork([1, 3, 1]))
    assert "\n" not in str(caught.value)


def one():
    return Dataset(torch.randn(4, 1), torch.randn(4, 1))
