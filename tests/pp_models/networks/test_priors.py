"""Priors: densities and moments against dense float64 algebra, at every granularity."""

import math

import pyro
import pytest
import torch

from pp_models import BayesianNetwork, Dataset, FixedGaussianPrior, LearnedGaussianPrior, LogUniformPrior
from pp_models.log_uniform import LogUniform
from pp_models.networks.priors import GRANULARITIES

SHAPES = [(3, 3), (1, 4)]


def built(prior):
    prior.build(SHAPES)
    return prior.double()


def randomised(granularity, scale_by_fan_in=True):
    prior = built(LearnedGaussianPrior(granularity, scale_by_fan_in))
    with torch.no_grad():
        for p in prior.parameters():
            p.normal_(0, 0.4)
    return prior


def joint_gaussian(prior):
    """Mean and covariance of all weights, flattened layer by layer, from the prior's parameters."""
    means, factors = [], []
    if prior.granularity == "network":
        tril = prior.lower[0].tril(-1) + torch.diag(prior.log_diagonal[0].exp())
        scale = torch.cat([torch.full((a * b,), 1 / math.sqrt(b), dtype=torch.float64) for a, b in SHAPES])
        tril = scale[:, None] * tril if prior.scale_by_fan_in else tril
        return prior.loc[0].detach(), (tril @ tril.T).detach()
    for i, (a, b) in enumerate(SHAPES):
        means.append(prior.loc[i].flatten())
        if prior.granularity == "weight":
            block = torch.diag(prior.log_diagonal[i].exp().flatten())
        elif prior.granularity == "unit":
            block = torch.block_diag(
                *[prior.lower[i][k].tril(-1) + torch.diag(prior.log_diagonal[i][k].exp()) for k in range(a)]
            )
        else:
            block = prior.lower[i].tril(-1) + torch.diag(prior.log_diagonal[i].exp())
        factors.append(block / math.sqrt(b) if prior.scale_by_fan_in else block)
    tril = torch.block_diag(*factors)
    return torch.cat(means).detach(), (tril @ tril.T).detach()


@pytest.mark.parametrize("scale_by_fan_in", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_layers_multiply_to_the_joint_density(granularity, scale_by_fan_in):
    prior = randomised(granularity, scale_by_fan_in)
    weights = [torch.randn(5, *shape).double() for shape in SHAPES]  # five task draws at once
    total = sum(prior.layer(i, weights[:i]).log_prob(w) for i, w in enumerate(weights))
    mean, covariance = joint_gaussian(prior)
    flat = torch.cat([w.flatten(-2) for w in weights], -1)
    expected = torch.distributions.MultivariateNormal(mean, covariance).log_prob(flat)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_draws_have_the_moments_of_the_joint(granularity):
    prior = randomised(granularity)
    n = 40_000
    with torch.no_grad():
        first = prior.layer(0, []).sample((n,))
        conditional = prior.layer(1, [first])
        second = conditional.sample() if conditional.batch_shape else conditional.sample((n,))
        mean, covariance = joint_gaussian(prior)
    flat = torch.cat([first.flatten(-2), second.flatten(-2)], -1)
    scale = covariance.diagonal().sqrt()
    assert float(((flat.mean(0) - mean) / scale).abs().max()) < 5 / math.sqrt(n)
    correlation = covariance / scale / scale[:, None]
    assert float((torch.cov(flat.T) / scale / scale[:, None] - correlation).abs().max()) < 8 / math.sqrt(n)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_learned_priors_start_at_the_fixed_one(granularity):
    learned, fixed = built(LearnedGaussianPrior(granularity)), built(FixedGaussianPrior())
    weights = [torch.randn(shape).double() for shape in SHAPES]
    for i, w in enumerate(weights):
        torch.testing.assert_close(
            learned.layer(i, weights[:i]).log_prob(w), fixed.layer(i, weights[:i]).log_prob(w), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_parameter_of_a_learned_prior_gets_a_gradient(granularity):
    prior = randomised(granularity)
    weights = [torch.randn(shape).double() for shape in SHAPES]
    sum(prior.layer(i, weights[:i]).log_prob(w) for i, w in enumerate(weights)).backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in prior.parameters() if p.numel() > 1)


@pytest.mark.parametrize("batch", [(), (2,), (3, 2)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_model_samples_every_granularity_with_any_task_dimensions(granularity, batch):
    model = BayesianNetwork([2, 3, 1], prior=LearnedGaussianPrior(granularity))
    nodes = pyro.poutine.trace(model).get_trace(Dataset(torch.randn(*batch, 4, 2))).nodes
    assert [nodes[f"layer_{i}.weight"]["value"].shape for i in range(2)] == [(*batch, 3, 3), (*batch, 1, 4)]


@pytest.mark.parametrize(("scaled", "expected"), [(True, [2 / math.sqrt(3), 1.0]), (False, [2.0, 2.0])])
def test_fixed_prior_divides_by_the_fan_in_with_its_bias(scaled, expected):
    prior = built(FixedGaussianPrior(scale_by_fan_in=scaled, scale=2.0))
    for i, scale in enumerate(expected):
        fn = prior.layer(i, [])
        assert fn.event_shape == SHAPES[i]
        torch.testing.assert_close(fn.base_dist.scale, torch.full(SHAPES[i], scale).double())
        assert float(fn.base_dist.loc.abs().max()) == 0.0


def test_log_uniform_density_integrates_to_one_on_its_cut():
    prior = built(LogUniformPrior(1e-3, 2.0))
    fn = LogUniform(prior.low, prior.high)
    assert prior.layer(0, []).event_shape == SHAPES[0]
    low, high = float(fn.low), float(fn.high)
    assert (low, high) == pytest.approx((1e-3, 2.0))
    magnitudes = torch.logspace(math.log10(low), math.log10(high), 20_001, dtype=torch.float64)
    both = [torch.trapezoid(fn.log_prob(sign * magnitudes).exp(), magnitudes) for sign in (1, -1)]
    assert float(both[0]) == pytest.approx(0.5, abs=1e-6)
    assert float(both[0]) == float(both[1])


def test_log_uniform_draws_are_uniform_in_log_and_in_sign():
    prior = built(LogUniformPrior(1e-3, 2.0))
    draws = prior.layer(0, []).sample((20_000,)).flatten()
    position = (draws.abs().log() - math.log(1e-3)) / math.log(2.0 / 1e-3)
    assert -1e-6 < float(position.min()) < 1e-3 and 1 - 1e-3 < float(position.max()) < 1 + 1e-6
    grid = torch.linspace(0, 1, 11, dtype=torch.float64)
    below = (position[:, None] < grid).double().mean(0)
    assert float((below - grid).abs().max()) < 0.01
    assert abs(float(draws.sign().mean())) < 0.02


def test_log_uniform_gradient_is_that_of_the_improper_prior_everywhere():
    fn = LogUniform(*torch.tensor([1e-3, 2.0], dtype=torch.float64))
    w = torch.tensor([1e-5, -0.5, 1.0, 50.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(fn.log_prob(w).sum(), w)
    torch.testing.assert_close(gradient, -1 / w.detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedGaussianPrior(scale=0.0), r"^scale: got 0.0; it must be positive and finite$"),
        (lambda: FixedGaussianPrior(scale=float("nan")), r"^scale: got nan; it must be positive and finite$"),
        (
            lambda: LearnedGaussianPrior("row"),
            r"^granularity: got 'row'; it must be one of weight, unit, layer, network$",
        ),
        (lambda: LogUniformPrior(1.0, 1.0), r"^low, high: got 1.0, 1.0; they must satisfy 0 < low < high$"),
        (lambda: LogUniformPrior(0.0, 1.0), r"^low: got 0.0; it must be positive and finite$"),
    ],
)
def test_bad_arguments_in_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- partly learned ----------------------------------------------------------------------------------------------------


def effective(prior):
    """Mean and Cholesky factor of every layer, before the division by the fan-in."""
    found = []
    for i in range(len(prior.loc)):
        found += [t.detach().clone() for t in prior.moments(i)]
    return found


@pytest.mark.parametrize("granularity", ["weight", "unit", "layer", "network"])
@pytest.mark.parametrize("proportion", [0.0, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("end", ["last", "first"])
def test_fifty_adam_steps_leave_the_rest_as_it_was(granularity, proportion, end):
    """Bit-identical, weight decay and momentum or not; floor(p * weights) means are learned."""
    torch.manual_seed(0)
    prior = LearnedGaussianPrior(granularity, trainable=proportion, trainable_from=end)
    model = BayesianNetwork([2, 4, 3], prior=prior)
    before = effective(prior)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=0.1, weight_decay=0.1)
    weights = [torch.randn(shape) for shape in model.weight_shapes]
    for _ in range(50):
        optimizer.zero_grad()
        loss = -sum(prior.layer(i, weights[:i]).log_prob(w) for i, w in enumerate(weights))
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
    total = sum(w.numel() for w in weights)
    moved = sum(int((a != b).sum()) for a, b in zip(before[::2], effective(prior)[::2], strict=True))
    assert moved == int(proportion * total + 1e-9)
    if granularity in ("weight", "unit"):
        first, last = (before[2 * i] != effective(prior)[2 * i] for i in (0, 1))
        whole, part = (last, first) if end == "last" else (first, last)
        assert whole.all() if moved >= whole.numel() else not part.any()


def test_bad_proportions():
    with pytest.raises(ValueError, match=r"^trainable: got 1.5; it must lie in \[0, 1\]$"):
        LearnedGaussianPrior(trainable=1.5)
    with pytest.raises(ValueError, match=r"^trainable_from: got 'middle'; it must be 'last' or 'first'$"):
        LearnedGaussianPrior(trainable_from="middle")
